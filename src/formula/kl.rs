//! The rows of `kl.*`.

use ndarray::Ix2;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::KlEstimate;
use crate::reference::{self, Real};

impl<R: Real> Formula<R> {
    pub(super) const KL: &'static [Self] = &[Self {
        id: "kl.estimate",
        summary: "k1 = d, abs = |d|, k2 = d^2 / 2, k3 = exp(-d) + d - 1;  d = logp - logp_ref",
        source: "Schulman, Approximating KL divergence; DeepSeekMath Eq. 4; 003_grpo_trainer_guide.md",
        clauses: &["kl.estimate", "kl.estimate.stop", "kl.estimate.straight-through", "kl.estimate.clamp"],
        inputs: &[
            Input::differentiable("logp", &["B", "T"], Role::Logp),
            Input::constant("logp_ref", &["B", "T"], Role::LogpOther),
        ],
        options: &[
            OptionField::new(
                "kl_penalty",
                "k1, abs, k2, k3, and each with +",
                r#"["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]"#,
                "the estimator; with +, its value with the gradient of k2",
            ),
            OptionField::new(
                "input_clamp",
                "null or above 0",
                "[null, 20.0, 0.5]",
                "d is clamped to [-c, c] first",
            ),
            OptionField::new(
                "output_clamp",
                "null or above 0",
                "[null, 10.0, 0.25]",
                "the estimate is clamped to [-c, c] last",
            ),
        ],
        defaults: || fields(&KlEstimate::k3()),
        outputs: &[Output::new("kl", &["B", "T"])],
        rivals: &[
            Rival::new("k1", r#"{"kl_penalty": "k1"}"#),
            Rival::new("abs", r#"{"kl_penalty": "abs"}"#),
            Rival::new("k2", r#"{"kl_penalty": "k2"}"#),
            Rival::new("k3", r#"{"kl_penalty": "k3"}"#),
            Rival::new("clamped as verl does", r#"{"input_clamp": 20.0, "output_clamp": 10.0}"#),
            Rival::new("not clamped", r#"{"input_clamp": null, "output_clamp": null}"#),
        ],
        reference: kl_estimate,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::kl_estimate),
    }];
}

fn kl_estimate<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let kl = reference::kl::estimate(
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_ref")?,
        &args.options()?,
    )?;
    Ok(vec![("kl", kl.into_dyn())])
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
}
