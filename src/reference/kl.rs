//! Estimators of the KL divergence from the sampled tokens.

use ndarray::{Array2, ArrayRef2, Zip};

use super::Real;
use super::logprob::clamp_both_ways;
use crate::Result;
use crate::axes::Axes;
use crate::options::{KlEstimate, KlPenalty};

/// KL(policy || reference) of every token, estimated from the token that was drawn.
///
/// ```text
/// d = clamp(logp - logp_ref)
/// k1 = d        abs = |d|        k2 = d^2 / 2        k3 = exp(-d) + d - 1
/// ```
///
/// Clauses `kl.estimate` and below. Schulman, "Approximating KL divergence" (2020); DeepSeekMath Eq. 4 (k3).
/// The forms with "+" have the gradient of k2, whatever their value is, as in verl.
///
/// * `logp`: `[B, T]`, nats; gradient flows, and dies where a clamp bites
/// * `logp_ref`: `[B, T]`; constants, no gradient flows
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::KlEstimate, reference::kl};
/// use ndarray::array;
/// let kl = kl::estimate(&array![[-1.0, -2.0]], &array![[-1.0, -3.0]], &KlEstimate::k3())?;
/// assert_eq!(kl, array![[0.0, f64::exp(-1.0) + 1.0 - 1.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn estimate<R: Real>(
    logp: &ArrayRef2<R>,
    logp_ref: &ArrayRef2<R>,
    options: &KlEstimate,
) -> Result<Array2<R>> {
    options.check()?;
    Axes::default().bind("logp", &["B", "T"], logp.shape())?.bind(
        "logp_ref",
        &["B", "T"],
        logp_ref.shape(),
    )?;
    Ok(Zip::from(logp).and(logp_ref).map_collect(|&policy, &reference| {
        let difference = policy - reference.detach();
        let k2 = |d: R| d * d / R::constant(2.0);
        let d = clamp_both_ways(difference, options.input_clamp);
        let estimate = match options.kl_penalty {
            KlPenalty::K1 | KlPenalty::K1Plus => d,
            KlPenalty::Abs | KlPenalty::AbsPlus => d.abs(),
            KlPenalty::K2 | KlPenalty::K2Plus => k2(d),
            KlPenalty::K3 | KlPenalty::K3Plus => (-d).exp() + d - R::constant(1.0),
        };
        let estimate = clamp_both_ways(estimate, options.output_clamp);
        if options.kl_penalty.straight_through() {
            estimate.with_gradient_of(k2(difference))
        } else {
            estimate
        }
    }))
}
