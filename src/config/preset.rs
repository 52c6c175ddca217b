//! Whole configurations by name.

use super::Config;
use crate::{Error, Result};

/// The presets' names.
pub const NAMES: [&str; 3] = ["tiny", "demo", "gsm8k"];

/// The configuration of this name.
///
/// # Errors
/// `option` for a name that there is not.
pub fn preset(name: &str) -> Result<Config> {
    match name {
        "tiny" => Ok(tiny()),
        "demo" => Ok(demo()),
        "gsm8k" => Ok(gsm8k()),
        other => {
            let problem = format!("there is no preset `{other}`; use {}", NAMES.join(", "));
            Err(Error::option("preset", problem))
        }
    }
}

/// A model of a hundred thousand weights learns sums and differences of digits from nothing, in seconds on one core:
/// a supervised start that leaves it half ignorant, then GRPO.
pub fn tiny() -> Config {
    let mut config = Config::default();
    config.actor_rollout_ref.model.path = "tiny".to_owned();
    config.data.train_files = "builtin:tiny".to_owned();
    config.data.train_batch_size = 8;
    config.data.max_prompt_length = 16;
    config.data.max_response_length = 8;
    config.sft.total_epochs = 1000;
    config.sft.total_training_steps = Some(45);
    config.sft.train_batch_size = 32;
    config.sft.micro_batch_size_per_gpu = 32;
    config.sft.optim.lr = 3e-3;
    config.actor_rollout_ref.actor.optim.lr = 1e-3;
    config.actor_rollout_ref.actor.optim.weight_decay = 0.0;
    config.critic.optim.lr = 3e-3;
    config.trainer.total_training_steps = Some(120);
    config.trainer.test_freq = 40;
    config.trainer.project_name = "tiny".to_owned();
    config
}

/// A chat model of 135 million weights learns to write sums in GSM8K's format: about five minutes on two cores.
pub fn demo() -> Config {
    let mut config = Config::default();
    config.data.val_max_samples = 32;
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = Some(16);
    config.actor_rollout_ref.actor.use_kl_loss = true;
    config.actor_rollout_ref.actor.optim.lr = 1e-5;
    config.actor_rollout_ref.actor.optim.weight_decay = 0.0;
    config.trainer.total_training_steps = Some(24);
    config
}

/// The same model on GSM8K itself, for a GPU: first the worked solutions, then GRPO.
pub fn gsm8k() -> Config {
    let mut config = Config::default();
    config.data.train_files = "gsm8k".to_owned();
    config.data.train_batch_size = 32;
    config.data.max_response_length = 256;
    config.data.filter_overlong_prompts = true;
    config.sft.total_epochs = 3;
    config.sft.optim.lr = 2e-5;
    config.sft.optim.lr_warmup_steps_ratio = 0.03;
    config.actor_rollout_ref.rollout.n = 8;
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu = Some(32);
    config.actor_rollout_ref.actor.use_kl_loss = true;
    config.actor_rollout_ref.actor.optim.lr = 2e-6;
    config.actor_rollout_ref.actor.optim.weight_decay = 0.0;
    config.actor_rollout_ref.actor.optim.lr_warmup_steps = Some(10);
    config.trainer.total_training_steps = Some(400);
    config.trainer.test_freq = 50;
    config
}
