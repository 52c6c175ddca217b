//! Estimators of the KL divergence from the sampled tokens.

use tch::Tensor;

use super::at_least_f32;
use super::logprob::clamp_both_ways;
use crate::Result;
use crate::axes::Axes;
use crate::options::{KlEstimate, KlPenalty};

/// KL(policy || reference) of every token, `[B, T]`. See [`crate::reference::kl::estimate`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
pub fn estimate(logp: &Tensor, logp_ref: &Tensor, options: &KlEstimate) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind(
        "logp_ref",
        &["B", "T"],
        &logp_ref.size(),
    )?;
    let difference = at_least_f32(logp) - at_least_f32(logp_ref).detach();
    let d = clamp_both_ways(difference.shallow_clone(), options.input_clamp);
    let estimate = match options.kl_penalty {
        KlPenalty::K1 | KlPenalty::K1Plus => d,
        KlPenalty::Abs | KlPenalty::AbsPlus => d.abs(),
        KlPenalty::K2 | KlPenalty::K2Plus => d.square() / 2.0,
        KlPenalty::K3 | KlPenalty::K3Plus => (-&d).exp() + d - 1.0,
    };
    let estimate = clamp_both_ways(estimate, options.output_clamp);
    if !options.kl_penalty.straight_through() {
        return Ok(estimate);
    }
    let k2 = difference.square() / 2.0;
    Ok(estimate.detach() + (&k2 - k2.detach()))
}
