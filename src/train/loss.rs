//! The loss of some responses: one of the objectives, the KL to the reference policy, the entropy bonus.

use tch::{Kind, Tensor};

use crate::Result;
use crate::config::{Config, LossMode};
use crate::options::{
    ActorLoss, Aggregate, Cispo, Clip, Gmpo, Gspo, KlEstimate, KlPenalty, LossAggMode, LossOptions,
    MaskedMean, Objective, Sapo,
};
use crate::torch::{aggregate, mask, objective};

/// What a loss is computed from, each `[b, T]`.
#[derive(Debug)]
pub struct LossInputs {
    /// The tokens' log-probabilities; the gradient's way.
    pub logp: Tensor,
    /// What they were at sampling time.
    pub logp_old: Tensor,
    /// Under the reference policy; `None` without a KL term.
    pub logp_ref: Option<Tensor>,
    /// The advantages.
    pub advantages: Tensor,
    /// Which tokens count, bool.
    pub mask: Tensor,
    /// The entropy at each token; `None` without an entropy term.
    pub entropy: Option<Tensor>,
}

/// A loss and its terms, each without axes.
#[derive(Debug)]
pub struct Loss {
    /// What is minimised.
    pub loss: Tensor,
    /// The objective, aggregated.
    pub policy_loss: Tensor,
    /// The KL, aggregated and not yet weighted; 0 when there is none.
    pub kl_loss: Tensor,
}

/// The loss of these tokens.
///
/// # Errors
/// As the formulas of [`objective`].
pub fn loss(inputs: &LossInputs, options: &LossOptions) -> Result<Loss> {
    let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = inputs;
    let actor_loss = |advantages: &Tensor| {
        let (logp_ref, entropy) = (logp_ref.as_ref(), entropy.as_ref());
        objective::actor_loss(logp, logp_old, logp_ref, advantages, mask, None, entropy, &options.terms)
    };
    let of_tokens = |losses: &Tensor| aggregate::loss(losses, mask, &options.terms.aggregate);
    let policy_loss = match &options.objective {
        Objective::Vanilla => {
            let out = actor_loss(advantages)?;
            return Ok(Loss { loss: out.loss, policy_loss: out.policy_loss, kl_loss: out.kl_loss });
        }
        Objective::Gpg => {
            // This formula has no mask, and what stands in a masked slot may be NaN: 0 times that is no gradient. A
            // mask that does not fit is rejected by the aggregation.
            let fits = mask.size() == logp.size() && mask.kind() == Kind::Bool;
            let kept = |tensor: &Tensor| match tensor.size() == mask.size() && fits {
                true => tensor.masked_fill(&mask.logical_not(), 0.0),
                false => tensor.shallow_clone(),
            };
            of_tokens(&objective::policy_gradient(&kept(logp), &kept(advantages))?)?
        }
        Objective::Gspo(gspo) => of_tokens(&objective::gspo(logp, logp_old, advantages, mask, gspo)?.loss)?,
        Objective::Cispo(cispo) => of_tokens(&objective::cispo(logp, logp_old, advantages, mask, cispo)?)?,
        Objective::GeoMean(gmpo) => {
            let of_rows = mask::mean(advantages, mask, &MaskedMean::along(1))?;
            let losses = objective::gmpo(logp, logp_old, &of_rows, mask, gmpo)?;
            let rows = mask.any_dim(1, true);
            aggregate::loss(&losses.unsqueeze(1), &rows, &over_rows(&options.terms.aggregate))?
        }
        Objective::Sapo(sapo) => of_tokens(&objective::sapo(logp, logp_old, advantages, mask, sapo)?)?,
    };
    let own = &policy_loss / options.terms.gradient_accumulation_steps;
    if options.terms.kl_loss_coef == 0.0 && options.terms.entropy_coeff == 0.0 {
        let kl_loss = policy_loss.zeros_like().detach();
        return Ok(Loss { loss: own, policy_loss, kl_loss });
    }
    // Without advantages the whole actor loss is its other terms, the same for every objective.
    let others = actor_loss(&advantages.zeros_like())?;
    Ok(Loss { loss: own + others.loss, policy_loss, kl_loss: others.kl_loss })
}

/// The mean over sequences of one loss a sequence.
pub fn over_rows(aggregate: &Aggregate) -> Aggregate {
    Aggregate { loss_agg_mode: LossAggMode::SeqMeanTokenSum, ..*aggregate }
}

/// The loss's options with the counts of a whole mini-batch, so that the losses of its parts sum to its own.
pub fn with_counts(options: &LossOptions, mask: &Tensor, response_length: i64) -> LossOptions {
    let aggregate = &options.terms.aggregate;
    let count = |mask: &Tensor| Some(mask.sum(Kind::Int64).int64_value(&[]).max(1) as f64);
    let aggregate = Aggregate {
        loss_scale_factor: aggregate.loss_scale_factor.or(Some(response_length as f64)),
        batch_num_tokens: count(mask),
        global_batch_size: count(&mask.any_dim(1, false)),
        ..*aggregate
    };
    LossOptions { terms: ActorLoss { aggregate, ..options.terms }, ..*options }
}

/// The configuration's loss.
///
/// # Errors
/// `option` if one of its options is outside its domain.
pub fn options_of(config: &Config) -> Result<LossOptions> {
    let actor = &config.actor_rollout_ref.actor;
    let low = actor.clip_ratio_low.unwrap_or(actor.clip_ratio);
    let high = actor.clip_ratio_high.unwrap_or(actor.clip_ratio);
    let clip =
        Clip { clip_ratio_low: low, clip_ratio_high: high, clip_ratio_c: actor.clip_ratio_c, ..Clip::verl() };
    // verl keeps k3 within bounds, and no other estimator.
    let kl = match actor.kl_loss_type {
        KlPenalty::K3 | KlPenalty::K3Plus => KlEstimate::verl(),
        _ => KlEstimate { input_clamp: None, output_clamp: None, ..KlEstimate::verl() },
    };
    let constant = actor.loss_agg_mode == LossAggMode::SeqMeanTokenSumNorm;
    let factor = actor.loss_scale_factor.unwrap_or(config.data.max_response_length as f64);
    let terms = ActorLoss {
        clip,
        kl_loss_type: actor.kl_loss_type,
        kl_input_clamp: kl.input_clamp,
        kl_output_clamp: kl.output_clamp,
        kl_loss_coef: if actor.use_kl_loss { actor.kl_loss_coef } else { 0.0 },
        entropy_coeff: actor.entropy_coeff,
        aggregate: Aggregate {
            loss_scale_factor: constant.then_some(factor),
            ..Aggregate::local(actor.loss_agg_mode)
        },
        ..ActorLoss::grpo()
    };
    let objective = match actor.policy_loss.loss_mode {
        LossMode::Vanilla => Objective::Vanilla,
        LossMode::Gpg => Objective::Gpg,
        LossMode::Gspo => {
            Objective::Gspo(Gspo { clip_ratio_low: low, clip_ratio_high: high, ..Gspo::verl() })
        }
        LossMode::Cispo => {
            Objective::Cispo(Cispo { clip_ratio_low: Some(low), clip_ratio_high: high, ..Cispo::verl() })
        }
        LossMode::GeoMean => Objective::GeoMean(Gmpo { clip_ratio_low: low, clip_ratio_high: high }),
        LossMode::Sapo => {
            Objective::Sapo(Sapo { tau_pos: actor.tau_pos, tau_neg: actor.tau_neg, ..Sapo::verl() })
        }
    };
    let options = LossOptions { objective, terms };
    options.check()?;
    Ok(options)
}
