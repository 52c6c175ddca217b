//! The loss of the critic.

use tch::{Kind, Tensor};

use super::{aggregate, at_least_f32, mask, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{MaskedMean, ValueClip};

/// What [`clipped`] gives, both without axes: the loss and how much of it was clipped.
#[derive(Debug)]
pub struct ValueLossOutput {
    /// What is minimised.
    pub loss: Tensor,
    /// The share of kept tokens whose clipped error is the larger one; no gradient.
    pub clip_fraction: Tensor,
}

/// The clipped squared error of the values, aggregated. See [`crate::reference::value::clipped`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a range or a count that is not above 0, `input` if `response_mask` is not
/// boolean.
pub fn clipped(
    values: &Tensor,
    values_old: &Tensor,
    returns: &Tensor,
    response_mask: &Tensor,
    options: &ValueClip,
) -> Result<ValueLossOutput> {
    options.check()?;
    Axes::default()
        .bind("values", &["B", "T"], &values.size())?
        .bind("values_old", &["B", "T"], &values_old.size())?
        .bind("returns", &["B", "T"], &returns.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    // Emptied first, so that nothing in a masked slot can reach a gradient as 0 times NaN.
    let values = select(&at_least_f32(values), response_mask);
    let returns = select(&at_least_f32(returns).detach(), response_mask);
    let own = (&values - &returns).square();
    let (errors, is_clipped) = match options.cliprange_value {
        None => (own, response_mask.zeros_like()),
        Some(range) => {
            let old = select(&at_least_f32(values_old).detach(), response_mask);
            let near = values.detach().clamp_tensor(Some(&old - range), Some(&old + range));
            let clipped = (near - &returns).square();
            // Only outside the range can it be larger, where it is constant.
            let is_clipped = clipped.gt_tensor(&own);
            (clipped.where_self(&is_clipped, &own), is_clipped)
        }
    };
    let losses = if options.half { errors * 0.5 } else { errors };
    Ok(ValueLossOutput {
        loss: aggregate::loss(&losses, response_mask, &options.aggregate)?,
        clip_fraction: mask::mean(
            &is_clipped.to_kind(values.kind()),
            response_mask,
            &MaskedMean::over_all(),
        )?,
    })
}
