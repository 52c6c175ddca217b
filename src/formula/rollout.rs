//! The rows of `rollout.*`.

use ndarray::Ix2;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{RolloutRejection, RolloutWeights};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const ROLLOUT: &'static [Self] = &[
        Self {
            id: "rollout.weights",
            summary: "weight = exp(logp_old - logp_rollout), of a token or summed over its sequence, truncated or masked",
            source: "verl 0.9.1 rollout correction; truncated importance sampling; IcePop; TRL vllm_importance_sampling_mode",
            clauses: &[
                "mask.select",
                "rollout.weights",
                "rollout.weights.constant",
                "rollout.weights.safety-bound",
                "rollout.weights.mode",
                "rollout.weights.normalize",
            ],
            inputs: INPUTS,
            options: &[
                OptionField::new(
                    "rollout_is",
                    "token or sequence",
                    r#"["token", "sequence"]"#,
                    "what a weight is the ratio of",
                ),
                OptionField::new(
                    "rollout_is_mode",
                    "truncate or mask",
                    r#"["truncate", "mask"]"#,
                    "what becomes of a weight out of bounds",
                ),
                OptionField::new("rollout_is_threshold", "above 0", "[2.0, 3.0, 1.0]", "the upper bound"),
                OptionField::new(
                    "rollout_is_threshold_lower",
                    "null, or at least 0 and not above rollout_is_threshold",
                    "[null, 0.5, 0.0]",
                    "the lower bound",
                ),
                SAFETY_BOUND,
                OptionField::new(
                    "batch_normalize",
                    "true or false",
                    "[false, true]",
                    "the weights are divided by their mean",
                ),
            ],
            defaults: || fields(&RolloutWeights::verl()),
            outputs: &[Output::new("weights", &["B", "T"])],
            rivals: &[
                Rival::new("the token's ratio for the sequence's", r#"{"rollout_is": "token"}"#),
                Rival::new("the sequence's ratio for the token's", r#"{"rollout_is": "sequence"}"#),
                Rival::new("truncated instead of masked", r#"{"rollout_is_mode": "truncate"}"#),
                Rival::new("masked instead of truncated", r#"{"rollout_is_mode": "mask"}"#),
                Rival::new("no lower bound", r#"{"rollout_is_threshold_lower": null}"#),
                Rival::new("not normalised", r#"{"batch_normalize": false}"#),
                Rival::new("no safety bound", r#"{"safety_bound": null}"#),
            ],
            reference: weights,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::weights),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "rollout.rejection",
            summary: "keeps a token while the k1, k2 or k3 of logp_old - logp_rollout, its own or its sequence's, is within bounds",
            source: "verl 0.9.1 rollout correction, compute_rollout_rejection_mask",
            clauses: &[
                "mask.select",
                "rollout.rejection",
                "rollout.rejection.estimator",
                "rollout.rejection.orientation",
                "rollout.rejection.level",
                "rollout.rejection.bounds",
                "rollout.rejection.fraction",
            ],
            inputs: INPUTS,
            options: &[
                OptionField::new(
                    "rollout_rs_level",
                    "token, seq_sum, seq_mean or seq_max",
                    r#"["token", "seq_sum", "seq_mean", "seq_max"]"#,
                    "over what the divergence is taken",
                ),
                OptionField::new(
                    "rollout_rs_estimator",
                    "k1, k2 or k3",
                    r#"["k1", "k2", "k3"]"#,
                    "how a token's divergence is estimated",
                ),
                OptionField::new(
                    "rollout_rs_threshold",
                    "above 0; at least 1 for k1 without a lower bound",
                    "[2.0, 1.5, 16.0]",
                    "the upper bound, of a ratio for k1 and of the divergence otherwise",
                ),
                OptionField::new(
                    "rollout_rs_threshold_lower",
                    "null, or above 0 and not above rollout_rs_threshold",
                    "[null, null, 0.25]",
                    "the lower bound for k1; null takes 1 over the upper one",
                ),
                OptionField::new(
                    "rs_k1_orientation",
                    "inverse or direct",
                    r#"["inverse", "direct"]"#,
                    "which ratio the bounds of k1 are bounds of",
                ),
                SAFETY_BOUND,
            ],
            defaults: || fields(&RolloutRejection::verl()),
            outputs: &[Output::new("response_mask", &["B", "T"]), Output::new("rejected_fraction", &[])],
            rivals: &[
                Rival::new(
                    "bounds of the trainer's ratio over the sampler's",
                    r#"{"rs_k1_orientation": "direct"}"#,
                ),
                Rival::new("the mean for the sum", r#"{"rollout_rs_level": "seq_mean"}"#),
                Rival::new("the sum for the mean", r#"{"rollout_rs_level": "seq_sum"}"#),
                Rival::new("tokens by themselves", r#"{"rollout_rs_level": "token"}"#),
                Rival::new("the largest for the sum", r#"{"rollout_rs_level": "seq_max"}"#),
                Rival::new("no safety bound", r#"{"safety_bound": null}"#),
            ],
            reference: rejection,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::rejection),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const INPUTS: &[Input] = &[
    Input::constant("logp_old", &["B", "T"], Role::Logp),
    Input::constant("logp_rollout", &["B", "T"], Role::LogpOther),
    Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
];

const SAFETY_BOUND: OptionField = OptionField::new(
    "safety_bound",
    "null or above 0",
    "[20.0, null, 0.5]",
    "the log-ratio is clamped to [-c, c] first",
);

fn weights<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp_old, logp_rollout) = (args.real::<Ix2>("logp_old")?, args.real::<Ix2>("logp_rollout")?);
    let mask = args.mask::<Ix2>("response_mask")?;
    let weights = reference::rollout::weights(&logp_old, &logp_rollout, &mask, &args.options()?)?;
    Ok(vec![("weights", weights.into_dyn())])
}

fn rejection<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp_old, logp_rollout) = (args.real::<Ix2>("logp_old")?, args.real::<Ix2>("logp_rollout")?);
    let mask = args.mask::<Ix2>("response_mask")?;
    let output = reference::rollout::rejection(&logp_old, &logp_rollout, &mask, &args.options()?)?;
    Ok(vec![
        ("response_mask", output.response_mask.into_dyn()),
        ("rejected_fraction", scalar(output.rejected_fraction)),
    ])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn weights(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp_old, logp_rollout) = (args.tensor("logp_old")?, args.tensor("logp_rollout")?);
        let mask = args.tensor("response_mask")?;
        Ok(vec![("weights", torch::rollout::weights(logp_old, logp_rollout, mask, &args.options()?)?)])
    }

    pub(super) fn rejection(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp_old, logp_rollout) = (args.tensor("logp_old")?, args.tensor("logp_rollout")?);
        let mask = args.tensor("response_mask")?;
        let output = torch::rollout::rejection(logp_old, logp_rollout, mask, &args.options()?)?;
        Ok(vec![("response_mask", output.response_mask), ("rejected_fraction", output.rejected_fraction)])
    }
}
