//! Policy objectives: a loss for every token, to be minimised, and the whole actor loss.

use ndarray::{Array1, Array2, ArrayRef1, ArrayRef2, Zip};

use super::logprob::{log_ratio, sequence_log_ratio};
use super::mask::mean_of;
use super::{Real, aggregate, kl, logprob, metrics};
use crate::axes::Axes;
use crate::options::{
    ActorLoss, Cispo, Clip, Dispatch, EmptyMean, Gmpo, Gspo, ImportanceLevel, LossType, Ratio, Sapo,
    SequenceLevel,
};
use crate::{Error, Result};

/// The naive policy-gradient loss of every token.
///
/// ```text
/// loss_t = -A_t logp_t
/// ```
///
/// Clauses `objective.policy-gradient` and below. CS336 `compute_naive_policy_gradient_loss`; verl's `gpg`.
///
/// * `logp`: `[B, T]`, nats; gradient flows
/// * `advantages`: `[B, T]`, or raw rewards; constants, no gradient flows
///
/// # Errors
/// `shape` if the shapes differ.
///
/// # Example
/// ```
/// use grpo_oracle::reference::objective;
/// use ndarray::array;
/// let loss = objective::policy_gradient(&array![[-1.0, -0.5]], &array![[2.0, -2.0]])?;
/// assert_eq!(loss, array![[2.0, -1.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn policy_gradient<R: Real>(logp: &ArrayRef2<R>, advantages: &ArrayRef2<R>) -> Result<Array2<R>> {
    Axes::default().bind("logp", &["B", "T"], logp.shape())?.bind(
        "advantages",
        &["B", "T"],
        advantages.shape(),
    )?;
    Ok(Zip::from(logp).and(advantages).map_collect(|&logp, &advantage| -(advantage.detach() * logp)))
}

/// The policy-gradient loss of every token with a baseline.
///
/// ```text
/// loss_it = -(r_i - b_i) logp_it
/// ```
///
/// Clauses `objective.reinforce-with-baseline` and below. CS336 assignment 5, policy-gradient baselines.
///
/// * `logp`: `[B, T]`, nats; gradient flows
/// * `rewards`, `baselines`: `[B]`, one a sequence; constants, no gradient flows
///
/// # Errors
/// `shape` if the shapes do not fit.
///
/// # Example
/// ```
/// use grpo_oracle::reference::objective;
/// use ndarray::array;
/// let logp = array![[-1.0, -2.0], [-1.0, -2.0]];
/// let loss = objective::reinforce_with_baseline(&logp, &array![1.0, 0.0], &array![0.5, 0.5])?;
/// assert_eq!(loss, array![[0.5, 1.0], [-0.5, -1.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn reinforce_with_baseline<R: Real>(
    logp: &ArrayRef2<R>,
    rewards: &ArrayRef1<R>,
    baselines: &ArrayRef1<R>,
) -> Result<Array2<R>> {
    Axes::default().bind("logp", &["B", "T"], logp.shape())?.bind("rewards", &["B"], rewards.shape())?.bind(
        "baselines",
        &["B"],
        baselines.shape(),
    )?;
    policy_gradient(logp, &for_every_token(&(rewards - baselines), logp.ncols()))
}

/// The off-policy policy-gradient loss of every token: reweighted, not clipped.
///
/// ```text
/// loss_t = -exp(clamp(logp_t - logp_old_t)) A_t
/// ```
///
/// Clauses `objective.off-policy` and below, `logprob.ratio.clamp`. CS336 Eq. 27, whose gradient is this one's.
///
/// * `logp`: `[B, T]`, nats; gradient flows, and dies where the clamp bites
/// * `logp_old`, `advantages`: `[B, T]`; constants, no gradient flows
///
/// # Errors
/// `shape` if the shapes differ, `option` for a clamp that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Ratio, reference::objective};
/// use ndarray::array;
/// let (new, old) = (array![[f64::ln(1.5), f64::ln(1.5)]], array![[0.0, 0.0]]);
/// let loss = objective::off_policy(&new, &old, &array![[1.0, -1.0]], &Ratio::unclamped())?;
/// assert_eq!(loss, array![[-1.5, 1.5]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn off_policy<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    options: &Ratio,
) -> Result<Array2<R>> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("advantages", &["B", "T"], advantages.shape())?;
    let tokens = Zip::from(logp).and(logp_old).and(advantages);
    Ok(tokens
        .map_collect(|&new, &old, &advantage| -(log_ratio(new, old, options).exp() * advantage.detach())))
}

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

/// 1 where the ratio is above 1 + high with A > 0, or below 1 - low with A < 0, and 0 elsewhere.
pub(super) fn gain_is_clipped<R: Real>(ratio: R, advantage: R, options: &Clip) -> R {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let (low, high) = (R::constant(1.0 - options.clip_ratio_low), R::constant(1.0 + options.clip_ratio_high));
    if advantage.value() > 0.0 {
        high.select_less(ratio, one, zero)
    } else if advantage.value() < 0.0 {
        ratio.select_less(low, one, zero)
    } else {
        zero
    }
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
/// With `kl_ratio_weight` each token's KL estimate is multiplied by its ratio before the aggregation.
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
#[expect(clippy::too_many_arguments, reason = "one for every input of the formula")]
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
    let aggregated = |tokens: &ArrayRef2<R>| aggregate::loss(tokens, &effective_mask, &options.aggregate);
    let policy_loss = aggregated(&clip(logp, logp_old, advantages, &effective_mask, &options.clip)?)?;
    let (mut kl_loss, mut entropy_loss) = (R::constant(0.0), R::constant(0.0));
    if options.kl_loss_coef != 0.0 {
        let missing = || Error::input("logp_ref", "is needed when kl_loss_coef is not 0");
        let mut kl = kl::estimate(logp, logp_ref.ok_or_else(missing)?, &options.kl())?;
        if options.kl_ratio_weight {
            kl = kl * logprob::ratio(logp, logp_old, &options.clip.ratio())?;
        }
        kl_loss = aggregated(&kl)?;
    }
    if options.entropy_coeff != 0.0 {
        let missing = || Error::input("entropy", "is needed when entropy_coeff is not 0");
        let entropy = entropy.ok_or_else(missing)?;
        let axes = Axes::default().bind("logp", &["B", "T"], logp.shape())?;
        axes.bind("entropy", &["B", "T"], entropy.shape())?;
        entropy_loss = aggregated(entropy)?;
    }
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

/// What [`dispatch`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct DispatchOutput<R> {
    /// The loss of every token, `[B, T]`.
    pub loss: Array2<R>,
    /// The share of tokens whose gain is clipped; 0 for the losses that do not clip.
    pub clip_fraction: R,
}

/// The policy-gradient loss of every token by name.
///
/// ```text
/// no_baseline                loss_it = -r_i logp_it
/// reinforce_with_baseline    loss_it = -A_it logp_it
/// grpo_clip                  loss_it = -min(ratio_it A_it, clip(ratio_it, 1 - cliprange, 1 + cliprange) A_it)
/// ```
///
/// Clauses `objective.dispatch` and below. CS336 `compute_policy_gradient_loss`.
///
/// * `logp`: `[B, T]`, nats; gradient flows
/// * `logp_old`: `[B, T]`, read for `grpo_clip` only; a constant
/// * `raw_rewards`: `[B]`, read for `no_baseline` only; constants
/// * `advantages`: `[B, T]`, read for the other two; constants
///
/// # Errors
/// `input` for one that is needed and absent, `shape` if the shapes do not fit, `option` for a range outside [0, 1].
///
/// # Example
/// ```
/// use grpo_oracle::{options::Dispatch, reference::objective};
/// use ndarray::array;
/// let (logp, rewards) = (array![[-1.0, -2.0]], array![0.5]);
/// let output = objective::dispatch(&logp, None, Some(&rewards), None, &Dispatch::no_baseline())?;
/// assert_eq!(output.loss, array![[0.5, 1.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn dispatch<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: Option<&ArrayRef2<R>>,
    raw_rewards: Option<&ArrayRef1<R>>,
    advantages: Option<&ArrayRef2<R>>,
    options: &Dispatch,
) -> Result<DispatchOutput<R>> {
    options.check()?;
    let absent = |name: &str| Error::input(name, "is needed for this loss_type");
    let mut clip_fraction = R::constant(0.0);
    let loss = match options.loss_type {
        LossType::NoBaseline => {
            let rewards = raw_rewards.ok_or_else(|| absent("raw_rewards"))?;
            Axes::default().bind("logp", &["B", "T"], logp.shape())?.bind(
                "raw_rewards",
                &["B"],
                rewards.shape(),
            )?;
            policy_gradient(logp, &for_every_token(rewards, logp.ncols()))?
        }
        LossType::ReinforceWithBaseline => {
            policy_gradient(logp, advantages.ok_or_else(|| absent("advantages"))?)?
        }
        LossType::GrpoClip => {
            let logp_old = logp_old.ok_or_else(|| absent("logp_old"))?;
            let advantages = advantages.ok_or_else(|| absent("advantages"))?;
            let every = Array2::from_elem(logp.raw_dim(), true);
            let loss = clip(logp, logp_old, advantages, &every, &options.clip())?;
            clip_fraction =
                metrics::policy(logp, logp_old, advantages, &every, &options.clip())?.clip_fraction;
            loss
        }
    };
    Ok(DispatchOutput { loss, clip_fraction })
}

/// What [`gspo`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct GspoOutput<R> {
    /// The loss of every token, `[B, T]`.
    pub loss: Array2<R>,
    /// The ratio of every sequence, `[B]`, unclipped; it observes, and its gradient is nobody's.
    pub ratio: Array1<R>,
    /// The share of kept tokens whose gain is clipped; 0 when there are none.
    pub clip_fraction: R,
}

/// The clipped loss of every token with the ratio of its sequence: GSPO.
///
/// ```text
/// s_i     = exp(mean_t (logp_it - logp_old_it))
/// loss_it = -min(s_i A_it, clip(s_i, 1 - low, 1 + high) A_it)
/// ```
///
/// Clauses `objective.gspo` and below, `mask.select`. GSPO (arXiv 2507.18071); verl `compute_policy_loss_gspo`; TRL
/// `importance_sampling_level="sequence"`.
///
/// * `logp`: `[B, T]`, nats; gradient flows as `importance_sampling_level` says, at a clip edge too
/// * `logp_old`, `advantages`: `[B, T]`; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets loss 0 and gradient 0; a sequence without a kept token has the ratio 1.
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Gspo, reference::objective};
/// use ndarray::array;
/// let (new, old) = (array![[-1.0, -2.0, 0.0]], array![[-2.0, -2.0, 0.0]]);
/// let (advantages, kept) = (array![[-1.0, -1.0, -1.0]], array![[true, true, false]]);
/// let output = objective::gspo(&new, &old, &advantages, &kept, &Gspo::paper())?;
/// assert_eq!(output.loss, array![[f64::exp(0.5), f64::exp(0.5), 0.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn gspo<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Gspo,
) -> Result<GspoOutput<R>> {
    options.check()?;
    bind(logp, logp_old, advantages, response_mask)?;
    let level = match options.importance_sampling_level {
        ImportanceLevel::Sequence | ImportanceLevel::SequenceToken => SequenceLevel::Mean,
        ImportanceLevel::SequenceSum => SequenceLevel::Sum,
    };
    let at_most = |x: R| options.log_ratio_max.map_or(x, |max| x.min(R::constant(max)));
    let mut loss = Array2::from_elem(logp.raw_dim(), R::constant(0.0));
    let mut ratio = Array1::from_elem(logp.nrows(), R::constant(1.0));
    let mut clipped_tokens = Vec::new();
    for (row, keep) in response_mask.outer_iter().enumerate() {
        let of_sequence = sequence_log_ratio(&logp.row(row), &logp_old.row(row), &keep, level);
        ratio[row] = at_most(of_sequence).exp().detach();
        for (t, _) in keep.iter().enumerate().filter(|&(_, &keep)| keep) {
            let log_ratio = match options.importance_sampling_level {
                ImportanceLevel::SequenceToken => of_sequence.with_gradient_of(logp[[row, t]]),
                ImportanceLevel::Sequence | ImportanceLevel::SequenceSum => of_sequence,
            };
            let advantage = advantages[[row, t]].detach();
            loss[[row, t]] = clipped(at_most(log_ratio).exp(), advantage, &options.clip());
            clipped_tokens.push(gain_is_clipped(ratio[row], advantage, &options.clip()));
        }
    }
    Ok(GspoOutput { loss, ratio, clip_fraction: mean_of(clipped_tokens, EmptyMean::Zero) })
}

/// The loss of every token with a bounded ratio as its constant weight: CISPO.
///
/// ```text
/// weight_t = stop(clip(ratio_t, 1 - low, 1 + high))
/// loss_t   = -weight_t A_t logp_t
/// ```
///
/// Clauses `objective.cispo` and below, `logprob.ratio.clamp`, `mask.select`. MiniMax-M1 (arXiv 2506.13585) Eq. 4 and 5.
///
/// * `logp`: `[B, T]`, nats; gradient flows through the last factor only, whether the weight is clipped or not
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
/// use grpo_oracle::{options::Cispo, reference::objective};
/// use ndarray::array;
/// let (new, old) = (array![[-1.0, -4.0]], array![[-2.0, -4.0]]); // ratios e and 1
/// let kept = array![[true, true]];
/// let loss = objective::cispo(&new, &old, &array![[1.0, 1.0]], &kept, &Cispo::minimax())?;
/// assert_eq!(loss, array![[1.2, 4.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn cispo<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Cispo,
) -> Result<Array2<R>> {
    options.check()?;
    bind(logp, logp_old, advantages, response_mask)?;
    let tokens = Zip::from(logp).and(logp_old).and(advantages).and(response_mask);
    Ok(tokens.map_collect(|&new, &old, &advantage, &keep| {
        if !keep {
            return R::constant(0.0);
        }
        let ratio = log_ratio(new, old, &options.ratio()).exp();
        let from_below = options.clip_ratio_low.map_or(ratio, |low| ratio.max(R::constant(1.0 - low)));
        let weight = from_below.min(R::constant(options.upper_bound())).detach();
        -(weight * advantage.detach() * new)
    }))
}

/// The loss of every sequence with the geometric mean of its tokens' clipped ratios: GMPO.
///
/// ```text
/// d'_t   = min(logp_t - logp_old_t, high)  where A > 0        max(logp_t - logp_old_t, -low)  where A < 0
/// loss_i = -A_i exp(mean_t d'_it)
/// ```
///
/// Clauses `objective.gmpo` and below, `mask.select`. GMPO (arXiv 2507.20673); verl `compute_policy_loss_geo_mean`.
///
/// * `logp`: `[B, T]`, nats; gradient flows, at a clip edge too, and is 0 at a clipped token
/// * `logp_old`: `[B, T]`, `advantages`: `[B]`; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A sequence without a kept token has loss 0.
///
/// # Errors
/// `shape` if the shapes do not fit, `option` if a bound is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Gmpo, reference::objective};
/// use ndarray::array;
/// let (new, old) = (array![[-1.0, -2.0], [-1.0, -2.0]], array![[-2.0, -2.0], [-2.0, -2.0]]);
/// let kept = array![[true, true], [true, true]];
/// let loss = objective::gmpo(&new, &old, &array![1.0, -1.0], &kept, &Gmpo::paper())?;
/// assert_eq!(loss, array![-f64::exp(0.2), f64::exp(0.5)]); // a gain is clipped, a loss is not
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn gmpo<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef1<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Gmpo,
) -> Result<Array1<R>> {
    options.check()?;
    Axes::default()
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("advantages", &["B"], advantages.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let mut loss = Array1::from_elem(logp.nrows(), R::constant(0.0));
    for (row, keep) in
        response_mask.outer_iter().enumerate().filter(|(_, keep)| keep.iter().any(|&keep| keep))
    {
        let advantage = advantages[row].detach();
        let kept = keep.iter().enumerate().filter(|&(_, &keep)| keep);
        let log_ratios =
            kept.map(|(t, _)| one_sided(logp[[row, t]] - logp_old[[row, t]].detach(), advantage, options));
        loss[row] = -(advantage * mean_of(log_ratios, EmptyMean::Zero).exp());
    }
    Ok(loss)
}

/// At most high where A > 0, at least -low where A < 0, and 0 where A = 0.
fn one_sided<R: Real>(log_ratio: R, advantage: R, options: &Gmpo) -> R {
    if advantage.value() > 0.0 {
        log_ratio.min(R::constant(options.clip_ratio_high))
    } else if advantage.value() < 0.0 {
        log_ratio.max(R::constant(-options.clip_ratio_low))
    } else {
        R::constant(0.0)
    }
}

/// The loss of every token with a soft gate in the place of the clip: SAPO.
///
/// ```text
/// loss_t = -sigmoid(tau (ratio_t - 1)) (4 / tau) A_t        tau = tau_pos where A_t > 0, else tau_neg
/// ```
///
/// Clauses `objective.sapo` and below, `logprob.ratio.clamp`, `mask.select`. SAPO (arXiv 2511.20347).
///
/// * `logp`: `[B, T]`, nats; gradient flows, and fades away from ratio 1
/// * `logp_old`, `advantages`: `[B, T]`; constants, no gradient flows
/// * `response_mask`: `[B, T]`, true keeps
///
/// A masked slot gets loss 0 and gradient 0, whatever stands there.
///
/// # Errors
/// `shape` if the shapes differ, `option` if a temperature is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Sapo, reference::objective};
/// use ndarray::array;
/// let logp = array![[-1.0, f64::NAN]];
/// let (advantages, kept) = (array![[3.0, 1.0]], array![[true, false]]);
/// let loss = objective::sapo(&logp, &logp, &advantages, &kept, &Sapo::paper())?;
/// assert_eq!(loss, array![[-6.0, 0.0]]); // at ratio 1 the gate is 2 / tau
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn sapo<R: Real>(
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    advantages: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &Sapo,
) -> Result<Array2<R>> {
    options.check()?;
    bind(logp, logp_old, advantages, response_mask)?;
    let tokens = Zip::from(logp).and(logp_old).and(advantages).and(response_mask);
    Ok(tokens.map_collect(|&new, &old, &advantage, &keep| {
        if !keep {
            return R::constant(0.0);
        }
        let ratio = log_ratio(new, old, &options.ratio()).exp();
        let tau = R::constant(if advantage.value() > 0.0 { options.tau_pos } else { options.tau_neg });
        let gate = sigmoid(tau * (ratio - R::constant(1.0))) * (R::constant(4.0) / tau);
        -(gate * advantage.detach())
    }))
}

/// 1 / (1 + exp(-x)), in the form whose exponential cannot overflow, with the derivative s (1 - s): implementations take
/// it so, and the bound has to allow for what 1 - s cancels.
fn sigmoid<R: Real>(x: R) -> R {
    let one = R::constant(1.0);
    let sigmoid = if x.value() >= 0.0 {
        one / (one + (-x).exp())
    } else {
        let exp = x.exp();
        exp / (one + exp)
    };
    let constant = sigmoid.detach();
    sigmoid.with_gradient_of(constant * (one - constant) * x)
}

/// One number a sequence, given to each of its tokens.
fn for_every_token<R: Real>(of_sequences: &ArrayRef1<R>, width: usize) -> Array2<R> {
    Array2::from_shape_fn((of_sequences.len(), width), |(row, _)| of_sequences[row])
}
