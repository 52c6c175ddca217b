//! What a training step reports: its policy ratio, rewards, advantages, health, and pass@k.

use ndarray::{Array1, ArrayRef1, ArrayRef2};

use super::Real;
use super::logprob::log_ratio;
use super::mask::{mean_of, variance_of};
use super::objective::{bind, clipped, gain_is_clipped};
use crate::axes::Axes;
use crate::options::{AdvantageMetrics, Clip, Ddof, EmptyMean, HealthRules, PassAtK, ProcessedExcludes};
use crate::{Error, Result};

/// Means over the kept tokens; all 0 when there are none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PolicyMetrics<R> {
    /// The share of tokens whose gain is clipped: ratio above 1 + high with A > 0, or below 1 - low with A < 0.
    pub clip_fraction: R,
    /// The share of tokens whose loss dual clip lowers; 0 when it is off.
    pub clip_fraction_lower: R,
    /// The mean of -log ratio: k1 from the old policy to the new one.
    pub ppo_kl: R,
    /// The mean ratio.
    pub ratio_mean: R,
}

/// Clip fractions, KL to the old policy and mean ratio.
///
/// Clauses `metrics.policy` and below. verl `pg_clipfrac`, `pg_clipfrac_lower` and `ppo_kl`, the latter after the
/// log-ratio's clamp.
///
/// * arguments as for [`objective::clip`](super::objective::clip); no gradient flows
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Clip, reference::metrics};
/// use ndarray::array;
/// let new = array![[f64::ln(1.5), f64::ln(1.5), 0.0, f64::NAN]];
/// let advantages = array![[1.0, -1.0, 1.0, 1.0]];
/// let mask = array![[true, true, true, false]];
/// let metrics = metrics::policy(&new, &array![[0.0, 0.0, 0.0, 0.0]], &advantages, &mask, &Clip::eq29())?;
/// assert_eq!(metrics.clip_fraction, 1.0 / 3.0); // only where the gain was clipped
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn policy<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Clip,
) -> Result<PolicyMetrics<R>> {
    options.check()?;
    bind(logp, logp_old, advantages, response_mask)?;
    let mut tokens: Vec<PolicyMetrics<R>> = Vec::new();
    for (position, _) in response_mask.indexed_iter().filter(|&(_, &keep)| keep) {
        let log_ratio = log_ratio(logp[position], logp_old[position], &options.ratio()).detach();
        tokens.push(of_token(log_ratio, advantages[position].detach(), options));
    }
    let mean = |field: fn(&PolicyMetrics<R>) -> R| mean_of(tokens.iter().map(field), EmptyMean::Zero);
    Ok(PolicyMetrics {
        clip_fraction: mean(|token| token.clip_fraction),
        clip_fraction_lower: mean(|token| token.clip_fraction_lower),
        ppo_kl: mean(|token| token.ppo_kl),
        ratio_mean: mean(|token| token.ratio_mean),
    })
}

fn of_token<R: Real>(log_ratio: R, advantage: R, options: &Clip) -> PolicyMetrics<R> {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let ratio = log_ratio.exp();
    let clip_fraction = gain_is_clipped(ratio, advantage, options);
    let clip_fraction_lower = match options.clip_ratio_c {
        Some(c) if advantage.value() < 0.0 => {
            (-R::constant(c) * advantage).select_less(clipped(ratio, advantage, options), one, zero)
        }
        _ => zero,
    };
    PolicyMetrics { clip_fraction, clip_fraction_lower, ppo_kl: -log_ratio, ratio_mean: ratio }
}

/// Statistics of some numbers; all 0 when there are none.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Statistics<R> {
    /// The mean.
    pub mean: R,
    /// The sample standard deviation; 0 for fewer than 2 numbers.
    pub std: R,
    /// The largest.
    pub max: R,
    /// The smallest.
    pub min: R,
}

/// The rewards of a batch: their mean, sample standard deviation, largest and smallest.
///
/// ```text
/// mean = sum_i r_i / B
/// std  = sqrt(sum_i (r_i - mean)^2 / (B - 1))
/// ```
///
/// Clauses `metrics.rewards` and `metrics.statistics`. verl `critic/rewards/*`; `003_grpo_trainer_guide.md`.
///
/// * `rewards`: `[B]`, one a sequence; no gradient flows
///
/// Fewer than two rewards, or equal ones, have the standard deviation 0; without rewards all is 0.
///
/// # Errors
/// None: any length will do.
///
/// # Example
/// ```
/// use grpo_oracle::reference::metrics;
/// use ndarray::array;
/// let rewards = metrics::rewards(&array![1.0, 0.0, 0.0, 0.0])?;
/// assert_eq!((rewards.mean, rewards.std, rewards.max, rewards.min), (0.25, 0.5, 1.0, 0.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn rewards<R: Real>(rewards: &ArrayRef1<R>) -> Result<Statistics<R>> {
    Axes::default().bind("rewards", &["B"], rewards.shape())?;
    Ok(statistics(rewards.iter().map(|reward| reward.detach())))
}

/// What [`advantages`] gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdvantageStatistics<R> {
    /// critic/advantages/*: of the advantages before any filter.
    pub original: Statistics<R>,
    /// critic/advantages_processed/*: of those that train, without what was filtered out.
    pub processed: Statistics<R>,
}

/// The advantages of a batch's tokens, before and after samples were filtered.
///
/// ```text
/// original   over the tokens t of every sequence i with response_mask: A0_it
/// processed  over those with kept_i ("filtered") or with A_it != 0 ("zeros"): A_it
/// ```
///
/// Clauses `metrics.advantages` and below, `metrics.statistics`, `mask.select`. `000_compute_new_adv.md`; its published
/// code leaves out zeros.
///
/// * `advantages`: `[B, T]`, those that train; `advantages_original`: `[B, T]`, before any filter; no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
/// * `kept`: `[B]`, the samples that survived; all of them if absent
///
/// Where nothing is left, all statistics are 0.
///
/// # Errors
/// `shape` if the shapes differ.
///
/// # Example
/// ```
/// use grpo_oracle::{options::AdvantageMetrics, reference::metrics};
/// use ndarray::array;
/// let (new, original) = (array![[-1.0], [0.0], [0.0], [1.0]], array![[-1.5], [-0.5], [0.5], [1.5]]);
/// let (mask, kept) = (array![[true], [true], [true], [true]], array![true, false, true, true]);
/// let of = |options| metrics::advantages(&new, &original, &mask, Some(&kept), &options);
/// let filtered = of(AdvantageMetrics::document())?;
/// assert_eq!((filtered.original.max, filtered.processed.std), (1.5, 1.0)); // of -1, 0, 1
/// let zeros = of(AdvantageMetrics::easyr1_brian())?;
/// assert_eq!(zeros.processed.std, f64::sqrt(2.0)); // of -1, 1: the kept 0 is gone too
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn advantages<R: Real>(
    advantages: &ArrayRef2<R>,
    advantages_original: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    kept: Option<&ArrayRef1<bool>>,
    options: &AdvantageMetrics,
) -> Result<AdvantageStatistics<R>> {
    let axes = Axes::default()
        .bind("advantages", &["B", "T"], advantages.shape())?
        .bind("advantages_original", &["B", "T"], advantages_original.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    if let Some(kept) = kept {
        axes.bind("kept", &["B"], kept.shape())?;
    }
    let tokens = || response_mask.indexed_iter().filter(|&(_, &keep)| keep).map(|(position, _)| position);
    let is_processed = |&(row, token): &(usize, usize)| match options.processed_excludes {
        ProcessedExcludes::Filtered => kept.is_none_or(|kept| kept[row]),
        ProcessedExcludes::Zeros => advantages[[row, token]].value() != 0.0,
    };
    Ok(AdvantageStatistics {
        original: statistics(tokens().map(|position| advantages_original[position].detach())),
        processed: statistics(tokens().filter(is_processed).map(|position| advantages[position].detach())),
    })
}

fn statistics<R: Real>(numbers: impl Iterator<Item = R>) -> Statistics<R> {
    let numbers: Vec<R> = numbers.collect();
    let zero = R::constant(0.0);
    Statistics {
        mean: mean_of(numbers.iter().copied(), EmptyMean::Zero),
        std: variance_of(&numbers, Ddof::Sample).sqrt(),
        max: numbers.iter().copied().reduce(R::max).unwrap_or(zero),
        min: numbers.iter().copied().reduce(R::min).unwrap_or(zero),
    }
}

/// What [`health`] gives: 1 where a rule holds, 0 where it does not.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Health<R> {
    /// All of the rules hold.
    pub healthy: R,
    /// `kl_divergence` is below its maximum.
    pub kl_divergence: R,
    /// `ppo_ratio_clipped` is below its maximum.
    pub ppo_ratio_clipped: R,
    /// `ppo_ratio_mean` is near 1.
    pub ppo_ratio_mean: R,
    /// `advantage_mean` is near 0.
    pub advantage_mean: R,
    /// `advantage_std` is near 1.
    pub advantage_std: R,
}

/// Whether the metrics of a training step keep to the guide's rules.
///
/// ```text
/// kl_divergence < 0.1     ppo_ratio_clipped < 0.3
/// |ppo_ratio_mean - 1|, |advantage_mean|, |advantage_std - 1| < near
/// ```
///
/// Clauses `metrics.health` and below. `003_grpo_trainer_guide.md`, question 8; what is wrong with its rules stands in
/// the errata `guide.kl-health` and `guide.advantage-std`.
///
/// * every argument: a number, the metric of this name; no gradient flows
///
/// # Errors
/// `option` for a maximum or a `near` that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::HealthRules, reference::metrics};
/// let health = metrics::health(0.15, 0.05, 1.0, 0.0, 0.875, &HealthRules::guide())?;
/// assert_eq!((health.healthy, health.kl_divergence, health.advantage_std), (0.0, 0.0, 1.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn health<R: Real>(
    kl_divergence: R,
    ppo_ratio_clipped: R,
    ppo_ratio_mean: R,
    advantage_mean: R,
    advantage_std: R,
    options: &HealthRules,
) -> Result<Health<R>> {
    options.check()?;
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let below = |metric: R, maximum: f64| metric.select_less(R::constant(maximum), one, zero);
    let near = |metric: R, target: R| below((metric - target).abs(), options.near);
    let kl_divergence = below(kl_divergence, options.max_kl_divergence);
    let ppo_ratio_clipped = below(ppo_ratio_clipped, options.max_ppo_ratio_clipped);
    let ppo_ratio_mean = near(ppo_ratio_mean, one);
    let advantage_mean = near(advantage_mean, zero);
    let advantage_std = near(advantage_std, one);
    let healthy = kl_divergence * ppo_ratio_clipped * ppo_ratio_mean * advantage_mean * advantage_std;
    Ok(Health { healthy, kl_divergence, ppo_ratio_clipped, ppo_ratio_mean, advantage_mean, advantage_std })
}

/// The probability that at least one of k samples is correct, without bias from n samples of which c are.
///
/// ```text
/// pass@k = 1 - C(n - c, k) / C(n, k) = 1 - product over i = n - c + 1 .. n of max(i - k, 0) / i
/// ```
///
/// Clauses `metrics.pass-at-k` and below. Chen et al. (arXiv 2107.03374) Eq. 1.
///
/// * `num_samples`: `[B]`, n, one a prompt, at most 2^24
/// * `num_correct`: `[B]`, c, from 0 to n
///
/// Fewer than k wrong samples give exactly 1, no correct one gives exactly 0.
///
/// # Errors
/// `shape` if the lengths differ, `option` if k is 0, `input` if c is not from 0 to n or n is above 2^24, `group-size` if n is below k.
///
/// # Example
/// ```
/// use grpo_oracle::{options::PassAtK, reference::metrics};
/// use ndarray::{Array1, array};
/// let pass: Array1<f64> = metrics::pass_at_k(&array![4, 4, 4], &array![1, 3, 0], &PassAtK::chen(2))?;
/// assert_eq!(pass, array![0.5, 1.0, 0.0]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn pass_at_k<R: Real>(
    num_samples: &ArrayRef1<i64>,
    num_correct: &ArrayRef1<i64>,
    options: &PassAtK,
) -> Result<Array1<R>> {
    options.check()?;
    Axes::default().bind("num_samples", &["B"], num_samples.shape())?.bind(
        "num_correct",
        &["B"],
        num_correct.shape(),
    )?;
    let prompts = num_samples.iter().zip(num_correct).enumerate();
    prompts.map(|(prompt, (&samples, &correct))| pass(prompt, samples, correct, options.k)).collect()
}

/// The most samples of a prompt: up to here single precision counts exactly.
const MOST_SAMPLES: i64 = 1 << 24;

fn pass<R: Real>(prompt: usize, samples: i64, correct: i64, k: u64) -> Result<R> {
    if !(0..=samples).contains(&correct) {
        return Err(Error::input("num_correct", format!("[{prompt}] is {correct} of {samples} samples")));
    }
    if samples > MOST_SAMPLES {
        return Err(Error::input("num_samples", format!("[{prompt}] is {samples}, above {MOST_SAMPLES}")));
    }
    if samples.unsigned_abs() < k {
        let need = "pass@k needs at least k samples of every prompt";
        let (group, size) = (prompt as i64, samples.unsigned_abs() as usize);
        return Err(Error::GroupSize { group, size, need });
    }
    // Not 1 - k/i, whose rounding would hide that the product is 0 when fewer than k samples are wrong.
    let none_is_correct = (samples - correct + 1..=samples).fold(R::constant(1.0), |product, i| {
        let (i, k) = (i as f64, k as f64);
        product * (R::constant((i - k).max(0.0)) / R::constant(i))
    });
    Ok(R::constant(1.0) - none_is_correct)
}
