//! Sums, means and spreads of the entries that a mask keeps.

use tch::{Device, Kind, Tensor};

use super::{at_least_f32, of_kind, select};
use crate::axes::Axes;
use crate::options::{
    Ddof, EmptyMean, MaskedMean, MaskedNormalize, MaskedSum, MaskedVariance, Whiten, WhitenEps,
};
use crate::{Error, Result};

/// The mean of the kept entries, over everything or along one axis. See [`crate::reference::mask::mean`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis, `input` if `mask` is not boolean.
pub fn mean(values: &Tensor, mask: &Tensor, options: &MaskedMean) -> Result<Tensor> {
    let sum = kept_sum(values, mask, options.axis)?;
    let count = match options.axis {
        None => mask.sum(Kind::Int64),
        Some(axis) => mask.sum_dim_intlist(axis as i64, false, Kind::Int64),
    };
    Ok(match options.empty {
        EmptyMean::Zero => sum / count.clamp_min(1),
        EmptyMean::Nan => sum / count,
    })
}

/// The sum of the kept entries, over everything or along one axis. See [`crate::reference::mask::sum`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis, `input` if `mask` is not boolean.
pub fn sum(values: &Tensor, mask: &Tensor, options: &MaskedSum) -> Result<Tensor> {
    kept_sum(values, mask, options.axis)
}

/// The sum of the kept entries over a constant. See [`crate::reference::mask::normalize`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis or the constant is not above 0, `input` if
/// `mask` is not boolean.
pub fn normalize(values: &Tensor, mask: &Tensor, options: &MaskedNormalize) -> Result<Tensor> {
    options.check()?;
    Ok(kept_sum(values, mask, options.axis)? / options.constant)
}

/// The variance of the kept entries. See [`crate::reference::mask::variance`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `input` if `mask` is not boolean, `too-few` if no more than `ddof` entries
/// are kept and the tensors are on the CPU: another device would have to be waited for, so there the variance is NaN.
pub fn variance(values: &Tensor, mask: &Tensor, options: &MaskedVariance) -> Result<Tensor> {
    of_one_shape(values, mask)?;
    enough("mask", mask, options.ddof)?;
    Ok(Spread::of(&at_least_f32(values), mask).variance(options.ddof))
}

/// The kept entries shifted to mean 0 and scaled to variance 1. See [`crate::reference::mask::whiten`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if eps is negative, `input` if `mask` is not boolean, `too-few` if
/// no more than `ddof` entries are kept and the tensors are on the CPU: on another device, which would have to be waited
/// for, a single entry counts as equal to itself.
pub fn whiten(values: &Tensor, mask: &Tensor, options: &Whiten) -> Result<Tensor> {
    options.check()?;
    of_one_shape(values, mask)?;
    enough("mask", mask, options.ddof)?;
    let spread = Spread::of(&at_least_f32(values), mask);
    let variance = spread.variance(options.ddof);
    let under_root = match options.eps_mode {
        WhitenEps::Add => variance + options.eps,
        WhitenEps::Clamp => variance.clamp_min(options.eps),
    };
    // The root of 0, which equal entries have without eps, would send back 0 times infinity.
    let std = under_root.masked_fill(&spread.equal, 1.0).sqrt();
    let scaled = (&spread.centred / std).masked_fill(&spread.equal, 0.0);
    Ok(select(&if options.shift_mean { scaled } else { scaled + &spread.mean }, mask))
}

/// Of the entries that a mask keeps, over everything; an entry at least has to be there, kept or not.
#[derive(Debug)]
pub(super) struct Spread {
    /// How many they are.
    pub(super) count: Tensor,
    /// Their mean; 0 if there are none.
    pub(super) mean: Tensor,
    /// Each less the mean, and 0 where nothing is kept.
    centred: Tensor,
    /// Whether they are all the same, decided by comparing them: their mean may round to another number.
    pub(super) equal: Tensor,
    /// The largest; -inf if there are none.
    pub(super) max: Tensor,
    /// The smallest; inf if there are none.
    pub(super) min: Tensor,
}

impl Spread {
    pub(super) fn of(values: &Tensor, mask: &Tensor) -> Self {
        let (values, masked) = (select(values, mask), mask.logical_not());
        let count = mask.sum(Kind::Int64);
        let mean = values.sum(None) / count.clamp_min(1);
        let centred = select(&(&values - &mean), mask);
        let max = values.detach().masked_fill(&masked, f64::NEG_INFINITY).max();
        let min = values.detach().masked_fill(&masked, f64::INFINITY).min();
        Self { count, mean, centred, equal: max.eq_tensor(&min), max, min }
    }

    /// 0 for equal entries, exactly and with gradient 0; NaN for no more than `ddof` of them.
    pub(super) fn variance(&self, ddof: Ddof) -> Tensor {
        let squares = self.centred.square().sum(None).masked_fill(&self.equal, 0.0);
        squares / (&self.count - i64::from(u8::from(ddof))).clamp_min(0)
    }
}

fn kept_sum(values: &Tensor, mask: &Tensor, axis: Option<usize>) -> Result<Tensor> {
    of_one_shape(values, mask)?;
    let kept = select(&at_least_f32(values), mask);
    match axis {
        None => Ok(kept.sum(None)),
        Some(axis) if axis < kept.dim() => Ok(kept.sum_dim_intlist(axis as i64, false, None)),
        Some(axis) => {
            Err(Error::option("axis", format!("{axis} is not an axis of a {}-axis array", kept.dim())))
        }
    }
}

fn of_one_shape(values: &Tensor, mask: &Tensor) -> Result<()> {
    Axes::default().bind_any("values", &values.size())?.bind_any("mask", &mask.size())?;
    of_kind("mask", mask, Kind::Bool)
}

/// More entries are kept than ddof, as far as one may look without waiting for a device.
fn enough(argument: &str, mask: &Tensor, ddof: Ddof) -> Result<()> {
    let need = usize::from(u8::from(ddof)) + 1;
    let kept = match mask.device() {
        Device::Cpu => mask.sum(Kind::Int64).int64_value(&[]) as usize,
        _ => mask.numel(),
    };
    if kept >= need { Ok(()) } else { Err(Error::TooFew { argument: argument.to_owned(), kept, need }) }
}
