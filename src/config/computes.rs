//! What a configuration computes with: the formulas' own options.

use super::{AdvEstimator, Config, LossMode};
use crate::Result;
use crate::options::{
    ActorLoss, Aggregate, Cispo, Clip, EndpointReturn, Estimator, Filter, Gae, Gmpo, Gpg, GroupNorm,
    GroupPpo, GroupStd, Gspo, KlEstimate, KlInReward, KlPenalty, LossAggMode, LossOptions, Objective, Opo,
    ReinforcePlusPlus, ReinforcePlusPlusBaseline, Rloo, Sapo, TdError, ValueClip,
};

/// How the configuration makes advantages of rewards.
pub fn estimator(config: &Config) -> Estimator {
    let algorithm = &config.algorithm;
    let filters = algorithm.keep_pos_ratio != 1.0 || algorithm.keep_neg_ratio != 1.0;
    match algorithm.adv_estimator {
        AdvEstimator::Grpo if filters => Estimator::Filtered(Filter {
            keep_pos_ratio: algorithm.keep_pos_ratio,
            keep_neg_ratio: algorithm.keep_neg_ratio,
            compute_new_adv: algorithm.compute_new_adv,
            ..Filter::guide()
        }),
        AdvEstimator::Grpo if algorithm.norm_adv_by_std_in_grpo => Estimator::Grpo(GroupNorm::verl()),
        AdvEstimator::Grpo => Estimator::Grpo(GroupNorm { std: GroupStd::None, ..GroupNorm::verl() }),
        AdvEstimator::Rloo => Estimator::Rloo(Rloo::verl()),
        AdvEstimator::ReinforcePlusPlus => Estimator::ReinforcePlusPlus(ReinforcePlusPlus {
            gamma: algorithm.gamma,
            ..ReinforcePlusPlus::verl()
        }),
        AdvEstimator::ReinforcePlusPlusBaseline => {
            Estimator::ReinforcePlusPlusBaseline(ReinforcePlusPlusBaseline::verl())
        }
        AdvEstimator::Remax => Estimator::Remax,
        AdvEstimator::Opo => Estimator::Opo(Opo::verl()),
        AdvEstimator::Gpg => Estimator::Gpg(Gpg::verl()),
        AdvEstimator::Gae => Estimator::Gae(Gae {
            td_error: TdError { gamma: algorithm.gamma, ..TdError::verl() },
            lam: algorithm.lam,
            ..Gae::verl()
        }),
        AdvEstimator::GroupPpo => {
            let params = &algorithm.group_params;
            Estimator::GroupPpo(GroupPpo {
                group_variance_threshold: params.group_variance_threshold,
                group_max_size: params.group_max_size,
                group_epsilon: params.group_epsilon,
                adaptive_threshold: params.adaptive_threshold,
                threshold_lr: params.threshold_lr,
                min_threshold: params.min_threshold,
                max_threshold: params.max_threshold,
                // The reward stands at the last token: the other returns never tell an earlier endpoint of it.
                endpoint_return: EndpointReturn::Gae,
                gamma: algorithm.gamma,
                lam: algorithm.lam,
                ..GroupPpo::algorithm2()
            })
        }
    }
}

/// The KL to the reference policy that rewards are charged for, if they are.
pub fn kl_in_reward(config: &Config) -> Option<KlInReward> {
    let algorithm = &config.algorithm;
    let estimate = KlEstimate { kl_penalty: algorithm.kl_penalty, input_clamp: None, output_clamp: None };
    let kl = KlInReward { kl_coef: algorithm.kl_ctrl.kl_coef, estimate };
    algorithm.use_kl_in_reward.then_some(kl)
}

/// The configuration's loss.
///
/// # Errors
/// `option` if one of its options is outside its domain.
pub fn loss_options(config: &Config) -> Result<LossOptions> {
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

/// The critic's loss.
pub fn value_clip(config: &Config) -> ValueClip {
    let mode = config.critic.loss_agg_mode.unwrap_or(config.actor_rollout_ref.actor.loss_agg_mode);
    ValueClip {
        cliprange_value: config.critic.cliprange_value,
        aggregate: Aggregate::local(mode),
        ..ValueClip::verl()
    }
}
