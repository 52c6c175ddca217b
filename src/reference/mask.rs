//! Means over the entries that a mask keeps.

use ndarray::{Array0, ArrayD, ArrayRefD, Axis};

use super::Real;
use crate::axes::Axes;
use crate::options::{EmptyMean, MaskedMean};
use crate::{Error, Result};

/// The mean of the kept entries, over everything or along one axis.
///
/// ```text
/// mean = (sum over kept of values) / (number kept)
/// ```
///
/// Clauses `mask.mean`, `mask.mean.empty`, `mask.select`. The masked mean of the CS336 assignment and of
/// verl, TRL and OpenRLHF, which differ on the empty mask.
///
/// * `values`: any shape; its gradient is 1 / (number kept) at a kept entry and exactly 0 elsewhere
/// * `mask`: the same shape, true keeps
///
/// Where nothing is kept, the mean is 0 or NaN as [`MaskedMean::empty`] says.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis.
///
/// # Example
/// ```
/// use grpo_oracle::{options::MaskedMean, reference::mask};
/// use ndarray::array;
/// let values = array![[1.0, 2.0, f64::NAN], [4.0, 5.0, 6.0]].into_dyn();
/// let kept = array![[true, true, false], [true, false, false]].into_dyn();
/// assert_eq!(mask::mean(&values, &kept, &MaskedMean::along(1))?, array![1.5, 4.0].into_dyn());
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn mean<R: Real>(
    values: &ArrayRefD<R>,
    mask: &ArrayRefD<bool>,
    options: &MaskedMean,
) -> Result<ArrayD<R>> {
    Axes::default().bind_any("values", values.shape())?.bind_any("mask", mask.shape())?;
    let Some(axis) = options.axis else {
        let mean = mean_of(kept(values, mask), options.empty);
        return Ok(Array0::from_elem((), mean).into_dyn());
    };
    if axis >= values.ndim() {
        return Err(Error::option(
            "axis",
            format!("{axis} is not an axis of a {}-axis array", values.ndim()),
        ));
    }
    let mut shape = values.raw_dim();
    shape[axis] = 1;
    let lanes = values.lanes(Axis(axis)).into_iter().zip(mask.lanes(Axis(axis)));
    let means: Vec<R> = lanes.map(|(values, mask)| mean_of(kept(&values, &mask), options.empty)).collect();
    let means = ArrayD::from_shape_vec(shape, means).map_err(|e| Error::input("values", e.to_string()))?;
    Ok(means.remove_axis(Axis(axis)))
}

/// The kept entries in row-major order.
pub(super) fn kept<'a, R: Real, D: ndarray::Dimension>(
    values: &'a ndarray::ArrayRef<R, D>,
    mask: &'a ndarray::ArrayRef<bool, D>,
) -> impl Iterator<Item = R> + 'a {
    values.iter().zip(mask).filter(|&(_, &keep)| keep).map(|(&value, _)| value)
}

/// The mean of some numbers.
pub(super) fn mean_of<R: Real>(numbers: impl Iterator<Item = R>, empty: EmptyMean) -> R {
    let numbers: Vec<R> = numbers.collect();
    if numbers.is_empty() {
        return R::constant(match empty {
            EmptyMean::Zero => 0.0,
            EmptyMean::Nan => f64::NAN,
        });
    }
    let count = R::constant(numbers.len() as f64);
    R::sum(numbers) / count
}
