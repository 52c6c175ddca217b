//! Sums, means and spreads of the entries that a mask keeps.

use ndarray::{Array0, ArrayD, ArrayRefD, Axis, Zip};

use super::Real;
use crate::axes::Axes;
use crate::options::{
    Ddof, EmptyMean, MaskedMean, MaskedNormalize, MaskedSum, MaskedVariance, Whiten, WhitenEps,
};
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
    reduce(values, mask, options.axis, |kept| mean_of(kept, options.empty))
}

/// The sum of the kept entries, over everything or along one axis.
///
/// ```text
/// sum = sum over kept of values
/// ```
///
/// Clauses `mask.sum`, `mask.mean.axis`, `mask.select`. verl `masked_sum`.
///
/// * `values`: any shape; its gradient is 1 at a kept entry and exactly 0 elsewhere
/// * `mask`: the same shape, true keeps
///
/// Where nothing is kept, the sum is 0.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis.
///
/// # Example
/// ```
/// use grpo_oracle::{options::MaskedSum, reference::mask};
/// use ndarray::array;
/// let values = array![[1.0, 2.0, f64::NAN], [4.0, 5.0, 6.0]].into_dyn();
/// let kept = array![[true, true, false], [true, false, false]].into_dyn();
/// assert_eq!(mask::sum(&values, &kept, &MaskedSum::along(1))?, array![3.0, 4.0].into_dyn());
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn sum<R: Real>(values: &ArrayRefD<R>, mask: &ArrayRefD<bool>, options: &MaskedSum) -> Result<ArrayD<R>> {
    Axes::default().bind_any("values", values.shape())?.bind_any("mask", mask.shape())?;
    reduce(values, mask, options.axis, R::sum)
}

/// The sum of the kept entries over a constant.
///
/// ```text
/// normalized = (sum over kept of values) / constant
/// ```
///
/// Clauses `mask.normalize`, `mask.mean.axis`, `mask.select`. CS336 assignment 5, `masked_normalize` (OpenRLHF's
/// function of that name is whitening).
///
/// * `values`: any shape; its gradient is 1 / constant at a kept entry and exactly 0 elsewhere
/// * `mask`: the same shape, true keeps
///
/// Where nothing is kept, the result is 0.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis or the constant is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::MaskedNormalize, reference::mask};
/// use ndarray::array;
/// let values = array![1.0, 2.0, f64::NAN].into_dyn();
/// let kept = array![true, true, false].into_dyn();
/// assert_eq!(mask::normalize(&values, &kept, &MaskedNormalize::cs336(4.0))?, ndarray::arr0(0.75).into_dyn());
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn normalize<R: Real>(
    values: &ArrayRefD<R>,
    mask: &ArrayRefD<bool>,
    options: &MaskedNormalize,
) -> Result<ArrayD<R>> {
    options.check()?;
    Axes::default().bind_any("values", values.shape())?.bind_any("mask", mask.shape())?;
    reduce(values, mask, options.axis, |kept| R::sum(kept) / R::constant(options.constant))
}

/// The variance of the kept entries.
///
/// ```text
/// variance = (sum over kept of (values - mean)^2) / (number kept - ddof)
/// ```
///
/// Clauses `mask.variance` and below, `mask.select`. `torch.var` and verl's `masked_var` have ddof 1, `numpy.var` 0.
///
/// * `values`: any shape; gradient flows to the kept entries, exactly 0 elsewhere
/// * `mask`: the same shape, true keeps
///
/// Equal entries have the variance 0, exactly and with gradient 0.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `too-few` if no more than `ddof` entries are kept.
///
/// # Example
/// ```
/// use grpo_oracle::{options::MaskedVariance, reference::mask};
/// use ndarray::array;
/// let values = array![1.0, 2.0, 3.0, f64::NAN, 6.0].into_dyn();
/// let kept = array![true, true, true, false, true].into_dyn();
/// assert_eq!(mask::variance(&values, &kept, &MaskedVariance::openrlhf())?, 3.5);
/// assert_eq!(mask::variance(&values, &kept, &MaskedVariance::verl())?, 14.0 / 3.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn variance<R: Real>(
    values: &ArrayRefD<R>,
    mask: &ArrayRefD<bool>,
    options: &MaskedVariance,
) -> Result<R> {
    Axes::default().bind_any("values", values.shape())?.bind_any("mask", mask.shape())?;
    let kept: Vec<R> = kept(values, mask).collect();
    enough("mask", kept.len(), options.ddof)?;
    Ok(variance_of(&kept, options.ddof))
}

/// The kept entries shifted to mean 0 and scaled to variance 1.
///
/// ```text
/// whitened = (values - mean) / sqrt(variance + eps)        eps_mode "add"
/// whitened = (values - mean) / sqrt(max(variance, eps))    eps_mode "clamp"
/// ```
///
/// and the mean is added back unless `shift_mean`. Clauses `mask.whiten` and below, `mask.select`. verl
/// `masked_whiten`; OpenRLHF `masked_normalize`; torchtune `masked_whiten`, whose `shift_mean` means the opposite.
///
/// * `values`: any shape; gradient flows to the kept entries, exactly 0 elsewhere
/// * `mask`: the same shape, true keeps
///
/// A masked slot gets 0. Equal entries get exactly 0, or their mean, whatever eps is.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if eps is negative, `too-few` if no more than `ddof` entries are
/// kept.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Whiten, reference::mask};
/// use ndarray::array;
/// let values = array![1.0, 2.0, 3.0, 6.0, f64::NAN].into_dyn();
/// let kept = array![true, true, true, true, false].into_dyn();
/// let whitened = mask::whiten(&values, &kept, &Whiten::openrlhf())?;
/// let expected = array![-1.069, -0.535, 0.0, 1.604, 0.0].into_dyn();
/// assert!((&whitened - &expected).iter().all(|d: &f64| d.abs() < 1e-3));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn whiten<R: Real>(values: &ArrayRefD<R>, mask: &ArrayRefD<bool>, options: &Whiten) -> Result<ArrayD<R>> {
    options.check()?;
    Axes::default().bind_any("values", values.shape())?.bind_any("mask", mask.shape())?;
    let kept: Vec<R> = kept(values, mask).collect();
    enough("mask", kept.len(), options.ddof)?;
    let mean = mean_of(kept.iter().copied(), EmptyMean::Zero);
    let (variance, eps) = (variance_of(&kept, options.ddof), R::constant(options.eps));
    let std = match options.eps_mode {
        WhitenEps::Add => variance + eps,
        WhitenEps::Clamp => variance.max(eps),
    }
    .sqrt();
    let (zero, equal) = (R::constant(0.0), all_equal(&kept));
    Ok(Zip::from(values).and(mask).map_collect(|&value, &keep| {
        if !keep {
            return zero;
        }
        let scaled = if equal { zero } else { (value - mean) / std };
        if options.shift_mean { scaled } else { scaled + mean }
    }))
}

/// What `of` makes of the kept entries, over everything or in every lane along one axis.
fn reduce<R: Real>(
    values: &ArrayRefD<R>,
    mask: &ArrayRefD<bool>,
    axis: Option<usize>,
    of: impl Fn(Vec<R>) -> R,
) -> Result<ArrayD<R>> {
    let Some(axis) = axis else {
        return Ok(Array0::from_elem((), of(kept(values, mask).collect())).into_dyn());
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
    let reduced: Vec<R> = lanes.map(|(values, mask)| of(kept(&values, &mask).collect())).collect();
    let reduced =
        ArrayD::from_shape_vec(shape, reduced).map_err(|e| Error::input("values", e.to_string()))?;
    Ok(reduced.remove_axis(Axis(axis)))
}

/// The kept entries in row-major order.
pub(super) fn kept<'a, R: Real, D: ndarray::Dimension>(
    values: &'a ndarray::ArrayRef<R, D>,
    mask: &'a ndarray::ArrayRef<bool, D>,
) -> impl Iterator<Item = R> + 'a {
    values.iter().zip(mask).filter(|&(_, &keep)| keep).map(|(&value, _)| value)
}

/// The mean of some numbers.
pub(super) fn mean_of<R: Real>(numbers: impl IntoIterator<Item = R>, empty: EmptyMean) -> R {
    let numbers: Vec<R> = numbers.into_iter().collect();
    if numbers.is_empty() {
        return R::constant(match empty {
            EmptyMean::Zero => 0.0,
            EmptyMean::Nan => f64::NAN,
        });
    }
    let count = R::constant(numbers.len() as f64);
    R::sum(numbers) / count
}

/// The mean of one input or more; that of equal ones is that number, whatever their sum rounds to.
pub(super) fn mean_of_inputs<R: Real>(numbers: &[R]) -> R {
    if all_equal(numbers) { numbers[0] } else { mean_of(numbers.iter().copied(), EmptyMean::Zero) }
}

/// The variance of more than ddof numbers, about their mean; 0 when they are all equal, whatever their mean rounds to.
pub(super) fn variance_of<R: Real>(numbers: &[R], ddof: Ddof) -> R {
    if all_equal(numbers) {
        return R::constant(0.0);
    }
    let mean = mean_of(numbers.iter().copied(), EmptyMean::Zero);
    let squares = R::sum(numbers.iter().map(|&number| (number - mean) * (number - mean)));
    squares / R::constant(numbers.len() as f64 - f64::from(u8::from(ddof)))
}

/// Whether the numbers are all the same, decided by comparing them.
pub(super) fn all_equal<R: Real>(numbers: &[R]) -> bool {
    numbers.iter().all(|number| number.value() == numbers[0].value())
}

/// More entries are kept than ddof.
fn enough(argument: &str, kept: usize, ddof: Ddof) -> Result<()> {
    let need = usize::from(u8::from(ddof)) + 1;
    if kept >= need { Ok(()) } else { Err(Error::TooFew { argument: argument.to_owned(), kept, need }) }
}
