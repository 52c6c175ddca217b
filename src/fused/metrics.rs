//! The figures of the policy's ratio by themselves. See [`crate::torch::metrics`].

use tch::Tensor;

use super::loss::{Metrics, numbers};
use super::objective::{of_tokens, summed};
use crate::Result;
use crate::options::{Clip, Objective};

/// Clip fractions, KL to the old policy and mean ratio; on the CPU only. See [`crate::torch::metrics::policy`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean;
/// `unsupported` off the CPU.
pub fn policy(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Clip,
) -> Result<Metrics> {
    let options = summed(Objective::Vanilla, *options);
    let (_, sums) = of_tokens(logp, logp_old, advantages, response_mask, &options)?;
    Ok(numbers(&sums, &options).metrics)
}
