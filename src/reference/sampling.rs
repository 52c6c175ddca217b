//! Sampling: how often a prompt is asked, which groups are kept, and from which distribution tokens are drawn.

use std::cmp::Ordering;

use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2};

use super::Real;
use super::advantage::groups;
use super::mask::{all_equal, mean_of_inputs, variance_of};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Ddof, Distribution, Dynamic, DynamicRule, DynamicSingleton, Repeat, Resample};

/// The batch with every prompt as often as it is to be answered.
///
/// ```text
/// repeated = index_1, ..., index_1, index_2, ..., index_2, ...        interleave: n times each, in a row
/// repeated = index_1, index_2, ..., index_1, index_2, ...             else: n times the batch
/// ```
///
/// Clause `sampling.repeat`. verl `rollout.n` and `DataProto.repeat`; `004_grpo_dapo_fix.md`.
///
/// * `index`: `[B]`, what stands for each prompt: ids, labels, lengths; copied, no gradient flows
///
/// # Errors
/// `option` if n is not from 1 to 65,536.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Repeat, reference::sampling};
/// use ndarray::array;
/// let repeated = sampling::repeat(&array![7.0, 8.0], &Repeat::verl(2))?;
/// assert_eq!(repeated, array![7.0, 7.0, 8.0, 8.0]);
/// let repeated = sampling::repeat(&array![7.0, 8.0], &Repeat { n: 2, interleave: false })?;
/// assert_eq!(repeated, array![7.0, 8.0, 7.0, 8.0]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn repeat<R: Real>(index: &ArrayRef1<R>, options: &Repeat) -> Result<Array1<R>> {
    options.check()?;
    Axes::default().bind("index", &["B"], index.shape())?;
    let prompts = index.len();
    Ok(Array1::from_shape_fn(prompts * options.n, |at| {
        index[if options.interleave { at / options.n } else { at % prompts }]
    }))
}

/// What [`dynamic`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct DynamicOutput<R> {
    /// 1 for a sequence of a group that is kept, else 0; `[B]`.
    pub keep: Array1<R>,
    /// How many groups are kept.
    pub kept_groups: R,
}

/// Which groups are worth training on: those whose rewards tell their members apart.
///
/// ```text
/// keep a group if max(rewards) != min(rewards)        rule "differ"
/// keep a group if low < mean(rewards) < high          rule "mean_in_range"
/// ```
///
/// Clauses `sampling.dynamic` and below. DAPO (arXiv 2503.14476) Eq. 11; verl's recipe; OpenRLHF; EasyR1.
///
/// * `rewards`: `[B]`, finite, one a sequence; data, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// A group of one is kept or dropped as [`Dynamic::singleton`] says, by the rule "differ".
///
/// # Errors
/// `shape` if the lengths differ, `option` if the bounds are not in order.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Dynamic, reference::sampling};
/// use ndarray::array;
/// let kept = sampling::dynamic(&array![1.0, 1.0, 0.0, 1.0], &array![5, 5, 8, 8], &Dynamic::dapo())?;
/// assert_eq!((kept.keep, kept.kept_groups), (array![0.0, 0.0, 1.0, 1.0], 1.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn dynamic<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    options: &Dynamic,
) -> Result<DynamicOutput<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    let mut keep = Array1::from_elem(rewards.len(), R::constant(0.0));
    let mut of_groups = Vec::new();
    for (_, members) in groups(group) {
        let of_group: Vec<R> = members.iter().map(|&member| rewards[member]).collect();
        let kept = match options.rule {
            DynamicRule::Differ => differ(&of_group, options.singleton),
            DynamicRule::MeanInRange => mean_in_range(&of_group, options.low, options.high),
        };
        members.into_iter().for_each(|member| keep[member] = kept);
        of_groups.push(kept);
    }
    Ok(DynamicOutput { keep, kept_groups: R::sum(of_groups) })
}

/// 1 if the rewards are not all equal, else 0.
fn differ<R: Real>(rewards: &[R], singleton: DynamicSingleton) -> R {
    let is_kept = if rewards.len() == 1 { singleton == DynamicSingleton::Keep } else { !all_equal(rewards) };
    R::constant(f64::from(u8::from(is_kept)))
}

/// 1 if low < mean < high, else 0.
fn mean_in_range<R: Real>(rewards: &[R], low: f64, high: f64) -> R {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let mean = mean_of_inputs(rewards);
    let below = mean.select_less(R::constant(high), one, zero);
    R::constant(low).select_less(mean, below, zero)
}

/// What [`resample`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ResampleOutput<R> {
    /// 1 for a sample that is taken into its group, else 0; `[B]`.
    pub taken: Array1<R>,
    /// How many groups still want a sample after those given.
    pub unfinished: R,
}

/// Which samples are taken where each group is added to until its rewards differ.
///
/// ```text
/// take the group's first group_size samples;
/// while std(rewards taken) < tolerance and fewer than max_samples are taken: take the next
/// ```
///
/// Clauses `sampling.resample` and below. `004_grpo_dapo_fix.md`, which calls it DAPO's dynamic sampling; it is not, and
/// it biases the gradient (`e[fix.resampling]`).
///
/// * `rewards`: `[B]`, finite, in the order in which the samples are drawn; data, no gradient flows
/// * `group`: `[B]`, any labels; equal labels form a group, wherever they stand
///
/// Fewer than two rewards do not differ.
///
/// # Errors
/// `shape` if the lengths differ, `option` if an option is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Resample, reference::sampling};
/// use ndarray::array;
/// let options = Resample { group_size: 2, max_samples: 4, tolerance: 0.0 };
/// let drawn = sampling::resample(&array![1.0, 1.0, 0.0, 1.0], &array![5, 5, 5, 5], &options)?;
/// assert_eq!((drawn.taken, drawn.unfinished), (array![1.0, 1.0, 1.0, 0.0], 0.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn resample<R: Real>(
    rewards: &ArrayRef1<R>,
    group: &ArrayRef1<i64>,
    options: &Resample,
) -> Result<ResampleOutput<R>> {
    options.check()?;
    Axes::default().bind("rewards", &["B"], rewards.shape())?.bind("group", &["B"], group.shape())?;
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let mut taken = Array1::from_elem(rewards.len(), zero);
    let mut unfinished = Vec::new();
    for (_, members) in groups(group) {
        let of_group: Vec<R> = members.iter().map(|&member| rewards[member]).collect();
        // 1 while the group wants another sample; a factor for each decision, so that all of them are remembered.
        let mut wants = one;
        for (drawn, &member) in members.iter().enumerate() {
            if drawn >= options.group_size && wants.value() == 1.0 {
                wants = wants * equal(&of_group[..drawn], options.tolerance);
            }
            if drawn >= options.max_samples {
                wants = zero;
            }
            taken[member] = wants;
        }
        if members.len() >= options.group_size && wants.value() == 1.0 {
            wants = wants * equal(&of_group, options.tolerance);
        }
        unfinished.push(if members.len() >= options.max_samples { zero } else { wants });
    }
    Ok(ResampleOutput { taken, unfinished: R::sum(unfinished) })
}

/// 1 if the rewards are all equal, or their sample standard deviation is below the tolerance, else 0.
fn equal<R: Real>(rewards: &[R], tolerance: f64) -> R {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    if all_equal(rewards) {
        return one;
    }
    if tolerance == 0.0 {
        return zero;
    }
    variance_of(rewards, Ddof::Sample).sqrt().select_less(R::constant(tolerance), one, zero)
}

/// The distribution that a token is drawn from.
///
/// ```text
/// p = softmax(logits / temperature)
/// p = p where the token is among the top_k most likely, else 0; renormalised
/// p = p where the tokens more likely than this one sum to less than top_p, else 0; renormalised
/// ```
///
/// Clauses `sampling.distribution` and below. Holtzman et al. (arXiv 1904.09751) for top-p; Fan et al. (arXiv 1805.04833)
/// for top-k; transformers' and vLLM's samplers, which differ on ties.
///
/// * `logits`: `[B, V]`, -inf rules a token out, but not all of them; data, no gradient flows
///
/// Of equally likely tokens the one with the smaller id counts as more likely. Temperature 0 gives the most likely token
/// probability 1.
///
/// # Errors
/// `rank` if there are not two axes, `option` if an option is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Distribution, reference::sampling};
/// use ndarray::array;
/// let options = Distribution { top_k: Some(3), top_p: Some(0.6), ..Distribution::plain() };
/// let probs = sampling::distribution(&array![[0.0, 0.0, 0.0, 0.0]], &options)?;
/// assert_eq!(probs, array![[0.5, 0.5, 0.0, 0.0]]); // a third each, of which two reach 0.6
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn distribution<R: Real>(logits: &ArrayRef2<R>, options: &Distribution) -> Result<Array2<R>> {
    options.check()?;
    Axes::default().bind("logits", &["B", "V"], logits.shape())?;
    let mut probs = Array2::from_elem(logits.raw_dim(), R::constant(0.0));
    for (logits, mut probs) in logits.rows().into_iter().zip(probs.rows_mut()) {
        for (token, prob) in of_row(&logits, options) {
            probs[token] = prob;
        }
    }
    Ok(probs)
}

/// The tokens of one row that may be drawn, with their probabilities.
fn of_row<R: Real>(logits: &ArrayRef1<R>, options: &Distribution) -> Vec<(usize, R)> {
    let mut tokens = by_likelihood(logits);
    let Some(&first) = tokens.first() else { return Vec::new() };
    if options.temperature == 0.0 {
        return vec![(first, R::constant(1.0))];
    }
    tokens.truncate(options.top_k.unwrap_or(tokens.len()));
    let z = |token: usize| logits[token] / R::constant(options.temperature);
    let mut weights: Vec<R> = tokens.iter().map(|&token| (z(token) - z(first)).exp()).collect();
    if let Some(top_p) = options.top_p.filter(|&p| p < 1.0) {
        weights = nucleus(&weights, top_p);
    }
    let total = R::sum(weights.iter().copied());
    tokens.into_iter().zip(weights).map(|(token, weight)| (token, weight / total)).collect()
}

/// The tokens that are not ruled out, the most likely first, of equally likely ones the smaller id.
fn by_likelihood<R: Real>(logits: &ArrayRef1<R>) -> Vec<usize> {
    let possible = |&token: &usize| logits[token].value() > f64::NEG_INFINITY;
    let mut tokens: Vec<usize> = (0..logits.len()).filter(possible).collect();
    let descending = |&a: &usize, &b: &usize| logits[b].value().partial_cmp(&logits[a].value());
    // Stable, so that equal logits stay in the order of their ids.
    tokens.sort_by(|a, b| descending(a, b).unwrap_or(Ordering::Equal));
    tokens
}

/// The weights, sorted, with 0 for those before which top_p of the whole is reached.
fn nucleus<R: Real>(weights: &[R], top_p: f64) -> Vec<R> {
    let (zero, top_p) = (R::constant(0.0), R::constant(top_p));
    let total = R::sum(weights.iter().copied());
    let before = |rank: usize| R::sum(weights[..rank].iter().copied()) / total;
    let kept = |(rank, &weight): (usize, &R)| before(rank).select_less(top_p, weight, zero);
    weights.iter().enumerate().map(kept).collect()
}
