//! Sample filtering: which responses of a group are trained on, and with what advantages.

use tch::{Kind, Tensor};

use super::advantage::{Groups, group_norm, grouped, normalised};
use crate::Result;
use crate::options::Filter;

/// What [`filter`] gives, each `[B]`.
#[derive(Debug)]
pub struct FilterOutput {
    /// What is trained with; 0 for a filtered sample.
    pub advantages: Tensor,
    /// The advantages before the filter, what `critic/advantages/*` reports.
    pub advantages_original: Tensor,
    /// 1 for a sample that stays in the loss's mask, 0 for a filtered one.
    pub kept: Tensor,
}

/// Keeps the best of a group's good samples and the worst of its bad ones. See [`crate::reference::filter::filter`].
///
/// Samples are ranked by sorting the batch by reward and then, stably, by group.
///
/// # Errors
/// `shape` if the lengths differ, `option` if one is outside its domain, `unsupported` for another estimator than GRPO,
/// `group-size` for a group of one under `LoneMember::Error`, which alone waits for the device, `input` if `group` is
/// not of 64-bit integers.
pub fn filter(rewards: &Tensor, group: &Tensor, options: &Filter) -> Result<FilterOutput> {
    options.check()?;
    let original = group_norm(rewards, group, &options.group_norm())?;
    if options.keeps_all() {
        let (advantages, kept) = (original.shallow_clone(), original.ones_like());
        return Ok(FilterOutput { advantages, advantages_original: original, kept });
    }
    let (rewards, groups) = grouped(rewards, group)?;
    let is_kept = kept(&rewards, &original, &groups, options);
    let is_filtered = is_kept.logical_not();
    let mut advantages = original.shallow_clone();
    if options.compute_new_adv {
        let groups = groups.without(&is_filtered);
        let new = normalised(&rewards, &groups, &options.group_norm());
        advantages = original.where_self(&groups.size.lt(2.0), &new);
    }
    Ok(FilterOutput {
        advantages: advantages.masked_fill(&is_filtered, 0.0),
        advantages_original: original,
        kept: is_kept.to_kind(rewards.kind()),
    })
}

/// Which samples stay: those with advantage 0, the best of those above, the worst of those below.
fn kept(rewards: &Tensor, original: &Tensor, groups: &Groups, options: &Filter) -> Tensor {
    let (is_above, is_below) = sides(rewards, original, groups);
    // Within a group those above the mean stand before all others, and those below it behind them.
    let among_best = |side: &Tensor, ratio: f64, descending: bool| {
        let is_early = groups.rank(rewards, descending).lt_tensor(&count(side, groups, ratio));
        side.logical_and(&is_early)
    };
    let best = among_best(&is_above, options.keep_pos_ratio, true);
    let worst = among_best(&is_below, options.keep_neg_ratio, false);
    is_above.logical_or(&is_below).logical_not().logical_or(&best).logical_or(&worst)
}

/// Which rewards are above their group's mean and which below it; a group of one is held against 0. Sums and not
/// quotients are compared, so that a reward that is the mean is found to be.
fn sides(rewards: &Tensor, original: &Tensor, groups: &Groups) -> (Tensor, Tensor) {
    let alone = groups.alone();
    let left = rewards * &groups.size;
    let right = groups.sum(rewards).masked_fill(&alone, 0.0);
    let has_spread = groups.sum(&original.ne(0.0).to_kind(rewards.kind())).gt(0.0);
    (left.gt_tensor(&right).logical_and(&has_spread), left.lt_tensor(&right).logical_and(&has_spread))
}

/// How many of each group's samples on this side stay: max(1, floor(n ratio)), none for a ratio of 0. The product is
/// that of double precision.
fn count(side: &Tensor, groups: &Groups, ratio: f64) -> Tensor {
    let least = if ratio > 0.0 { 1.0 } else { 0.0 };
    (groups.sum(&side.to_kind(Kind::Double)) * ratio).floor().clamp_min(least)
}
