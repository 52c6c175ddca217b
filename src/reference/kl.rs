//! The KL divergence from the reference policy: estimated from the sampled tokens, in full, and in the reward.

use ndarray::{Array2, ArrayRef2, ArrayRef3, Zip};

use super::logprob::{clamp_both_ways, log_sum_exp};
use super::{Real, aggregate};
use crate::axes::Axes;
use crate::options::{
    Aggregate, KlController, KlControllerType, KlEstimate, KlInReward, KlPenalty, LossAggMode,
};
use crate::{Error, Result};

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
    Ok(Zip::from(logp).and(logp_ref).map_collect(|&policy, &reference| of_token(policy, reference, options)))
}

/// The estimate of one token.
fn of_token<R: Real>(logp: R, logp_ref: R, options: &KlEstimate) -> R {
    let difference = logp - logp_ref.detach();
    let k2 = |d: R| d * d / R::constant(2.0);
    let d = clamp_both_ways(difference, options.input_clamp);
    let estimate = match options.kl_penalty {
        KlPenalty::K1 | KlPenalty::K1Plus => d,
        KlPenalty::Abs | KlPenalty::AbsPlus => d.abs(),
        KlPenalty::K2 | KlPenalty::K2Plus => k2(d),
        KlPenalty::K3 | KlPenalty::K3Plus => (-d).exp() + d - R::constant(1.0),
    };
    let estimate = clamp_both_ways(estimate, options.output_clamp);
    if options.kl_penalty.straight_through() { estimate.with_gradient_of(k2(difference)) } else { estimate }
}

/// KL(policy || reference) of every token over the whole vocabulary, with no token drawn.
///
/// ```text
/// kl = sum_v p_v (log p_v - log q_v)        p = softmax(logits), q = softmax(logits_ref)
/// ```
///
/// Clauses `kl.full` and below. Kullback and Leibler (1951); what the estimators of `kl.estimate` estimate.
///
/// * `logits`: `[B, T, V]`; gradient flows; -inf rules a token out, but not all of them
/// * `logits_ref`: `[B, T, V]`; constants, no gradient flows
///
/// A token that the policy rules out adds nothing.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `input` if the reference rules out a token that the policy does not.
///
/// # Example
/// ```
/// use grpo_oracle::reference::kl;
/// use ndarray::array;
/// let logits = array![[[0.0, f64::NEG_INFINITY]]]; // one token is certain
/// let kl = kl::full(&logits, &array![[[0.0, 0.0]]])?; // either is as likely
/// assert_eq!(kl, array![[f64::ln(2.0)]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn full<R: Real>(logits: &ArrayRef3<R>, logits_ref: &ArrayRef3<R>) -> Result<Array2<R>> {
    Axes::default().bind("logits", &["B", "T", "V"], logits.shape())?.bind(
        "logits_ref",
        &["B", "T", "V"],
        logits_ref.shape(),
    )?;
    let is_ruled_out = |logit: R| logit.value() == f64::NEG_INFINITY;
    if logits.iter().zip(logits_ref).any(|(&z, &z_ref)| is_ruled_out(z_ref) && !is_ruled_out(z)) {
        return Err(Error::input("logits_ref", "rules out a token that the policy does not; KL is infinite"));
    }
    let (rows, columns, _) = logits.dim();
    Ok(Array2::from_shape_fn((rows, columns), |(row, column)| {
        let z = logits.slice(ndarray::s![row, column, ..]);
        let z_ref = logits_ref.slice(ndarray::s![row, column, ..]).mapv(R::detach);
        let (log_sum, log_sum_ref) = (log_sum_exp(&z), log_sum_exp(&z_ref));
        let possible = z.iter().zip(&z_ref).filter(|&(&z, _)| !is_ruled_out(z));
        R::sum(possible.map(|(&z, &z_ref)| {
            let (log_p, log_q) = (z - log_sum, z_ref - log_sum_ref);
            log_p.exp() * (log_p - log_q)
        }))
    }))
}

/// What [`in_reward`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct KlInRewardOutput<R> {
    /// The penalised rewards, `[B, T]`.
    pub rewards: Array2<R>,
    /// The batch's mean estimate, in nats a token.
    pub current_kl: R,
}

/// Token-level rewards with the KL penalty taken off: KL in the reward.
///
/// ```text
/// rewards    = scores - kl_coef kl        kl = estimate(logp, logp_ref)
/// current_kl = mean over sequences of the mean over their kept tokens of kl
/// ```
///
/// Clauses `kl.in-reward` and below, `mask.select`. verl `apply_kl_penalty`; OpenRLHF `compute_reward`; Ziegler et al.
/// (arXiv 1909.08593) Eq. 2.
///
/// * `scores`: `[B, T]`, the task's rewards; constants, no gradient flows
/// * `logp`: `[B, T]`, nats, of the policy that drew the tokens; constants
/// * `logp_ref`: `[B, T]`; constants
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets the reward 0. A sequence without a kept token is not counted in `current_kl`, which is 0 where
/// nothing is kept.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` for a coefficient or clamp outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::KlInReward, reference::kl};
/// use ndarray::array;
/// let (logp, logp_ref) = (array![[-1.0, -1.0]], array![[-1.5, -2.5]]); // k1 is 0.5 and 1.5
/// let options = KlInReward { kl_coef: 0.5, ..KlInReward::verl() };
/// let penalised = kl::in_reward(&array![[0.0, 1.0]], &logp, &logp_ref, &array![[true, true]], &options)?;
/// assert_eq!(penalised.rewards, array![[-0.25, 0.25]]);
/// assert_eq!(penalised.current_kl, 1.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn in_reward<R: Real>(
    scores: &ArrayRef2<R>,
    logp: &ArrayRef2<R>,
    logp_ref: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &KlInReward,
) -> Result<KlInRewardOutput<R>> {
    options.check()?;
    Axes::default()
        .bind("scores", &["B", "T"], scores.shape())?
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_ref", &["B", "T"], logp_ref.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let zero = R::constant(0.0);
    let kl = Zip::from(logp).and(logp_ref).and(response_mask).map_collect(|&policy, &reference, &keep| {
        if keep { of_token(policy, reference, &options.estimate).detach() } else { zero }
    });
    let kl_coef = R::constant(options.kl_coef);
    let rewards = Zip::from(scores)
        .and(&kl)
        .and(response_mask)
        .map_collect(|&score, &kl, &keep| if keep { score.detach() - kl_coef * kl } else { zero });
    let per_sequence = Aggregate::local(LossAggMode::SeqMeanTokenMean);
    Ok(KlInRewardOutput { rewards, current_kl: aggregate::loss(&kl, response_mask, &per_sequence)? })
}

/// The next coefficient of the KL penalty.
///
/// ```text
/// kl_coef <- kl_coef (1 + clip(current_kl / target_kl - 1, -0.2, 0.2) n_steps / horizon)        type "adaptive"
/// ```
///
/// Clauses `kl.controller` and below. Ziegler et al. (arXiv 1909.08593) section 2.2; verl `AdaptiveKLController`.
///
/// * `kl_coef`: the coefficient that was used; a constant
/// * `current_kl`: the KL that was measured with it, in nats; read only if the coefficient is adapted
///
/// # Errors
/// `option` if an option is not above 0, `input` if `current_kl` is needed and absent.
///
/// # Example
/// ```
/// use grpo_oracle::{options::KlController, reference::kl};
/// let adaptive = KlController { horizon: 100.0, ..KlController::adaptive(10.0) };
/// let next: f64 = kl::controller(0.5, Some(7.0), &adaptive)?; // far above the target: a fifth, by 10 in 100
/// assert!((next - 0.51).abs() < 1e-15);
/// assert_eq!(kl::controller(0.5, None, &KlController::verl())?, 0.5);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn controller<R: Real>(kl_coef: R, current_kl: Option<R>, options: &KlController) -> Result<R> {
    options.check()?;
    if options.kind == KlControllerType::Fixed {
        return Ok(kl_coef);
    }
    let current_kl =
        current_kl.ok_or_else(|| Error::input("current_kl", "is needed when the coefficient is adapted"))?;
    let one = R::constant(1.0);
    let off = (current_kl / R::constant(options.target_kl) - one).clamp(R::constant(-0.2), R::constant(0.2));
    Ok(kl_coef * (one + off * R::constant(options.n_steps) / R::constant(options.horizon)))
}
