//! The rows of `mask.*`.

use ndarray::IxDyn;

use super::{ANY, Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::{MaskedMean, MaskedNormalize, MaskedSum, MaskedVariance, Whiten};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const MASK: &'static [Self] = &[Self {
        id: "mask.mean",
        summary: "mean = (sum over kept of values) / (number kept)",
        source: "CS336 assignment 5, masked_mean; 002_cs336_notes.md",
        clauses: &["mask.select", "mask.mean", "mask.mean.empty", "mask.mean.axis"],
        inputs: &[
            Input::differentiable("values", ANY, Role::Number),
            Input::data("mask", Kind::Mask, ANY, Role::Mask),
        ],
        options: &[
            OptionField::new(
                "axis",
                "null, 0, 1, ...",
                "[null, 0]",
                "the axis that is averaged away; null averages over everything",
            ),
            OptionField::new(
                "empty",
                "zero, nan",
                r#"["zero", "nan"]"#,
                "what the mean over no kept entries is",
            ),
        ],
        defaults: || fields(&MaskedMean::over_all()),
        outputs: &[Output::new("mean", ANY)],
        rivals: &[Rival::new("0/0 on an empty mask", r#"{"empty": "nan"}"#)],
        reference: mask_mean,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::mask_mean),
    }];
}

fn mask_mean<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let mean = reference::mask::mean(
        &args.real::<IxDyn>("values")?,
        &args.mask::<IxDyn>("mask")?,
        &args.options()?,
    )?;
    Ok(vec![("mean", mean)])
}

#[cfg(feature = "torch")]
mod of_torch {
    use super::super::TorchOutputs as Outputs;
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::torch;

    pub(super) fn mask_mean(args: &TorchArgs<'_>) -> Result<Outputs> {
        let mean = torch::mask::mean(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("mean", mean)])
    }
}
