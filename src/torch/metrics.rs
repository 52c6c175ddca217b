//! What a training step reports about its policy ratio.

use tch::Tensor;

use super::logprob::log_ratio;
use super::mask;
use super::objective::{Kept, clipped, gain_is_clipped, kept};
use crate::Result;
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
