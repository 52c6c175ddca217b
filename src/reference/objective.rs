//! Policy objectives: a loss for every token, to be minimised, and the whole actor loss.

use ndarray::{Array2, ArrayRef2, Zip};

use super::logprob::log_ratio;
use super::{Real, aggregate, kl};
use crate::axes::Axes;
use crate::options::{ActorLoss, Clip};
use crate::{Error, Result};

/// The clipped surrogate loss of every token: GRPO-Clip, PPO, DAPO's clip-higher, dual clip.
///
/// ```text
/// ratio_t = exp(logp_t - logp_old_t)
/// loss_t  = -min(ratio_t A_t, clip(ratio_t, 1 - low, 1 + high) A_t)           Eq. 29
/// loss_t  =  min(loss_t, -c A_t)   where A_t < 0                              dual clip
/// ```
///
/// Clauses `objective.clip` and below. PPO (arXiv 1707.06347) Eq. 7; CS336 Eq. 29; DAPO (arXiv 2503.14476);
/// dual clip (arXiv 1912.09729) Eq. 5.
///
/// * `logp`: `[B, T]`, nats; gradient flows, at a clip edge too
/// * `logp_old`, `advantages`: `[B, T]`; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets loss 0 and gradient 0, whatever stands there.
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Clip, reference::objective};
/// use ndarray::array;
/// let old = array![[0.0, 0.0, 0.0]];
/// let new = array![[f64::ln(1.5), f64::ln(1.5), f64::NAN]]; // ratio 1.5
/// let loss = objective::clip(&new, &old, &array![[1.0, -1.0, 1.0]], &array![[true, true, false]], &Clip::eq29())?;
/// assert_eq!(loss, array![[-1.2, 1.5, 0.0]]); // a gain is clipped, a loss is not
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn clip<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Clip,
) -> Result<Array2<R>> {
    options.check()?;
    bind(logp, logp_old, advantages, response_mask)?;
    let tokens = Zip::from(logp).and(logp_old).and(advantages).and(response_mask);
    Ok(tokens.map_collect(|&new, &old, &advantage, &keep| {
        if !keep {
            return R::constant(0.0);
        }
        let ratio = log_ratio(new, old, &options.ratio()).exp();
        let loss = clipped(ratio, advantage.detach(), options);
        dual_clipped(loss, advantage.detach(), options)
    }))
}

/// The arguments that all policy objectives begin with have one shape.
pub(super) fn bind<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
) -> Result<Axes> {
    Axes::default()
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("advantages", &["B", "T"], advantages.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())
}

/// -min(ratio A, clip(ratio, 1 - low, 1 + high) A)
pub(super) fn clipped<R: Real>(ratio: R, advantage: R, options: &Clip) -> R {
    let (low, high) = (R::constant(1.0 - options.clip_ratio_low), R::constant(1.0 + options.clip_ratio_high));
    -(ratio * advantage).min(ratio.clamp(low, high) * advantage)
}

/// min(loss, -c A) where A < 0
fn dual_clipped<R: Real>(loss: R, advantage: R, options: &Clip) -> R {
    match options.clip_ratio_c {
        Some(c) if advantage.value() < 0.0 => loss.min(-R::constant(c) * advantage),
        _ => loss,
    }
}

/// What [`actor_loss`] gives: the loss and the terms that it is made of.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActorLossOutput<R> {
    /// What is minimised.
    pub loss: R,
    /// The aggregated clipped objective.
    pub policy_loss: R,
    /// The aggregated KL estimate, unweighted; 0 when there is none.
    pub kl_loss: R,
    /// The aggregated entropy, unweighted; 0 when there is none.
    pub entropy_loss: R,
}

/// The whole actor loss of a (micro-)batch.
///
/// ```text
/// loss = (agg(clip) + kl_loss_coef agg(kl) - entropy_coeff agg(entropy)) / gradient_accumulation_steps
/// ```
///
/// Clauses `objective.actor-loss` and below. DeepSeekMath Eq. 3; verl `dp_actor`; CS336 `grpo_microbatch_train_step`.
///
/// * `logp`, `logp_old`, `advantages`, `response_mask`: as for [`clip`]
/// * `group_endpoints`: `[B, T]`, if given, only slots that it keeps too enter any term
/// * `logp_ref`: `[B, T]`, read only if `kl_loss_coef` is not 0; a constant
/// * `entropy`: `[B, T]`, read only if `entropy_coeff` is not 0; gradient flows
///
/// # Errors
/// Those of [`clip`], [`kl::estimate`] and [`aggregate::loss`]; `input` if `logp_ref` or `entropy` is needed and absent.
///
/// # Example
/// ```
/// use grpo_oracle::{options::ActorLoss, reference::objective};
/// use ndarray::array;
/// let logp = array![[-1.0, -2.0]];
/// let options = ActorLoss { kl_loss_coef: 0.5, ..ActorLoss::grpo() };
/// let reference = array![[-1.0, -2.0]];
/// let loss = objective::actor_loss(
///     &logp, &logp, Some(&reference), &array![[3.0, 1.0]], &array![[true, true]], None, None, &options,
/// )?;
/// assert_eq!((loss.loss, loss.kl_loss), (-2.0, 0.0)); // on policy: minus the mean advantage
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn actor_loss<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    logp_ref: Option<&ArrayRef2<R>>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    group_endpoints: Option<&ArrayRef2<bool>>,
    entropy: Option<&ArrayRef2<R>>,
    options: &ActorLoss,
) -> Result<ActorLossOutput<R>> {
    options.check()?;
    let effective_mask = effective_mask(response_mask, group_endpoints)?;
    let response_mask = &effective_mask;
    let token_loss = clip(logp, logp_old, advantages, response_mask, &options.clip)?;
    let policy_loss = aggregate::loss(&token_loss, response_mask, &options.aggregate)?;
    let kl_loss = if options.kl_loss_coef == 0.0 {
        R::constant(0.0)
    } else {
        let logp_ref =
            logp_ref.ok_or_else(|| Error::input("logp_ref", "is needed when kl_loss_coef is not 0"))?;
        aggregate::loss(&kl::estimate(logp, logp_ref, &options.kl())?, response_mask, &options.aggregate)?
    };
    let entropy_loss = if options.entropy_coeff == 0.0 {
        R::constant(0.0)
    } else {
        let entropy =
            entropy.ok_or_else(|| Error::input("entropy", "is needed when entropy_coeff is not 0"))?;
        Axes::default().bind("logp", &["B", "T"], logp.shape())?.bind(
            "entropy",
            &["B", "T"],
            entropy.shape(),
        )?;
        aggregate::loss(entropy, response_mask, &options.aggregate)?
    };
    let (kl_loss_coef, entropy_coeff) =
        (R::constant(options.kl_loss_coef), R::constant(options.entropy_coeff));
    let loss = policy_loss + kl_loss_coef * kl_loss - entropy_coeff * entropy_loss;
    let loss = loss / R::constant(options.gradient_accumulation_steps);
    Ok(ActorLossOutput { loss, policy_loss, kl_loss, entropy_loss })
}

/// endpoints and response mask
fn effective_mask(
    response_mask: &ArrayRef2<bool>,
    group_endpoints: Option<&ArrayRef2<bool>>,
) -> Result<Array2<bool>> {
    let Some(endpoints) = group_endpoints else { return Ok(response_mask.to_owned()) };
    Axes::default().bind("response_mask", &["B", "T"], response_mask.shape())?.bind(
        "group_endpoints",
        &["B", "T"],
        endpoints.shape(),
    )?;
    Ok(Zip::from(response_mask).and(endpoints).map_collect(|&keep, &is_endpoint| keep && is_endpoint))
}
