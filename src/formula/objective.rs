//! The rows of `objective.*`.

use ndarray::{Ix1, Ix2};
use serde_json::Map;

use super::aggregate::{BATCH_NUM_TOKENS, DP_SIZE, GLOBAL_BATCH_SIZE, LOSS_AGG_MODE, LOSS_SCALE_FACTOR};
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{ActorLoss, Cispo, Clip, Dispatch, Gmpo, Gspo, Ratio, Sapo};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const OBJECTIVE: &'static [Self] = &[
        Self {
            id: "objective.policy_gradient",
            summary: "loss_t = -A_t logp_t",
            source: "CS336 assignment 5, compute_naive_policy_gradient_loss; 002_cs336_notes.md",
            clauses: &["objective.policy-gradient", "objective.policy-gradient.stop"],
            inputs: &[LOGP, ADVANTAGES],
            options: &[],
            defaults: Map::new,
            outputs: &[Output::new("loss", &["B", "T"])],
            rivals: &[],
            reference: policy_gradient,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::policy_gradient),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::policy_gradient),
        },
        Self {
            id: "objective.reinforce_with_baseline",
            summary: "loss_it = -(r_i - b_i) logp_it",
            source: "CS336 assignment 5, policy-gradient baselines; 002_cs336_notes.md",
            clauses: &["objective.reinforce-with-baseline", "objective.reinforce-with-baseline.stop"],
            inputs: &[
                LOGP,
                Input::constant("rewards", &["B"], Role::Reward),
                Input::constant("baselines", &["B"], Role::Reward),
            ],
            options: &[],
            defaults: Map::new,
            outputs: &[Output::new("loss", &["B", "T"])],
            rivals: &[],
            reference: reinforce_with_baseline,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::reinforce_with_baseline),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "objective.off_policy",
            summary: "loss_t = -exp(clamp(logp_t - logp_old_t)) A_t",
            source: "CS336 assignment 5, Eq. 27; 002_cs336_notes.md",
            clauses: &["objective.off-policy", "objective.off-policy.stop", "logprob.ratio.clamp"],
            inputs: &[LOGP, LOGP_OLD, ADVANTAGES],
            options: &[LOG_RATIO_CLAMP],
            defaults: || fields(&Ratio::unclamped()),
            outputs: &[Output::new("loss", &["B", "T"])],
            rivals: &[
                Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
                Rival::new("log-ratio clamped at 20", r#"{"log_ratio_clamp": 20.0}"#),
            ],
            reference: off_policy,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::off_policy),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "objective.clip",
            summary: "loss_t = -min(ratio_t A_t, clip(ratio_t, 1 - low, 1 + high) A_t);  at most -c A_t where A_t < 0",
            source: "CS336 assignment 5, Eq. 29 and 30; PPO Eq. 7; DAPO; dual clip (arXiv 1912.09729); 002_cs336_notes.md",
            clauses: &[
                "mask.select",
                "objective.clip",
                "objective.clip.eq30",
                "objective.clip.stop",
                "objective.clip.edge",
                "objective.clip.dual",
                "objective.clip.clamp",
                "metrics.policy",
                "metrics.clip-fraction",
                "metrics.clip-fraction-lower",
                "metrics.ppo-kl",
            ],
            inputs: CLIP_INPUTS,
            options: CLIP_OPTIONS,
            defaults: || fields(&Clip::eq29()),
            outputs: &[
                Output::new("loss", &["B", "T"]),
                Output::new("clip_fraction", &[]),
                Output::new("clip_fraction_lower", &[]),
                Output::new("ppo_kl", &[]),
            ],
            rivals: CLIP_RIVALS,
            reference: clip,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::clip),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::clip),
        },
        Self {
            id: "objective.actor_loss",
            summary: "loss = (agg(clip) + kl_loss_coef agg(kl) - entropy_coeff agg(entropy)) / gradient_accumulation_steps",
            source: "DeepSeekMath Eq. 3; CS336 assignment 5, grpo_microbatch_train_step; 003_grpo_trainer_guide.md",
            clauses: &[
                "mask.select",
                "objective.actor-loss",
                "objective.actor-loss.terms",
                "objective.actor-loss.kl-ratio-weight",
                "objective.actor-loss.order",
                "objective.actor-loss.accumulation",
                "objective.actor-loss.endpoints",
            ],
            inputs: &[
                LOGP,
                LOGP_OLD,
                Input::constant("logp_ref", &["B", "T"], Role::LogpOther).unless_zero("kl_loss_coef"),
                ADVANTAGES,
                RESPONSE_MASK,
                Input::data("group_endpoints", Kind::Mask, &["B", "T"], Role::Mask).optional(),
                Input::differentiable("entropy", &["B", "T"], Role::Number).unless_zero("entropy_coeff"),
            ],
            options: ACTOR_LOSS_OPTIONS,
            defaults: || fields(&ActorLoss::grpo()),
            outputs: &[
                Output::new("loss", &[]),
                Output::new("policy_loss", &[]),
                Output::new("kl_loss", &[]),
                Output::new("entropy_loss", &[]),
            ],
            rivals: &[
                Rival::new("token mean for sequence mean", r#"{"loss_agg_mode": "token-mean"}"#),
                Rival::new("sequence mean for token mean", r#"{"loss_agg_mode": "seq-mean-token-mean"}"#),
                Rival::new(
                    "token sums over a constant length",
                    r#"{"loss_agg_mode": "seq-mean-token-sum-norm"}"#,
                ),
                Rival::new("dual clip off", r#"{"clip_ratio_c": null}"#),
                Rival::new("dual clip at 3", r#"{"clip_ratio_c": 3.0}"#),
                Rival::new("clip-higher ignored", r#"{"clip_ratio_high": 0.2}"#),
                Rival::new("k3 in the loss", r#"{"kl_loss_type": "k3"}"#),
                Rival::new("k1 in the loss", r#"{"kl_loss_type": "k1"}"#),
                Rival::new("k2 in the loss", r#"{"kl_loss_type": "k2"}"#),
                Rival::new("KL not weighted by the ratio", r#"{"kl_ratio_weight": false}"#),
                Rival::new("KL weighted by the ratio", r#"{"kl_ratio_weight": true}"#),
                Rival::new("no KL term", r#"{"kl_loss_coef": 0.0}"#),
                Rival::new("no entropy bonus", r#"{"entropy_coeff": 0.0}"#),
                Rival::new(
                    "not divided by the accumulation steps",
                    r#"{"gradient_accumulation_steps": 1.0}"#,
                ),
            ],
            reference: actor_loss,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::actor_loss),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::actor_loss),
        },
        Self {
            id: "objective.dispatch",
            summary: "no_baseline: -r logp;  reinforce_with_baseline: -A logp;  grpo_clip: objective.clip with low = high = cliprange",
            source: "CS336 assignment 5, compute_policy_gradient_loss; 002_cs336_notes.md",
            clauses: &[
                "objective.dispatch",
                "objective.dispatch.inputs",
                "objective.dispatch.clip-fraction",
                "objective.clip.edge",
            ],
            inputs: &[
                LOGP,
                LOGP_OLD.when("loss_type", &["grpo_clip"]),
                Input::constant("raw_rewards", &["B"], Role::Reward).when("loss_type", &["no_baseline"]),
                ADVANTAGES.when("loss_type", &["reinforce_with_baseline", "grpo_clip"]),
            ],
            options: &[
                OptionField::new(
                    "loss_type",
                    "no_baseline, reinforce_with_baseline or grpo_clip",
                    r#"["no_baseline", "reinforce_with_baseline", "grpo_clip"]"#,
                    "the loss",
                ),
                OptionField::new(
                    "cliprange",
                    "in [0, 1]",
                    "[0.2, 0.0, 0.1, 1.0]",
                    "grpo_clip clips the ratio to [1 - this, 1 + this]",
                ),
            ],
            defaults: || fields(&Dispatch::grpo_clip()),
            outputs: &[Output::new("loss", &["B", "T"]), Output::new("clip_fraction", &[])],
            rivals: &[
                Rival::new("raw rewards for advantages", r#"{"loss_type": "no_baseline"}"#),
                Rival::new("no ratio and no clipping", r#"{"loss_type": "reinforce_with_baseline"}"#),
                Rival::new("clipped at 0.1", r#"{"cliprange": 0.1}"#),
            ],
            reference: dispatch,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::dispatch),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "objective.gspo",
            summary: "s_i = exp(mean_t (logp_it - logp_old_it));  loss_it = -min(s_i A_it, clip(s_i, 1 - low, 1 + high) A_it)",
            source: "GSPO (arXiv 2507.18071) Eq. 5, 7 and 13; TRL's RLOO",
            clauses: &[
                "mask.select",
                "objective.gspo",
                "objective.gspo.level",
                "objective.gspo.max",
                "objective.gspo.stop",
                "objective.gspo.empty",
                "objective.gspo.clip-fraction",
                "objective.clip.edge",
            ],
            inputs: CLIP_INPUTS,
            options: &[
                CLIP_RATIO_LOW,
                CLIP_RATIO_HIGH,
                OptionField::new(
                    "log_ratio_max",
                    "null or above 0",
                    "[null, 10.0, 0.5]",
                    "the sequence's log-ratio is at most this",
                ),
                OptionField::new(
                    "importance_sampling_level",
                    "sequence, sequence_token or sequence_sum",
                    r#"["sequence", "sequence_token", "sequence_sum"]"#,
                    "what the ratio is and where its gradient goes",
                ),
            ],
            defaults: || fields(&Gspo::paper()),
            outputs: &[
                Output::new("loss", &["B", "T"]),
                Output::new("ratio", &["B"]),
                Output::new("clip_fraction", &[]),
            ],
            rivals: &[
                Rival::new(
                    "the tokens' product for their geometric mean",
                    r#"{"importance_sampling_level": "sequence_sum"}"#,
                ),
                Rival::new("PPO's bounds", r#"{"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}"#),
                Rival::new("log-ratio not bounded", r#"{"log_ratio_max": null}"#),
                Rival::new(
                    "the gradient of GSPO-token",
                    r#"{"importance_sampling_level": "sequence_token"}"#,
                ),
                Rival::new(
                    "the gradient of GSPO for GSPO-token's",
                    r#"{"importance_sampling_level": "sequence"}"#,
                ),
            ],
            reference: gspo,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::gspo),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::gspo),
        },
        Self {
            id: "objective.cispo",
            summary: "loss_t = -stop(clip(ratio_t, 1 - low, 1 + high)) A_t logp_t",
            source: "MiniMax-M1 (arXiv 2506.13585) Eq. 4 and 5",
            clauses: &[
                "mask.select",
                "objective.cispo",
                "objective.cispo.bounds",
                "objective.cispo.stop",
                "logprob.ratio.clamp",
            ],
            inputs: CLIP_INPUTS,
            options: &[
                OptionField::new(
                    "clip_ratio_low",
                    "null or in [0, 1]",
                    "[null, 0.2, 0.0, 1.0]",
                    "the weight is at least 1 - this",
                ),
                CLIP_RATIO_HIGH,
                OptionField::new(
                    "cispo_bound",
                    "one_plus_eps or absolute",
                    r#"["one_plus_eps", "absolute"]"#,
                    "whether the weight is at most 1 + clip_ratio_high or that itself",
                ),
                LOG_RATIO_CLAMP,
            ],
            defaults: || fields(&Cispo::minimax()),
            outputs: &[Output::new("loss", &["B", "T"])],
            rivals: &[
                Rival::new("the bound itself for 1 + eps", r#"{"cispo_bound": "absolute"}"#),
                Rival::new("1 + eps for the bound itself", r#"{"cispo_bound": "one_plus_eps"}"#),
                Rival::new("bounded from below too", r#"{"clip_ratio_low": 0.2}"#),
                Rival::new("not bounded from below", r#"{"clip_ratio_low": null}"#),
                Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
            ],
            reference: cispo,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::cispo),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::cispo),
        },
        Self {
            id: "objective.gmpo",
            summary: "loss_i = -A_i exp(mean_t d'_it);  d' = min(d, high) where A > 0, max(d, -low) where A < 0;  d = logp - logp_old",
            source: "GMPO (arXiv 2507.20673); verl compute_policy_loss_geo_mean",
            clauses: &[
                "mask.select",
                "objective.gmpo",
                "objective.gmpo.clip",
                "objective.gmpo.stop",
                "objective.gmpo.empty",
            ],
            inputs: &[LOGP, LOGP_OLD, Input::constant("advantages", &["B"], Role::Advantage), RESPONSE_MASK],
            options: &[
                OptionField::new(
                    "clip_ratio_low",
                    "at least 0",
                    "[0.4, 0.2, 0.0, 4.0]",
                    "where A < 0 a token's log-ratio is at least minus this",
                ),
                OptionField::new(
                    "clip_ratio_high",
                    "at least 0",
                    "[0.4, 0.28, 0.0, 4.0]",
                    "where A > 0 a token's log-ratio is at most this",
                ),
            ],
            defaults: || fields(&Gmpo::paper()),
            outputs: &[Output::new("loss", &["B"])],
            rivals: &[
                Rival::new(
                    "1 - low and 1 + high for the exponentials of the bounds",
                    r#"{"clip_ratio_low": 0.5108256237659907, "clip_ratio_high": 0.3364722366212129}"#,
                ),
                Rival::new("PPO's bounds", r#"{"clip_ratio_low": 0.2, "clip_ratio_high": 0.2}"#),
                Rival::new("not clipped", r#"{"clip_ratio_low": 1000.0, "clip_ratio_high": 1000.0}"#),
            ],
            reference: gmpo,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::gmpo),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::gmpo),
        },
        Self {
            id: "objective.sapo",
            summary: "loss_t = -sigmoid(tau (ratio_t - 1)) (4 / tau) A_t;  tau = tau_pos where A_t > 0, else tau_neg",
            source: "SAPO (arXiv 2511.20347)",
            clauses: &[
                "mask.select",
                "objective.sapo",
                "objective.sapo.tau",
                "objective.sapo.stop",
                "logprob.ratio.clamp",
            ],
            inputs: CLIP_INPUTS,
            options: &[
                OptionField::new(
                    "tau_pos",
                    "above 0",
                    "[1.0, 0.5, 4.0]",
                    "the gate's temperature where A > 0",
                ),
                OptionField::new(
                    "tau_neg",
                    "above 0",
                    "[1.05, 1.0, 0.25]",
                    "the gate's temperature elsewhere",
                ),
                LOG_RATIO_CLAMP,
            ],
            defaults: || fields(&Sapo::paper()),
            outputs: &[Output::new("loss", &["B", "T"])],
            rivals: &[
                Rival::new("the positive temperature for both signs", r#"{"tau_neg": 1.0}"#),
                Rival::new("the temperatures exchanged", r#"{"tau_pos": 1.05, "tau_neg": 1.0}"#),
                Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
            ],
            reference: sapo,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::sapo),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::sapo),
        },
    ];
}

const LOGP: Input = Input::differentiable("logp", &["B", "T"], Role::Logp);
pub(super) const LOGP_OLD: Input = Input::constant("logp_old", &["B", "T"], Role::LogpOther);
pub(super) const ADVANTAGES: Input = Input::constant("advantages", &["B", "T"], Role::Advantage);
pub(super) const RESPONSE_MASK: Input = Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask);
pub(super) const CLIP_INPUTS: &[Input] = &[LOGP, LOGP_OLD, ADVANTAGES, RESPONSE_MASK];

pub(super) const CLIP_OPTIONS: &[OptionField] =
    &[CLIP_RATIO_LOW, CLIP_RATIO_HIGH, CLIP_RATIO_C, LOG_RATIO_CLAMP];
pub(super) const CLIP_RATIO_LOW: OptionField = OptionField::new(
    "clip_ratio_low",
    "in [0, 1]",
    "[0.2, 0.0, 0.1, 1.0]",
    "the ratio is clipped from below at 1 - this",
);
pub(super) const CLIP_RATIO_HIGH: OptionField = OptionField::new(
    "clip_ratio_high",
    "at least 0",
    "[0.2, 0.28, 0.0, 4.0]",
    "the ratio is clipped from above at 1 + this",
);
pub(super) const CLIP_RATIO_C: OptionField = OptionField::new(
    "clip_ratio_c",
    "null or above 1",
    "[null, 3.0, 1.5]",
    "dual clip: the loss is at most -c A where A < 0",
);
pub(super) const LOG_RATIO_CLAMP: OptionField = OptionField::new(
    "log_ratio_clamp",
    "null or above 0",
    "[null, 20.0, 0.5]",
    "the log-ratio is clamped to [-c, c] first",
);

pub(super) const CLIP_RIVALS: &[Rival] = &[
    Rival::new("dual clip off", r#"{"clip_ratio_c": null}"#),
    Rival::new("dual clip at 3", r#"{"clip_ratio_c": 3.0}"#),
    Rival::new("clip-higher ignored", r#"{"clip_ratio_high": 0.2}"#),
    Rival::new("clipped at 0.1 both ways", r#"{"clip_ratio_low": 0.1, "clip_ratio_high": 0.1}"#),
    Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
    Rival::new("log-ratio clamped at 20", r#"{"log_ratio_clamp": 20.0}"#),
];

pub(super) const ACTOR_LOSS_OPTIONS: &[OptionField] = &[
    CLIP_RATIO_LOW,
    CLIP_RATIO_HIGH,
    CLIP_RATIO_C,
    LOG_RATIO_CLAMP,
    OptionField::new(
        "kl_ratio_weight",
        "true or false",
        "[false, true]",
        "each token's KL estimate is multiplied by its ratio",
    ),
    OptionField::new(
        "kl_loss_type",
        "k1, abs, k2, k3, and each with +",
        r#"["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]"#,
        "the KL estimator",
    ),
    OptionField::new(
        "kl_input_clamp",
        "null or above 0",
        "[null, 20.0, 0.5]",
        "as input_clamp of kl.estimate",
    ),
    OptionField::new(
        "kl_output_clamp",
        "null or above 0",
        "[null, 10.0, 0.25]",
        "as output_clamp of kl.estimate",
    ),
    OptionField::new(
        "kl_loss_coef",
        "a number",
        "[0.0, 0.04, 1.0]",
        "the weight of the KL term; 0 leaves it out",
    ),
    OptionField::new(
        "entropy_coeff",
        "a number",
        "[0.0, 0.01, -1.0]",
        "the weight of the entropy bonus; 0 leaves it out",
    ),
    LOSS_AGG_MODE,
    LOSS_SCALE_FACTOR,
    BATCH_NUM_TOKENS,
    GLOBAL_BATCH_SIZE,
    DP_SIZE,
    OptionField::new("gradient_accumulation_steps", "at least 1", "[1.0, 3.0]", "the loss is divided by it"),
];

fn clip<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let options = args.options()?;
    let loss = reference::objective::clip(&logp, &logp_old, &advantages, &mask, &options)?;
    let metrics = reference::metrics::policy(&logp, &logp_old, &advantages, &mask, &options)?;
    Ok(vec![
        ("loss", loss.into_dyn()),
        ("clip_fraction", scalar(metrics.clip_fraction)),
        ("clip_fraction_lower", scalar(metrics.clip_fraction_lower)),
        ("ppo_kl", scalar(metrics.ppo_kl)),
    ])
}

fn actor_loss<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (logp_ref, entropy) = (args.optional_real::<Ix2>("logp_ref")?, args.optional_real::<Ix2>("entropy")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let output = reference::objective::actor_loss(
        &logp,
        &logp_old,
        logp_ref.as_deref(),
        &advantages,
        &mask,
        args.optional_mask::<Ix2>("group_endpoints")?.as_deref(),
        entropy.as_deref(),
        &args.options()?,
    )?;
    Ok(vec![
        ("loss", scalar(output.loss)),
        ("policy_loss", scalar(output.policy_loss)),
        ("kl_loss", scalar(output.kl_loss)),
        ("entropy_loss", scalar(output.entropy_loss)),
    ])
}

fn policy_gradient<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let logp = args.real::<Ix2>("logp")?;
    let advantages = args.per_token("advantages", logp.ncols())?;
    Ok(vec![("loss", reference::objective::policy_gradient(&logp, &advantages)?.into_dyn())])
}

fn reinforce_with_baseline<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, baselines) = (args.real::<Ix1>("rewards")?, args.real::<Ix1>("baselines")?);
    let loss =
        reference::objective::reinforce_with_baseline(&args.real::<Ix2>("logp")?, &rewards, &baselines)?;
    Ok(vec![("loss", loss.into_dyn())])
}

fn off_policy<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let advantages = args.per_token("advantages", logp.ncols())?;
    let loss = reference::objective::off_policy(&logp, &logp_old, &advantages, &args.options()?)?;
    Ok(vec![("loss", loss.into_dyn())])
}

fn dispatch<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let logp = args.real::<Ix2>("logp")?;
    let (logp_old, raw_rewards) =
        (args.optional_real::<Ix2>("logp_old")?, args.optional_real::<Ix1>("raw_rewards")?);
    let advantages = args.optional_per_token("advantages", logp.ncols())?;
    let output = reference::objective::dispatch(
        &logp,
        logp_old.as_deref(),
        raw_rewards.as_deref(),
        advantages.as_deref(),
        &args.options()?,
    )?;
    Ok(vec![("loss", output.loss.into_dyn()), ("clip_fraction", scalar(output.clip_fraction))])
}

fn gspo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let output = reference::objective::gspo(&logp, &logp_old, &advantages, &mask, &args.options()?)?;
    Ok(vec![
        ("loss", output.loss.into_dyn()),
        ("ratio", output.ratio.into_dyn()),
        ("clip_fraction", scalar(output.clip_fraction)),
    ])
}

fn cispo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let loss = reference::objective::cispo(&logp, &logp_old, &advantages, &mask, &args.options()?)?;
    Ok(vec![("loss", loss.into_dyn())])
}

fn gmpo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) = (args.real::<Ix1>("advantages")?, args.mask::<Ix2>("response_mask")?);
    let loss = reference::objective::gmpo(&logp, &logp_old, &advantages, &mask, &args.options()?)?;
    Ok(vec![("loss", loss.into_dyn())])
}

fn sapo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let loss = reference::objective::sapo(&logp, &logp_old, &advantages, &mask, &args.options()?)?;
    Ok(vec![("loss", loss.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn clip(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let options = args.options()?;
        let loss = torch::objective::clip(logp, logp_old, &advantages, mask, &options)?;
        let metrics = torch::metrics::policy(logp, logp_old, &advantages, mask, &options)?;
        Ok(vec![
            ("loss", loss),
            ("clip_fraction", metrics.clip_fraction),
            ("clip_fraction_lower", metrics.clip_fraction_lower),
            ("ppo_kl", metrics.ppo_kl),
        ])
    }

    pub(super) fn actor_loss(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let output = torch::objective::actor_loss(
            logp,
            logp_old,
            args.optional_tensor("logp_ref"),
            &args.per_token("advantages", logp)?,
            mask,
            args.optional_tensor("group_endpoints"),
            args.optional_tensor("entropy"),
            &args.options()?,
        )?;
        Ok(vec![
            ("loss", output.loss),
            ("policy_loss", output.policy_loss),
            ("kl_loss", output.kl_loss),
            ("entropy_loss", output.entropy_loss),
        ])
    }

    pub(super) fn policy_gradient(args: &TorchArgs<'_>) -> Result<Outputs> {
        let logp = args.tensor("logp")?;
        let loss = torch::objective::policy_gradient(logp, &args.per_token("advantages", logp)?)?;
        Ok(vec![("loss", loss)])
    }

    pub(super) fn reinforce_with_baseline(args: &TorchArgs<'_>) -> Result<Outputs> {
        let loss = torch::objective::reinforce_with_baseline(
            args.tensor("logp")?,
            args.tensor("rewards")?,
            args.tensor("baselines")?,
        )?;
        Ok(vec![("loss", loss)])
    }

    pub(super) fn off_policy(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old) = (args.tensor("logp")?, args.tensor("logp_old")?);
        let advantages = args.per_token("advantages", logp)?;
        let loss = torch::objective::off_policy(logp, logp_old, &advantages, &args.options()?)?;
        Ok(vec![("loss", loss)])
    }

    pub(super) fn dispatch(args: &TorchArgs<'_>) -> Result<Outputs> {
        let logp = args.tensor("logp")?;
        let output = torch::objective::dispatch(
            logp,
            args.optional_tensor("logp_old"),
            args.optional_tensor("raw_rewards"),
            args.optional_per_token("advantages", logp)?.as_ref(),
            &args.options()?,
        )?;
        Ok(vec![("loss", output.loss), ("clip_fraction", output.clip_fraction)])
    }

    pub(super) fn gspo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let output = torch::objective::gspo(logp, logp_old, &advantages, mask, &args.options()?)?;
        Ok(vec![("loss", output.loss), ("ratio", output.ratio), ("clip_fraction", output.clip_fraction)])
    }

    pub(super) fn cispo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let loss = torch::objective::cispo(logp, logp_old, &advantages, mask, &args.options()?)?;
        Ok(vec![("loss", loss)])
    }

    pub(super) fn gmpo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let loss =
            torch::objective::gmpo(logp, logp_old, args.tensor("advantages")?, mask, &args.options()?)?;
        Ok(vec![("loss", loss)])
    }

    pub(super) fn sapo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let loss = torch::objective::sapo(logp, logp_old, &advantages, mask, &args.options()?)?;
        Ok(vec![("loss", loss)])
    }
}

#[cfg(feature = "torch")]
mod of_fused {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::{FusedOutputs, TorchOutputs, number_like};
    use crate::fused::loss::loss;
    use crate::fused::metrics;
    use crate::fused::objective::{self, Losses};
    use crate::options::{LossOptions, Objective};

    /// The losses first, what else there is behind them, and the gradient.
    fn answer(losses: Losses, others: TorchOutputs) -> FusedOutputs {
        let outputs = std::iter::once(("loss", losses.loss)).chain(others).collect();
        FusedOutputs { outputs, gradients: vec![("logp", losses.grad_logp)] }
    }

    pub(super) fn clip(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let options = args.options()?;
        let losses = objective::clip(logp, logp_old, &advantages, mask, &options)?;
        let metrics = metrics::policy(logp, logp_old, &advantages, mask, &options)?;
        let figures = vec![
            ("clip_fraction", number_like(metrics.clip_fraction, logp)),
            ("clip_fraction_lower", number_like(metrics.clip_fraction_lower, logp)),
            ("ppo_kl", number_like(metrics.ppo_kl, logp)),
        ];
        Ok(answer(losses, figures))
    }

    pub(super) fn actor_loss(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let output = loss(
            logp,
            logp_old,
            args.optional_tensor("logp_ref"),
            &args.per_token("advantages", logp)?,
            mask,
            args.optional_tensor("group_endpoints"),
            args.optional_tensor("entropy"),
            &LossOptions { objective: Objective::Vanilla, terms: args.options()? },
        )?;
        let numbers = output.numbers();
        let outputs = vec![
            ("loss", number_like(numbers.loss, logp)),
            ("policy_loss", number_like(numbers.policy_loss, logp)),
            ("kl_loss", number_like(numbers.kl_loss, logp)),
            ("entropy_loss", number_like(numbers.entropy_loss, logp)),
        ];
        let of_entropy = output.grad_entropy.map(|gradient| ("entropy", gradient));
        let gradients = std::iter::once(("logp", output.grad_logp)).chain(of_entropy).collect();
        Ok(FusedOutputs { outputs, gradients })
    }

    pub(super) fn policy_gradient(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let logp = args.tensor("logp")?;
        let losses = objective::policy_gradient(logp, &args.per_token("advantages", logp)?)?;
        Ok(answer(losses, Vec::new()))
    }

    pub(super) fn gspo(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let output = objective::gspo(logp, logp_old, &advantages, mask, &args.options()?)?;
        let clip_fraction = number_like(output.clip_fraction, logp);
        Ok(answer(output.losses, vec![("ratio", output.ratio), ("clip_fraction", clip_fraction)]))
    }

    pub(super) fn cispo(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let losses = objective::cispo(logp, logp_old, &advantages, mask, &args.options()?)?;
        Ok(answer(losses, Vec::new()))
    }

    pub(super) fn gmpo(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let losses = objective::gmpo(logp, logp_old, args.tensor("advantages")?, mask, &args.options()?)?;
        Ok(answer(losses, Vec::new()))
    }

    pub(super) fn sapo(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let losses = objective::sapo(logp, logp_old, &advantages, mask, &args.options()?)?;
        Ok(answer(losses, Vec::new()))
    }
}
