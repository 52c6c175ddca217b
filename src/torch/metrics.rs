//! What a training step reports about its policy ratio.

use tch::{Kind, Tensor};

use super::logprob::log_ratio;
use super::objective::clipped;
use super::{at_least_f32, mask, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Clip, MaskedMean};

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
    Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("advantages", &["B", "T"], &advantages.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let log_ratio =
        log_ratio(&select(&logp.detach(), response_mask), &select(logp_old, response_mask), &options.ratio());
    let advantages = select(&at_least_f32(advantages).detach(), response_mask);
    let ratio = log_ratio.exp();
    let mean = |values: Tensor| {
        mask::mean(&values.to_kind(log_ratio.kind()), response_mask, &MaskedMean::over_all())
    };

    let gains = advantages.gt(0.0).logical_and(&ratio.gt(1.0 + options.clip_ratio_high));
    let losses = advantages.lt(0.0).logical_and(&ratio.lt(1.0 - options.clip_ratio_low));
    let lowered = match options.clip_ratio_c {
        None => ratio.zeros_like(),
        Some(c) => {
            let above_cap = clipped(&ratio, &advantages, options).gt_tensor(&(&advantages * -c));
            above_cap.logical_and(&advantages.lt(0.0))
        }
    };
    Ok(PolicyMetrics {
        clip_fraction: mean(gains.logical_or(&losses))?,
        clip_fraction_lower: mean(lowered)?,
        ppo_kl: mean(-&log_ratio)?,
        ratio_mean: mean(ratio)?,
    })
}
