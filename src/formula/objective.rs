//! The rows of `objective.*`.

use ndarray::Ix2;

use super::aggregate::{BATCH_NUM_TOKENS, DP_SIZE, GLOBAL_BATCH_SIZE, LOSS_AGG_MODE, LOSS_SCALE_FACTOR};
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{ActorLoss, Clip};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const OBJECTIVE: &'static [Self] = &[
        Self {
            id: "objective.clip",
            summary: "loss_t = -min(ratio_t A_t, clip(ratio_t, 1 - low, 1 + high) A_t);  at most -c A_t where A_t < 0",
            source: "CS336 assignment 5, Eq. 29 and 30; PPO Eq. 7; DAPO; dual clip (arXiv 1912.09729); 002_cs336_notes.md",
            clauses: &[
                "mask.select",
                "objective.clip",
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
        },
        Self {
            id: "objective.actor_loss",
            summary: "loss = (agg(clip) + kl_loss_coef agg(kl) - entropy_coeff agg(entropy)) / gradient_accumulation_steps",
            source: "DeepSeekMath Eq. 3; CS336 assignment 5, grpo_microbatch_train_step; 003_grpo_trainer_guide.md",
            clauses: &[
                "mask.select",
                "objective.actor-loss",
                "objective.actor-loss.terms",
                "objective.actor-loss.order",
                "objective.actor-loss.accumulation",
                "objective.actor-loss.endpoints",
            ],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_old", &["B", "T"], Role::LogpOther),
                Input::constant("logp_ref", &["B", "T"], Role::LogpOther).unless_zero("kl_loss_coef"),
                Input::constant("advantages", &["B", "T"], Role::Advantage),
                Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
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
                Rival::new("k1 in the loss", r#"{"kl_loss_type": "k1"}"#),
                Rival::new("k2 in the loss", r#"{"kl_loss_type": "k2"}"#),
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
        },
    ];
}

pub(super) const CLIP_INPUTS: &[Input] = &[
    Input::differentiable("logp", &["B", "T"], Role::Logp),
    Input::constant("logp_old", &["B", "T"], Role::LogpOther),
    Input::constant("advantages", &["B", "T"], Role::Advantage),
    Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
];

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
}
