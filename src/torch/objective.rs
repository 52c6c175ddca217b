//! Policy objectives: a loss for every token, to be minimised, and the whole actor loss.

use tch::{Kind, Tensor};

use super::logprob::log_ratio;
use super::{aggregate, at_least_f32, kl, of_kind, select};
use crate::axes::Axes;
use crate::options::{ActorLoss, Clip};
use crate::{Error, Result};

/// The clipped surrogate loss of every token, `[B, T]`. See [`crate::reference::objective::clip`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean.
pub fn clip(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Clip,
) -> Result<Tensor> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("advantages", &["B", "T"], &advantages.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    // Emptied first, so that nothing in a masked slot can reach a gradient as 0 times NaN.
    let advantages = select(&at_least_f32(advantages).detach(), response_mask);
    let log_ratio =
        log_ratio(&select(logp, response_mask), &select(logp_old, response_mask), &options.ratio());
    // A ratio that overflows where a bound replaces it would send back 0 times infinity.
    let is_bounded = if options.clip_ratio_c.is_some() { advantages.ne(0.0) } else { advantages.gt(0.0) };
    let is_lost = log_ratio.exp().isinf().logical_and(&is_bounded);
    let ratio = log_ratio.detach().where_self(&is_lost, &log_ratio).exp();
    let loss = clipped(&ratio, &advantages, options);
    Ok(select(&dual_clipped(loss, &advantages, options), response_mask))
}

/// -min(ratio A, clip(ratio, 1 - low, 1 + high) A)
pub(super) fn clipped(ratio: &Tensor, advantages: &Tensor, options: &Clip) -> Tensor {
    let inside = ratio.clamp(1.0 - options.clip_ratio_low, 1.0 + options.clip_ratio_high);
    -(ratio * advantages).minimum(&(inside * advantages))
}

/// min(loss, -c A) where A < 0
fn dual_clipped(loss: Tensor, advantages: &Tensor, options: &Clip) -> Tensor {
    let Some(c) = options.clip_ratio_c else { return loss };
    let cap = advantages * -c;
    let above = loss.gt_tensor(&cap).logical_and(&advantages.lt(0.0));
    cap.where_self(&above, &loss)
}

/// What [`actor_loss`] gives, each without axes: the loss and the terms that it is made of.
#[derive(Debug)]
pub struct ActorLossOutput {
    /// What is minimised.
    pub loss: Tensor,
    /// The aggregated clipped objective.
    pub policy_loss: Tensor,
    /// The aggregated KL estimate, unweighted; 0 when there is none.
    pub kl_loss: Tensor,
    /// The aggregated entropy, unweighted; 0 when there is none.
    pub entropy_loss: Tensor,
}

/// The whole actor loss of a (micro-)batch. See [`crate::reference::objective::actor_loss`].
///
/// # Errors
/// Those of [`clip`], [`kl::estimate`] and [`aggregate::loss`]; `input` if `logp_ref` or `entropy` is needed and absent.
#[expect(clippy::too_many_arguments, reason = "one for every input of the formula")]
pub fn actor_loss(
    logp: &Tensor,
    logp_old: &Tensor,
    logp_ref: Option<&Tensor>,
    advantages: &Tensor,
    response_mask: &Tensor,
    group_endpoints: Option<&Tensor>,
    entropy: Option<&Tensor>,
    options: &ActorLoss,
) -> Result<ActorLossOutput> {
    options.check()?;
    let effective_mask = effective_mask(response_mask, group_endpoints)?;
    let response_mask = &effective_mask;
    let token_loss = clip(logp, logp_old, advantages, response_mask, &options.clip)?;
    let policy_loss = aggregate::loss(&token_loss, response_mask, &options.aggregate)?;
    let kl_loss = if options.kl_loss_coef == 0.0 {
        policy_loss.zeros_like().detach()
    } else {
        let logp_ref =
            logp_ref.ok_or_else(|| Error::input("logp_ref", "is needed when kl_loss_coef is not 0"))?;
        let logp = select(logp, response_mask);
        let mut kl = kl::estimate(&logp, &select_like(logp_ref, response_mask)?, &options.kl())?;
        if options.kl_ratio_weight {
            kl *= log_ratio(&logp, &select(logp_old, response_mask), &options.clip.ratio()).exp();
        }
        aggregate::loss(&kl, response_mask, &options.aggregate)?
    };
    let entropy_loss = if options.entropy_coeff == 0.0 {
        policy_loss.zeros_like().detach()
    } else {
        let entropy =
            entropy.ok_or_else(|| Error::input("entropy", "is needed when entropy_coeff is not 0"))?;
        Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind(
            "entropy",
            &["B", "T"],
            &entropy.size(),
        )?;
        aggregate::loss(entropy, response_mask, &options.aggregate)?
    };
    let loss = &policy_loss + &kl_loss * options.kl_loss_coef - &entropy_loss * options.entropy_coeff;
    let loss = loss / options.gradient_accumulation_steps;
    Ok(ActorLossOutput { loss, policy_loss, kl_loss, entropy_loss })
}

/// `logp_ref` emptied as [`select`] does, its shape checked first because libtorch would stretch another one.
fn select_like(logp_ref: &Tensor, response_mask: &Tensor) -> Result<Tensor> {
    Axes::default().bind("response_mask", &["B", "T"], &response_mask.size())?.bind(
        "logp_ref",
        &["B", "T"],
        &logp_ref.size(),
    )?;
    Ok(select(logp_ref, response_mask))
}

/// endpoints and response mask
fn effective_mask(response_mask: &Tensor, group_endpoints: Option<&Tensor>) -> Result<Tensor> {
    let Some(endpoints) = group_endpoints else { return Ok(response_mask.shallow_clone()) };
    Axes::default().bind("response_mask", &["B", "T"], &response_mask.size())?.bind(
        "group_endpoints",
        &["B", "T"],
        &endpoints.size(),
    )?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    of_kind("group_endpoints", endpoints, Kind::Bool)?;
    Ok(response_mask.logical_and(endpoints))
}
