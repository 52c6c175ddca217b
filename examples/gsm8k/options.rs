//! The command line, and the configuration that it resolves to.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Parser, ValueEnum};
use grpo_oracle::options::{ActorLoss, Aggregate, Clip, GroupNorm, LossAggMode};
use grpo_oracle::train::builtin::{self, Level};
use grpo_oracle::train::data::{self, Dataset};
use grpo_oracle::train::hub::{self, Hub};
use grpo_oracle::train::optim::AdamWOptions;
use grpo_oracle::train::step::StepOptions;
use grpo_oracle::{Error, Result};
use serde::Serialize;
use serde::de::{DeserializeOwned, IntoDeserializer, value};
use tch::{Cuda, Device};

/// GRPO on GSM8K: a language model samples several answers to each problem and moves towards the better ones.
#[derive(Debug, Parser)]
#[command(name = "gsm8k")]
pub(crate) struct Options {
    /// A .gguf file, a Hugging Face directory or a name on the hub (org/name); ./setup fetches the default
    #[arg(long, default_value = "models/SmolLM2-135M-Instruct.Q4_1.gguf")]
    pub(crate) model: PathBuf,
    /// A folder with train.jsonl and test.jsonl, or `gsm8k` to fetch GSM8K from the hub [default: $GSM8K_DIR, else
    /// built-in problems]
    #[arg(long, conflicts_with = "level")]
    pub(crate) data: Option<PathBuf>,
    /// How hard the built-in problems are: easy, medium, hard (or 1, 2, 3) [default: easy]
    #[arg(long)]
    pub(crate) level: Option<Level>,
    /// Training steps
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Problems per step
    #[arg(long)]
    pub(crate) prompts: Option<usize>,
    /// Responses to each problem
    #[arg(long, default_value_t = 8)]
    pub(crate) samples: usize,
    /// Temperature of the sampled responses
    #[arg(long, default_value_t = 1.0)]
    pub(crate) temperature: f64,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f64,
    /// The longest response, in tokens
    #[arg(long)]
    pub(crate) max_new_tokens: Option<usize>,
    /// Learning rate
    #[arg(long, default_value_t = 1e-5)]
    pub(crate) lr: f64,
    /// Weight of the KL (k3) to the start model; 0 leaves it out
    #[arg(long, default_value_t = 0.001)]
    pub(crate) kl_coef: f64,
    /// The ratio is clipped below 1 - this
    #[arg(long, default_value_t = 0.2)]
    pub(crate) clip_ratio_low: f64,
    /// The ratio is clipped above 1 + this
    #[arg(long, default_value_t = 0.2)]
    pub(crate) clip_ratio_high: f64,
    /// token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean or seq-mean-token-sum-norm
    #[arg(long, default_value = "token-mean", value_parser = named::<LossAggMode>)]
    pub(crate) loss_agg_mode: LossAggMode,
    /// How rewards become advantages
    #[arg(long, value_enum, default_value = "grpo")]
    pub(crate) adv: Advantage,
    /// How often each step goes through its responses
    #[arg(long, default_value_t = 1)]
    pub(crate) epochs: usize,
    /// Responses per optimiser step [default: all of a step]
    #[arg(long)]
    pub(crate) mini_batch: Option<usize>,
    /// Responses per forward and backward pass: memory only, the result does not depend on it
    #[arg(long)]
    pub(crate) micro_batch: Option<usize>,
    /// The largest norm of the gradient
    #[arg(long, default_value_t = 1.0)]
    pub(crate) max_grad_norm: f64,
    /// Held-out problems per evaluation
    #[arg(long)]
    pub(crate) eval_problems: Option<usize>,
    /// Steps between evaluations
    #[arg(long)]
    pub(crate) eval_every: Option<usize>,
    /// Decides the built-in problems, their split, their order and the sampling
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// The run folder [default: runs/<UTC time>-<seed>]
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// cpu, cuda or cuda:N [default: cuda if there is one]
    #[arg(long)]
    pub(crate) device: Option<String>,
}

/// How rewards become advantages.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Advantage {
    /// Centred on the group's mean and divided by its standard deviation (Eq. 28).
    Grpo,
    /// Centred only (Eq. 31).
    #[value(name = "dr_grpo", alias = "dr-grpo")]
    DrGrpo,
}

/// Everything that decides a run; written to its config.json.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Config {
    pub(crate) data: String,
    pub(crate) train_problems: usize,
    pub(crate) test_problems: usize,
    pub(crate) model: PathBuf,
    pub(crate) device: String,
    pub(crate) torch: &'static str,
    pub(crate) seed: u64,
    pub(crate) steps: usize,
    pub(crate) prompts: usize,
    pub(crate) samples: usize,
    pub(crate) temperature: f64,
    pub(crate) top_p: f64,
    pub(crate) max_new_tokens: usize,
    pub(crate) advantage: GroupNorm,
    pub(crate) update: StepOptions,
    pub(crate) adamw: AdamWOptions,
    pub(crate) eval_problems: usize,
    pub(crate) eval_every: usize,
}

impl Options {
    /// The problems: --data, else --level, else the folder in GSM8K_DIR, else the built-in easy ones.
    pub(crate) fn dataset(&self, gsm8k_dir: Option<OsString>) -> Result<Dataset> {
        match (&self.data, self.level, gsm8k_dir) {
            (Some(name), ..) if name.as_os_str() == "gsm8k" => {
                hub::gsm8k(&Hub { progress: true, ..Hub::default() })
            }
            (Some(folder), ..) => data::folder(folder),
            (None, None, Some(folder)) => data::folder(Path::new(&folder)),
            (None, level, _) => Ok(builtin::problems(level.unwrap_or(Level::Easy), self.seed)),
        }
    }

    /// The device asked for, or the best there is.
    pub(crate) fn device(&self) -> Result<Device> {
        let cuda = |index: usize| match index < Cuda::device_count().max(0) as usize {
            true => Ok(Device::Cuda(index)),
            false => Err(Error::option("device", format!("there is no CUDA device {index} here; use cpu"))),
        };
        match self.device.as_deref() {
            None => Ok(Device::cuda_if_available()),
            Some("cpu") => Ok(Device::Cpu),
            Some("cuda") => cuda(0),
            Some(other) => match other.strip_prefix("cuda:").and_then(|index| index.parse().ok()) {
                Some(index) => cuda(index),
                None => {
                    Err(Error::option("device", format!("`{other}` is unknown; use cpu, cuda or cuda:N")))
                }
            },
        }
    }

    /// Fills in what was left open, by the device and the kind of problems, and checks every value.
    pub(crate) fn resolve(&self, data: &Dataset, device: Device) -> Result<Config> {
        let size = size(data.level, device);
        let max_new_tokens = self.max_new_tokens.unwrap_or(size.max_new_tokens);
        // Dr. GRPO divides by a constant: the longest response that there could be.
        let constant = self.loss_agg_mode == LossAggMode::SeqMeanTokenSumNorm;
        let loss_scale_factor = constant.then_some(max_new_tokens as f64);
        let loss = ActorLoss {
            clip: Clip {
                clip_ratio_low: self.clip_ratio_low,
                clip_ratio_high: self.clip_ratio_high,
                ..Clip::eq29()
            },
            kl_loss_coef: self.kl_coef,
            aggregate: Aggregate { loss_scale_factor, ..Aggregate::local(self.loss_agg_mode) },
            ..ActorLoss::grpo()
        };
        let (prompts, samples) = (self.prompts.unwrap_or(size.prompts), self.samples);
        let config = Config {
            data: data.source.clone(),
            train_problems: data.train.len(),
            test_problems: data.test.len(),
            model: self.model.clone(),
            device: match device {
                Device::Cuda(index) => format!("cuda:{index}"),
                _ => "cpu".to_owned(),
            },
            torch: "libtorch 2.11 through tch 0.24",
            seed: self.seed,
            steps: self.steps.unwrap_or(size.steps),
            prompts,
            samples,
            temperature: self.temperature,
            top_p: self.top_p,
            max_new_tokens,
            advantage: match self.adv {
                Advantage::Grpo => GroupNorm::eq28(),
                Advantage::DrGrpo => GroupNorm::dr_grpo(),
            },
            update: StepOptions {
                loss,
                epochs: self.epochs,
                mini_batch: self.mini_batch.unwrap_or(prompts * samples),
                micro_batch: self.micro_batch.unwrap_or(size.micro_batch),
                temperature: self.temperature,
                max_grad_norm: self.max_grad_norm,
            },
            adamw: AdamWOptions::at(self.lr),
            eval_problems: self.eval_problems.unwrap_or(size.eval_problems).min(data.test.len()),
            eval_every: self.eval_every.unwrap_or(size.eval_every),
        };
        config.check()?;
        Ok(config)
    }
}

impl Config {
    fn check(&self) -> Result<()> {
        self.advantage.check()?;
        self.update.loss.check()?;
        let counts = [
            ("steps", self.steps),
            ("prompts", self.prompts),
            ("samples", self.samples),
            ("max_new_tokens", self.max_new_tokens),
            ("epochs", self.update.epochs),
            ("mini_batch", self.update.mini_batch),
            ("micro_batch", self.update.micro_batch),
            ("eval_problems", self.eval_problems),
            ("eval_every", self.eval_every),
        ];
        if let Some((name, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Error::option(*name, "0 is too small; use at least 1"));
        }
        let positive = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("lr", self.adamw.lr),
            ("max_grad_norm", self.update.max_grad_norm),
        ];
        if let Some((name, value)) = positive.iter().find(|(_, value)| *value <= 0.0 || !value.is_finite()) {
            return Err(Error::option(*name, format!("{value} is not a finite number above 0")));
        }
        match self.top_p <= 1.0 {
            true => Ok(()),
            false => Err(Error::option("top_p", format!("{} is above 1", self.top_p))),
        }
    }
}

/// What is left open on the command line.
struct Size {
    steps: usize,
    prompts: usize,
    max_new_tokens: usize,
    micro_batch: usize,
    eval_problems: usize,
    eval_every: usize,
}

/// About five minutes on a CPU with two cores; on a GPU more of everything.
fn size(level: Option<Level>, device: Device) -> Size {
    let max_new_tokens = match level {
        Some(Level::Easy) => 32,
        Some(Level::Medium) => 48,
        Some(Level::Hard) => 96,
        None if device == Device::Cpu => 160,
        None => 256,
    };
    match (device, level) {
        (Device::Cpu, Some(Level::Easy | Level::Medium)) => {
            Size { steps: 24, prompts: 4, max_new_tokens, micro_batch: 16, eval_problems: 32, eval_every: 4 }
        }
        (Device::Cpu, Some(Level::Hard)) => {
            Size { steps: 12, prompts: 4, max_new_tokens, micro_batch: 8, eval_problems: 16, eval_every: 6 }
        }
        (Device::Cpu, None) => {
            Size { steps: 8, prompts: 2, max_new_tokens, micro_batch: 4, eval_problems: 8, eval_every: 8 }
        }
        (_, Some(_)) => Size {
            steps: 100,
            prompts: 16,
            max_new_tokens,
            micro_batch: 64,
            eval_problems: 128,
            eval_every: 10,
        },
        (_, None) => Size {
            steps: 200,
            prompts: 32,
            max_new_tokens,
            micro_batch: 16,
            eval_problems: 256,
            eval_every: 20,
        },
    }
}

/// An enum's variant by the name that it has in JSON.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, value::Error> {
    T::deserialize(name.into_deserializer())
}
