//! Advantages: how much better a response is than the others of its group.

use tch::{Kind, Tensor};

use super::{at_least_f32, of_kind};
use crate::axes::Axes;
use crate::options::{EpsMode, GroupNorm, GroupStd, Singleton};
use crate::{Error, Result};

/// Group-normalised advantages. See [`crate::reference::advantage::group_norm`].
///
/// Groups are found by sorting the labels, so they may be any numbers in any order, and nothing waits for the device;
/// only [`Singleton::Error`] has to look.
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad eps, `group-size` for a group of one under `Singleton::Error`,
/// `input` if `group` is not of 64-bit integers.
pub fn group_norm(rewards: &Tensor, group: &Tensor, options: &GroupNorm) -> Result<Tensor> {
    options.check()?;
    let axes =
        Axes::default().bind("rewards", &["B"], &rewards.size())?.bind("group", &["B"], &group.size())?;
    of_kind("group", group, Kind::Int64)?;
    let rewards = at_least_f32(rewards);
    if axes.length("B") == 0 {
        return Ok(rewards);
    }
    let index = group_index(group);
    let per_group = |start: f64| rewards.full_like(start);
    let of_member = |per_group: &Tensor| per_group.index_select(0, &index);

    let size = of_member(&per_group(0.0).index_add(0, &index, &rewards.ones_like()));
    if options.singleton == Singleton::Error {
        reject_singletons(group, &size)?;
    }
    // A constant group is recognised by its values: rounding gives it a mean and a deviation of its own.
    let any_member = of_member(&per_group(0.0).scatter(0, &index, &rewards));
    let differs = rewards.ne_tensor(&any_member).to_kind(rewards.kind());
    let constant = of_member(&per_group(0.0).index_add(0, &index, &differs)).eq(0.0);
    let mean = of_member(&per_group(0.0).index_add(0, &index, &rewards)) / &size;
    let centred = &rewards - mean;
    let squares = of_member(&per_group(0.0).index_add(0, &index, &centred.square()));
    let std = match options.std {
        GroupStd::Sample => Some((squares / (&size - 1.0).clamp_min(1.0)).sqrt()),
        GroupStd::Population => Some((squares / &size).sqrt()),
        GroupStd::None => None,
    };
    let normalised = match (&std, options.eps_mode) {
        (None, _) => centred,
        (Some(std), EpsMode::Add) => centred / (std + options.eps),
        (Some(std), EpsMode::Threshold) => (centred / std).masked_fill(&std.lt(options.eps), 0.0),
    };
    let alone = match options.singleton {
        Singleton::Zero | Singleton::Error => rewards.zeros_like(),
        Singleton::UnitStd if std.is_some() && options.eps_mode == EpsMode::Add => {
            &rewards / (1.0 + options.eps)
        }
        Singleton::Raw | Singleton::UnitStd => rewards.shallow_clone(),
    };
    Ok(alone.where_self(&size.eq(1.0), &normalised.masked_fill(&constant, 0.0)))
}

/// Each member's group, numbered from 0 in the order of the labels.
fn group_index(group: &Tensor) -> Tensor {
    let (labels, order) = group.sort(0, false);
    let last = labels.size()[0] - 1;
    let starts = labels.narrow(0, 1, last).ne_tensor(&labels.narrow(0, 0, last));
    let number =
        Tensor::cat(&[starts.new_zeros([1], (Kind::Int64, group.device())), starts.to_kind(Kind::Int64)], 0);
    order.zeros_like().scatter(0, &order, &number.cumsum(0, Kind::Int64))
}

fn reject_singletons(group: &Tensor, size: &Tensor) -> Result<()> {
    let alone = group.masked_select(&size.eq(1.0));
    if alone.numel() == 0 {
        return Ok(());
    }
    let need = "at least 2 are needed; use singleton raw, unit_std or zero to allow one";
    Err(Error::GroupSize { group: alone.int64_value(&[0]), size: 1, need })
}
