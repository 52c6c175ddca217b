//! Advantages: how much better a response is than the others of its group.

use tch::{Kind, Tensor};

use super::{at_least_f32, of_kind};
use crate::axes::Axes;
use crate::options::{EpsMode, GroupNorm, GroupStd, Singleton, StdScope};
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
    let (centred, squares, count) = match options.std_scope {
        StdScope::Group => {
            let squares = of_member(&per_group(0.0).index_add(0, &index, &centred.square()));
            (centred, squares, size.shallow_clone())
        }
        StdScope::Batch => {
            let squares = (&rewards - rewards.mean(rewards.kind())).square().sum(rewards.kind());
            (centred, squares, per_group(axes.length("B") as f64))
        }
        StdScope::LeaveOneOut => {
            let (mean, squares) = of_others(&rewards, &index);
            (&rewards - mean, squares, &size - 1.0)
        }
    };
    let variance = match options.std {
        GroupStd::Sample => Some(squares / (count - 1.0).clamp_min(1.0)),
        GroupStd::Population => Some(squares / count.clamp_min(1.0)),
        GroupStd::None => None,
    };
    let normalised = match (&variance, options.eps_mode) {
        (None, _) => centred.shallow_clone(),
        (Some(variance), EpsMode::Add) => &centred / (variance.sqrt() + options.eps),
        (Some(variance), EpsMode::FloorVariance) => {
            &centred / (variance.clamp_min(options.eps).sqrt() + options.eps)
        }
        (Some(variance), EpsMode::Threshold) => {
            let std = variance.sqrt();
            (&centred / &std).masked_fill(&std.lt(options.eps), 0.0)
        }
    };
    let normalised = match options.std_scope {
        StdScope::LeaveOneOut => centred.where_self(&others_agree(&rewards, &index), &normalised),
        StdScope::Group | StdScope::Batch => normalised,
    };
    let alone = match options.singleton {
        Singleton::Zero | Singleton::Error => rewards.zeros_like(),
        Singleton::UnitStd if variance.is_some() && options.eps_mode != EpsMode::Threshold => {
            &rewards / (1.0 + options.eps)
        }
        Singleton::Raw | Singleton::UnitStd => rewards.shallow_clone(),
    };
    Ok(alone.where_self(&size.eq(1.0), &normalised.masked_fill(&constant, 0.0)))
}

/// Of each member's group without it: the mean, and the sum of the squared distances from that. Summed over all pairs of
/// the batch, because taking one reward's share out of the group's sums would cancel where that reward is far off.
fn of_others(rewards: &Tensor, index: &Tensor) -> (Tensor, Tensor) {
    let others = others(index);
    let sum = |values: &Tensor| {
        let of_pairs = values.masked_fill(&others.logical_not(), 0.0);
        of_pairs.sum_dim_intlist(1, false, rewards.kind())
    };
    let count = sum(&others.to_kind(rewards.kind())).clamp_min(1.0);
    let mean = sum(&rewards.expand_as(&others)) / count;
    let squares = sum(&(rewards - mean.unsqueeze(1)).square());
    (mean, squares)
}

/// Whether the members of each member's group without it have one and the same reward.
fn others_agree(rewards: &Tensor, index: &Tensor) -> Tensor {
    let outsiders = others(index).logical_not();
    let of_pairs = rewards.expand_as(&outsiders);
    let largest = of_pairs.masked_fill(&outsiders, f64::NEG_INFINITY).amax(1, false);
    let smallest = of_pairs.masked_fill(&outsiders, f64::INFINITY).amin(1, false);
    largest.eq_tensor(&smallest)
}

/// `[B, B]`: whether the column is another member of the row's group.
fn others(index: &Tensor) -> Tensor {
    let same = index.unsqueeze(1).eq_tensor(&index.unsqueeze(0));
    let itself = Tensor::eye(index.size()[0], (Kind::Bool, index.device()));
    same.logical_and(&itself.logical_not())
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
