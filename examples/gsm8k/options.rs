//! The command line, and the configuration that it resolves to.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Parser;
use grpo_oracle::config::{self, Config, Dtype, Read, preset};
use grpo_oracle::train::report::CONFIG;
use grpo_oracle::{Error, Result};
use tch::{Cuda, Device, Kind};

/// GRPO on GSM8K: a language model samples several answers to each problem and moves towards the better ones.
///
/// What decides a run has verl's names: `gsm8k --preset tiny algorithm.adv_estimator=rloo data.seed=1`. A preset says what
/// is not given; a YAML file counts more than the preset, and a key=value more than the file.
#[derive(Debug, Default, Parser)]
#[command(name = "gsm8k")]
pub(crate) struct Options {
    /// Where to start from: demo (SmolLM2 on sums, minutes), tiny (a model from nothing, seconds) or gsm8k (for a GPU)
    #[arg(long, default_value = "demo")]
    pub(crate) preset: String,
    /// A configuration in YAML, or the config.json of another run
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Go on with the run in this folder from its newest checkpoint
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["preset", "config"])]
    pub(crate) resume: Option<PathBuf>,
    /// List every key with its default, and end
    #[arg(long)]
    pub(crate) keys: bool,
    /// What is to be otherwise, such as trainer.total_training_steps=100
    #[arg(value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

impl Options {
    /// The preset with what the file and the arguments say otherwise. The folder in `GSM8K_DIR` stands for problems that the
    /// preset would make.
    pub(crate) fn read(&self, gsm8k_dir: Option<OsString>) -> Result<Read> {
        if let Some(folder) = &self.resume {
            let file = folder.join(CONFIG);
            return config::read(Config::default(), Some(&file), &self.overrides);
        }
        let mut start = preset::preset(&self.preset)?;
        if let (Some(folder), "demo") = (gsm8k_dir, self.preset.as_str()) {
            start.data.train_files = folder.to_string_lossy().into_owned();
            start.data.max_response_length = 256;
        }
        config::read(start, self.config.as_deref(), &self.overrides)
    }
}

/// The device asked for, or the best there is.
pub(crate) fn device(config: &Config) -> Result<Device> {
    let off = |problem: String| Error::option("trainer.device", problem);
    let cuda = |index: usize| match index < Cuda::device_count().max(0) as usize {
        true => Ok(Device::Cuda(index)),
        false => Err(off(format!("there is no CUDA device {index} here; use cpu"))),
    };
    match config.trainer.device.as_deref() {
        None => Ok(Device::cuda_if_available()),
        Some("cpu") => Ok(Device::Cpu),
        Some("cuda") => cuda(0),
        Some(other) => match other.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
            Some(index) => cuda(index),
            None => Err(off(format!("`{other}` is unknown; use cpu, cuda or cuda:N"))),
        },
    }
}

/// The format of the weights.
pub(crate) fn kind(config: &Config) -> Kind {
    match config.actor_rollout_ref.actor.dtype {
        Dtype::Float32 => Kind::Float,
        Dtype::Bfloat16 => Kind::BFloat16,
    }
}
