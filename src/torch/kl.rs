//! The KL divergence from the reference policy: estimated from the sampled tokens, in full, and in the reward.

use tch::{Kind, Tensor};

use super::logprob::clamp_both_ways;
use super::{aggregate, any_seen, at_least_f32, of_kind, select};
use crate::axes::Axes;
use crate::options::{
    Aggregate, KlController, KlControllerType, KlEstimate, KlInReward, KlPenalty, LossAggMode,
};
use crate::{Error, Result};

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

/// KL(policy || reference) of every token over the whole vocabulary, `[B, T]`. See [`crate::reference::kl::full`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `input` if the reference rules out a token that the policy does not and the
/// tensors are on the CPU: another device would have to be waited for, so there the divergence is infinite.
pub fn full(logits: &Tensor, logits_ref: &Tensor) -> Result<Tensor> {
    Axes::default().bind("logits", &["B", "T", "V"], &logits.size())?.bind(
        "logits_ref",
        &["B", "T", "V"],
        &logits_ref.size(),
    )?;
    let is_ruled_out = logits.eq(f64::NEG_INFINITY);
    if any_seen(&logits_ref.eq(f64::NEG_INFINITY).logical_and(&is_ruled_out.logical_not())) {
        return Err(Error::input("logits_ref", "rules out a token that the policy does not; KL is infinite"));
    }
    let log_p = at_least_f32(logits).log_softmax(-1, None);
    let log_q = at_least_f32(logits_ref).detach().log_softmax(-1, None);
    // Emptied before they are subtracted, and p is 0 there: neither value nor gradient sees the infinities.
    let of_possible = |log: &Tensor| log.masked_fill(&is_ruled_out, 0.0);
    let surprise = of_possible(&log_p) - of_possible(&log_q);
    Ok((log_p.exp() * surprise).sum_dim_intlist(-1, false, None))
}

/// What [`in_reward`] gives.
#[derive(Debug)]
pub struct KlInRewardOutput {
    /// The penalised rewards, `[B, T]`.
    pub rewards: Tensor,
    /// The batch's mean estimate, without axes.
    pub current_kl: Tensor,
}

/// Token-level rewards with the KL penalty taken off. See [`crate::reference::kl::in_reward`].
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` for a coefficient or clamp outside its domain, `input` if
/// `response_mask` is not boolean.
pub fn in_reward(
    scores: &Tensor,
    logp: &Tensor,
    logp_ref: &Tensor,
    response_mask: &Tensor,
    options: &KlInReward,
) -> Result<KlInRewardOutput> {
    options.check()?;
    Axes::default()
        .bind("scores", &["B", "T"], &scores.size())?
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_ref", &["B", "T"], &logp_ref.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let kept = |tensor: &Tensor| select(&tensor.detach(), response_mask);
    let kl = estimate(&kept(logp), &kept(logp_ref), &options.estimate)?;
    let rewards = select(&(at_least_f32(&kept(scores)) - &kl * options.kl_coef), response_mask);
    let per_sequence = Aggregate::local(LossAggMode::SeqMeanTokenMean);
    Ok(KlInRewardOutput { rewards, current_kl: aggregate::loss(&kl, response_mask, &per_sequence)? })
}

/// The next coefficient of the KL penalty, without axes. See [`crate::reference::kl::controller`].
///
/// # Errors
/// `rank` if an argument has axes, `option` if an option is not above 0, `input` if `current_kl` is needed and absent.
pub fn controller(kl_coef: &Tensor, current_kl: Option<&Tensor>, options: &KlController) -> Result<Tensor> {
    options.check()?;
    let axes = Axes::default().bind("kl_coef", &[], &kl_coef.size())?;
    let kl_coef = at_least_f32(kl_coef);
    if options.kind == KlControllerType::Fixed {
        return Ok(kl_coef);
    }
    let current_kl =
        current_kl.ok_or_else(|| Error::input("current_kl", "is needed when the coefficient is adapted"))?;
    axes.bind("current_kl", &[], &current_kl.size())?;
    let off = (at_least_f32(current_kl) / options.target_kl - 1.0).clamp(-0.2, 0.2);
    Ok(kl_coef * (off * options.n_steps / options.horizon + 1.0))
}
