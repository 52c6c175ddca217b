//! What a training step reports about its policy ratio.

use ndarray::ArrayRef2;

use super::Real;
use super::logprob::log_ratio;
use super::mask::mean_of;
use super::objective::clipped;
use crate::Result;
use crate::axes::Axes;
use crate::options::{Clip, EmptyMean};

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
    Axes::default()
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("advantages", &["B", "T"], advantages.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
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

/// 1 where the ratio is above 1 + high with A > 0, or below 1 - low with A < 0, and 0 elsewhere.
pub(super) fn gain_is_clipped<R: Real>(ratio: R, advantage: R, options: &Clip) -> R {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let (low, high) = (R::constant(1.0 - options.clip_ratio_low), R::constant(1.0 + options.clip_ratio_high));
    if advantage.value() > 0.0 {
        high.select_less(ratio, one, zero)
    } else if advantage.value() < 0.0 {
        ratio.select_less(low, one, zero)
    } else {
        zero
    }
}
