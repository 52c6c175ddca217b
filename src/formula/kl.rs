//! The rows of `kl.*`.

use ndarray::{Ix0, Ix2, Ix3};
use serde_json::Map;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{KlController, KlEstimate, KlInReward};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const KL: &'static [Self] = &[
        Self {
            id: "kl.estimate",
            summary: "k1 = d, abs = |d|, k2 = d^2 / 2, k3 = exp(-d) + d - 1;  d = logp - logp_ref",
            source: "Schulman, Approximating KL divergence; DeepSeekMath Eq. 4; 003_grpo_trainer_guide.md",
            clauses: &[
                "kl.estimate",
                "kl.estimate.stop",
                "kl.estimate.straight-through",
                "kl.estimate.clamp",
            ],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_ref", &["B", "T"], Role::LogpOther),
            ],
            options: &[KL_PENALTY, INPUT_CLAMP, OUTPUT_CLAMP],
            defaults: || fields(&KlEstimate::k3()),
            outputs: &[Output::new("kl", &["B", "T"])],
            rivals: &[
                Rival::new("k1", r#"{"kl_penalty": "k1"}"#),
                Rival::new("abs", r#"{"kl_penalty": "abs"}"#),
                Rival::new("k2", r#"{"kl_penalty": "k2"}"#),
                Rival::new("k3", r#"{"kl_penalty": "k3"}"#),
                Rival::new("k3 with the gradient of k2", r#"{"kl_penalty": "k3+"}"#),
                Rival::new("clamped as verl does", r#"{"input_clamp": 20.0, "output_clamp": 10.0}"#),
                Rival::new("not clamped", r#"{"input_clamp": null, "output_clamp": null}"#),
            ],
            reference: kl_estimate,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::kl_estimate),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "kl.full",
            summary: "kl = sum_v p_v (log p_v - log q_v);  p = softmax(logits), q = softmax(logits_ref)",
            source: "Kullback and Leibler (1951); 003_grpo_trainer_guide.md",
            clauses: &["kl.full", "kl.full.stop", "kl.full.ruled-out"],
            inputs: &[
                Input::differentiable("logits", &["B", "T", "V"], Role::Logit),
                Input::constant("logits_ref", &["B", "T", "V"], Role::Logit),
            ],
            options: &[],
            defaults: Map::new,
            outputs: &[Output::new("kl", &["B", "T"])],
            rivals: &[],
            reference: full,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::full),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "kl.in_reward",
            summary: "rewards = scores - kl_coef kl(logp, logp_ref);  current_kl = mean over sequences of their mean kl",
            source: "Ziegler et al. (arXiv 1909.08593) Eq. 2; verl apply_kl_penalty; 003_grpo_trainer_guide.md",
            clauses: &[
                "kl.in-reward",
                "kl.in-reward.estimate",
                "kl.in-reward.constant",
                "kl.in-reward.current-kl",
                "mask.select",
            ],
            inputs: &[
                Input::data("scores", Kind::Real, &["B", "T"], Role::Number),
                Input::data("logp", Kind::Real, &["B", "T"], Role::Logp),
                Input::data("logp_ref", Kind::Real, &["B", "T"], Role::LogpOther),
                Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
            ],
            options: &[
                OptionField::new(
                    "kl_coef",
                    "any number",
                    "[0.001, 0.0, 0.5, -0.25]",
                    "what the estimate is multiplied by before it is taken from the score",
                ),
                KL_PENALTY,
                INPUT_CLAMP,
                OUTPUT_CLAMP,
            ],
            defaults: || fields(&KlInReward::verl()),
            outputs: &[Output::new("rewards", &["B", "T"]), Output::new("current_kl", &[])],
            rivals: &[
                Rival::new("no penalty", r#"{"kl_coef": 0.0}"#),
                Rival::new("k1", r#"{"kl_penalty": "k1"}"#),
                Rival::new("abs", r#"{"kl_penalty": "abs"}"#),
                Rival::new("k2", r#"{"kl_penalty": "k2"}"#),
                Rival::new("k3", r#"{"kl_penalty": "k3"}"#),
                Rival::new("clamped as verl does", r#"{"input_clamp": 20.0, "output_clamp": 10.0}"#),
                Rival::new("not clamped", r#"{"input_clamp": null, "output_clamp": null}"#),
            ],
            reference: in_reward,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::in_reward),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "kl.controller",
            summary: "kl_coef <- kl_coef (1 + clip(current_kl / target_kl - 1, -0.2, 0.2) n_steps / horizon)",
            source: "Ziegler et al. (arXiv 1909.08593) section 2.2; verl AdaptiveKLController",
            clauses: &["kl.controller", "kl.controller.fixed", "kl.controller.domain"],
            inputs: &[
                Input::data("kl_coef", Kind::Real, &[], Role::Size),
                Input::data("current_kl", Kind::Real, &[], Role::Number).when("type", &["adaptive"]),
            ],
            options: &[
                OptionField::new(
                    "type",
                    "fixed, adaptive",
                    r#"["fixed", "adaptive"]"#,
                    "whether the coefficient follows the measured KL",
                ),
                OptionField::new("target_kl", "above 0", "[0.1, 4.0, 6.0]", "the KL that is aimed at"),
                OptionField::new(
                    "horizon",
                    "above 0",
                    "[10000.0, 64.0, 1.0]",
                    "sequences in which it adapts",
                ),
                OptionField::new("n_steps", "above 0", "[1.0, 16.0, 1024.0]", "sequences of this batch"),
            ],
            defaults: || fields(&KlController::verl()),
            outputs: &[Output::new("kl_coef", &[])],
            rivals: &[
                Rival::new("not adapted", r#"{"type": "fixed"}"#),
                Rival::new("one step for the whole batch", r#"{"n_steps": 1.0}"#),
            ],
            reference: controller,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::controller),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const KL_PENALTY: OptionField = OptionField::new(
    "kl_penalty",
    "k1, abs, k2, k3, and each with +",
    r#"["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]"#,
    "the estimator; with +, its value with the gradient of k2",
);
const INPUT_CLAMP: OptionField =
    OptionField::new("input_clamp", "null or above 0", "[null, 20.0, 0.5]", "d is clamped to [-c, c] first");
const OUTPUT_CLAMP: OptionField = OptionField::new(
    "output_clamp",
    "null or above 0",
    "[null, 10.0, 0.25]",
    "the estimate is clamped to [-c, c] last",
);

fn kl_estimate<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let kl = reference::kl::estimate(
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_ref")?,
        &args.options()?,
    )?;
    Ok(vec![("kl", kl.into_dyn())])
}

fn full<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let kl = reference::kl::full(&args.real::<Ix3>("logits")?, &args.real::<Ix3>("logits_ref")?)?;
    Ok(vec![("kl", kl.into_dyn())])
}

fn in_reward<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let penalised = reference::kl::in_reward(
        &args.real::<Ix2>("scores")?,
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_ref")?,
        &args.mask::<Ix2>("response_mask")?,
        &args.options()?,
    )?;
    Ok(vec![("rewards", penalised.rewards.into_dyn()), ("current_kl", scalar(penalised.current_kl))])
}

fn controller<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let kl_coef = args.real::<Ix0>("kl_coef")?.into_scalar();
    let current_kl = args.optional_real::<Ix0>("current_kl")?.map(|kl| kl.into_scalar());
    let next = reference::kl::controller(kl_coef, current_kl, &args.options()?)?;
    Ok(vec![("kl_coef", scalar(next))])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn kl_estimate(args: &TorchArgs<'_>) -> Result<Outputs> {
        let kl = torch::kl::estimate(args.tensor("logp")?, args.tensor("logp_ref")?, &args.options()?)?;
        Ok(vec![("kl", kl)])
    }

    pub(super) fn full(args: &TorchArgs<'_>) -> Result<Outputs> {
        Ok(vec![("kl", torch::kl::full(args.tensor("logits")?, args.tensor("logits_ref")?)?)])
    }

    pub(super) fn in_reward(args: &TorchArgs<'_>) -> Result<Outputs> {
        let penalised = torch::kl::in_reward(
            args.tensor("scores")?,
            args.tensor("logp")?,
            args.tensor("logp_ref")?,
            args.tensor("response_mask")?,
            &args.options()?,
        )?;
        Ok(vec![("rewards", penalised.rewards), ("current_kl", penalised.current_kl)])
    }

    pub(super) fn controller(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (kl_coef, current_kl) = (args.tensor("kl_coef")?, args.optional_tensor("current_kl"));
        Ok(vec![("kl_coef", torch::kl::controller(kl_coef, current_kl, &args.options()?)?)])
    }
}
