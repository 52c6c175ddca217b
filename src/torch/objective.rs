//! Policy objectives: a loss for every token, to be minimised, and the whole actor loss.

use tch::{Kind, Tensor};

use super::logprob::{log_ratio, sequence_log_ratio};
use super::{aggregate, at_least_f32, kl, mask, metrics, of_kind, select};
use crate::axes::Axes;
use crate::options::{
    ActorLoss, Cispo, Clip, Dispatch, Gmpo, Gspo, ImportanceLevel, LossType, MaskedMean, Ratio, Sapo,
    SequenceLevel,
};
use crate::{Error, Result};

/// The naive policy-gradient loss of every token, `[B, T]`. See [`crate::reference::objective::policy_gradient`].
///
/// # Errors
/// `shape` if the shapes differ.
pub fn policy_gradient(logp: &Tensor, advantages: &Tensor) -> Result<Tensor> {
    Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind(
        "advantages",
        &["B", "T"],
        &advantages.size(),
    )?;
    Ok(-(at_least_f32(advantages).detach() * at_least_f32(logp)))
}

/// The policy-gradient loss of every token with a baseline, `[B, T]`.
/// See [`crate::reference::objective::reinforce_with_baseline`].
///
/// # Errors
/// `shape` if the shapes do not fit.
pub fn reinforce_with_baseline(logp: &Tensor, rewards: &Tensor, baselines: &Tensor) -> Result<Tensor> {
    Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind("rewards", &["B"], &rewards.size())?.bind(
        "baselines",
        &["B"],
        &baselines.size(),
    )?;
    let advantages = at_least_f32(rewards) - at_least_f32(baselines);
    policy_gradient(logp, &for_every_token(&advantages, logp))
}

/// The off-policy policy-gradient loss of every token, `[B, T]`. See [`crate::reference::objective::off_policy`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
pub fn off_policy(logp: &Tensor, logp_old: &Tensor, advantages: &Tensor, options: &Ratio) -> Result<Tensor> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("advantages", &["B", "T"], &advantages.size())?;
    Ok(-(log_ratio(logp, logp_old, options).exp() * at_least_f32(advantages).detach()))
}

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
    let Kept { logp, logp_old, advantages } = kept(logp, logp_old, advantages, response_mask)?;
    let log_ratio = log_ratio(&logp, &logp_old, &options.ratio());
    let is_bounded = if options.clip_ratio_c.is_some() { advantages.ne(0.0) } else { advantages.gt(0.0) };
    let ratio = ratio_within(&log_ratio, &is_bounded);
    let loss = clipped(&ratio, &advantages, options);
    Ok(select(&dual_clipped(loss, &advantages, options), response_mask))
}

/// What all policy objectives begin with, emptied where the mask keeps nothing: whatever stood there can then reach no
/// gradient as 0 times NaN.
pub(crate) struct Kept {
    pub(crate) logp: Tensor,
    pub(crate) logp_old: Tensor,
    pub(crate) advantages: Tensor,
}

/// The arguments that all policy objectives begin with, their shapes and kinds checked.
pub(crate) fn kept(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
) -> Result<Kept> {
    Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("advantages", &["B", "T"], &advantages.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    Ok(Kept {
        logp: select(&at_least_f32(logp), response_mask),
        logp_old: select(&at_least_f32(logp_old).detach(), response_mask),
        advantages: select(&at_least_f32(advantages).detach(), response_mask),
    })
}

/// exp(log_ratio), held constant where it overflows and a bound replaces it: there it would send back 0 times infinity.
fn ratio_within(log_ratio: &Tensor, is_bounded: &Tensor) -> Tensor {
    let is_lost = log_ratio.exp().isinf().logical_and(is_bounded);
    log_ratio.detach().where_self(&is_lost, log_ratio).exp()
}

/// -min(ratio A, clip(ratio, 1 - low, 1 + high) A)
pub(super) fn clipped(ratio: &Tensor, advantages: &Tensor, options: &Clip) -> Tensor {
    let inside = ratio.clamp(1.0 - options.clip_ratio_low, 1.0 + options.clip_ratio_high);
    -(ratio * advantages).minimum(&(inside * advantages))
}

/// Whether the ratio is above 1 + high with A > 0, or below 1 - low with A < 0.
pub(super) fn gain_is_clipped(ratio: &Tensor, advantages: &Tensor, options: &Clip) -> Tensor {
    let gains = advantages.gt(0.0).logical_and(&ratio.gt(1.0 + options.clip_ratio_high));
    let losses = advantages.lt(0.0).logical_and(&ratio.lt(1.0 - options.clip_ratio_low));
    gains.logical_or(&losses)
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
    with_other_terms(policy_loss, logp, logp_old, logp_ref, response_mask, entropy, options)
}

/// The whole loss of which this is the policy's term, whatever the objective: the KL and the entropy come to it. The
/// options have been checked.
///
/// # Errors
/// As [`actor_loss`].
pub(crate) fn with_other_terms(
    policy_loss: Tensor,
    logp: &Tensor,
    logp_old: &Tensor,
    logp_ref: Option<&Tensor>,
    response_mask: &Tensor,
    entropy: Option<&Tensor>,
    options: &ActorLoss,
) -> Result<ActorLossOutput> {
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

/// What [`dispatch`] gives.
#[derive(Debug)]
pub struct DispatchOutput {
    /// The loss of every token, `[B, T]`.
    pub loss: Tensor,
    /// The share of tokens whose gain is clipped, without axes; 0 for the losses that do not clip.
    pub clip_fraction: Tensor,
}

/// The policy-gradient loss of every token by name. See [`crate::reference::objective::dispatch`].
///
/// # Errors
/// `input` for one that is needed and absent, `shape` if the shapes do not fit, `option` for a range outside [0, 1].
pub fn dispatch(
    logp: &Tensor,
    logp_old: Option<&Tensor>,
    raw_rewards: Option<&Tensor>,
    advantages: Option<&Tensor>,
    options: &Dispatch,
) -> Result<DispatchOutput> {
    options.check()?;
    let absent = |name: &str| Error::input(name, "is needed for this loss_type");
    let unclipped = |loss: Tensor| {
        let clip_fraction = loss.new_zeros([0_i64; 0], (loss.kind(), loss.device()));
        DispatchOutput { loss, clip_fraction }
    };
    match options.loss_type {
        LossType::NoBaseline => {
            let rewards = raw_rewards.ok_or_else(|| absent("raw_rewards"))?;
            Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind(
                "raw_rewards",
                &["B"],
                &rewards.size(),
            )?;
            Ok(unclipped(policy_gradient(logp, &for_every_token(rewards, logp))?))
        }
        LossType::ReinforceWithBaseline => {
            let advantages = advantages.ok_or_else(|| absent("advantages"))?;
            Ok(unclipped(policy_gradient(logp, advantages)?))
        }
        LossType::GrpoClip => {
            let logp_old = logp_old.ok_or_else(|| absent("logp_old"))?;
            let advantages = advantages.ok_or_else(|| absent("advantages"))?;
            let every = Tensor::ones(logp.size(), (Kind::Bool, logp.device()));
            let loss = clip(logp, logp_old, advantages, &every, &options.clip())?;
            let metrics = metrics::policy(logp, logp_old, advantages, &every, &options.clip())?;
            Ok(DispatchOutput { loss, clip_fraction: metrics.clip_fraction })
        }
    }
}

/// What [`gspo`] gives.
#[derive(Debug)]
pub struct GspoOutput {
    /// The loss of every token, `[B, T]`.
    pub loss: Tensor,
    /// The ratio of every sequence, `[B]`, unclipped and without gradient.
    pub ratio: Tensor,
    /// The share of kept tokens whose gain is clipped, without axes; 0 when there are none.
    pub clip_fraction: Tensor,
}

/// The clipped loss of every token with the ratio of its sequence: GSPO. See [`crate::reference::objective::gspo`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean.
pub fn gspo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Gspo,
) -> Result<GspoOutput> {
    options.check()?;
    let Kept { logp, logp_old, advantages } = kept(logp, logp_old, advantages, response_mask)?;
    let (level, by_token) = match options.importance_sampling_level {
        ImportanceLevel::Sequence => (SequenceLevel::Mean, false),
        ImportanceLevel::SequenceToken => (SequenceLevel::Mean, true),
        ImportanceLevel::SequenceSum => (SequenceLevel::Sum, false),
    };
    let of_sequence = sequence_log_ratio(&logp, &logp_old, response_mask, level);
    let of_tokens = for_every_token(&of_sequence, &logp);
    // The difference is 0 and its gradient is the token's own.
    let of_tokens = if by_token { of_tokens.detach() + (&logp - logp.detach()) } else { of_tokens };
    let at_most =
        |x: &Tensor| options.log_ratio_max.map_or_else(|| x.shallow_clone(), |max| x.clamp_max(max));
    let log_ratio = select(&at_most(&of_tokens), response_mask);
    let token_ratio = ratio_within(&log_ratio, &advantages.gt(0.0));
    let loss = select(&clipped(&token_ratio, &advantages, &options.clip()), response_mask);
    let is_clipped = gain_is_clipped(&token_ratio.detach(), &advantages, &options.clip());
    let clip_fraction = mask::mean(&is_clipped.to_kind(loss.kind()), response_mask, &MaskedMean::over_all())?;
    Ok(GspoOutput { loss, ratio: at_most(&of_sequence.detach()).exp(), clip_fraction })
}

/// The loss of every token with a bounded ratio as its constant weight: CISPO.
/// See [`crate::reference::objective::cispo`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean.
pub fn cispo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Cispo,
) -> Result<Tensor> {
    options.check()?;
    let Kept { logp, logp_old, advantages } = kept(logp, logp_old, advantages, response_mask)?;
    let ratio = log_ratio(&logp.detach(), &logp_old, &options.ratio()).exp();
    let from_below =
        options.clip_ratio_low.map_or_else(|| ratio.shallow_clone(), |low| ratio.clamp_min(1.0 - low));
    let weight = from_below.clamp_max(options.upper_bound());
    Ok(-(weight * advantages * logp))
}

/// The loss of every sequence with the geometric mean of its tokens' clipped ratios, `[B]`: GMPO.
/// See [`crate::reference::objective::gmpo`].
///
/// # Errors
/// `shape` if the shapes do not fit, `option` if a bound is outside its domain, `input` if `response_mask` is not
/// boolean.
pub fn gmpo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Gmpo,
) -> Result<Tensor> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("advantages", &["B"], &advantages.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let count = response_mask.sum_dim_intlist(1, false, Kind::Int64);
    let advantages = select(&at_least_f32(advantages).detach(), &count.gt(0));
    let log_ratio =
        log_ratio(&select(logp, response_mask), &select(logp_old, response_mask), &Ratio::unclamped());
    let of_row = advantages.unsqueeze(1);
    let at_most = log_ratio.clamp_max(options.clip_ratio_high);
    let at_least = log_ratio.clamp_min(-options.clip_ratio_low);
    let one_sided = at_most.where_self(&of_row.gt(0.0), &at_least).masked_fill(&of_row.eq(0.0), 0.0);
    let mean = one_sided.sum_dim_intlist(1, false, None) / count.clamp_min(1);
    Ok(-(advantages * mean.exp()))
}

/// The loss of every token with a soft gate in the place of the clip: SAPO. See [`crate::reference::objective::sapo`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a temperature is not above 0, `input` if `response_mask` is not boolean.
pub fn sapo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Sapo,
) -> Result<Tensor> {
    options.check()?;
    let Kept { logp, logp_old, advantages } = kept(logp, logp_old, advantages, response_mask)?;
    // The gate closes far from 1, whatever the advantage is.
    let everywhere = response_mask.ones_like();
    let ratio = ratio_within(&log_ratio(&logp, &logp_old, &options.ratio()), &everywhere);
    let by_sign =
        |positive: f64, other: f64| advantages.full_like(other).masked_fill(&advantages.gt(0.0), positive);
    let scale = by_sign(4.0 / options.tau_pos, 4.0 / options.tau_neg);
    let gate = (by_sign(options.tau_pos, options.tau_neg) * (ratio - 1.0)).sigmoid() * scale;
    Ok(select(&-(gate * &advantages), response_mask))
}

/// One number a sequence, given to each of its tokens.
fn for_every_token(of_sequences: &Tensor, like: &Tensor) -> Tensor {
    of_sequences.unsqueeze(1).expand_as(like)
}
