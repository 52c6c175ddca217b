//! Means over the entries that a mask keeps.

use tch::{Kind, Tensor};

use super::{at_least_f32, of_kind, select};
use crate::axes::Axes;
use crate::options::{EmptyMean, MaskedMean};
use crate::{Error, Result};

/// The mean of the kept entries, over everything or along one axis. See [`crate::reference::mask::mean`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if there is no such axis, `input` if `mask` is not boolean.
pub fn mean(values: &Tensor, mask: &Tensor, options: &MaskedMean) -> Result<Tensor> {
    Axes::default().bind_any("values", &values.size())?.bind_any("mask", &mask.size())?;
    of_kind("mask", mask, Kind::Bool)?;
    let values = select(&at_least_f32(values), mask);
    let (sum, count) = match options.axis {
        None => (values.sum(None), mask.sum(None)),
        Some(axis) if axis >= values.dim() => {
            return Err(Error::option(
                "axis",
                format!("{axis} is not an axis of a {}-axis array", values.dim()),
            ));
        }
        Some(axis) => (
            values.sum_dim_intlist(axis as i64, false, None),
            mask.sum_dim_intlist(axis as i64, false, Kind::Int64),
        ),
    };
    Ok(match options.empty {
        EmptyMean::Zero => sum / count.clamp_min(1),
        EmptyMean::Nan => sum / count,
    })
}
