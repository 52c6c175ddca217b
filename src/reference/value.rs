//! The loss of the critic.

use ndarray::{Array2, ArrayRef2};

use super::mask::mean_of;
use super::{Real, aggregate};
use crate::Result;
use crate::axes::Axes;
use crate::options::{EmptyMean, ValueClip};

/// What [`clipped`] gives: the loss and how much of it was clipped.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ValueLossOutput<R> {
    /// What is minimised.
    pub loss: R,
    /// The share of kept tokens whose clipped error is the larger one; no gradient.
    pub clip_fraction: R,
}

/// The clipped squared error of the values, aggregated.
///
/// ```text
/// near_t = clip(V_t, V_old_t - c, V_old_t + c)
/// loss_t = 1/2 max((V_t - R_t)^2, (near_t - R_t)^2)
/// loss   = agg(loss_t)
/// ```
///
/// Clauses `value.clipped` and below, `mask.select`. PPO as OpenAI's baselines publish it (the paper has no value
/// clipping); verl 0.9.1 `compute_value_loss`.
///
/// * `values`: `[B, T]`; gradient flows to the kept tokens where the loss is not clipped, exactly 0 elsewhere
/// * `values_old`, `returns`: `[B, T]`; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// Without a kept token both outputs are 0; a sequence without one is [`aggregate::loss`]'s business.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a range or a count that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::ValueClip, reference::value};
/// use ndarray::array;
/// let (old, returns) = (array![[0.0, 0.0, 0.0]], array![[2.0, 2.0, f64::NAN]]);
/// let mask = array![[true, true, false]];
/// // 1 is clipped to 0.5, where the error is larger: (1.5^2 / 2 + 2^2 / 2) / 2
/// let output = value::clipped(&array![[1.0, 0.0, 9.0]], &old, &returns, &mask, &ValueClip::verl())?;
/// assert_eq!((output.loss, output.clip_fraction), (1.5625, 0.5));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn clipped<R: Real>(
    values: &ArrayRef2<R>,
    values_old: &ArrayRef2<R>,
    returns: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &ValueClip,
) -> Result<ValueLossOutput<R>> {
    options.check()?;
    Axes::default()
        .bind("values", &["B", "T"], values.shape())?
        .bind("values_old", &["B", "T"], values_old.shape())?
        .bind("returns", &["B", "T"], returns.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let mut losses = Array2::from_elem(values.raw_dim(), R::constant(0.0));
    let mut is_clipped = Vec::new();
    for (position, _) in response_mask.indexed_iter().filter(|&(_, &keep)| keep) {
        let (old, target) = (values_old[position].detach(), returns[position].detach());
        let (loss, clipped) = of_token(values[position], old, target, options);
        losses[position] = loss;
        is_clipped.push(clipped);
    }
    let loss = aggregate::loss(&losses, response_mask, &options.aggregate)?;
    Ok(ValueLossOutput { loss, clip_fraction: mean_of(is_clipped, EmptyMean::Zero) })
}

/// One token's loss, and 1 if clipping has raised it.
fn of_token<R: Real>(value: R, old: R, target: R, options: &ValueClip) -> (R, R) {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let weight = R::constant(if options.half { 0.5 } else { 1.0 });
    let square = |error: R| error * error;
    let own = square(value - target);
    let Some(range) = options.cliprange_value else { return (weight * own, zero) };
    let (low, high) = (old - R::constant(range), old + R::constant(range));
    let clipped = square(value.clamp(low, high) - target);
    // Within the bounds both errors are one and the same, so only a value outside is asked which is larger.
    let is_larger = own.select_less(clipped, one, zero);
    let is_clipped = value.select_less(low, is_larger, high.select_less(value, is_larger, zero));
    (weight * own.max(clipped), is_clipped)
}
