//! The command line, and the configuration that it resolves to.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, ValueEnum};
use grpo_oracle::options::LossAggMode;
use grpo_oracle::train::builtin::Level;
use grpo_oracle::train::config::{Config, Dtype, preset};
use grpo_oracle::{Error, Result};
use serde::de::{DeserializeOwned, IntoDeserializer, value};
use tch::{Cuda, Device};

/// GRPO on GSM8K: a language model samples several answers to each problem and moves towards the better ones. What is
/// not given is the preset's.
#[derive(Debug, Parser)]
#[command(name = "gsm8k")]
pub(crate) struct Options {
    /// Where to start from: tiny (from nothing, in seconds), demo (SmolLM2 on sums) or gsm8k (for a GPU)
    #[arg(long, default_value = "demo")]
    pub(crate) preset: String,
    /// A .gguf file or a Hugging Face directory; ./setup fetches the default
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// A folder with train.jsonl and test.jsonl, or `gsm8k` to fetch GSM8K from the hub [default: $GSM8K_DIR, else
    /// built-in problems]
    #[arg(long, conflicts_with = "level")]
    pub(crate) data: Option<String>,
    /// How hard the built-in problems are: tiny, easy, medium, hard (or 0 to 3)
    #[arg(long)]
    pub(crate) level: Option<Level>,
    /// Training steps
    #[arg(long)]
    pub(crate) steps: Option<usize>,
    /// Problems per step
    #[arg(long)]
    pub(crate) prompts: Option<usize>,
    /// Responses to each problem
    #[arg(long)]
    pub(crate) samples: Option<usize>,
    /// Temperature of the sampled responses
    #[arg(long)]
    pub(crate) temperature: Option<f64>,
    /// Sample from the most likely tokens that together have this probability
    #[arg(long)]
    pub(crate) top_p: Option<f64>,
    /// The longest response, in tokens
    #[arg(long)]
    pub(crate) max_new_tokens: Option<usize>,
    /// Learning rate
    #[arg(long)]
    pub(crate) lr: Option<f64>,
    /// Weight of the KL (k3) to the start model; 0 leaves it out
    #[arg(long)]
    pub(crate) kl_coef: Option<f64>,
    /// The ratio is clipped below 1 - this
    #[arg(long)]
    pub(crate) clip_ratio_low: Option<f64>,
    /// The ratio is clipped above 1 + this
    #[arg(long)]
    pub(crate) clip_ratio_high: Option<f64>,
    /// token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean or seq-mean-token-sum-norm
    #[arg(long, value_parser = named::<LossAggMode>)]
    pub(crate) loss_agg_mode: Option<LossAggMode>,
    /// How rewards become advantages
    #[arg(long, value_enum)]
    pub(crate) adv: Option<Advantage>,
    /// How often each step goes through its responses
    #[arg(long)]
    pub(crate) epochs: Option<usize>,
    /// Problems per optimiser step [default: all of a step]
    #[arg(long)]
    pub(crate) mini_batch: Option<usize>,
    /// Responses per forward and backward pass: memory only, the result does not depend on it
    #[arg(long)]
    pub(crate) micro_batch: Option<usize>,
    /// The largest norm of the gradient
    #[arg(long)]
    pub(crate) max_grad_norm: Option<f64>,
    /// Held-out problems per evaluation
    #[arg(long)]
    pub(crate) eval_problems: Option<i64>,
    /// Steps between evaluations
    #[arg(long)]
    pub(crate) eval_every: Option<i64>,
    /// Decides the built-in problems, their split, their order and the sampling
    #[arg(long)]
    pub(crate) seed: Option<u64>,
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

impl Options {
    /// The preset with what was given; the folder in `GSM8K_DIR` stands for `--data` where that and `--level` are not.
    pub(crate) fn config(&self, gsm8k_dir: Option<OsString>) -> Result<Config> {
        let mut config = preset::preset(&self.preset)?;
        let from_environment = || gsm8k_dir.map(|folder| folder.to_string_lossy().into_owned());
        let data = match self.level {
            Some(level) => Some(format!("builtin:{}", level.name())),
            None => self.data.clone().or_else(from_environment),
        };
        if let Some(data) = data {
            config.data.max_response_length = response_length(&data);
            config.data.train_files = data;
        }
        let Config { data, actor_rollout_ref: policy, algorithm, trainer, .. } = &mut config;
        set(&mut policy.model.path, &self.model);
        set(&mut data.train_batch_size, &self.prompts);
        set(&mut data.max_response_length, &self.max_new_tokens);
        set(&mut data.val_max_samples, &self.eval_problems);
        set(&mut data.seed, &self.seed);
        set(&mut policy.rollout.n, &self.samples);
        set(&mut policy.rollout.temperature, &self.temperature);
        set(&mut policy.rollout.top_p, &self.top_p);
        set(&mut policy.actor.optim.lr, &self.lr);
        set(&mut policy.actor.kl_loss_coef, &self.kl_coef);
        policy.actor.use_kl_loss = self.kl_coef.map_or(policy.actor.use_kl_loss, |coef| coef != 0.0);
        policy.actor.clip_ratio_low = self.clip_ratio_low.or(policy.actor.clip_ratio_low);
        policy.actor.clip_ratio_high = self.clip_ratio_high.or(policy.actor.clip_ratio_high);
        set(&mut policy.actor.loss_agg_mode, &self.loss_agg_mode);
        set(&mut policy.actor.ppo_epochs, &self.epochs);
        policy.actor.ppo_mini_batch_size = self.mini_batch.or(policy.actor.ppo_mini_batch_size);
        policy.actor.ppo_micro_batch_size_per_gpu =
            self.micro_batch.or(policy.actor.ppo_micro_batch_size_per_gpu);
        set(&mut policy.actor.grad_clip, &self.max_grad_norm);
        algorithm.norm_adv_by_std_in_grpo = self.adv != Some(Advantage::DrGrpo);
        trainer.total_training_steps = self.steps.or(trainer.total_training_steps);
        set(&mut trainer.test_freq, &self.eval_every);
        trainer.default_local_dir = self.out.clone().or(trainer.default_local_dir.take());
        trainer.device = self.device.clone().or(trainer.device.take());
        Ok(config)
    }
}

fn set<T: Clone>(option: &mut T, given: &Option<T>) {
    if let Some(given) = given {
        option.clone_from(given);
    }
}

/// Room for the worked answers of such problems.
fn response_length(data: &str) -> usize {
    match data {
        "builtin:tiny" => 8,
        "builtin:easy" => 32,
        "builtin:medium" => 48,
        "builtin:hard" => 96,
        _ => 256,
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

/// Options that are understood and not yet acted on are refused, not passed over.
pub(crate) fn check_wired(config: &Config) -> Result<()> {
    let (policy, validation) = (&config.actor_rollout_ref, &config.actor_rollout_ref.rollout.val_kwargs);
    let asked = [
        ("actor_rollout_ref.model.lora_rank", policy.model.lora_rank > 0),
        ("actor_rollout_ref.model.enable_gradient_checkpointing", policy.model.enable_gradient_checkpointing),
        ("actor_rollout_ref.actor.dtype", policy.actor.dtype != Dtype::Float32),
        ("actor_rollout_ref.rollout.val_kwargs", validation.n > 1 || validation.do_sample),
        ("trainer.save_freq", config.trainer.save_freq > 0),
    ];
    match asked.iter().find(|(_, is_asked)| *is_asked) {
        Some((key, _)) => Err(Error::option(*key, "is not available in this trainer yet; leave it out")),
        None => Ok(()),
    }
}

/// An enum's variant by the name that it has in JSON.
fn named<T: DeserializeOwned>(name: &str) -> Result<T, value::Error> {
    T::deserialize(name.into_deserializer())
}
