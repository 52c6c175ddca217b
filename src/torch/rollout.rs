//! What corrects for a sampler that is not quite the trainer's policy.

use tch::{Kind, Tensor};

use super::logprob::clamp_both_ways;
use super::{at_least_f32, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{
    K1Orientation, RejectionEstimator, RejectionLevel, RolloutIs, RolloutIsMode, RolloutRejection,
    RolloutWeights,
};

/// The importance weight of every token, `[B, T]`. See [`crate::reference::rollout::weights`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean.
pub fn weights(
    logp_old: &Tensor,
    logp_rollout: &Tensor,
    response_mask: &Tensor,
    options: &RolloutWeights,
) -> Result<Tensor> {
    options.check()?;
    let log_ratios = log_ratios(logp_old, logp_rollout, response_mask)?;
    // One weight a token, or one a sequence; and which of them count.
    let (logs, counts) = match options.rollout_is {
        RolloutIs::Token => (log_ratios, response_mask.shallow_clone()),
        RolloutIs::Sequence => {
            (log_ratios.sum_dim_intlist(1, true, log_ratios.kind()), response_mask.any_dim(1, true))
        }
    };
    let mut weights = bounded(&clamp_both_ways(logs, options.safety_bound).exp(), options);
    if options.batch_normalize {
        let mean = select(&weights, &counts).sum(weights.kind()) / counts.sum(weights.kind()).clamp_min(1.0);
        // Where every weight is 0 there is nothing to scale.
        weights /= mean.masked_fill(&mean.eq(0.0), 1.0);
    }
    Ok(select(&weights.expand_as(response_mask), response_mask))
}

/// Weights within the bounds, and 0 for one out of them.
fn bounded(raw: &Tensor, options: &RolloutWeights) -> Tensor {
    let upper = options.rollout_is_threshold;
    // No weight is below 0.
    let lower = options.rollout_is_threshold_lower.unwrap_or(0.0);
    match options.rollout_is_mode {
        RolloutIsMode::Truncate => raw.clamp(lower, upper),
        RolloutIsMode::Mask => raw.masked_fill(&raw.lt(lower).logical_or(&raw.gt(upper)), 0.0),
    }
}

/// What [`rejection`] gives.
#[derive(Debug)]
pub struct RejectionOutput {
    /// 1 for a token that stays, 0 for one that is masked or rejected; `[B, T]`.
    pub response_mask: Tensor,
    /// The share of the kept tokens that are rejected, without axes; 0 when there are none.
    pub rejected_fraction: Tensor,
}

/// The tokens that stay when those too far from the sampler's policy are rejected.
/// See [`crate::reference::rollout::rejection`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `unsupported` for the maximum of k1 and for a
/// lower bound of k2 or k3, `input` if `response_mask` is not boolean.
pub fn rejection(
    logp_old: &Tensor,
    logp_rollout: &Tensor,
    response_mask: &Tensor,
    options: &RolloutRejection,
) -> Result<RejectionOutput> {
    options.check()?;
    let log_ratios = log_ratios(logp_old, logp_rollout, response_mask)?;
    let divergence = select(&divergence(log_ratios, options), response_mask);
    let kind = divergence.kind();
    let over_sequence = || divergence.sum_dim_intlist(1, true, kind);
    let statistic = match options.rollout_rs_level {
        RejectionLevel::Token => divergence.shallow_clone(),
        RejectionLevel::SeqSum => over_sequence(),
        RejectionLevel::SeqMean => {
            over_sequence() / response_mask.sum_dim_intlist(1, true, kind).clamp_min(1.0)
        }
        RejectionLevel::SeqMax if divergence.numel() == 0 => divergence.shallow_clone(),
        RejectionLevel::SeqMax => {
            divergence.masked_fill(&response_mask.logical_not(), f64::NEG_INFINITY).amax(1, true)
        }
    };
    let (lower, upper) = options.bounds();
    let is_within = statistic.le(upper).logical_and(&statistic.ge(lower.unwrap_or(f64::NEG_INFINITY)));
    let stays = is_within.logical_and(response_mask);
    let (kept, staying) = (response_mask.sum(kind), stays.sum(kind));
    Ok(RejectionOutput {
        rejected_fraction: (&kept - staying) / kept.clamp_min(1.0),
        response_mask: stays.to_kind(kind),
    })
}

/// The estimate of every token's divergence from its log-ratio.
fn divergence(log_ratios: Tensor, options: &RolloutRejection) -> Tensor {
    let d = clamp_both_ways(log_ratios, options.safety_bound);
    match (options.rollout_rs_estimator, options.rs_k1_orientation) {
        (RejectionEstimator::K1, K1Orientation::Inverse) => -d,
        (RejectionEstimator::K1, K1Orientation::Direct) => d,
        (RejectionEstimator::K2, _) => d.square() / 2.0,
        (RejectionEstimator::K3, _) => d.exp() - 1.0 - d,
    }
}

/// `logp_old` - `logp_rollout` of the kept tokens, constants; 0 in masked slots.
fn log_ratios(logp_old: &Tensor, logp_rollout: &Tensor, response_mask: &Tensor) -> Result<Tensor> {
    Axes::default()
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("logp_rollout", &["B", "T"], &logp_rollout.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let difference = at_least_f32(logp_old) - at_least_f32(logp_rollout);
    Ok(select(&difference.detach(), response_mask))
}
