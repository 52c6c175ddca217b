//! The rows of `mask.*`.

use ndarray::IxDyn;

use super::{ANY, Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{MaskedMean, MaskedNormalize, MaskedSum, MaskedVariance, Whiten};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const MASK: &'static [Self] = &[
        Self {
            id: "mask.sum",
            summary: "sum = sum over kept of values",
            source: "verl masked_sum",
            clauses: &["mask.select", "mask.sum", "mask.mean.axis"],
            inputs: INPUTS,
            options: &[AXIS],
            defaults: || fields(&MaskedSum::over_all()),
            outputs: &[Output::new("sum", ANY)],
            rivals: &[Rival::new("summed over everything", r#"{"axis": null}"#)],
            reference: mask_sum,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::mask_sum),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "mask.mean",
            summary: "mean = (sum over kept of values) / (number kept)",
            source: "CS336 assignment 5, masked_mean; 002_cs336_notes.md",
            clauses: &["mask.select", "mask.mean", "mask.mean.empty", "mask.mean.axis"],
            inputs: INPUTS,
            options: &[
                AXIS,
                OptionField::new(
                    "empty",
                    "zero, nan",
                    r#"["zero", "nan"]"#,
                    "what the mean over no kept entries is",
                ),
            ],
            defaults: || fields(&MaskedMean::over_all()),
            outputs: &[Output::new("mean", ANY)],
            rivals: &[
                Rival::new("0/0 on an empty mask", r#"{"empty": "nan"}"#),
                Rival::new("the mean over everything", r#"{"axis": null}"#),
            ],
            reference: mask_mean,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::mask_mean),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "mask.normalize",
            summary: "normalized = (sum over kept of values) / constant",
            source: "CS336 assignment 5, masked_normalize; 002_cs336_notes.md",
            clauses: &["mask.select", "mask.normalize", "mask.mean.axis"],
            inputs: INPUTS,
            options: &[
                AXIS,
                OptionField::new("constant", "above 0", "[1.0, 4.0, 0.3]", "the sum is divided by it"),
            ],
            defaults: || fields(&MaskedNormalize::cs336(1.0)),
            outputs: &[Output::new("normalized", ANY)],
            rivals: &[
                Rival::new("not divided", r#"{"constant": 1.0}"#),
                Rival::new("summed over everything", r#"{"axis": null}"#),
            ],
            reference: mask_normalize,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::mask_normalize),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "mask.variance",
            summary: "variance = (sum over kept of (values - mean)^2) / (number kept - ddof)",
            source: "verl masked_var",
            clauses: &["mask.select", "mask.variance", "mask.variance.equal", "mask.variance.few"],
            inputs: INPUTS,
            options: &[DDOF],
            defaults: || fields(&MaskedVariance::verl()),
            outputs: &[Output::new("variance", &[])],
            rivals: VARIANCE_RIVALS,
            reference: mask_variance,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::mask_variance),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "mask.whiten",
            summary: "whitened = (values - mean) / sqrt(variance + eps), or with max(variance, eps);  + mean",
            source: "verl masked_whiten; OpenRLHF masked_normalize; torchtune masked_whiten",
            clauses: &[
                "mask.select",
                "mask.whiten",
                "mask.whiten.eps",
                "mask.whiten.shift-mean",
                "mask.whiten.equal",
                "mask.variance",
                "mask.variance.few",
            ],
            inputs: INPUTS,
            options: &[
                DDOF,
                OptionField::new("eps", "at least 0", "[1e-8, 0.0, 0.01]", "the small number under the root"),
                OptionField::new(
                    "eps_mode",
                    "add, clamp",
                    r#"["add", "clamp"]"#,
                    "whether eps is added to the variance or its least value",
                ),
                OptionField::new(
                    "shift_mean",
                    "true, false",
                    "[true, false]",
                    "whether the mean becomes 0; if not, it is added back",
                ),
            ],
            defaults: || fields(&Whiten::verl()),
            outputs: &[Output::new("whitened", ANY)],
            rivals: &[
                Rival::new("population variance", r#"{"ddof": 0}"#),
                Rival::new("sample variance", r#"{"ddof": 1}"#),
                Rival::new("eps added", r#"{"eps_mode": "add"}"#),
                Rival::new("eps as the least variance", r#"{"eps_mode": "clamp"}"#),
                Rival::new("mean added back", r#"{"shift_mean": false}"#),
                Rival::new("mean not added back", r#"{"shift_mean": true}"#),
            ],
            reference: mask_whiten,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::mask_whiten),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const INPUTS: &[Input] =
    &[Input::differentiable("values", ANY, Role::Number), Input::data("mask", Kind::Mask, ANY, Role::Mask)];

const AXIS: OptionField = OptionField::new(
    "axis",
    "null, 0, 1, ...",
    "[null, 0, 1]",
    "the axis that is reduced away; null reduces everything",
);
const DDOF: OptionField =
    OptionField::new("ddof", "0, 1", "[1, 0]", "the number kept less this divides the squares");

const VARIANCE_RIVALS: &[Rival] =
    &[Rival::new("population variance", r#"{"ddof": 0}"#), Rival::new("sample variance", r#"{"ddof": 1}"#)];

fn mask_sum<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let sum =
        reference::mask::sum(&args.real::<IxDyn>("values")?, &args.mask::<IxDyn>("mask")?, &args.options()?)?;
    Ok(vec![("sum", sum)])
}

fn mask_mean<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let mean = reference::mask::mean(
        &args.real::<IxDyn>("values")?,
        &args.mask::<IxDyn>("mask")?,
        &args.options()?,
    )?;
    Ok(vec![("mean", mean)])
}

fn mask_normalize<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let normalized = reference::mask::normalize(
        &args.real::<IxDyn>("values")?,
        &args.mask::<IxDyn>("mask")?,
        &args.options()?,
    )?;
    Ok(vec![("normalized", normalized)])
}

fn mask_variance<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let variance = reference::mask::variance(
        &args.real::<IxDyn>("values")?,
        &args.mask::<IxDyn>("mask")?,
        &args.options()?,
    )?;
    Ok(vec![("variance", scalar(variance))])
}

fn mask_whiten<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let whitened = reference::mask::whiten(
        &args.real::<IxDyn>("values")?,
        &args.mask::<IxDyn>("mask")?,
        &args.options()?,
    )?;
    Ok(vec![("whitened", whitened)])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn mask_sum(args: &TorchArgs<'_>) -> Result<Outputs> {
        let sum = torch::mask::sum(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("sum", sum)])
    }

    pub(super) fn mask_mean(args: &TorchArgs<'_>) -> Result<Outputs> {
        let mean = torch::mask::mean(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("mean", mean)])
    }

    pub(super) fn mask_normalize(args: &TorchArgs<'_>) -> Result<Outputs> {
        let normalized =
            torch::mask::normalize(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("normalized", normalized)])
    }

    pub(super) fn mask_variance(args: &TorchArgs<'_>) -> Result<Outputs> {
        let variance = torch::mask::variance(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("variance", variance)])
    }

    pub(super) fn mask_whiten(args: &TorchArgs<'_>) -> Result<Outputs> {
        let whitened = torch::mask::whiten(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("whitened", whitened)])
    }
}
