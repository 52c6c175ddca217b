//! Advantages: how much better a response is than the others of its group, or than another baseline.

use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2, Zip};

use super::Real;
use super::mask::{self, all_equal, kept, mean_of, mean_of_inputs, variance_of};
use crate::axes::Axes;
use crate::options::{
    Ddof, EmptyMean, EpsMode, Gpg, GpgAlpha, GroupNorm, GroupStd, LoneMember, MaskedReturn, Opo,
    PassAtKAdvantage, ReinforcePlusPlus, ReinforcePlusPlusBaseline, Rloo, Singleton, StdScope,
    WhitenAdvantages,
};
use crate::{Error, Result};

/// Group-normalised advantages: how far each reward is from its group's mean, in group standard deviations.
///
/// ```text
/// A_i = (r_i - mean(r_group)) / (std(r_group) + eps)        Eq. 28
/// A_i =  r_i - mean(r_group)                                Eq. 31, std "none"
/// ```
///
/// Clauses `advantage.group-norm` and below. DeepSeekMath (arXiv 2402.03300) section 4.1.2; CS336 assignment 5,
/// Eq. 28 and 31; Dr. GRPO (arXiv 2503.20783). Implementations split on the divisor, on whose deviation it is, on eps
/// and on groups of one.
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
    let batch: Vec<R> = rewards.iter().copied().collect();
    by_group(rewards, group, |label, rewards| match *rewards {
        [reward] => Ok(vec![normalised_alone(label, reward, options)?]),
        _ => Ok(normalised(rewards, &batch, options)),
    })
}

fn normalised<R: Real>(rewards: &[R], batch: &[R], options: &GroupNorm) -> Vec<R> {
    if all_equal(rewards) {
        return zeros(rewards);
    }
    match options.std_scope {
        StdScope::Group => standardised(rewards, rewards, rewards, options),
        StdScope::Batch => standardised(rewards, rewards, batch, options),
        StdScope::LeaveOneOut => (0..rewards.len())
            .flat_map(|member| {
                let others = others(rewards, member);
                standardised(&rewards[member..=member], &others, &others, options)
            })
            .collect(),
    }
}

/// Rewards less the mean of those around them, over the deviation of a spread.
fn standardised<R: Real>(rewards: &[R], around: &[R], spread: &[R], options: &GroupNorm) -> Vec<R> {
    let mean = mean(around);
    let centred: Vec<R> = rewards.iter().map(|&reward| reward - mean).collect();
    // Only the others can be alike here, or a single one.
    if all_equal(spread) { centred } else { scaled(&centred, spread, options) }
}

/// Centred rewards over the deviation of some rewards that are not all equal.
fn scaled<R: Real>(centred: &[R], spread: &[R], options: &GroupNorm) -> Vec<R> {
    let ddof = match options.std {
        GroupStd::Sample => Ddof::Sample,
        GroupStd::Population => Ddof::Population,
        GroupStd::None => return centred.to_vec(),
    };
    let (variance, eps) = (variance_of(spread, ddof), R::constant(options.eps));
    let over_std = |&centred: &R| match options.eps_mode {
        EpsMode::Add => centred / (variance.sqrt() + eps),
        EpsMode::FloorVariance => centred / (variance.max(eps).sqrt() + eps),
        EpsMode::Threshold => {
            let std = variance.sqrt();
            std.select_less(eps, R::constant(0.0), centred / std)
        }
    };
    centred.iter().map(over_std).collect()
}

fn normalised_alone<R: Real>(label: i64, reward: R, options: &GroupNorm) -> Result<R> {
    let adds_eps = options.std != GroupStd::None && options.eps_mode != EpsMode::Threshold;
    match options.singleton {
        Singleton::Raw => Ok(reward),
        Singleton::UnitStd if adds_eps => Ok(reward / (R::constant(1.0) + R::constant(options.eps))),
        Singleton::UnitStd => Ok(reward),
        Singleton::Zero => Ok(R::constant(0.0)),
        Singleton::Error => {
            Err(too_small(label, "at least 2 are needed; use singleton raw, unit_std or zero to allow one"))
        }
    }
}

/// What [`relative`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct Relative<R> {
    /// `[B]`: each reward less its baseline.
    pub relative: Array1<R>,
    /// `[B]`: the mean reward of the sequence's group.
    pub baseline: Array1<R>,
}

/// Relative rewards: how far each reward is from its group's mean, and that mean.
///
/// ```text
/// baseline_i = mean(r_group)
/// relative_i = r_i - baseline_i
/// ```
///
/// Clauses `advantage.relative` and below. `compute_relative_rewards` of `004_grpo_dapo_fix.md`; REINFORCE with the
/// group's mean as baseline; the advantage of Dr. GRPO (Eq. 31).
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// In a group whose rewards are all equal, a group of one among them, the baseline is that reward and the relative
/// reward 0, both exactly.
///
/// # Errors
/// `shape` if the lengths differ.
///
/// # Example
/// ```
/// use grpo_oracle::reference::advantage;
/// use ndarray::array;
/// let found = advantage::relative(&array![1.0, 0.0, 0.0, 0.0, 0.3], &array![1, 1, 1, 1, 2])?;
/// assert_eq!(found.baseline, array![0.25, 0.25, 0.25, 0.25, 0.3]);
/// assert_eq!(found.relative, array![0.75, -0.25, -0.25, -0.25, 0.0]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn relative<R: Real>(rewards: &ArrayRef1<R>, group: &ArrayRef1<i64>) -> Result<Relative<R>> {
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    let baseline = by_group(rewards, group, |_, rewards| Ok(vec![mean_of_inputs(rewards); rewards.len()]))?;
    let relative = Zip::from(rewards).and(&baseline).map_collect(|&reward, &baseline| reward - baseline);
    Ok(Relative { relative, baseline })
}

/// Leave-one-out advantages: each reward less the mean of the others of its group.
///
/// ```text
/// A_i = r_i - (sum over j != i of r_j) / (n - 1)
/// ```
///
/// Clauses `advantage.rloo` and below. RLOO (arXiv 2402.14740); verl `rloo`, TRL `RLOOTrainer`, OpenRLHF `rloo`.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// A group whose rewards are all equal gets exactly 0. A group of one gets what [`Rloo::singleton`] says.
///
/// # Errors
/// `shape` if the lengths differ, `group-size` for a group of one under `LoneMember::Error`.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Rloo, reference::advantage};
/// use ndarray::array;
/// let advantages = advantage::rloo(&array![1.0, 0.0, 0.5], &array![1, 1, 1], &Rloo::verl())?;
/// assert_eq!(advantages, array![0.75, -0.75, 0.0]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn rloo<R: Real>(rewards: &ArrayRef1<R>, group: &ArrayRef1<i64>, options: &Rloo) -> Result<Array1<R>> {
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    by_group(rewards, group, |label, rewards| {
        let (total, count) = (R::sum(rewards.iter().copied()), R::constant(rewards.len() as f64 - 1.0));
        less_baseline(label, rewards, options.singleton, |member| (total - rewards[member]) / count)
    })
}

/// What the estimators over tokens give.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenAdvantages<R> {
    /// `[B, T]`, 0 at masked slots.
    pub advantages: Array2<R>,
    /// `[B, T]`: the return from each token on, before a baseline or whitening; 0 at masked slots.
    pub returns: Array2<R>,
}

/// REINFORCE++ advantages: the return from each token on, whitened over the batch's kept tokens.
///
/// ```text
/// R_t = r_t + gamma R_next(t)               next(t): the next kept token
/// A_t = (R_t - mean(R)) / sqrt(variance(R) + eps)
/// ```
///
/// Clauses `advantage.reinforce-plus-plus` and below, `mask.select`. REINFORCE++ (arXiv 2501.03262); verl
/// `reinforce_plus_plus`, whose treatment of masked tokens changed with 0.9.
///
/// * `rewards`: `[B, T]`, finite where kept, of each token; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets 0, and its reward is never read. Returns that are all equal are whitened to exactly 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a bad gamma or eps, `too-few` if whitening has no more than `ddof` tokens.
///
/// # Example
/// ```
/// use grpo_oracle::{options::ReinforcePlusPlus, reference::advantage};
/// use ndarray::array;
/// let rewards = array![[0.0, f64::NAN, 1.0], [0.0, -1.0, f64::NAN]];
/// let mask = array![[true, false, true], [true, true, false]];
/// let found = advantage::reinforce_plus_plus(&rewards, &mask, &ReinforcePlusPlus::verl())?;
/// assert_eq!(found.returns, array![[1.0, 0.0, 1.0], [-1.0, -1.0, 0.0]]);
/// assert!((found.advantages[[0, 0]] - f64::sqrt(0.75)).abs() < 1e-8); // the sample variance is 4/3
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn reinforce_plus_plus<R: Real>(
    rewards: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &ReinforcePlusPlus,
) -> Result<TokenAdvantages<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B", "T"], rewards.shape())?.bind(
        "response_mask",
        &["B", "T"],
        response_mask.shape(),
    )?;
    let returns = returns_to_go(rewards, response_mask, options.gamma, options.mask_mode);
    let compared: Vec<R> = kept(&returns, response_mask).collect();
    let advantages = whitened(&returns, response_mask, &options.whiten, &compared)?;
    Ok(TokenAdvantages { advantages, returns })
}

/// REINFORCE++-baseline advantages: each reward less its group's mean, at every kept token, whitened over all of them.
///
/// ```text
/// c_i = r_i - mean(r_group)
/// A_it = (c_i - mean(c)) / sqrt(variance(c) + eps)          mean and variance over all kept tokens
/// ```
///
/// Clauses `advantage.reinforce-plus-plus-baseline` and below, `mask.select`. REINFORCE++ (arXiv 2501.03262); verl
/// `reinforce_plus_plus_baseline`, OpenRLHF `reinforce_baseline`.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
/// * `response_mask`: `[B, T]`, true keeps; a sequence of which it keeps nothing belongs to no group
///
/// A masked slot gets 0. Before whitening a group whose rewards are all equal has exactly 0, and a group of one what
/// [`ReinforcePlusPlusBaseline::singleton`] says. Values that are all equal are whitened to exactly 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a bad eps, `group-size` for a group of one under `LoneMember::Error`,
/// `too-few` if whitening has no more than `ddof` tokens.
///
/// # Example
/// ```
/// use grpo_oracle::{options::ReinforcePlusPlusBaseline, reference::advantage};
/// use ndarray::array;
/// let (rewards, group) = (array![1.0, 0.0], array![4, 4]);
/// let mask = array![[true, true, false], [true, true, true]];
/// let options = ReinforcePlusPlusBaseline::slime(); // not whitened
/// let advantages = advantage::reinforce_plus_plus_baseline(&rewards, &group, &mask, &options)?;
/// assert_eq!(advantages, array![[0.5, 0.5, 0.0], [-0.5, -0.5, -0.5]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn reinforce_plus_plus_baseline<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    response_mask: &ArrayRef2<bool>,
    options: &ReinforcePlusPlusBaseline,
) -> Result<Array2<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?.bind(
        "response_mask",
        &["B", "T"],
        response_mask.shape(),
    )?;
    let rows: Vec<usize> =
        (0..rewards.len()).filter(|&row| response_mask.row(row).iter().any(|&keep| keep)).collect();
    let kept_rewards: Array1<R> = rows.iter().map(|&row| rewards[row]).collect();
    let kept_group: Array1<i64> = rows.iter().map(|&row| group[row]).collect();
    let centred = by_group(&kept_rewards, &kept_group, |label, rewards| {
        less_baseline(label, rewards, options.singleton, |_| mean(rewards))
    })?;
    let mut values = Array2::from_elem(response_mask.raw_dim(), R::constant(0.0));
    for (&row, &centred) in rows.iter().zip(&centred) {
        values.row_mut(row).fill(centred);
    }
    // Centred rewards are all equal only where each of them is exactly 0, or a lone reward as it was given.
    whitened(&values, response_mask, &options.whiten, &[])
}

/// ReMax advantages: the return from each token on, less the reward of the greedy response.
///
/// ```text
/// R_t = r_t + R_next(t)                     next(t): the next kept token
/// A_t = R_t - baseline
/// ```
///
/// Clauses `advantage.remax` and `mask.select`. ReMax (arXiv 2310.10505); verl `remax`.
///
/// * `rewards`: `[B, T]`, finite where kept, of each token; constants, no gradient flows
/// * `baselines`: `[B]`, finite, the reward of the greedy response to the same prompt; constants
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets 0, and its reward is never read.
///
/// # Errors
/// `shape` if the shapes differ.
///
/// # Example
/// ```
/// use grpo_oracle::reference::advantage;
/// use ndarray::array;
/// let rewards = array![[0.25, 0.0, 1.0, f64::NAN]];
/// let mask = array![[true, true, true, false]];
/// let found = advantage::remax(&rewards, &array![0.5], &mask)?;
/// assert_eq!(found.returns, array![[1.25, 1.0, 1.0, 0.0]]);
/// assert_eq!(found.advantages, array![[0.75, 0.5, 0.5, 0.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn remax<R: Real>(
    rewards: &ArrayRef2<R>,
    baselines: &ArrayRef1<R>,
    response_mask: &ArrayRef2<bool>,
) -> Result<TokenAdvantages<R>> {
    Axes::default()
        .bind("rewards", &["B", "T"], rewards.shape())?
        .bind("baselines", &["B"], baselines.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let returns = returns_to_go(rewards, response_mask, 1.0, MaskedReturn::Carry);
    let advantages = Array2::from_shape_fn(rewards.raw_dim(), |(row, t)| {
        if response_mask[[row, t]] { returns[[row, t]] - baselines[row] } else { R::constant(0.0) }
    });
    Ok(TokenAdvantages { advantages, returns })
}

/// OPO advantages: each reward less the mean reward of a token of its group.
///
/// ```text
/// A_i = r_i - (sum over j of l_j r_j) / (sum over j of l_j)
/// ```
///
/// Clauses `advantage.opo` and below. OPO (arXiv 2505.23585); verl `opo`.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
/// * `lengths`: `[B]`, the number of tokens of each response, at least 0; constants
///
/// A group whose rewards are all equal gets exactly 0. A group of one gets what [`Opo::singleton`] says.
///
/// # Errors
/// `shape` if the lengths differ, `input` for a negative length or a group whose rewards differ and whose lengths are
/// all 0, `group-size` for a group of one under `LoneMember::Error`.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Opo, reference::advantage};
/// use ndarray::array;
/// let (rewards, group, lengths) = (array![1.0, 0.0], array![1, 1], array![1.0, 3.0]);
/// assert_eq!(advantage::opo(&rewards, &group, &lengths, &Opo::paper())?, array![0.75, -0.25]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn opo<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    lengths: &ArrayRef1<R>,
    options: &Opo,
) -> Result<Array1<R>> {
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?.bind(
        "lengths",
        &["B"],
        lengths.shape(),
    )?;
    if let Some(length) = lengths.iter().find(|length| length.value() < 0.0) {
        return Err(Error::input("lengths", format!("has the entry {}, below 0", length.value())));
    }
    let mut advantages = Array1::from_elem(rewards.len(), R::constant(0.0));
    for (label, members) in groups(group) {
        let of_group: Vec<R> = members.iter().map(|&member| rewards[member]).collect();
        let total = R::sum(members.iter().map(|&member| lengths[member]));
        if total.value() == 0.0 && !all_equal(&of_group) {
            return Err(Error::input("lengths", format!("are all 0 in group {label}, whose rewards differ")));
        }
        let weighted = R::sum(members.iter().map(|&member| lengths[member] * rewards[member]));
        let centred = less_baseline(label, &of_group, options.singleton, |_| weighted / total)?;
        place(&mut advantages, &members, centred);
    }
    Ok(advantages)
}

/// GPG advantages: each reward less its group's mean, scaled up for the samples that have no gradient.
///
/// ```text
/// A_i = alpha (r_i - mean(r_group)) / f_norm
/// alpha = B / (samples in groups whose rewards differ)          "valid_groups"
/// ```
///
/// Clauses `advantage.gpg` and below. GPG (arXiv 2504.02546); verl `gpg`, which counts rewards that are not 0 instead.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// A group whose rewards are all equal gets exactly 0. A group of one gets what [`Gpg::singleton`] says, times
/// alpha / `f_norm`.
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad `f_norm`, `group-size` for a group of one under
/// `LoneMember::Error`.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Gpg, reference::advantage};
/// use ndarray::array;
/// let (rewards, group) = (array![1.0, 0.0, 1.0, 1.0], array![1, 1, 2, 2]);
/// let advantages = advantage::gpg(&rewards, &group, &Gpg::paper())?;
/// assert_eq!(advantages, array![1.0, -1.0, 0.0, 0.0]); // alpha is 4 / 2
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn gpg<R: Real>(rewards: &ArrayRef1<R>, group: &ArrayRef1<i64>, options: &Gpg) -> Result<Array1<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    let centred = by_group(rewards, group, |label, rewards| {
        less_baseline(label, rewards, options.singleton, |_| mean(rewards))
    })?;
    let share = |count: usize| R::constant(rewards.len() as f64) / R::constant(count as f64);
    let alpha = match options.alpha {
        GpgAlpha::One => R::constant(1.0),
        GpgAlpha::NonzeroRewards => {
            share(rewards.iter().filter(|reward| reward.value() != 0.0).count().max(1))
        }
        GpgAlpha::ValidGroups => {
            let of_group =
                |members: &[usize]| members.iter().map(|&member| rewards[member]).collect::<Vec<R>>();
            let valid = groups(group).into_iter().filter(|(_, members)| !all_equal(&of_group(members)));
            match valid.map(|(_, members)| members.len()).sum() {
                0 => R::constant(0.0),
                count => share(count),
            }
        }
    };
    Ok(centred.mapv(|centred| alpha * centred / R::constant(options.f_norm)))
}

/// Pass@k advantages: only the best of a group gets one, its lead over the second best.
///
/// ```text
/// A_best = (r_best - r_second) / (std(r_group) + eps),   A_i = 0 for all others
/// ```
///
/// Clauses `advantage.pass-at-k` and below. arXiv 2503.19595; verl and EasyR1 `grpo_passk`.
///
/// * `rewards`: `[B]`, finite, one a sequence; constants, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// Where two or more share the best reward, or all are equal, the group gets exactly 0.
///
/// # Errors
/// `shape` if the lengths differ, `option` for a bad eps, `group-size` for a group of one.
///
/// # Example
/// ```
/// use grpo_oracle::{options::{GroupStd, PassAtKAdvantage}, reference::advantage};
/// use ndarray::array;
/// let (rewards, group) = (array![0.5, 2.0, 0.75, 1.0, 1.0], array![1, 1, 1, 2, 2]);
/// let lead = PassAtKAdvantage { std: GroupStd::None, ..PassAtKAdvantage::verl() };
/// assert_eq!(advantage::pass_at_k(&rewards, &group, &lead)?, array![0.0, 1.25, 0.0, 0.0, 0.0]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn pass_at_k<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    options: &PassAtKAdvantage,
) -> Result<Array1<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    by_group(rewards, group, |label, rewards| {
        let mut descending: Vec<usize> = (0..rewards.len()).collect();
        descending.sort_by(|&a, &b| rewards[b].value().total_cmp(&rewards[a].value()));
        let [best, second, ..] = descending[..] else {
            return Err(too_small(
                label,
                "the best is compared with the second best, so at least 2 are needed",
            ));
        };
        let mut advantages = zeros(rewards);
        if rewards[best].value() > rewards[second].value() {
            let norm = GroupNorm { std: options.std, eps: options.eps, ..GroupNorm::eq28() };
            advantages[best] = scaled(&[rewards[best] - rewards[second]], rewards, &norm)[0];
        }
        Ok(advantages)
    })
}

/// Each reward less the baseline of its place in the group: 0 for rewards that are all equal.
fn less_baseline<R: Real>(
    label: i64,
    rewards: &[R],
    singleton: LoneMember,
    baseline: impl Fn(usize) -> R,
) -> Result<Vec<R>> {
    match (rewards, singleton) {
        ([reward], LoneMember::Raw) => Ok(vec![*reward]),
        ([_], LoneMember::Error) => {
            Err(too_small(label, "at least 2 are needed; use singleton raw or zero to allow one"))
        }
        _ if all_equal(rewards) => Ok(zeros(rewards)),
        _ => Ok(rewards.iter().enumerate().map(|(member, &reward)| reward - baseline(member)).collect()),
    }
}

/// The discounted sum of the kept rewards from each kept token on; 0 at masked slots.
fn returns_to_go<R: Real>(
    rewards: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    gamma: f64,
    mask_mode: MaskedReturn,
) -> Array2<R> {
    let (width, gamma) = (rewards.ncols(), R::constant(gamma));
    Array2::from_shape_fn(rewards.raw_dim(), |(row, t)| {
        let is_kept = |&s: &usize| response_mask[[row, s]];
        if !is_kept(&t) {
            return R::constant(0.0);
        }
        let reached = (t..width).take_while(|s| is_kept(s) || mask_mode == MaskedReturn::Carry);
        let mut discount = R::constant(1.0);
        R::sum(reached.filter(is_kept).map(|s| {
            let term = discount * rewards[[row, s]];
            discount = discount * gamma;
            term
        }))
    })
}

/// The kept values whitened, 0 elsewhere. `compared` are those whose equality rounding could have brought about.
pub(super) fn whitened<R: Real>(
    values: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &WhitenAdvantages,
    compared: &[R],
) -> Result<Array2<R>> {
    if !options.whiten {
        let select = |&value: &R, &keep: &bool| if keep { value } else { R::constant(0.0) };
        return Ok(Zip::from(values).and(response_mask).map_collect(select));
    }
    let (values, mask) = (values.to_owned().into_dyn(), response_mask.to_owned().into_dyn());
    let whitened = mask::whiten(&values, &mask, &options.options())?;
    let decided = whitened.mapv(|value| match compared {
        [first, rest @ ..] if all_equal(compared) => {
            rest.iter().fold(value, |value, &other| value.chosen_by(*first, other))
        }
        _ => value,
    });
    Array2::from_shape_vec(response_mask.raw_dim(), decided.into_iter().collect())
        .map_err(|problem| Error::input("response_mask", problem.to_string()))
}

/// What `of` makes of the rewards of each group, in the places of its members.
fn by_group<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    of: impl Fn(i64, &[R]) -> Result<Vec<R>>,
) -> Result<Array1<R>> {
    let mut advantages = Array1::from_elem(rewards.len(), R::constant(0.0));
    for (label, members) in groups(group) {
        let of_group: Vec<R> = members.iter().map(|&member| rewards[member]).collect();
        place(&mut advantages, &members, of(label, &of_group)?);
    }
    Ok(advantages)
}

fn place<R: Real>(advantages: &mut Array1<R>, members: &[usize], of_group: Vec<R>) {
    for (&member, advantage) in members.iter().zip(of_group) {
        advantages[member] = advantage;
    }
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

fn others<R: Real>(rewards: &[R], member: usize) -> Vec<R> {
    [&rewards[..member], &rewards[member + 1..]].concat()
}

fn mean<R: Real>(rewards: &[R]) -> R {
    mean_of(rewards.iter().copied(), EmptyMean::Zero)
}

fn zeros<R: Real>(rewards: &[R]) -> Vec<R> {
    vec![R::constant(0.0); rewards.len()]
}

fn too_small(label: i64, need: &'static str) -> Error {
    Error::GroupSize { group: label, size: 1, need }
}
