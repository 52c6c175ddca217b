//! Sample filtering: which responses of a group are trained on, and with what advantages.

use ndarray::{Array1, ArrayRef1};

use super::Real;
use super::advantage::{group_norm, groups};
use super::mask::{all_equal, variance_of};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Ddof, Filter};

/// What [`filter`] gives, each `[B]`.
#[derive(Debug, Clone, PartialEq)]
pub struct FilterOutput<R> {
    /// What is trained with; 0 for a filtered sample.
    pub advantages: Array1<R>,
    /// The advantages before the filter, what `critic/advantages/*` reports.
    pub advantages_original: Array1<R>,
    /// 1 for a sample that stays in the loss's mask, 0 for a filtered one.
    pub kept: Array1<R>,
}

/// Keeps the best of a group's good samples and the worst of its bad ones, and normalises them again if asked to.
///
/// ```text
/// A_i    = (r_i - mean) / std,   0 for a group with std < eps
/// kept_i = A_i is 0, or i is among the floor(n_pos keep_pos_ratio) best of the n_pos with A > 0,
///          or among the floor(n_neg keep_neg_ratio) worst of the n_neg with A < 0; at least one unless the ratio is 0
/// A'_i   = (r_i - mean_kept) / std_kept   with compute_new_adv and 2 or more kept
/// ```
///
/// Clauses `filter.sample` and below. `000_compute_new_adv.md` and the code behind it.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// Within a group a larger advantage is a larger reward, so samples are ordered by their rewards, which are exact;
/// equal ones in the order of the batch. Equal rewards give 0 and are all kept. A group of one gets what
/// [`Filter::singleton`] says and is filtered by its sign.
///
/// # Errors
/// `shape` if the lengths differ, `option` if one is outside its domain, `unsupported` for another estimator than
/// GRPO, `group-size` for a group of one under `LoneMember::Error`.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Filter, reference::filter};
/// use ndarray::array;
/// let rewards: ndarray::Array1<f64> = array![1.0, 3.0, 5.0, 7.0, 9.0];
/// let output = filter::filter(&rewards, &array![0, 0, 0, 0, 0], &Filter::recommended())?;
/// assert_eq!(output.kept, array![1.0, 0.0, 1.0, 0.0, 1.0]); // the worst, the mean, the best
/// assert_eq!(output.advantages, array![-1.0, 0.0, 0.0, 0.0, 1.0]);
/// assert!((output.advantages_original[4] - 1.2649).abs() < 1e-4);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn filter<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    options: &Filter,
) -> Result<FilterOutput<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    let zero = Array1::from_elem(rewards.len(), R::constant(0.0));
    let mut output = FilterOutput { advantages: zero.clone(), advantages_original: zero.clone(), kept: zero };
    for (label, members) in groups(group) {
        let rewards_of_group: Vec<R> = members.iter().map(|&member| rewards[member]).collect();
        let samples = filter_group(label, &rewards_of_group, options)?;
        for (member, sample) in members.into_iter().zip(samples) {
            output.advantages[member] = sample.advantage;
            output.advantages_original[member] = sample.original;
            output.kept[member] = sample.kept;
        }
    }
    Ok(output)
}

struct Sample<R> {
    advantage: R,
    original: R,
    kept: R,
}

fn filter_group<R: Real>(label: i64, rewards: &[R], options: &Filter) -> Result<Vec<Sample<R>>> {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let original = normalised(label, rewards, options)?;
    let kept = kept(rewards, &original, options);
    let kept_rewards: Vec<R> =
        rewards.iter().zip(&kept).filter(|(_, keep)| **keep).map(|(&r, _)| r).collect();
    let is_new = options.compute_new_adv && !options.keeps_all() && kept_rewards.len() >= 2;
    let mut new = if is_new { normalised(label, &kept_rewards, options)? } else { Vec::new() }.into_iter();
    let samples = original.iter().zip(&kept).map(|(&original, &keep)| {
        let advantage = if keep { new.next().unwrap_or(original) } else { zero };
        let advantage = decided(advantage, rewards, options);
        Sample { advantage, original, kept: decided(if keep { one } else { zero }, rewards, options) }
    });
    Ok(samples.collect())
}

/// (r_i - mean) / std of one group
fn normalised<R: Real>(label: i64, rewards: &[R], options: &Filter) -> Result<Vec<R>> {
    let (rewards, group) = (Array1::from(rewards.to_vec()), Array1::from_elem(rewards.len(), label));
    Ok(group_norm(&rewards, &group, &options.group_norm())?.to_vec())
}

/// Which samples of a group stay: those with advantage 0, the best of those above, the worst of those below.
fn kept<R: Real>(rewards: &[R], advantages: &[R], options: &Filter) -> Vec<bool> {
    let has_spread = advantages.iter().any(|advantage| advantage.value() != 0.0);
    let signs: Vec<f64> =
        rewards.iter().map(|&reward| if has_spread { sign(reward, rewards) } else { 0.0 }).collect();
    let mut kept: Vec<bool> = signs.iter().map(|&sign| sign == 0.0).collect();
    for (side, ratio) in [(1.0, options.keep_pos_ratio), (-1.0, options.keep_neg_ratio)] {
        let mut samples: Vec<usize> = (0..rewards.len()).filter(|&i| signs[i] == side).collect();
        // The sort is stable: of equal rewards the earlier sample comes first.
        samples.sort_by(|&a, &b| (side * rewards[b].value()).total_cmp(&(side * rewards[a].value())));
        for &sample in &samples[..count(samples.len(), ratio)] {
            kept[sample] = true;
        }
    }
    kept
}

/// max(1, floor(n ratio)), the product in double precision; none for a ratio of 0.
fn count(n: usize, ratio: f64) -> usize {
    let least = usize::from(ratio > 0.0);
    ((n as f64 * ratio) as usize).max(least).min(n)
}

/// 1 above the group's mean, -1 below, 0 at it; a group of one is held against 0. Sums and not quotients are compared,
/// so that a reward that is the mean is found to be.
fn sign<R: Real>(reward: R, rewards: &[R]) -> f64 {
    let (left, right) = sides(reward, rewards);
    f64::from(u8::from(left.value() > right.value())) - f64::from(u8::from(left.value() < right.value()))
}

/// n r_i and the sum of all r.
fn sides<R: Real>(reward: R, rewards: &[R]) -> (R, R) {
    match rewards {
        [_] => (reward, R::constant(0.0)),
        _ => (R::constant(rewards.len() as f64) * reward, R::sum(rewards.iter().copied())),
    }
}

/// The entry, remembering the comparisons that rounding could have turned and that decided which samples are kept.
fn decided<R: Real>(entry: R, rewards: &[R], options: &Filter) -> R {
    if options.keeps_all() || all_equal(rewards) {
        return entry;
    }
    let entry = entry.chosen_by(variance_of(rewards, Ddof::Sample).sqrt(), R::constant(options.eps));
    if add_up_exactly(rewards) {
        return entry;
    }
    rewards
        .iter()
        .map(|&reward| sides(reward, rewards))
        .fold(entry, |entry, (left, right)| entry.chosen_by(left, right))
}

/// Whether sums of these numbers, in any order, and n times any of them are exact in single precision already: they
/// are multiples of 2^-24 of a power of two that no sum exceeds.
fn add_up_exactly<R: Real>(numbers: &[R]) -> bool {
    let largest = numbers.iter().map(|number| number.value().abs()).fold(0.0, f64::max);
    let step = ((numbers.len() as f64 * largest).log2().ceil() - 24.0).exp2();
    numbers.iter().all(|number| (number.value() / step).fract() == 0.0)
}
