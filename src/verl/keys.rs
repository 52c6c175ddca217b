//! The table: what each key of ours is to verl 0.9.1, and where it differs. [`super::export`] reads it one way,
//! [`super::import`] the other.

use serde_json::{Value, json};

use crate::config::{AdvEstimator, Config, Dtype, LossMode, RewardMethod, Scheduler, TargetModules};
use crate::options::{KlPenalty, LossAggMode};

/// Which of verl's engines trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// FSDP, which verl calls `dp`.
    Fsdp,
    /// Megatron.
    Megatron,
}

impl Engine {
    pub(super) fn letter(self) -> char {
        match self {
            Self::Fsdp => 'd',
            Self::Megatron => 'm',
        }
    }
}

/// The package of `examples/verl_plugin`: the algorithms that verl does not have.
pub const PLUG_IN: &str = "grpo_oracle_verl";

/// Said of a key, when the configuration is such.
type When = fn(&Config, Engine) -> bool;

/// A key of ours.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    /// Its name.
    pub ours: &'static str,
    pub(super) fsdp: Option<&'static str>,
    pub(super) megatron: Option<&'static str>,
    pub(super) shape: Shape,
    /// Written even where verl's default is the same.
    pub(super) always: bool,
    /// Written only then.
    pub(super) only: Option<When>,
    pub(super) differs: Option<(When, &'static str)>,
}

/// How a value is written there.
#[derive(Debug, Clone, Copy)]
pub(super) enum Shape {
    /// As it is.
    Plain,
    /// Without a point, if it is whole.
    Whole,
    /// `null` is left unsaid.
    Unsaid,
    /// `null` is this number there.
    Open(f64),
    /// `null` is told from the rest.
    Filled(fn(&Config) -> Value),
    /// The value is told from the rest; the other way it is these keys and values of ours.
    Told(fn(&Config, Engine) -> Value, fn(&Value) -> Ours),
}

/// Keys and values of ours.
pub(super) type Ours = Vec<(&'static str, Value)>;

impl Row {
    /// Its name under verl; `None` if verl has nothing of the kind.
    pub fn verl(&self, engine: Engine) -> Option<&'static str> {
        match engine {
            Engine::Fsdp => self.fsdp,
            Engine::Megatron => self.megatron,
        }
    }

    const fn named(self, verl: &'static str) -> Self {
        Self { fsdp: Some(verl), megatron: Some(verl), ..self }
    }

    const fn with_megatron(self, megatron: Option<&'static str>) -> Self {
        Self { megatron, ..self }
    }

    const fn shaped(self, shape: Shape) -> Self {
        Self { shape, ..self }
    }

    const fn always(self) -> Self {
        Self { always: true, ..self }
    }

    const fn only(self, when: When) -> Self {
        Self { only: Some(when), ..self }
    }

    const fn differs(self, when: When, words: &'static str) -> Self {
        Self { differs: Some((when, words)), ..self }
    }
}

/// The same name there.
const fn same(ours: &'static str) -> Row {
    let name = Some(ours);
    Row { ours, fsdp: name, megatron: name, shape: Shape::Plain, always: false, only: None, differs: None }
}

/// Nothing there.
const fn ours_alone(ours: &'static str) -> Row {
    Row { fsdp: None, megatron: None, ..same(ours) }
}

/// The largest ratio that verl lets through is e^20, so a bound of this size is never reached.
const NEVER: f64 = 1e9;
use Shape::{Filled, Open, Told, Unsaid, Whole};

/// Every key of ours.
pub const ROWS: &[Row] = &[
    same("algorithm.adv_estimator").shaped(Told(estimator, of_estimator)).always().differs(
        needs_plug_in,
        "is not in verl 0.9.1; the plug-in grpo_oracle_verl (examples/verl_plugin) brings it and has to be \
         installed on every node",
    ),
    same("algorithm.gamma"),
    same("algorithm.lam"),
    same("algorithm.norm_adv_by_std_in_grpo"),
    same("algorithm.use_kl_in_reward"),
    same("algorithm.kl_penalty").differs(
        |config, _| config.algorithm.use_kl_in_reward && is_k3(config.algorithm.kl_penalty),
        "keeps k3 within 10 of 0 in the rewards too; here it does so in the loss alone",
    ),
    same("algorithm.kl_ctrl.type"),
    same("algorithm.kl_ctrl.kl_coef"),
    same("algorithm.kl_ctrl.horizon").shaped(Whole),
    same("algorithm.kl_ctrl.target_kl"),
    same("algorithm.rollout_correction.bypass_mode").differs(
        |config, _| !config.algorithm.rollout_correction.bypass_mode,
        "is off: the log-probabilities of the sampler, another engine there, and those of training differ; \
         verl's rollout_correction is the remedy",
    ),
    same("algorithm.filter_groups.enable"),
    same("algorithm.filter_groups.max_num_gen_batches").only(filters_groups).differs(
        |config, engine| {
            filters_groups(config, engine) && config.algorithm.filter_groups.max_num_gen_batches > 0
        },
        "is ignored by verl 0.9.1, which samples on until the batch is full",
    ),
    same("algorithm.keep_pos_ratio").only(filters),
    same("algorithm.keep_neg_ratio").only(filters),
    same("algorithm.compute_new_adv").only(filters),
    same("algorithm.group_params.group_variance_threshold").only(is_group_ppo),
    same("algorithm.group_params.group_max_size").only(is_group_ppo),
    same("algorithm.group_params.group_epsilon").only(is_group_ppo),
    same("algorithm.group_params.adaptive_threshold").only(is_group_ppo),
    same("algorithm.group_params.threshold_lr").only(is_group_ppo),
    same("algorithm.group_params.min_threshold").only(is_group_ppo),
    same("algorithm.group_params.max_threshold").only(is_group_ppo),
    same("algorithm.group_params.sparse_below").only(is_group_ppo).differs(
        |config, engine| is_group_ppo(config, engine) && !is_vanilla(config, engine),
        "decides nothing there with this loss_mode: the plug-in's loss, which trains on endpoints, is the \
         vanilla one",
    ),
    same("data.train_files").shaped(Told(train_files, of_train_files)).always().differs(
        |config, _| !is_parquet(&config.data.train_files),
        "is no Parquet file, which is all that verl reads; `grpo-oracle prepare-verl` writes GSM8K's, and \
         the file named here is to be it",
    ),
    same("data.val_files").shaped(Told(val_files, of_val_files)).always(),
    same("data.train_batch_size").always(),
    same("data.train_max_samples"),
    same("data.val_max_samples"),
    same("data.max_prompt_length").always(),
    same("data.filter_overlong_prompts"),
    same("data.max_response_length").always(),
    same("data.shuffle"),
    same("data.seed").shaped(Told(seed, of_seed)).always().differs(
        |_, _| true,
        "decides the order of the problems there; the responses are drawn by another engine and are not \
         those of a run here",
    ),
    same("actor_rollout_ref.model.path").always().differs(
        |config, _| {
            let path = &config.actor_rollout_ref.model.path;
            path == "tiny" || path.ends_with(".gguf")
        },
        "is no Hugging Face directory or hub id, which is all that verl loads; name one (a run here leaves \
         its own in model/)",
    ),
    same("actor_rollout_ref.model.enable_gradient_checkpointing"),
    same("actor_rollout_ref.model.use_fused_kernels").shaped(Unsaid),
    same("actor_rollout_ref.model.lora_rank").with_megatron(Some("actor_rollout_ref.model.lora.rank")),
    same("actor_rollout_ref.model.lora_alpha")
        .shaped(Whole)
        .with_megatron(Some("actor_rollout_ref.model.lora.alpha"))
        .only(|config, _| config.actor_rollout_ref.model.lora_rank > 0),
    same("actor_rollout_ref.model.target_modules").with_megatron(None).differs(
        |config, engine| {
            let model = &config.actor_rollout_ref.model;
            let all = TargetModules::Named("all-linear".to_owned());
            engine == Engine::Megatron && model.lora_rank > 0 && model.target_modules != all
        },
        "has other names with Megatron (linear_qkv, linear_proj, linear_fc1, linear_fc2); write \
         verl.actor_rollout_ref.model.lora.target_modules",
    ),
    same("actor_rollout_ref.actor.ppo_mini_batch_size")
        .shaped(Filled(|config| json!(config.data.train_batch_size)))
        .always(),
    same("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu").shaped(Unsaid),
    same("actor_rollout_ref.actor.ppo_epochs"),
    same("actor_rollout_ref.actor.shuffle"),
    same("actor_rollout_ref.actor.clip_ratio").only(|_, _| false).differs(
        |config, _| {
            let actor = &config.actor_rollout_ref.actor;
            is_clipped(actor.policy_loss.loss_mode)
                && (actor.clip_ratio_low.is_none() || actor.clip_ratio_high.is_none())
        },
        "alone is ignored by verl 0.9.1, whose clip_ratio_low and clip_ratio_high are 0.2 where they are \
         not said; both are written",
    ),
    same("actor_rollout_ref.actor.clip_ratio_low")
        .shaped(Filled(|config| json!(config.actor_rollout_ref.actor.clip_ratio)))
        .only(|config, _| is_clipped(loss_of(config)))
        .always(),
    same("actor_rollout_ref.actor.clip_ratio_high")
        .shaped(Filled(|config| json!(config.actor_rollout_ref.actor.clip_ratio)))
        .only(|config, _| is_clipped(loss_of(config)))
        .always(),
    same("actor_rollout_ref.actor.clip_ratio_c").shaped(Open(NEVER)).only(is_vanilla).differs(
        |config, engine| is_vanilla(config, engine) && config.actor_rollout_ref.actor.clip_ratio_c.is_none(),
        "cannot be off in verl 0.9.1, where it is 3 by default; 1e9 is never reached, as no ratio is above \
         e^20",
    ),
    same("actor_rollout_ref.actor.policy_loss.loss_mode").shaped(Told(loss_mode, of_loss_mode)).differs(
        |config, _| loss_of(config) == LossMode::GeoMean,
        "geo_mean is the plain mean over each micro-batch in verl 0.9.1, and micro-batches are added up: \
         unless a micro-batch holds the whole mini-batch, this term counts as often as there are \
         micro-batches",
    ),
    same("actor_rollout_ref.actor.tau_pos"),
    same("actor_rollout_ref.actor.tau_neg"),
    same("actor_rollout_ref.actor.loss_agg_mode").differs(
        |config, _| {
            let mode = config.actor_rollout_ref.actor.loss_agg_mode;
            loss_of(config) == LossMode::Sapo && mode != LossAggMode::SeqMeanTokenMean
        },
        "is not what verl 0.9.1 takes for sapo, which is always seq-mean-token-mean there",
    ),
    same("actor_rollout_ref.actor.loss_scale_factor")
        .shaped(Filled(constant_length))
        .only(is_sum_norm)
        .always()
        .differs(
            is_sum_norm,
            "divides the mean over the responses since verl 0.7.1; up to 0.7.0 it divided their sum, so \
             that the same factor gave a loss larger by the number of responses in a batch",
        ),
    same("actor_rollout_ref.actor.entropy_coeff"),
    same("actor_rollout_ref.actor.use_kl_loss"),
    same("actor_rollout_ref.actor.kl_loss_coef"),
    same("actor_rollout_ref.actor.kl_loss_type"),
    same("actor_rollout_ref.actor.grad_clip").named("actor_rollout_ref.actor.optim.clip_grad"),
    same("actor_rollout_ref.actor.optim.lr").always(),
    same("actor_rollout_ref.actor.optim.betas"),
    same("actor_rollout_ref.actor.optim.weight_decay"),
    same("actor_rollout_ref.actor.optim.lr_warmup_steps").shaped(Open(-1.0)),
    same("actor_rollout_ref.actor.optim.lr_warmup_steps_ratio"),
    same("actor_rollout_ref.actor.optim.lr_scheduler_type")
        .shaped(Told(schedule, of_schedule))
        .with_megatron(Some("actor_rollout_ref.actor.optim.lr_decay_style"))
        .differs(
            |config, engine| engine == Engine::Fsdp && scheduler(config) == Scheduler::Linear,
            "linear is not there with FSDP; cosine is written, which begins and ends alike",
        ),
    same("actor_rollout_ref.actor.optim.min_lr_ratio").with_megatron(None).differs(
        |config, engine| {
            engine == Engine::Megatron && config.actor_rollout_ref.actor.optim.min_lr_ratio > 0.0
        },
        "is not there with Megatron, which has the rate itself; write \
         verl.actor_rollout_ref.actor.optim.min_lr",
    ),
    ours_alone("actor_rollout_ref.actor.dtype").differs(
        |config, _| config.actor_rollout_ref.actor.dtype == Dtype::Float32,
        "float32 has no use there: verl keeps the weights in float32 and computes with them in bfloat16",
    ),
    same("actor_rollout_ref.rollout.n").always(),
    same("actor_rollout_ref.rollout.temperature"),
    same("actor_rollout_ref.rollout.top_k"),
    same("actor_rollout_ref.rollout.top_p"),
    same("actor_rollout_ref.rollout.val_kwargs.n"),
    same("actor_rollout_ref.rollout.val_kwargs.do_sample").shaped(Told(val_do_sample, nothing)),
    same("actor_rollout_ref.rollout.val_kwargs.temperature")
        .shaped(Told(val_temperature, of_val_temperature)),
    same("actor_rollout_ref.rollout.val_kwargs.top_p"),
    same("actor_rollout_ref.rollout.val_kwargs.top_k"),
    same("critic.optim.lr").only(needs_critic).always(),
    same("critic.optim.betas"),
    same("critic.optim.weight_decay"),
    same("critic.optim.lr_warmup_steps").shaped(Open(-1.0)),
    same("critic.optim.lr_warmup_steps_ratio"),
    same("critic.optim.lr_scheduler_type")
        .shaped(Told(critic_schedule, of_critic_schedule))
        .with_megatron(Some("critic.optim.lr_decay_style")),
    same("critic.optim.min_lr_ratio").with_megatron(None),
    same("critic.ppo_mini_batch_size").shaped(Unsaid),
    same("critic.ppo_micro_batch_size_per_gpu").shaped(Unsaid),
    same("critic.ppo_epochs").shaped(Unsaid),
    same("critic.cliprange_value").shaped(Open(NEVER)).differs(
        |config, engine| needs_critic(config, engine) && config.critic.cliprange_value.is_none(),
        "cannot be off in verl 0.9.1; 1e9 is never reached",
    ),
    same("critic.loss_agg_mode").shaped(Unsaid),
    same("critic.grad_clip").named("critic.optim.clip_grad"),
    ours_alone("reward.method").differs(
        |config, _| config.reward.method == RewardMethod::Flexible,
        "flexible cannot be asked for there: verl's GSM8K reward takes what follows ####; \
         verl.reward.custom_reward_function takes another function",
    ),
    same("reward.overlong_buffer.enable")
        .named("reward.reward_kwargs.overlong_buffer_cfg.enable")
        .only(is_overlong),
    same("reward.overlong_buffer.len")
        .named("reward.reward_kwargs.overlong_buffer_cfg.len")
        .only(is_overlong),
    same("reward.overlong_buffer.penalty_factor")
        .named("reward.reward_kwargs.overlong_buffer_cfg.penalty_factor")
        .only(is_overlong),
    ours_alone("sft.total_epochs").differs(
        |config, _| config.sft.total_epochs > 0,
        "is another program there, verl.trainer.sft_trainer: start with it, and name the model that it \
         leaves in actor_rollout_ref.model.path",
    ),
    ours_alone("sft.total_training_steps"),
    ours_alone("sft.train_batch_size"),
    ours_alone("sft.micro_batch_size_per_gpu"),
    ours_alone("sft.optim.lr"),
    ours_alone("sft.optim.betas"),
    ours_alone("sft.optim.weight_decay"),
    ours_alone("sft.optim.lr_warmup_steps"),
    ours_alone("sft.optim.lr_warmup_steps_ratio"),
    ours_alone("sft.optim.lr_scheduler_type"),
    ours_alone("sft.optim.min_lr_ratio"),
    ours_alone("sft.expert_iterations").differs(
        |config, _| config.sft.expert_iterations > 0,
        "has nothing like it in verl 0.9.1 and is left out",
    ),
    ours_alone("sft.expert_batch_size"),
    same("trainer.total_epochs").always(),
    same("trainer.total_training_steps"),
    same("trainer.test_freq"),
    same("trainer.val_before_train"),
    same("trainer.val_only"),
    same("trainer.save_freq"),
    same("trainer.max_actor_ckpt_to_keep"),
    same("trainer.critic_warmup"),
    ours_alone("trainer.device").differs(
        |config, _| config.trainer.device.as_deref() == Some("cpu"),
        "cpu cannot be asked for there; verl trains on GPUs",
    ),
    same("trainer.default_local_dir").shaped(Unsaid),
    same("trainer.project_name").always(),
    same("trainer.experiment_name").always(),
    same("trainer.logger").always(),
];

/// A key of verl's that this crate's trainer has no key for, and that an equivalent job has to say.
pub(super) struct Need {
    pub(super) key: &'static str,
    /// `None` where it need not be said.
    pub(super) value: fn(&Config, &Own) -> Option<Value>,
    /// What this crate's trainer is, rather than what verl asks for: an import keeps verl's default instead.
    pub(super) is_ours: bool,
    pub(super) words: Option<&'static str>,
}

/// The keys that are for verl alone.
pub(super) type Own = std::collections::BTreeMap<String, Value>;

/// What is to be said beside the rows.
pub(super) const NEEDS: &[Need] = &[
    Need { key: "trainer.n_gpus_per_node", value: |_, _| Some(json!(1)), is_ours: true, words: None },
    Need {
        key: "actor_rollout_ref.rollout.tensor_model_parallel_size",
        value: |_, _| Some(json!(1)),
        is_ours: true,
        words: None,
    },
    Need {
        key: "actor_rollout_ref.rollout.name",
        value: |_, _| Some(json!("vllm")),
        is_ours: false,
        words: None,
    },
    Need {
        key: "actor_rollout_ref.actor.use_dynamic_bsz",
        value: |config, own| {
            let sized = micro_batch(config).is_some() || own.contains_key(OLD_MICRO_BATCH);
            (!sized).then(|| json!(true))
        },
        is_ours: false,
        words: Some(
            "is on because verl wants to know the micro-batch and none is given: it is cut by tokens, and \
             no result depends on it",
        ),
    },
    Need {
        key: "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu",
        value: scored,
        is_ours: false,
        words: None,
    },
    Need {
        key: "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu",
        value: |config, own| needs_reference(config).then(|| scored(config, own))?,
        is_ours: false,
        words: None,
    },
    Need {
        key: "critic.ppo_micro_batch_size_per_gpu",
        value: |config, own| needs_critic(config, Engine::Fsdp).then(|| scored(config, own))?,
        is_ours: false,
        words: None,
    },
    Need {
        key: "critic.model.path",
        value: |config, _| {
            needs_critic(config, Engine::Fsdp).then(|| json!(config.actor_rollout_ref.model.path))
        },
        is_ours: false,
        words: None,
    },
    Need {
        key: "critic.enable",
        value: |config, _| is_group_ppo(config, Engine::Fsdp).then(|| json!(true)),
        is_ours: false,
        words: Some("has to be said: verl starts a critic by itself for gae alone"),
    },
    Need {
        key: "actor_rollout_ref.model.external_lib",
        value: |config, _| needs_plug_in(config, Engine::Fsdp).then(|| json!(PLUG_IN)),
        is_ours: false,
        words: None,
    },
    Need {
        key: "trainer.use_v1",
        value: |config, _| (config.algorithm.adv_estimator == AdvEstimator::Remax).then(|| json!(false)),
        is_ours: false,
        words: Some(
            "is off for remax: verl 0.9.1's new trainer never samples the greedy responses that remax \
             compares with",
        ),
    },
    Need {
        key: "reward.reward_manager.name",
        value: |config, _| is_overlong(config, Engine::Fsdp).then(|| json!("dapo")),
        is_ours: false,
        words: None,
    },
    Need {
        key: "reward.reward_kwargs.overlong_buffer_cfg.log",
        value: |config, _| is_overlong(config, Engine::Fsdp).then(|| json!(false)),
        is_ours: false,
        words: None,
    },
    Need {
        key: "reward.reward_kwargs.max_resp_len",
        value: |config, _| is_overlong(config, Engine::Fsdp).then(|| json!(config.data.max_response_length)),
        is_ours: false,
        words: None,
    },
];

/// The size of the whole job's micro-batch, as verl named it before `ppo_micro_batch_size_per_gpu`.
const OLD_MICRO_BATCH: &str = "actor_rollout_ref.actor.ppo_micro_batch_size";

/// Keys that verl had or was thought to have, and the ones in their place; what ends in `.*` begins names.
pub(super) const RENAMED: &[(&str, &str)] = &[
    ("reward_model.reward_manager", "reward.reward_manager.name"),
    ("reward_model.reward_kwargs.*", "reward.reward_kwargs.*"),
    ("reward_model.overlong_buffer.*", "reward.reward_kwargs.overlong_buffer_cfg.*"),
    ("reward_model.num_workers", "reward.num_workers"),
    ("reward_model.model.path", "reward.reward_model.model_path"),
    ("reward_model.*", "reward.reward_model.*"),
    ("custom_reward_function.*", "reward.custom_reward_function.*"),
    ("sandbox_fusion.*", "reward.sandbox_fusion.*"),
    ("ray_init.*", "ray_kwargs.ray_init.*"),
    ("critic.model.fsdp_config.*", "critic.fsdp.*"),
    ("actor_rollout_ref.actor.optim.warmup_style", "actor_rollout_ref.actor.optim.lr_scheduler_type"),
    ("critic.optim.warmup_style", "critic.optim.lr_scheduler_type"),
    ("actor_rollout_ref.actor.grad_clip", "actor_rollout_ref.actor.optim.clip_grad"),
    ("critic.grad_clip", "critic.optim.clip_grad"),
    ("trainer.val_generations_to_log_to_wandb", "trainer.log_val_generations"),
    ("worker.actor.model.freeze_vision_tower", "actor_rollout_ref.actor.freeze_vision_tower"),
];

/// Keys that verl 0.9.1 no longer has, and what became of them.
pub(super) const GONE: &[(&str, &str)] = &[
    (
        "actor_rollout_ref.actor.megatron.grad_offload",
        "gradients move with the weights (actor_rollout_ref.actor.megatron.param_offload)",
    ),
    ("actor_rollout_ref.ref.megatron.grad_offload", "the reference policy has no gradients"),
    ("critic.megatron.grad_offload", "gradients move with the weights (critic.megatron.param_offload)"),
];

/// A key, whether it is so of what is given, and the words on it.
type Surprise = (&'static str, fn(&Own) -> bool, &'static str);

/// What verl 0.9.1 does with a key that is given, where its writer may not expect it.
pub(super) const SURPRISES: &[Surprise] = &[
    (
        "actor_rollout_ref.actor.clip_ratio",
        |given| {
            !is_null(given, "actor_rollout_ref.actor.clip_ratio_low")
                || !is_null(given, "actor_rollout_ref.actor.clip_ratio_high")
        },
        "decides nothing in verl 0.9.1 unless clip_ratio_low and clip_ratio_high, 0.2 by default, are \
         null; write these two",
    ),
    (
        "algorithm.adv_estimator",
        |given| {
            let alone = given.get("actor_rollout_ref.rollout.n").is_none_or(|n| n.as_i64() == Some(1));
            let by_group = ["grpo", "rloo"].map(|name| json!(name));
            alone && by_group.contains(&given["algorithm.adv_estimator"])
        },
        "takes a lone response's reward itself for its advantage in verl 0.9.1, and \
         actor_rollout_ref.rollout.n is 1 by default; the trainer here wants 2 or more",
    ),
    (
        "actor_rollout_ref.rollout.val_kwargs.do_sample",
        |given| {
            let greedy = given.get(VAL_TEMPERATURE).is_none_or(|value| value.as_f64() == Some(0.0));
            given["actor_rollout_ref.rollout.val_kwargs.do_sample"] == greedy
        },
        "decides nothing in verl 0.9.1: val_kwargs.temperature does, which is 0, that is greedy, by default",
    ),
    (
        "actor_rollout_ref.actor.loss_agg_mode",
        |given| {
            given["actor_rollout_ref.actor.loss_agg_mode"] == "seq-mean-token-sum-norm"
                && is_null(given, "actor_rollout_ref.actor.loss_scale_factor")
        },
        "seq-mean-token-sum-norm divides by the length that the batch is padded to in verl 0.9.1, where no \
         loss_scale_factor is given; here, and in what is exported, by data.max_response_length",
    ),
    (
        "actor_rollout_ref.actor.use_kl_loss",
        |given| {
            let k1 = given.get("actor_rollout_ref.actor.kl_loss_type").and_then(Value::as_str);
            given["actor_rollout_ref.actor.use_kl_loss"] == true && matches!(k1, Some("kl" | "k1"))
        },
        "has no effect on average with kl_loss_type=kl, there and here: the expected gradient of that \
         estimator is 0; low_var_kl is verl's default, and k1+ has the value of the one and the gradient \
         of the other",
    ),
];

const VAL_TEMPERATURE: &str = "actor_rollout_ref.rollout.val_kwargs.temperature";

fn is_null(given: &Own, key: &str) -> bool {
    // What is not given has verl's default.
    match given.get(key) {
        Some(value) => value.is_null(),
        None => super::tree::default(key).is_none_or(Value::is_null),
    }
}

pub(super) fn needs_critic(config: &Config, _: Engine) -> bool {
    matches!(config.algorithm.adv_estimator, AdvEstimator::Gae | AdvEstimator::GroupPpo)
}

fn needs_reference(config: &Config) -> bool {
    config.algorithm.use_kl_in_reward || config.actor_rollout_ref.actor.use_kl_loss
}

fn needs_plug_in(config: &Config, engine: Engine) -> bool {
    is_group_ppo(config, engine) || filters(config, engine)
}

fn is_group_ppo(config: &Config, _: Engine) -> bool {
    config.algorithm.adv_estimator == AdvEstimator::GroupPpo
}

/// compute_new_adv's filtering, which is off where everything is kept.
fn filters(config: &Config, _: Engine) -> bool {
    let algorithm = &config.algorithm;
    let keeps_all = algorithm.keep_pos_ratio == 1.0 && algorithm.keep_neg_ratio == 1.0;
    algorithm.adv_estimator == AdvEstimator::Grpo && !keeps_all
}

fn filters_groups(config: &Config, _: Engine) -> bool {
    config.algorithm.filter_groups.enable
}

fn is_overlong(config: &Config, _: Engine) -> bool {
    config.reward.overlong_buffer.enable
}

fn is_k3(estimator: KlPenalty) -> bool {
    matches!(estimator, KlPenalty::K3 | KlPenalty::K3Plus)
}

fn loss_of(config: &Config) -> LossMode {
    config.actor_rollout_ref.actor.policy_loss.loss_mode
}

fn is_vanilla(config: &Config, _: Engine) -> bool {
    loss_of(config) == LossMode::Vanilla
}

fn is_clipped(loss: LossMode) -> bool {
    !matches!(loss, LossMode::Gpg | LossMode::Sapo)
}

fn is_sum_norm(config: &Config, _: Engine) -> bool {
    config.actor_rollout_ref.actor.loss_agg_mode == LossAggMode::SeqMeanTokenSumNorm
}

fn constant_length(config: &Config) -> Value {
    json!(config.data.max_response_length)
}

fn micro_batch(config: &Config) -> Option<usize> {
    config.actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu
}

/// The micro-batch of passes without a gradient, where it is not cut by tokens.
fn scored(config: &Config, own: &Own) -> Option<Value> {
    let dynamic = own.get("actor_rollout_ref.actor.use_dynamic_bsz") == Some(&json!(true));
    micro_batch(config).filter(|_| !dynamic).map(|size| json!(size))
}

fn estimator(config: &Config, engine: Engine) -> Value {
    match filters(config, engine) {
        true => json!("compute_new_adv"),
        false => json!(config.algorithm.adv_estimator),
    }
}

fn of_estimator(value: &Value) -> Ours {
    let ours = if value == "compute_new_adv" { &json!("grpo") } else { value };
    vec![("algorithm.adv_estimator", ours.clone())]
}

fn loss_mode(config: &Config, engine: Engine) -> Value {
    match is_group_ppo(config, engine) && is_vanilla(config, engine) {
        true => json!("group_ppo"),
        false => json!(loss_of(config)),
    }
}

fn of_loss_mode(value: &Value) -> Ours {
    let ours = if value == "group_ppo" { &json!("vanilla") } else { value };
    vec![("actor_rollout_ref.actor.policy_loss.loss_mode", ours.clone())]
}

fn scheduler(config: &Config) -> Scheduler {
    config.actor_rollout_ref.actor.optim.lr_scheduler_type
}

fn schedule(config: &Config, engine: Engine) -> Value {
    there(scheduler(config), engine)
}

fn critic_schedule(config: &Config, engine: Engine) -> Value {
    there(config.critic.optim.lr_scheduler_type, engine)
}

/// FSDP has no line.
fn there(scheduler: Scheduler, engine: Engine) -> Value {
    match (scheduler, engine) {
        (Scheduler::Linear, Engine::Fsdp) => json!(Scheduler::Cosine),
        (scheduler, _) => json!(scheduler),
    }
}

fn of_schedule(value: &Value) -> Ours {
    vec![("actor_rollout_ref.actor.optim.lr_scheduler_type", value.clone())]
}

fn of_critic_schedule(value: &Value) -> Ours {
    vec![("critic.optim.lr_scheduler_type", value.clone())]
}

fn val_do_sample(config: &Config, _: Engine) -> Value {
    json!(config.actor_rollout_ref.rollout.val_kwargs.do_sample)
}

/// verl samples at this temperature whatever `do_sample` says.
fn val_temperature(config: &Config, _: Engine) -> Value {
    let asked = &config.actor_rollout_ref.rollout.val_kwargs;
    if asked.do_sample { json!(asked.temperature) } else { json!(0) }
}

fn of_val_temperature(value: &Value) -> Ours {
    let do_sample = "actor_rollout_ref.rollout.val_kwargs.do_sample";
    match value.as_f64() {
        Some(0.0) => vec![(do_sample, json!(false))],
        _ => vec![(do_sample, json!(true)), (VAL_TEMPERATURE, value.clone())],
    }
}

fn nothing(_: &Value) -> Ours {
    Vec::new()
}

fn seed(config: &Config, _: Engine) -> Value {
    json!(config.data.seed)
}

/// verl's default is no seed at all.
fn of_seed(value: &Value) -> Ours {
    if value.is_null() { Vec::new() } else { vec![("data.seed", value.clone())] }
}

fn is_parquet(path: &str) -> bool {
    path.ends_with(".parquet")
}

fn train_files(config: &Config, _: Engine) -> Value {
    json!(parquet(&config.data.train_files, "train"))
}

fn val_files(config: &Config, _: Engine) -> Value {
    let data = &config.data;
    match &data.val_files {
        Some(files) => json!(parquet(files, "test")),
        None if is_parquet(&data.train_files) => json!(beside(&data.train_files)),
        None => json!(parquet(&data.train_files, "test")),
    }
}

/// The file that `prepare-verl` makes of these problems.
fn parquet(files: &str, split: &str) -> String {
    if is_parquet(files) {
        return files.to_owned();
    }
    if files == "gsm8k" || files.starts_with("builtin:") {
        return format!("~/data/gsm8k/{split}.parquet");
    }
    match files.strip_suffix(".jsonl") {
        Some(stem) => format!("{stem}.parquet"),
        None => format!("{}/{split}.parquet", files.trim_end_matches('/')),
    }
}

fn beside(train: &str) -> String {
    match train.rsplit_once('/') {
        Some((folder, _)) => format!("{folder}/test.parquet"),
        None => "test.parquet".to_owned(),
    }
}

/// Of several files the first; all of them are verl's.
fn first(value: &Value) -> Value {
    value.as_array().and_then(|files| files.first()).unwrap_or(value).clone()
}

fn of_train_files(value: &Value) -> Ours {
    vec![("data.train_files", first(value))]
}

fn of_val_files(value: &Value) -> Ours {
    vec![("data.val_files", first(value))]
}
