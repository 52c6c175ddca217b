//! Keys that users bring from elsewhere, and what they are here: another name, nothing on one device, or refused.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Everything that was given, by key.
pub(crate) type Given = BTreeMap<String, Value>;

/// Keys and values of ours, or why there are none.
type Ours = Result<Vec<(&'static str, Value)>, &'static str>;

/// What a key of somebody else's is here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Foreign {
    /// Another name of ours.
    Same(&'static str),
    /// It says the same in other words: our keys and values, told from its own value and all that was given.
    Means(fn(&Value, &Given) -> Ours),
    /// It changes nothing that is computed here; the words say why.
    Idle(&'static str),
    /// It asks for what there is not; the words say what to do.
    Refused(&'static str),
}

use Foreign::{Idle, Means, Refused, Same};

const ONE_DEVICE: &str = "the run has one process and one device, so it decides nothing";
const NO_ENGINE: &str = "responses are sampled by this program itself, so it decides nothing";
const NO_MEMORY: &str = "it spends memory or time, and no result depends on it";
const MEGATRON: &str = "the model is on one device; write what is for verl alone under `verl:`";
const VISION: &str = "only language models are trained here; write what is for verl alone under `verl:`";

/// A name, or the beginning of names if it ends in `.*`; the first that fits counts.
pub(crate) const FOREIGN: &[(&str, Foreign)] = &[
    // verl, on several devices
    ("trainer.n_gpus_per_node", Idle(ONE_DEVICE)),
    ("trainer.nnodes", Idle(ONE_DEVICE)),
    ("trainer.balance_batch", Idle(ONE_DEVICE)),
    ("trainer.ray_wait_register_center_timeout", Idle(ONE_DEVICE)),
    ("ray_init.*", Idle(ONE_DEVICE)),
    ("ray_kwargs.*", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.hybrid_engine", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.actor.strategy", Means(strategy)),
    ("critic.strategy", Means(strategy)),
    ("actor_rollout_ref.actor.megatron.*", Refused(MEGATRON)),
    ("actor_rollout_ref.ref.megatron.*", Refused(MEGATRON)),
    ("critic.megatron.*", Refused(MEGATRON)),
    ("actor_rollout_ref.actor.ulysses_sequence_parallel_size", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.actor.fsdp_config.gradient_checkpointing", Same(CHECKPOINTING)),
    ("actor_rollout_ref.actor.fsdp_config.*", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.ref.*", Idle("the reference policy is read as the policy is")),
    ("critic.fsdp.*", Idle(ONE_DEVICE)),
    // verl, its engines of sampling
    ("actor_rollout_ref.rollout.name", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.mode", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.tensor_model_parallel_size", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.rollout.data_parallel_size", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.rollout.pipeline_model_parallel_size", Idle(ONE_DEVICE)),
    ("actor_rollout_ref.rollout.gpu_memory_utilization", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.engine_kwargs.*", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.enforce_eager", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.free_cache_engine", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.enable_chunked_prefill", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.max_num_batched_tokens", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.max_num_seqs", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.max_model_len", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.load_format", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.layered_summon", Idle(NO_ENGINE)),
    ("actor_rollout_ref.rollout.dtype", Idle("responses are sampled with the weights in training")),
    ("actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu", Idle(NO_MEMORY)),
    ("actor_rollout_ref.rollout.log_prob_micro_batch_size", Idle(NO_MEMORY)),
    ("actor_rollout_ref.rollout.log_prob_use_dynamic_bsz", Idle(NO_MEMORY)),
    ("actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu", Idle(NO_MEMORY)),
    ("actor_rollout_ref.rollout.do_sample", Means(do_sample)),
    ("actor_rollout_ref.rollout.calculate_log_probs", Idle("log-probabilities are always computed")),
    ("actor_rollout_ref.rollout.multi_turn.*", Refused("a response has one turn; leave the key out")),
    // verl, memory and speed
    ("actor_rollout_ref.model.use_remove_padding", Idle(NO_MEMORY)),
    ("actor_rollout_ref.model.use_liger", Idle(NO_MEMORY)),
    ("actor_rollout_ref.model.use_shm", Idle(NO_MEMORY)),
    ("actor_rollout_ref.model.trust_remote_code", Idle("no code of the model's directory is run")),
    ("actor_rollout_ref.model.enable_activation_offload", Idle(NO_MEMORY)),
    (
        "actor_rollout_ref.model.exclude_modules",
        Refused("name the layers that get adapters in target_modules"),
    ),
    ("actor_rollout_ref.actor.use_dynamic_bsz", Idle(NO_MEMORY)),
    ("actor_rollout_ref.actor.ppo_max_token_len_per_gpu", Idle(NO_MEMORY)),
    ("actor_rollout_ref.actor.use_torch_compile", Idle(NO_MEMORY)),
    ("actor_rollout_ref.actor.entropy_from_logits_with_chunking", Idle(NO_MEMORY)),
    ("actor_rollout_ref.actor.entropy_checkpointing", Idle(NO_MEMORY)),
    ("actor_rollout_ref.actor.freeze_vision_tower", Refused(VISION)),
    (
        "actor_rollout_ref.actor.ppo_micro_batch_size",
        Same("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"),
    ),
    ("actor_rollout_ref.actor.data_loader_seed", Same("data.seed")),
    ("critic.ppo_micro_batch_size", Same("critic.ppo_micro_batch_size_per_gpu")),
    ("critic.model.path", Idle("the critic starts from the policy's weights")),
    ("critic.model.*", Idle("the critic is built as the policy is")),
    // verl, data and run
    ("data.val_batch_size", Idle(NO_MEMORY)),
    ("data.dataloader_num_workers", Idle(NO_MEMORY)),
    ("data.filter_overlong_prompts_workers", Idle(NO_MEMORY)),
    ("data.truncation", Means(truncation)),
    ("data.prompt_key", Idle("problems are read by the columns `question` and `answer`, or verl's own")),
    ("data.reward_fn_key", Idle("every problem is rewarded as GSM8K is")),
    ("data.image_key", Refused(VISION)),
    ("data.trust_remote_code", Idle("no code of the model's directory is run")),
    ("data.return_raw_chat", Idle(NO_ENGINE)),
    ("reward_model.reward_kwargs.overlong_buffer_cfg.enable", Same("reward.overlong_buffer.enable")),
    ("reward_model.reward_kwargs.overlong_buffer_cfg.len", Same("reward.overlong_buffer.len")),
    (
        "reward_model.reward_kwargs.overlong_buffer_cfg.penalty_factor",
        Same("reward.overlong_buffer.penalty_factor"),
    ),
    ("reward_model.overlong_buffer.enable", Same("reward.overlong_buffer.enable")),
    ("reward_model.overlong_buffer.len", Same("reward.overlong_buffer.len")),
    ("reward_model.overlong_buffer.penalty_factor", Same("reward.overlong_buffer.penalty_factor")),
    ("reward_model.enable", Means(no_reward_model)),
    ("reward_model.reward_manager", Idle("every problem is rewarded as GSM8K is")),
    ("custom_reward_function.*", Refused("every problem is rewarded as GSM8K is; see reward.method")),
    ("algorithm.filter_groups.metric", Idle("groups are told apart by their rewards")),
    (
        "algorithm.rollout_correction.*",
        Refused("rollouts are sampled by the policy itself; there is nothing to correct, see bypass_mode"),
    ),
    ("trainer.log_val_generations", Idle("every response to a problem held out is written")),
    ("trainer.rollout_data_dir", Idle("rollouts are written to the run folder")),
    ("trainer.validation_data_dir", Idle("they are written to the run folder")),
    ("trainer.resume_mode", Refused("resume a run with --resume FOLDER")),
    ("trainer.resume_from_path", Refused("resume a run with --resume FOLDER")),
    ("trainer.del_local_ckpt_after_load", Idle("see trainer.max_actor_ckpt_to_keep")),
    ("trainer.default_hdfs_dir", Idle("checkpoints are written to the run folder")),
    // LoRA as the GRPO guide writes it
    ("actor_rollout_ref.actor.lora.enable", Means(lora_enable)),
    ("actor_rollout_ref.actor.lora.r", Same("actor_rollout_ref.model.lora_rank")),
    ("actor_rollout_ref.actor.lora.alpha", Same("actor_rollout_ref.model.lora_alpha")),
    ("actor_rollout_ref.actor.lora.target_modules", Same("actor_rollout_ref.model.target_modules")),
    ("actor_rollout_ref.model.lora.rank", Same("actor_rollout_ref.model.lora_rank")),
    ("actor_rollout_ref.model.lora.alpha", Same("actor_rollout_ref.model.lora_alpha")),
    ("actor_rollout_ref.model.lora.target_modules", Same("actor_rollout_ref.model.target_modules")),
    ("actor_rollout_ref.actor.gradient_checkpointing", Same(CHECKPOINTING)),
    // EasyR1, as the compute_new_adv guide writes it
    ("data.rollout_batch_size", Same("data.train_batch_size")),
    ("worker.actor.global_batch_size", Same("actor_rollout_ref.actor.ppo_mini_batch_size")),
    (
        "worker.actor.micro_batch_size_per_device_for_update",
        Same("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu"),
    ),
    ("worker.actor.micro_batch_size_per_device_for_experience", Idle(NO_MEMORY)),
    ("worker.actor.model.model_path", Same("actor_rollout_ref.model.path")),
    ("worker.actor.model.enable_gradient_checkpointing", Same(CHECKPOINTING)),
    ("worker.actor.model.trust_remote_code", Idle("no code of the model's directory is run")),
    ("worker.actor.model.freeze_vision_tower", Refused(VISION)),
    ("worker.actor.optim.lr", Same("actor_rollout_ref.actor.optim.lr")),
    ("worker.actor.optim.weight_decay", Same("actor_rollout_ref.actor.optim.weight_decay")),
    ("worker.actor.optim.lr_warmup_ratio", Same("actor_rollout_ref.actor.optim.lr_warmup_steps_ratio")),
    ("worker.actor.max_grad_norm", Same("actor_rollout_ref.actor.grad_clip")),
    ("worker.actor.clip_ratio_low", Same("actor_rollout_ref.actor.clip_ratio_low")),
    ("worker.actor.clip_ratio_high", Same("actor_rollout_ref.actor.clip_ratio_high")),
    ("worker.actor.clip_ratio_dual", Same("actor_rollout_ref.actor.clip_ratio_c")),
    ("worker.actor.ppo_epochs", Same("actor_rollout_ref.actor.ppo_epochs")),
    ("worker.actor.fsdp.*", Idle(ONE_DEVICE)),
    ("worker.actor.offload.*", Idle(ONE_DEVICE)),
    ("worker.rollout.n", Same("actor_rollout_ref.rollout.n")),
    ("worker.rollout.temperature", Same("actor_rollout_ref.rollout.temperature")),
    ("worker.rollout.top_p", Same("actor_rollout_ref.rollout.top_p")),
    ("worker.rollout.top_k", Same("actor_rollout_ref.rollout.top_k")),
    ("worker.rollout.tensor_parallel_size", Idle(ONE_DEVICE)),
    ("worker.rollout.gpu_memory_utilization", Idle(NO_ENGINE)),
    ("worker.ref.*", Idle("the reference policy is read as the policy is")),
    ("algorithm.disable_kl", Means(disable_kl)),
    ("algorithm.use_kl_loss", Means(use_kl_loss)),
    ("algorithm.kl_coef", Means(kl_coef)),
    ("trainer.total_episodes", Same("trainer.total_epochs")),
    ("trainer.max_steps", Same("trainer.total_training_steps")),
    ("trainer.val_freq", Same("trainer.test_freq")),
    ("trainer.save_limit", Same("trainer.max_actor_ckpt_to_keep")),
    ("trainer.save_checkpoint_path", Same("trainer.default_local_dir")),
];

const CHECKPOINTING: &str = "actor_rollout_ref.model.enable_gradient_checkpointing";
const RANK: &str = "actor_rollout_ref.model.lora_rank";

/// What this key of somebody else's is here.
pub(crate) fn foreign(key: &str) -> Option<Foreign> {
    let fits = |name: &str| match name.strip_suffix('*') {
        Some(beginning) => key.starts_with(beginning),
        None => key == name,
    };
    FOREIGN.iter().find(|(name, _)| fits(name)).map(|row| row.1)
}

fn strategy(value: &Value, _: &Given) -> Ours {
    match value.as_str() {
        Some("fsdp" | "fsdp2") => Ok(Vec::new()),
        _ => Err(MEGATRON),
    }
}

fn do_sample(value: &Value, _: &Given) -> Ours {
    match value {
        Value::Bool(false) => Err("equal responses teach nothing; leave the key out"),
        _ => Ok(Vec::new()),
    }
}

fn truncation(value: &Value, _: &Given) -> Ours {
    match value.as_str() {
        Some("error") => Ok(Vec::new()),
        _ => Err("a prompt is never cut; use data.filter_overlong_prompts=True to leave long ones out"),
    }
}

fn no_reward_model(value: &Value, _: &Given) -> Ours {
    match value {
        Value::Bool(true) => Err("every problem is rewarded as GSM8K is; leave the key out"),
        _ => Ok(Vec::new()),
    }
}

fn lora_enable(value: &Value, given: &Given) -> Ours {
    let has_rank = ["actor_rollout_ref.actor.lora.r", RANK].iter().any(|key| given.contains_key(*key));
    match value {
        Value::Bool(false) => Ok(vec![(RANK, json!(0))]),
        _ if has_rank => Ok(Vec::new()),
        _ => Err("say the adapters' rank with actor_rollout_ref.actor.lora.r"),
    }
}

/// EasyR1 takes the KL off the rewards unless it is off altogether or in the loss.
fn disable_kl(value: &Value, given: &Given) -> Ours {
    let in_loss = given.get("algorithm.use_kl_loss") == Some(&Value::Bool(true));
    let (in_reward, in_loss) = match value {
        Value::Bool(true) => (false, false),
        _ => (!in_loss, in_loss),
    };
    Ok(vec![
        ("algorithm.use_kl_in_reward", json!(in_reward)),
        ("actor_rollout_ref.actor.use_kl_loss", json!(in_loss)),
    ])
}

fn use_kl_loss(value: &Value, given: &Given) -> Ours {
    let off = given.get("algorithm.disable_kl") == Some(&Value::Bool(true));
    Ok(match off {
        true => Vec::new(),
        false => vec![("actor_rollout_ref.actor.use_kl_loss", value.clone())],
    })
}

fn kl_coef(value: &Value, _: &Given) -> Ours {
    let keys = ["algorithm.kl_ctrl.kl_coef", "actor_rollout_ref.actor.kl_loss_coef"];
    Ok(keys.map(|key| (key, value.clone())).to_vec())
}
