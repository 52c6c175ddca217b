//! Advantages: how much better a response is than the others of its group.

use ndarray::{Array1, ArrayRef1};

use super::Real;
use super::mask::all_equal;
use crate::axes::Axes;
use crate::options::{EpsMode, GroupNorm, GroupStd, Singleton};
use crate::{Error, Result};

/// Group-normalised advantages: how far each reward is from its group's mean, in group standard deviations.
///
/// ```text
/// A_i = (r_i - mean(r_group)) / (std(r_group) + eps)        Eq. 28
/// A_i =  r_i - mean(r_group)                                Eq. 31, std "none"
/// ```
///
/// Clauses `advantage.group-norm` and below. DeepSeekMath (arXiv 2402.03300) section 4.1.2; CS336 assignment 5,
/// Eq. 28 and 31; Dr. GRPO (arXiv 2503.20783). Implementations split on the divisor, on eps and on groups of one.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// A group whose rewards are all equal gets exactly 0. That is decided by the values, not by a rounded standard
/// deviation: seven rewards of 0.9 have a non-zero one in single precision. A group of one gets what
/// [`GroupNorm::singleton`] says. No rewards give no advantages.
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad eps, `group-size` for a group of one under `Singleton::Error`.
///
/// # Example
/// ```
/// use grpo_oracle::{options::GroupNorm, reference::advantage};
/// use ndarray::array;
/// let rewards = array![1.0, 0.0, 0.0, 0.0, 7.0, 7.0];
/// let group = array![5, 5, 5, 5, 8, 8];
/// let centred = advantage::group_norm(&rewards, &group, &GroupNorm::dr_grpo())?;
/// assert_eq!(centred, array![0.75, -0.25, -0.25, -0.25, 0.0, 0.0]);
/// let normalised: ndarray::Array1<f64> = advantage::group_norm(&rewards, &group, &GroupNorm::eq28())?;
/// assert!((normalised[0] - 1.5).abs() < 1e-5); // the sample standard deviation is 0.5
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn group_norm<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    options: &GroupNorm,
) -> Result<Array1<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    let mut advantages = Array1::from_elem(rewards.len(), R::constant(0.0));
    for (label, members) in groups(group) {
        let rewards_of_group: Vec<R> = members.iter().map(|&member| rewards[member]).collect();
        let normalised = normalise(label, &rewards_of_group, options)?;
        for (member, advantage) in members.into_iter().zip(normalised) {
            advantages[member] = advantage;
        }
    }
    Ok(advantages)
}

fn normalise<R: Real>(label: i64, rewards: &[R], options: &GroupNorm) -> Result<Vec<R>> {
    let zero = R::constant(0.0);
    let eps = R::constant(options.eps);
    if let [reward] = *rewards {
        return Ok(vec![match options.singleton {
            Singleton::Raw => reward,
            Singleton::Zero => zero,
            Singleton::UnitStd => match (options.std, options.eps_mode) {
                (GroupStd::None, _) | (_, EpsMode::Threshold) => reward,
                (_, EpsMode::Add) => reward / (R::constant(1.0) + eps),
            },
            Singleton::Error => {
                let need = "at least 2 are needed; use singleton raw, unit_std or zero to allow one";
                return Err(Error::GroupSize { group: label, size: 1, need });
            }
        }]);
    }
    if all_equal(rewards) {
        return Ok(vec![zero; rewards.len()]);
    }
    let n = rewards.len() as f64;
    let mean = R::sum(rewards.iter().copied()) / R::constant(n);
    let centred: Vec<R> = rewards.iter().map(|&reward| reward - mean).collect();
    let squares = R::sum(centred.iter().map(|&c| c * c));
    let std = match options.std {
        GroupStd::Sample => (squares / R::constant(n - 1.0)).sqrt(),
        GroupStd::Population => (squares / R::constant(n)).sqrt(),
        GroupStd::None => return Ok(centred),
    };
    Ok(centred
        .into_iter()
        .map(|c| match options.eps_mode {
            EpsMode::Add => c / (std + eps),
            EpsMode::Threshold => std.select_less(eps, zero, c / std),
        })
        .collect())
}

/// The members of each group, groups in the order of their first member.
pub(super) fn groups(group: &ArrayRef1<i64>) -> Vec<(i64, Vec<usize>)> {
    let mut groups: Vec<(i64, Vec<usize>)> = Vec::new();
    for (member, &label) in group.iter().enumerate() {
        match groups.iter_mut().find(|(other, _)| *other == label) {
            Some((_, members)) => members.push(member),
            None => groups.push((label, vec![member])),
        }
    }
    groups
}
