//! What corrects for a sampler that is not quite the trainer's policy.

use ndarray::{Array1, Array2, ArrayRef2};

use super::Real;
use super::logprob::clamp_both_ways;
use super::mask::mean_of;
use crate::Result;
use crate::axes::Axes;
use crate::options::{
    EmptyMean, K1Orientation, RejectionEstimator, RejectionLevel, RolloutIs, RolloutIsMode, RolloutRejection,
    RolloutWeights,
};

/// The importance weight of every token: the trainer's old policy over the sampler's.
///
/// ```text
/// raw    = exp(clamp(logp_old_t - logp_rollout_t))          rollout_is "token"
/// raw    = exp(clamp(sum_t (logp_old_t - logp_rollout_t)))  rollout_is "sequence"
/// weight = min(max(raw, lower), upper)                      rollout_is_mode "truncate"
/// weight = raw where lower <= raw <= upper, else 0          rollout_is_mode "mask"
/// ```
///
/// Clauses `rollout.weights` and below, `mask.select`. verl 0.9.1 rollout correction (TIS, IcePop); TRL
/// `vllm_importance_sampling_mode`.
///
/// * `logp_old`, `logp_rollout`: `[B, T]`, nats; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::RolloutWeights, reference::rollout};
/// use ndarray::array;
/// let (trainer, sampler) = (array![[-1.0, -2.0, -1.0]], array![[-2.0, -2.0, 0.0]]);
/// let kept = array![[true, true, true]];
/// let truncated = rollout::weights(&trainer, &sampler, &kept, &RolloutWeights::verl())?;
/// assert_eq!(truncated, array![[2.0, 1.0, f64::exp(-1.0)]]);
/// let masked = rollout::weights(&trainer, &sampler, &kept, &RolloutWeights::icepop())?;
/// assert_eq!(masked, array![[f64::exp(1.0), 1.0, 0.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn weights<R: Real>(
    logp_old: &ArrayRef2<R>,
    logp_rollout: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &RolloutWeights,
) -> Result<Array2<R>> {
    options.check()?;
    bind(logp_old, logp_rollout, response_mask)?;
    let mut weights = Array2::from_elem(logp_old.raw_dim(), R::constant(0.0));
    let mut all = Vec::new();
    for row in 0..logp_old.nrows() {
        let (kept, log_ratios) = of_sequence(logp_old, logp_rollout, response_mask, row);
        let of_log = |log: R| bounded(clamp_both_ways(log, options.safety_bound).exp(), options);
        match options.rollout_is {
            RolloutIs::Token => {
                let of_tokens: Vec<R> = log_ratios.into_iter().map(of_log).collect();
                kept.iter().zip(&of_tokens).for_each(|(&t, &weight)| weights[[row, t]] = weight);
                all.extend(of_tokens);
            }
            RolloutIs::Sequence if kept.is_empty() => {}
            RolloutIs::Sequence => {
                let weight = of_log(R::sum(log_ratios));
                kept.iter().for_each(|&t| weights[[row, t]] = weight);
                all.push(weight);
            }
        }
    }
    // Where every weight is 0 there is nothing to scale.
    if options.batch_normalize && all.iter().any(|weight| weight.value() != 0.0) {
        let mean = mean_of(all, EmptyMean::Zero);
        weights.zip_mut_with(response_mask, |weight, &keep| {
            if keep {
                *weight = *weight / mean;
            }
        });
    }
    Ok(weights)
}

/// A weight within the bounds, or 0 for one out of them.
fn bounded<R: Real>(raw: R, options: &RolloutWeights) -> R {
    let (zero, upper) = (R::constant(0.0), R::constant(options.rollout_is_threshold));
    let lower = options.rollout_is_threshold_lower.map(R::constant);
    match options.rollout_is_mode {
        RolloutIsMode::Truncate => lower.map_or(raw, |lower| raw.max(lower)).min(upper),
        RolloutIsMode::Mask => {
            let weight = upper.select_less(raw, zero, raw);
            lower.map_or(weight, |lower| raw.select_less(lower, zero, weight))
        }
    }
}

/// What [`rejection`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct RejectionOutput<R> {
    /// 1 for a token that stays, 0 for one that is masked or rejected; `[B, T]`.
    pub response_mask: Array2<R>,
    /// The share of the kept tokens that are rejected; 0 when there are none.
    pub rejected_fraction: R,
}

/// The tokens that stay when those too far from the sampler's policy are rejected.
///
/// ```text
/// d  = clamp(logp_old_t - logp_rollout_t)
/// k1 = -d        k2 = d^2 / 2        k3 = exp(d) - 1 - d
/// stays: log lower <= k1 <= log upper, or k2 <= upper, or k3 <= upper
/// ```
///
/// of the token, or of the sum, mean or maximum over its sequence. Clauses `rollout.rejection` and below,
/// `mask.select`. verl 0.9.1 `compute_rollout_rejection_mask`.
///
/// * `logp_old`, `logp_rollout`: `[B, T]`, nats; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `unsupported` for the maximum of k1 and
/// for a lower bound of k2 or k3.
///
/// # Example
/// ```
/// use grpo_oracle::{options::RolloutRejection, reference::rollout};
/// use ndarray::array;
/// let (trainer, sampler) = (array![[-1.0, -2.0, f64::NAN]], array![[-2.0, -2.0, 0.0]]);
/// let kept = array![[true, true, false]];
/// let output = rollout::rejection(&trainer, &sampler, &kept, &RolloutRejection::verl())?;
/// assert_eq!(output.response_mask, array![[0.0, 1.0, 0.0]]); // e is not within [1/2, 2]
/// assert_eq!(output.rejected_fraction, 0.5);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn rejection<R: Real>(
    logp_old: &ArrayRef2<R>,
    logp_rollout: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &RolloutRejection,
) -> Result<RejectionOutput<R>> {
    options.check()?;
    bind(logp_old, logp_rollout, response_mask)?;
    let one = R::constant(1.0);
    let mut stays = Array2::from_elem(logp_old.raw_dim(), R::constant(0.0));
    let mut rejected = Vec::new();
    for row in 0..logp_old.nrows() {
        let (kept, log_ratios) = of_sequence(logp_old, logp_rollout, response_mask, row);
        let of_tokens: Array1<R> = log_ratios.into_iter().map(|log| divergence(log, options)).collect();
        for (index, &t) in kept.iter().enumerate() {
            let statistic = match options.rollout_rs_level {
                RejectionLevel::Token => of_tokens[index],
                RejectionLevel::SeqSum => R::sum(of_tokens.iter().copied()),
                RejectionLevel::SeqMean => mean_of(of_tokens.iter().copied(), EmptyMean::Zero),
                RejectionLevel::SeqMax => of_tokens.iter().copied().fold(of_tokens[0], R::max),
            };
            stays[[row, t]] = is_within(statistic, options);
            rejected.push(one - stays[[row, t]]);
        }
    }
    Ok(RejectionOutput { response_mask: stays, rejected_fraction: mean_of(rejected, EmptyMean::Zero) })
}

/// The estimate of a token's divergence from its log-ratio.
fn divergence<R: Real>(log_ratio: R, options: &RolloutRejection) -> R {
    let d = clamp_both_ways(log_ratio, options.safety_bound);
    match options.rollout_rs_estimator {
        RejectionEstimator::K1 => match options.rs_k1_orientation {
            K1Orientation::Inverse => -d,
            K1Orientation::Direct => d,
        },
        RejectionEstimator::K2 => d * d / R::constant(2.0),
        RejectionEstimator::K3 => d.exp() - R::constant(1.0) - d,
    }
}

/// 1 where the statistic is within its bounds, edges included, and 0 elsewhere.
fn is_within<R: Real>(statistic: R, options: &RolloutRejection) -> R {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let (lower, upper) = options.bounds();
    let below = R::constant(upper).select_less(statistic, zero, one);
    lower.map_or(below, |lower| statistic.select_less(R::constant(lower), zero, below))
}

/// The kept places of a sequence and their log-ratios, all of them constants.
fn of_sequence<R: Real>(
    logp_old: &ArrayRef2<R>,
    logp_rollout: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    row: usize,
) -> (Vec<usize>, Vec<R>) {
    let kept: Vec<usize> = (0..response_mask.ncols()).filter(|&t| response_mask[[row, t]]).collect();
    let log_ratio = |&t: &usize| (logp_old[[row, t]] - logp_rollout[[row, t]]).detach();
    let log_ratios = kept.iter().map(log_ratio).collect();
    (kept, log_ratios)
}

fn bind<R: Real>(
    logp_old: &ArrayRef2<R>,
    logp_rollout: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
) -> Result<()> {
    Axes::default()
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("logp_rollout", &["B", "T"], logp_rollout.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    Ok(())
}
