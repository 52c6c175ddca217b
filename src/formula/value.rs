//! The rows of `value.*`.

use ndarray::Ix2;

use super::aggregate::{BATCH_NUM_TOKENS, DP_SIZE, GLOBAL_BATCH_SIZE, LOSS_AGG_MODE, LOSS_SCALE_FACTOR};
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::ValueClip;
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const VALUE: &'static [Self] = &[Self {
        id: "value.clipped",
        summary: "loss = agg(1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2))",
        source: "verl 0.9.1 compute_value_loss; OpenAI baselines ppo2",
        clauses: &[
            "mask.select",
            "value.clipped",
            "value.clipped.half",
            "value.clipped.stop",
            "value.clipped.tie",
            "value.clip-fraction",
            "aggregate.loss",
        ],
        inputs: &[
            Input::differentiable("values", &["B", "T"], Role::Number),
            Input::constant("values_old", &["B", "T"], Role::Number),
            Input::constant("returns", &["B", "T"], Role::Number),
            Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
        ],
        options: &[
            OptionField::new(
                "cliprange_value",
                "null or above 0",
                "[0.5, null, 0.2, 4.0]",
                "the value is clipped to within this of the old one",
            ),
            OptionField::new("half", "true, false", "[true, false]", "whether the squared error is halved"),
            LOSS_AGG_MODE,
            LOSS_SCALE_FACTOR,
            BATCH_NUM_TOKENS,
            GLOBAL_BATCH_SIZE,
            DP_SIZE,
        ],
        defaults: || fields(&ValueClip::verl()),
        outputs: &[Output::new("loss", &[]), Output::new("clip_fraction", &[])],
        rivals: &[
            Rival::new("not halved", r#"{"half": false}"#),
            Rival::new("halved", r#"{"half": true}"#),
            Rival::new("not clipped", r#"{"cliprange_value": null}"#),
            Rival::new("clipped at 0.2", r#"{"cliprange_value": 0.2}"#),
            Rival::new("sequence mean for token mean", r#"{"loss_agg_mode": "seq-mean-token-mean"}"#),
            Rival::new("token mean for sequence mean", r#"{"loss_agg_mode": "token-mean"}"#),
        ],
        reference: clipped,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::clipped),
        #[cfg(feature = "torch")]
        fused: None,
    }];
}

fn clipped<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let output = reference::value::clipped(
        &args.real::<Ix2>("values")?,
        &args.real::<Ix2>("values_old")?,
        &args.real::<Ix2>("returns")?,
        &args.mask::<Ix2>("response_mask")?,
        &args.options()?,
    )?;
    Ok(vec![("loss", scalar(output.loss)), ("clip_fraction", scalar(output.clip_fraction))])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn clipped(args: &TorchArgs<'_>) -> Result<Outputs> {
        let output = torch::value::clipped(
            args.tensor("values")?,
            args.tensor("values_old")?,
            args.tensor("returns")?,
            args.tensor("response_mask")?,
            &args.options()?,
        )?;
        Ok(vec![("loss", output.loss), ("clip_fraction", output.clip_fraction)])
    }
}
