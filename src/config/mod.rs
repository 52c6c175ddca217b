//! What decides a run, under the names that verl and the documents use: `algorithm.adv_estimator`,
//! `actor_rollout_ref.rollout.n`. A key that verl does not have says so.

mod computes;
mod describe;
mod names;
pub mod preset;
mod read;

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::options::{GroupPpo, KlControllerType, KlPenalty, LossAggMode};

pub use computes::{estimator, kl_in_reward, loss_options, value_clip};
pub use describe::{Key, describe, page};
pub(crate) use names::{Foreign, Given, foreign};
pub(crate) use read::{Entry, Place, Settings, argument, entries_of, nested};
pub use read::{Read, as_written, keys, read};

/// A whole configuration. The fields are its sections.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The problems, and how many of them a step takes.
    pub data: Data,
    /// The policy: model, update, sampling.
    pub actor_rollout_ref: ActorRolloutRef,
    /// The value model of GAE and GROUP-PPO.
    pub critic: Critic,
    /// How rewards become advantages.
    pub algorithm: Algorithm,
    /// What a response is worth.
    pub reward: Reward,
    /// Supervised training on worked solutions before the first rollout; not in verl's configuration of PPO.
    pub sft: Sft,
    /// The length of the run, its folder, its evaluations and checkpoints.
    pub trainer: Trainer,
}

/// `data`: the problems.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// Problems to train on: a .jsonl or .parquet file, `gsm8k` for the hub's, or `builtin:easy`, `builtin:medium`,
    /// `builtin:hard`, `builtin:tiny` for problems that the crate makes.
    pub train_files: String,
    /// Problems held out; `None` where `train_files` brings its own.
    pub val_files: Option<String>,
    /// Problems a step, each with `actor_rollout_ref.rollout.n` responses.
    pub train_batch_size: usize,
    /// Only so many of the problems to train on; -1 for all.
    pub train_max_samples: i64,
    /// Only so many of the problems held out; -1 for all.
    pub val_max_samples: i64,
    /// The longest prompt, in tokens.
    pub max_prompt_length: usize,
    /// Longer prompts are left out, not an error.
    pub filter_overlong_prompts: bool,
    /// The longest response, in tokens.
    pub max_response_length: usize,
    /// Whether the problems come in an order drawn from the seed.
    pub shuffle: bool,
    /// Decides the order, the built-in problems and the sampling.
    pub seed: u64,
}

impl Default for Data {
    fn default() -> Self {
        Self {
            train_files: "builtin:easy".to_owned(),
            val_files: None,
            train_batch_size: 4,
            train_max_samples: -1,
            val_max_samples: -1,
            max_prompt_length: 512,
            filter_overlong_prompts: false,
            max_response_length: 32,
            shuffle: true,
            seed: 0,
        }
    }
}

/// `actor_rollout_ref`: the policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ActorRolloutRef {
    /// The weights.
    pub model: ModelSource,
    /// The update.
    pub actor: Actor,
    /// The sampling.
    pub rollout: Rollout,
}

/// `actor_rollout_ref.model`: the weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ModelSource {
    /// A .gguf file, a Hugging Face directory, a hub id (`org/name`), or `tiny` for a small model with random weights.
    pub path: String,
    /// Layer inputs are kept and the rest is computed again for the gradient: less memory, more time.
    pub enable_gradient_checkpointing: bool,
    /// Rollouts, log-probabilities, losses and optimiser by the fast paths: less time and memory, the same within rounding.
    /// Left open, they are used on the CPU alone.
    pub use_fused_kernels: Option<bool>,
    /// Rank of the LoRA adapters; 0 trains the weights themselves.
    pub lora_rank: usize,
    /// The adapters' product is scaled by `lora_alpha / lora_rank`.
    pub lora_alpha: f64,
    /// The layers that get adapters, by their names' last part (`q_proj`), or `all-linear`.
    pub target_modules: TargetModules,
}

impl ModelSource {
    /// Whether fast paths are used where there are some.
    pub fn uses_fused_kernels(&self, on_cpu: bool) -> bool {
        self.use_fused_kernels.unwrap_or(on_cpu)
    }
}

impl Default for ModelSource {
    fn default() -> Self {
        Self {
            path: "models/SmolLM2-135M-Instruct.Q4_1.gguf".to_owned(),
            enable_gradient_checkpointing: false,
            use_fused_kernels: None,
            lora_rank: 0,
            lora_alpha: 16.0,
            target_modules: TargetModules::Named("all-linear".to_owned()),
        }
    }
}

/// One word for several layers, or their list.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum TargetModules {
    /// `all-linear`: every linear layer but the head; any other word is the name of a layer.
    Named(String),
    /// The layers' names.
    List(Vec<String>),
}

/// `actor_rollout_ref.actor`: the update.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Actor {
    /// Problems (not responses) for each optimiser step; `None` for all of the step's.
    pub ppo_mini_batch_size: Option<usize>,
    /// Responses for each forward and backward pass: memory only, the result does not depend on it. `None` for as many as fit
    /// a modest memory.
    pub ppo_micro_batch_size_per_gpu: Option<usize>,
    /// How often each step goes through its responses.
    pub ppo_epochs: usize,
    /// Whether each pass goes through the problems in another order.
    pub shuffle: bool,
    /// Sets both bounds below where they are not set.
    pub clip_ratio: f64,
    /// The ratio is clipped below 1 - this.
    pub clip_ratio_low: Option<f64>,
    /// The ratio is clipped above 1 + this.
    pub clip_ratio_high: Option<f64>,
    /// Bound of the loss where the advantage is negative (dual clip); `None` for none.
    pub clip_ratio_c: Option<f64>,
    /// Which objective.
    pub policy_loss: PolicyLoss,
    /// Temperature of SAPO's gate where the advantage is positive.
    pub tau_pos: f64,
    /// Temperature of SAPO's gate where it is not.
    pub tau_neg: f64,
    /// From losses of tokens to one loss.
    pub loss_agg_mode: LossAggMode,
    /// The divisor of `seq-mean-token-sum-norm`; `None` for `data.max_response_length`.
    pub loss_scale_factor: Option<f64>,
    /// Weight of the entropy bonus.
    pub entropy_coeff: f64,
    /// Whether the KL to the reference policy is part of the loss.
    pub use_kl_loss: bool,
    /// Its weight.
    pub kl_loss_coef: f64,
    /// Its estimator.
    pub kl_loss_type: KlPenalty,
    /// The largest global norm of the gradient.
    pub grad_clip: f64,
    /// AdamW and its schedule.
    pub optim: Optim,
    /// Format of the weights in the forward and backward pass.
    pub dtype: Dtype,
}

impl Default for Actor {
    fn default() -> Self {
        Self {
            ppo_mini_batch_size: None,
            ppo_micro_batch_size_per_gpu: None,
            ppo_epochs: 1,
            shuffle: false,
            clip_ratio: 0.2,
            clip_ratio_low: None,
            clip_ratio_high: None,
            clip_ratio_c: None,
            policy_loss: PolicyLoss::default(),
            tau_pos: 1.0,
            tau_neg: 1.05,
            loss_agg_mode: LossAggMode::TokenMean,
            loss_scale_factor: None,
            entropy_coeff: 0.0,
            use_kl_loss: false,
            kl_loss_coef: 0.001,
            kl_loss_type: KlPenalty::K3,
            grad_clip: 1.0,
            optim: Optim { lr: 1e-6, ..Optim::default() },
            dtype: Dtype::Float32,
        }
    }
}

/// `actor_rollout_ref.actor.policy_loss`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyLoss {
    /// The objective.
    pub loss_mode: LossMode,
}

/// The objectives that a run can be given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LossMode {
    /// The clipped ratio (`objective.clip`).
    #[default]
    Vanilla,
    /// No ratio: REINFORCE on the samples as they are (`objective.policy_gradient`).
    Gpg,
    /// The ratio of whole sequences (`objective.gspo`).
    Gspo,
    /// The clipped ratio as a constant weight (`objective.cispo`).
    Cispo,
    /// The geometric mean of a sequence's ratios (`objective.gmpo`).
    #[serde(alias = "gmpo")]
    GeoMean,
    /// A soft gate in the place of the clip (`objective.sapo`).
    Sapo,
}

/// AdamW and its schedule.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Optim {
    /// The largest learning rate.
    pub lr: f64,
    /// Decays of the two running means.
    pub betas: (f64, f64),
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Steps until the learning rate is whole; `None` or negative for `lr_warmup_steps_ratio` of all.
    pub lr_warmup_steps: Option<i64>,
    /// The share of all steps until the learning rate is whole.
    pub lr_warmup_steps_ratio: f64,
    /// What comes after the warm-up.
    pub lr_scheduler_type: Scheduler,
    /// Where a falling learning rate ends, as a share of the largest.
    pub min_lr_ratio: f64,
}

impl Default for Optim {
    fn default() -> Self {
        Self {
            lr: 1e-6,
            betas: (0.9, 0.999),
            weight_decay: 0.01,
            lr_warmup_steps: None,
            lr_warmup_steps_ratio: 0.0,
            lr_scheduler_type: Scheduler::Constant,
            min_lr_ratio: 0.0,
        }
    }
}

/// The learning rate after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// It stays.
    #[default]
    Constant,
    /// It falls along half a cosine.
    Cosine,
    /// It falls along a line.
    Linear,
}

/// A format of weights.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Dtype {
    /// Single precision.
    #[default]
    #[serde(alias = "fp32")]
    Float32,
    /// bfloat16, with single-precision masters in the optimiser.
    #[serde(alias = "bf16")]
    Bfloat16,
}

/// `actor_rollout_ref.rollout`: the sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Rollout {
    /// Responses to each problem: the size of a group.
    pub n: usize,
    /// The temperature.
    pub temperature: f64,
    /// Only so many of the likeliest tokens; -1 for all.
    pub top_k: i64,
    /// The likeliest tokens that together have this probability.
    pub top_p: f64,
    /// How held-out problems are answered.
    pub val_kwargs: Validation,
}

impl Default for Rollout {
    fn default() -> Self {
        Self { n: 8, temperature: 1.0, top_k: -1, top_p: 1.0, val_kwargs: Validation::default() }
    }
}

/// `actor_rollout_ref.rollout.val_kwargs`: greedy, unless sampling is asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Validation {
    /// Responses to each problem: pass@k is told for the powers of two up to it.
    pub n: usize,
    /// Whether to sample; else the likeliest token is taken.
    pub do_sample: bool,
    /// The temperature where it samples.
    pub temperature: f64,
    /// The likeliest tokens that together have this probability.
    pub top_p: f64,
    /// Only so many of the likeliest tokens; -1 for all.
    pub top_k: i64,
}

impl Default for Validation {
    fn default() -> Self {
        Self { n: 1, do_sample: false, temperature: 1.0, top_p: 1.0, top_k: -1 }
    }
}

/// `critic`: the value model, which starts from the policy's weights with a new head.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Critic {
    /// AdamW and its schedule.
    pub optim: Optim,
    /// Problems for each optimiser step; `None` for the actor's.
    pub ppo_mini_batch_size: Option<usize>,
    /// Responses for each pass; `None` for the actor's.
    pub ppo_micro_batch_size_per_gpu: Option<usize>,
    /// How often it goes through a step's responses; `None` for the actor's.
    pub ppo_epochs: Option<usize>,
    /// A value may move so far from what it was at sampling time; `None` for any.
    pub cliprange_value: Option<f64>,
    /// From losses of tokens to one loss; `None` for the actor's.
    pub loss_agg_mode: Option<LossAggMode>,
    /// The largest global norm of the gradient.
    pub grad_clip: f64,
}

impl Default for Critic {
    fn default() -> Self {
        Self {
            optim: Optim { lr: 1e-5, ..Optim::default() },
            ppo_mini_batch_size: None,
            ppo_micro_batch_size_per_gpu: None,
            ppo_epochs: None,
            cliprange_value: Some(0.5),
            loss_agg_mode: None,
            grad_clip: 1.0,
        }
    }
}

/// `algorithm`: from rewards to advantages.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Algorithm {
    /// The estimator.
    pub adv_estimator: AdvEstimator,
    /// Discount of later rewards, where the estimator has one.
    pub gamma: f64,
    /// Decay of GAE's sum.
    pub lam: f64,
    /// GRPO: whether advantages are divided by the group's standard deviation (Dr. GRPO does not).
    pub norm_adv_by_std_in_grpo: bool,
    /// Whether the KL to the reference policy is taken off the rewards.
    pub use_kl_in_reward: bool,
    /// Its estimator.
    pub kl_penalty: KlPenalty,
    /// Its coefficient.
    pub kl_ctrl: KlCtrl,
    /// Where the log-probabilities at sampling time come from.
    pub rollout_correction: RolloutCorrection,
    /// DAPO's dynamic sampling.
    pub filter_groups: FilterGroups,
    /// compute_new_adv: the share of responses with positive advantage that is kept; not in verl.
    pub keep_pos_ratio: f64,
    /// compute_new_adv: the share of responses with negative advantage that is kept; not in verl.
    pub keep_neg_ratio: f64,
    /// compute_new_adv: whether advantages are computed anew from what is kept; not in verl.
    pub compute_new_adv: bool,
    /// GROUP-PPO's parameters; not in verl.
    pub group_params: GroupParams,
}

impl Default for Algorithm {
    fn default() -> Self {
        Self {
            adv_estimator: AdvEstimator::Grpo,
            gamma: 1.0,
            lam: 1.0,
            norm_adv_by_std_in_grpo: true,
            use_kl_in_reward: false,
            kl_penalty: KlPenalty::K1,
            kl_ctrl: KlCtrl::default(),
            rollout_correction: RolloutCorrection::default(),
            filter_groups: FilterGroups::default(),
            keep_pos_ratio: 1.0,
            keep_neg_ratio: 1.0,
            compute_new_adv: false,
            group_params: GroupParams::default(),
        }
    }
}

/// The estimators that a run can be given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum AdvEstimator {
    /// Normalised within the group (`advantage.group_norm`).
    #[default]
    Grpo,
    /// Less the mean of the others (`advantage.rloo`).
    Rloo,
    /// Discounted returns, whitened over the batch (`advantage.reinforce_plus_plus`).
    ReinforcePlusPlus,
    /// Less the group's mean, whitened over the batch (`advantage.reinforce_plus_plus_baseline`).
    ReinforcePlusPlusBaseline,
    /// Less the reward of the greedy response (`advantage.remax`).
    Remax,
    /// Less the length-weighted mean (`advantage.opo`).
    Opo,
    /// GPG's scaled difference from the mean (`advantage.gpg`).
    Gpg,
    /// PPO's: a critic and GAE (`advantage.gae`).
    Gae,
    /// A critic, and advantages at the ends of groups of tokens (`advantage.group_ppo`).
    GroupPpo,
}

/// `algorithm.rollout_correction`: where the log-probabilities at sampling time come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct RolloutCorrection {
    /// Those that the tokens were drawn with are taken; else the policy computes them once more, as it is trained.
    pub bypass_mode: bool,
}

/// `algorithm.kl_ctrl`: the coefficient of the KL in the reward.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct KlCtrl {
    /// Whether it changes with the KL that is seen.
    #[serde(rename = "type")]
    pub kind: KlControllerType,
    /// The coefficient, or where it starts.
    pub kl_coef: f64,
    /// How slowly it changes, in responses.
    pub horizon: f64,
    /// The KL that it aims at.
    pub target_kl: f64,
}

impl Default for KlCtrl {
    fn default() -> Self {
        Self { kind: KlControllerType::Fixed, kl_coef: 0.001, horizon: 10_000.0, target_kl: 0.1 }
    }
}

/// `algorithm.filter_groups`: groups whose rewards are all equal are replaced by further ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct FilterGroups {
    /// Whether that is done.
    pub enable: bool,
    /// So many rollouts at most for one step; 0 for as many as it takes.
    pub max_num_gen_batches: usize,
}

impl Default for FilterGroups {
    fn default() -> Self {
        Self { enable: false, max_num_gen_batches: 8 }
    }
}

/// `algorithm.group_params`: GROUP-PPO.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct GroupParams {
    /// Where the threshold starts.
    pub group_variance_threshold: f64,
    /// The most tokens of a group.
    pub group_max_size: Option<u64>,
    /// Added to denominators.
    pub group_epsilon: f64,
    /// Whether the threshold moves, and stays between the two bounds below.
    pub adaptive_threshold: bool,
    /// How fast it moves.
    pub threshold_lr: f64,
    /// Its lower bound.
    pub min_threshold: f64,
    /// Its upper bound.
    pub max_threshold: f64,
    /// The sparse update is used where fewer than this share of the response tokens has an advantage.
    pub sparse_below: f64,
}

impl Default for GroupParams {
    fn default() -> Self {
        let published = GroupPpo::algorithm2();
        Self {
            group_variance_threshold: published.group_variance_threshold,
            group_max_size: published.group_max_size,
            group_epsilon: published.group_epsilon,
            adaptive_threshold: published.adaptive_threshold,
            threshold_lr: published.threshold_lr,
            min_threshold: published.min_threshold,
            max_threshold: published.max_threshold,
            sparse_below: 0.5,
        }
    }
}

/// `reward`: what a response is worth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reward {
    /// How the final answer is found; not in verl.
    pub method: RewardMethod,
    /// DAPO's penalty for long responses.
    pub overlong_buffer: OverlongBuffer,
}

/// How the final answer is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RewardMethod {
    /// After `####`.
    #[default]
    Strict,
    /// The last number of the response.
    Flexible,
}

/// `reward.overlong_buffer`: DAPO's penalty for long responses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct OverlongBuffer {
    /// Whether there is one.
    pub enable: bool,
    /// It begins so many tokens before `data.max_response_length`.
    pub len: usize,
    /// What a response of full length loses.
    pub penalty_factor: f64,
}

impl Default for OverlongBuffer {
    fn default() -> Self {
        Self { enable: false, len: 8, penalty_factor: 1.0 }
    }
}

/// `sft`: supervised training before the first rollout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Sft {
    /// Passes through the worked solutions; 0 for none.
    pub total_epochs: usize,
    /// Steps, where that is fewer; `None` for no limit.
    pub total_training_steps: Option<usize>,
    /// Solutions a step.
    pub train_batch_size: usize,
    /// Solutions a pass.
    pub micro_batch_size_per_gpu: usize,
    /// AdamW and its schedule.
    pub optim: Optim,
    /// Expert iteration: rounds in which the model's own right responses take the place of the solutions; 0 for none.
    pub expert_iterations: usize,
    /// Problems that each of those rounds asks, `actor_rollout_ref.rollout.n` times each; `None` for all.
    pub expert_batch_size: Option<usize>,
}

impl Default for Sft {
    fn default() -> Self {
        Self {
            total_epochs: 0,
            total_training_steps: None,
            train_batch_size: 32,
            micro_batch_size_per_gpu: 8,
            optim: Optim { lr: 1e-5, lr_scheduler_type: Scheduler::Cosine, ..Optim::default() },
            expert_iterations: 0,
            expert_batch_size: None,
        }
    }
}

/// `trainer`: the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Trainer {
    /// Passes through the problems.
    pub total_epochs: usize,
    /// Steps, in the place of `total_epochs`.
    pub total_training_steps: Option<usize>,
    /// Steps between evaluations; -1 for none but the last.
    pub test_freq: i64,
    /// Whether the first evaluation comes before the first step.
    pub val_before_train: bool,
    /// No training, only that evaluation.
    pub val_only: bool,
    /// Steps between checkpoints; -1 for none but the last.
    pub save_freq: i64,
    /// So many checkpoints are kept; `None` for all.
    pub max_actor_ckpt_to_keep: Option<usize>,
    /// Steps in which only the critic learns.
    pub critic_warmup: usize,
    /// cpu, cuda or cuda:N; `None` for cuda if there is one.
    pub device: Option<String>,
    /// The run folder; `None` for `runs/<UTC time>-<seed>`.
    pub default_local_dir: Option<PathBuf>,
    /// A title for the run's page.
    pub project_name: String,
    /// A second line for it.
    pub experiment_name: String,
    /// Where figures go beside metrics.jsonl: `console`, `tensorboard`.
    pub logger: Vec<String>,
}

impl Default for Trainer {
    fn default() -> Self {
        Self {
            total_epochs: 1,
            total_training_steps: None,
            test_freq: 4,
            val_before_train: true,
            val_only: false,
            save_freq: -1,
            max_actor_ckpt_to_keep: Some(2),
            critic_warmup: 0,
            device: None,
            default_local_dir: None,
            project_name: "gsm8k".to_owned(),
            experiment_name: String::new(),
            logger: vec!["console".to_owned(), "tensorboard".to_owned()],
        }
    }
}
