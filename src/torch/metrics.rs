//! What a training step reports: its policy ratio, rewards, advantages, health, and pass@k.

use tch::{Kind, Tensor};

use super::logprob::log_ratio;
use super::mask::Spread;
use super::objective::{Kept, clipped, gain_is_clipped, kept};
use super::{any_seen, at_least_f32, mask, of_kind};
use crate::axes::Axes;
use crate::options::{AdvantageMetrics, Clip, Ddof, HealthRules, MaskedMean, PassAtK, ProcessedExcludes};
use crate::{Error, Result};

/// Means over the kept tokens, each without axes; all 0 when there are none.
#[derive(Debug)]
pub struct PolicyMetrics {
    /// The share of tokens whose gain is clipped.
    pub clip_fraction: Tensor,
    /// The share of tokens whose loss dual clip lowers; 0 when it is off.
    pub clip_fraction_lower: Tensor,
    /// The mean of -log ratio.
    pub ppo_kl: Tensor,
    /// The mean ratio.
    pub ratio_mean: Tensor,
}

/// Clip fractions, KL to the old policy and mean ratio. See [`crate::reference::metrics::policy`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean.
pub fn policy(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Clip,
) -> Result<PolicyMetrics> {
    options.check()?;
    let Kept { logp, logp_old, advantages } = kept(&logp.detach(), logp_old, advantages, response_mask)?;
    let log_ratio = log_ratio(&logp, &logp_old, &options.ratio());
    let ratio = log_ratio.exp();
    let mean = |values: Tensor| {
        mask::mean(&values.to_kind(log_ratio.kind()), response_mask, &MaskedMean::over_all())
    };
    let lowered = match options.clip_ratio_c {
        None => ratio.zeros_like(),
        Some(c) => {
            let above_cap = clipped(&ratio, &advantages, options).gt_tensor(&(&advantages * -c));
            above_cap.logical_and(&advantages.lt(0.0))
        }
    };
    Ok(PolicyMetrics {
        clip_fraction: mean(gain_is_clipped(&ratio, &advantages, options))?,
        clip_fraction_lower: mean(lowered)?,
        ppo_kl: mean(-&log_ratio)?,
        ratio_mean: mean(ratio)?,
    })
}

/// Statistics of some numbers, each without axes; all 0 when there are none.
#[derive(Debug)]
pub struct Statistics {
    /// The mean.
    pub mean: Tensor,
    /// The sample standard deviation; 0 for fewer than 2 numbers.
    pub std: Tensor,
    /// The largest.
    pub max: Tensor,
    /// The smallest.
    pub min: Tensor,
}

/// The rewards of a batch: their mean, sample standard deviation, largest and smallest.
/// See [`crate::reference::metrics::rewards`].
///
/// # Errors
/// `rank` if there is not one axis.
pub fn rewards(rewards: &Tensor) -> Result<Statistics> {
    Axes::default().bind("rewards", &["B"], &rewards.size())?;
    Ok(statistics(rewards, &rewards.ones_like().to_kind(Kind::Bool)))
}

/// What [`advantages`] gives.
#[derive(Debug)]
pub struct AdvantageStatistics {
    /// Of the advantages before any filter.
    pub original: Statistics,
    /// Of those that train, without what was filtered out.
    pub processed: Statistics,
}

/// The advantages of a batch's tokens, before and after samples were filtered.
/// See [`crate::reference::metrics::advantages`].
///
/// # Errors
/// `shape` if the shapes differ, `input` if `response_mask` or `kept` is not boolean.
pub fn advantages(
    advantages: &Tensor,
    advantages_original: &Tensor,
    response_mask: &Tensor,
    kept: Option<&Tensor>,
    options: &AdvantageMetrics,
) -> Result<AdvantageStatistics> {
    let axes = Axes::default()
        .bind("advantages", &["B", "T"], &advantages.size())?
        .bind("advantages_original", &["B", "T"], &advantages_original.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    if let Some(kept) = kept {
        axes.bind("kept", &["B"], &kept.size())?;
        of_kind("kept", kept, Kind::Bool)?;
    }
    let processed = match (options.processed_excludes, kept) {
        (ProcessedExcludes::Filtered, None) => response_mask.shallow_clone(),
        (ProcessedExcludes::Filtered, Some(kept)) => response_mask.logical_and(&kept.unsqueeze(1)),
        (ProcessedExcludes::Zeros, _) => response_mask.logical_and(&advantages.ne(0.0)),
    };
    Ok(AdvantageStatistics {
        original: statistics(advantages_original, response_mask),
        processed: statistics(advantages, &processed),
    })
}

fn statistics(numbers: &Tensor, mask: &Tensor) -> Statistics {
    let numbers = at_least_f32(numbers).detach();
    if numbers.numel() == 0 {
        let zero = || numbers.sum(None);
        return Statistics { mean: zero(), std: zero(), max: zero(), min: zero() };
    }
    let spread = Spread::of(&numbers, mask);
    let unless_fewer = |than: i64, statistic: Tensor| statistic.masked_fill(&spread.count.lt(than), 0.0);
    Statistics {
        std: unless_fewer(2, spread.variance(Ddof::Sample).sqrt()),
        max: unless_fewer(1, spread.max.shallow_clone()),
        min: unless_fewer(1, spread.min.shallow_clone()),
        mean: spread.mean.shallow_clone(),
    }
}

/// What [`health`] gives, each without axes: 1 where a rule holds, 0 where it does not.
#[derive(Debug)]
pub struct Health {
    /// All of the rules hold.
    pub healthy: Tensor,
    /// `kl_divergence` is below its maximum.
    pub kl_divergence: Tensor,
    /// `ppo_ratio_clipped` is below its maximum.
    pub ppo_ratio_clipped: Tensor,
    /// `ppo_ratio_mean` is near 1.
    pub ppo_ratio_mean: Tensor,
    /// `advantage_mean` is near 0.
    pub advantage_mean: Tensor,
    /// `advantage_std` is near 1.
    pub advantage_std: Tensor,
}

/// Whether a step's metrics keep to the guide's rules. See [`crate::reference::metrics::health`].
///
/// # Errors
/// `rank` if a metric has axes, `option` if a maximum or `near` is not above 0.
pub fn health(
    kl_divergence: &Tensor,
    ppo_ratio_clipped: &Tensor,
    ppo_ratio_mean: &Tensor,
    advantage_mean: &Tensor,
    advantage_std: &Tensor,
    options: &HealthRules,
) -> Result<Health> {
    options.check()?;
    Axes::default()
        .bind("kl_divergence", &[], &kl_divergence.size())?
        .bind("ppo_ratio_clipped", &[], &ppo_ratio_clipped.size())?
        .bind("ppo_ratio_mean", &[], &ppo_ratio_mean.size())?
        .bind("advantage_mean", &[], &advantage_mean.size())?
        .bind("advantage_std", &[], &advantage_std.size())?;
    let below = |metric: &Tensor, maximum: f64| {
        let metric = at_least_f32(metric);
        metric.lt(maximum).to_kind(metric.kind())
    };
    let near = |metric: &Tensor, target: f64| below(&(at_least_f32(metric) - target).abs(), options.near);
    let kl_divergence = below(kl_divergence, options.max_kl_divergence);
    let ppo_ratio_clipped = below(ppo_ratio_clipped, options.max_ppo_ratio_clipped);
    let ppo_ratio_mean = near(ppo_ratio_mean, 1.0);
    let advantage_mean = near(advantage_mean, 0.0);
    let advantage_std = near(advantage_std, 1.0);
    let healthy = &kl_divergence * &ppo_ratio_clipped * &ppo_ratio_mean * &advantage_mean * &advantage_std;
    Ok(Health { healthy, kl_divergence, ppo_ratio_clipped, ppo_ratio_mean, advantage_mean, advantage_std })
}

/// The probability that at least one of k samples is correct, `[B]`, in double precision.
/// See [`crate::reference::metrics::pass_at_k`].
///
/// The product of the binomials' quotient is taken over the smaller of k and the number correct, the other one moving
/// into its factors, so that no row has more than k of them.
///
/// # Errors
/// `shape` if the lengths differ, `option` if k is 0, `input` if an argument is not of 64-bit integers. If the tensors
/// are on the CPU, `input` for more correct ones than samples or too many samples, and `group-size` for fewer samples
/// than k: on another device the caller answers for the values.
pub fn pass_at_k(num_samples: &Tensor, num_correct: &Tensor, options: &PassAtK) -> Result<Tensor> {
    options.check()?;
    let axes = Axes::default().bind("num_samples", &["B"], &num_samples.size())?.bind(
        "num_correct",
        &["B"],
        &num_correct.size(),
    )?;
    of_kind("num_samples", num_samples, Kind::Int64)?;
    of_kind("num_correct", num_correct, Kind::Int64)?;
    if axes.length("B") == 0 {
        return Ok(num_samples.to_kind(Kind::Double));
    }
    let k = i64::try_from(options.k).unwrap_or(i64::MAX);
    in_domain(num_samples, num_correct, k)?;
    let column = Tensor::arange(k.min(MOST_SAMPLES), (Kind::Int64, num_samples.device()));
    let left = num_samples.unsqueeze(1) - &column;
    let (factors, taken) = (num_correct.clamp_max(k).unsqueeze(1), num_correct.clamp_min(k).unsqueeze(1));
    // Where fewer than k samples are wrong, one of the factors is 0.
    let quotients = (&left - taken).to_kind(Kind::Double) / left;
    let product = quotients.masked_fill(&column.ge_tensor(&factors), 1.0).prod_dim_int(1, false, None);
    Ok(1.0 - product)
}

/// The most samples of a prompt, up to which single precision counts exactly.
const MOST_SAMPLES: i64 = 1 << 24;

fn in_domain(num_samples: &Tensor, num_correct: &Tensor, k: i64) -> Result<()> {
    let is_off = num_correct.lt(0).logical_or(&num_correct.gt_tensor(num_samples));
    let is_wrong = is_off.logical_or(&num_samples.gt(MOST_SAMPLES)).logical_or(&num_samples.lt(k));
    if !any_seen(&is_wrong) {
        return Ok(());
    }
    let prompt = is_wrong.to_kind(Kind::Int64).argmax(0, false).int64_value(&[]);
    let (samples, correct) = (num_samples.int64_value(&[prompt]), num_correct.int64_value(&[prompt]));
    if is_off.int64_value(&[prompt]) != 0 {
        return Err(Error::input("num_correct", format!("[{prompt}] is {correct} of {samples} samples")));
    }
    if samples > MOST_SAMPLES {
        return Err(Error::input("num_samples", format!("[{prompt}] is {samples}, above {MOST_SAMPLES}")));
    }
    let need = "pass@k needs at least k samples of every prompt";
    Err(Error::GroupSize { group: prompt, size: samples as usize, need })
}
