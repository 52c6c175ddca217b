//! The rows of `logprob.*`.

use ndarray::{Ix2, Ix3};

use super::objective::LOG_RATIO_CLAMP;
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::{Ratio, SequenceRatio, Softmax};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const LOGPROB: &'static [Self] = &[
        Self {
            id: "logprob.token",
            summary: "logp = z[token] - log sum_v exp(z_v);  entropy = log sum_v exp(z_v) - sum_v p_v z_v;  z = logits / temperature",
            source: "CS336 assignment 5, get_response_log_probs and compute_entropy",
            clauses: &[
                "logprob.token",
                "logprob.token.index",
                "logprob.entropy",
                "logprob.temperature",
                "logprob.ruled-out",
            ],
            inputs: &[
                Input::differentiable("logits", &["B", "T", "V"], Role::Logit),
                Input::data("tokens", Kind::Token, &["B", "T"], Role::Token),
            ],
            options: &[TEMPERATURE],
            defaults: || fields(&Softmax::plain()),
            outputs: &[Output::new("logp", &["B", "T"]), Output::new("entropy", &["B", "T"])],
            rivals: &[Rival::new("the temperature forgotten", r#"{"temperature": 1.0}"#)],
            reference: token,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::token),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::token),
        },
        Self {
            id: "logprob.entropy",
            summary: "entropy = log sum_v exp(z_v) - sum_v p_v z_v;  z = logits / temperature",
            source: "CS336 assignment 5, compute_entropy; verl entropy_from_logits",
            clauses: &[
                "logprob.entropy",
                "logprob.entropy.gradient",
                "logprob.temperature",
                "logprob.ruled-out",
            ],
            inputs: &[Input::differentiable("logits", &["B", "T", "V"], Role::Logit)],
            options: &[TEMPERATURE],
            defaults: || fields(&Softmax::plain()),
            outputs: &[Output::new("entropy", &["B", "T"])],
            rivals: &[Rival::new("the temperature forgotten", r#"{"temperature": 1.0}"#)],
            reference: entropy,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::entropy),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::entropy),
        },
        Self {
            id: "logprob.ratio",
            summary: "ratio_t = exp(clamp(logp_t - logp_old_t))",
            source: "CS336 assignment 5, Eq. 27; 002_cs336_notes.md; the clamp: verl since 0.4.1",
            clauses: &["logprob.ratio", "logprob.ratio.stop", "logprob.ratio.clamp"],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_old", &["B", "T"], Role::LogpOther),
            ],
            options: &[LOG_RATIO_CLAMP],
            defaults: || fields(&Ratio::unclamped()),
            outputs: &[Output::new("ratio", &["B", "T"])],
            rivals: &[
                Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
                Rival::new("log-ratio clamped at 20", r#"{"log_ratio_clamp": 20.0}"#),
            ],
            reference: ratio,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::ratio),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "logprob.sequence_ratio",
            summary: "ratio_i = exp(clamp(mean_t (logp_it - logp_old_it))), or of the sum",
            source: "GSPO (arXiv 2507.18071) Eq. 7; TRL's RLOO",
            clauses: &[
                "mask.select",
                "logprob.sequence-ratio",
                "logprob.sequence-ratio.stop",
                "logprob.sequence-ratio.clamp",
                "logprob.sequence-ratio.empty",
            ],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_old", &["B", "T"], Role::LogpOther),
                Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
            ],
            options: &[
                OptionField::new(
                    "level",
                    "mean or sum",
                    r#"["mean", "sum"]"#,
                    "how the tokens' log-ratios become one",
                ),
                LOG_RATIO_CLAMP,
            ],
            defaults: || fields(&SequenceRatio::gspo()),
            outputs: &[Output::new("ratio", &["B"])],
            rivals: &[
                Rival::new("the product for the geometric mean", r#"{"level": "sum"}"#),
                Rival::new("the geometric mean for the product", r#"{"level": "mean"}"#),
                Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
            ],
            reference: sequence_ratio,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::sequence_ratio),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const TEMPERATURE: OptionField =
    OptionField::new("temperature", "above 0", "[1.0, 0.5, 0.7, 3.0]", "the logits are divided by it");

fn token<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logits, tokens) = (args.real::<Ix3>("logits")?, args.integer::<Ix2>("tokens")?);
    let token = reference::logprob::token(&logits, &tokens, &args.options()?)?;
    Ok(vec![("logp", token.logp.into_dyn()), ("entropy", token.entropy.into_dyn())])
}

fn entropy<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let entropy = reference::logprob::entropy(&args.real::<Ix3>("logits")?, &args.options()?)?;
    Ok(vec![("entropy", entropy.into_dyn())])
}

fn sequence_ratio<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let mask = args.mask::<Ix2>("response_mask")?;
    let ratio = reference::logprob::sequence_ratio(&logp, &logp_old, &mask, &args.options()?)?;
    Ok(vec![("ratio", ratio.into_dyn())])
}

fn ratio<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let ratio = reference::logprob::ratio(
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_old")?,
        &args.options()?,
    )?;
    Ok(vec![("ratio", ratio.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn token(args: &TorchArgs<'_>) -> Result<Outputs> {
        let token = torch::logprob::token(args.tensor("logits")?, args.tensor("tokens")?, &args.options()?)?;
        Ok(vec![("logp", token.logp), ("entropy", token.entropy)])
    }

    pub(super) fn entropy(args: &TorchArgs<'_>) -> Result<Outputs> {
        Ok(vec![("entropy", torch::logprob::entropy(args.tensor("logits")?, &args.options()?)?)])
    }

    pub(super) fn ratio(args: &TorchArgs<'_>) -> Result<Outputs> {
        let ratio = torch::logprob::ratio(args.tensor("logp")?, args.tensor("logp_old")?, &args.options()?)?;
        Ok(vec![("ratio", ratio)])
    }

    pub(super) fn sequence_ratio(args: &TorchArgs<'_>) -> Result<Outputs> {
        let ratio = torch::logprob::sequence_ratio(
            args.tensor("logp")?,
            args.tensor("logp_old")?,
            args.tensor("response_mask")?,
            &args.options()?,
        )?;
        Ok(vec![("ratio", ratio)])
    }
}

#[cfg(feature = "torch")]
mod of_fused {
    use tch::Tensor;

    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::{FusedOutputs, TorchOutputs};
    use crate::fused;

    pub(super) fn token(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        with_gradient(args, |logits| {
            let token = fused::logprob::token(logits, args.tensor("tokens")?, &args.options()?)?;
            Ok(vec![("logp", token.logp), ("entropy", token.entropy)])
        })
    }

    pub(super) fn entropy(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        with_gradient(args, |logits| {
            Ok(vec![("entropy", fused::logprob::entropy(logits, &args.options()?)?)])
        })
    }

    /// What the logits are given, and the gradient of the sum of the first of it, which the head put into their graph.
    fn with_gradient(
        args: &TorchArgs<'_>,
        asked: impl Fn(&Tensor) -> Result<TorchOutputs>,
    ) -> Result<FusedOutputs> {
        let logits = args.tensor("logits")?.copy().set_requires_grad(true);
        let outputs = asked(&logits)?;
        if let Some((_, first)) = outputs.first() {
            first.sum(None).backward();
        }
        let outputs = outputs.into_iter().map(|(name, output)| (name, output.detach())).collect();
        let gradient = logits.grad();
        let gradient = if gradient.defined() { gradient } else { logits.zeros_like() };
        Ok(FusedOutputs { outputs, gradients: vec![("logits", gradient)] })
    }
}
