//! The algorithm of a run: from the rewards of a rollout to an advantage for every token.

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::experience::Seen;
use super::rollout::Rollout;
use crate::config::{self, AdvEstimator, Config, KlCtrl};
use crate::options::{
    AdvantageMetrics, Estimator, Filter, GroupPpo, GroupStd, KlController, KlInReward, MaskedMean, MaskedSum,
    Overlong, ProcessedExcludes,
};
use crate::torch::{advantage, filter, gae, group_ppo, kl, mask, metrics, reward};
use crate::{Error, Result};

/// How rewards become advantages, with what is carried from step to step: the coefficient of the KL in the reward and
/// GROUP-PPO's threshold.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Algorithm {
    estimator: Estimator,
    kl: Option<KlInReward>,
    /// The coefficient of the next rollout.
    next_kl_coef: Option<f64>,
    controller: KlCtrl,
    overlong: Option<Overlong>,
    kl_in_loss: bool,
    sparse_below: f64,
    was_sparse: Option<bool>,
    spoilt: Option<Spoilt>,
    #[serde(skip)]
    warnings: Vec<String>,
}

/// What an algorithm carries from step to step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Carried {
    /// The coefficient of the KL in the reward.
    pub kl_coef: Option<f64>,
    /// GROUP-PPO's threshold.
    pub group_threshold: Option<f64>,
    /// Whether GROUP-PPO's last update was sparse.
    pub was_sparse: Option<bool>,
}

/// A bug on purpose: what a test must be able to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Spoilt {
    /// The advantages have the wrong sign.
    FlippedAdvantages,
    /// The loss's mask lies one token too far to the right, as it does where logits are shifted and the mask is not.
    ShiftedMask,
}

/// What an update is made with.
#[derive(Debug)]
pub struct Advantages {
    /// `[B, T]`; 0 in masked slots.
    pub advantages: Tensor,
    /// What the critic learns, `[B, T]`.
    pub returns: Option<Tensor>,
    /// The tokens that are trained on, `[B, T]` bool: in the response, of a response that was kept, and where only
    /// the endpoints of groups are trained on, one of them.
    pub loss_mask: Tensor,
    /// What there is to report.
    pub figures: Figures,
    /// What the user should be told in words.
    pub remarks: Vec<String>,
}

/// The figures of a step's advantages; those of other algorithms are `None`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Over the tokens that are trained on.
    pub advantage_mean: f64,
    /// Over the tokens that are trained on.
    pub advantage_std: f64,
    /// The same before samples were filtered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub advantage_std_original: Option<f64>,
    /// The share of the responses that the filter kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept: Option<f64>,
    /// The KL to the reference policy that the rewards were charged for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_in_reward: Option<f64>,
    /// The coefficient that they were charged with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_coef: Option<f64>,
    /// The mean penalty for length; not above 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub overlong_penalty: Option<f64>,
    /// GROUP-PPO: the threshold of this step.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_threshold: Option<f64>,
    /// GROUP-PPO: 1 - endpoints / tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compression_ratio: Option<f64>,
    /// GROUP-PPO: tokens / endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub efficiency_gain: Option<f64>,
    /// GROUP-PPO: max(0, compression - 0.1) / 0.9.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub algorithm_effectiveness: Option<f64>,
    /// GROUP-PPO: the number of endpoints.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_endpoints: Option<f64>,
    /// GROUP-PPO: the share of the response tokens that have an advantage.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens_with_advantage: Option<f64>,
    /// GROUP-PPO: 1 if only the endpoints were trained on, 0 if all tokens were.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparse: Option<f64>,
}

impl Algorithm {
    /// The configuration's algorithm, its contradictions found.
    ///
    /// # Errors
    /// `option`, by the key's full name, for one that is outside its domain or does not go with another.
    pub fn resolve(config: &Config) -> Result<Self> {
        let (algorithm, actor) = (&config.algorithm, &config.actor_rollout_ref.actor);
        let mut warnings = Vec::new();
        let filters = algorithm.keep_pos_ratio != 1.0 || algorithm.keep_neg_ratio != 1.0;
        let is_grpo = algorithm.adv_estimator == AdvEstimator::Grpo;
        for (key, is_set) in
            [("keep_pos_ratio / keep_neg_ratio", filters), ("compute_new_adv", algorithm.compute_new_adv)]
        {
            if is_set && !is_grpo {
                return Err(contradiction(key, "only goes with algorithm.adv_estimator=grpo"));
            }
            if is_set && !algorithm.norm_adv_by_std_in_grpo {
                return Err(contradiction(key, "does not go with algorithm.norm_adv_by_std_in_grpo=false"));
            }
        }
        if algorithm.compute_new_adv && !filters {
            warnings.push(
                "algorithm.compute_new_adv has no effect without a filter; set algorithm.keep_pos_ratio or \
                 keep_neg_ratio below 1"
                    .to_owned(),
            );
        }
        if algorithm.use_kl_in_reward && actor.use_kl_loss {
            warnings.push(
                "the KL to the reference policy counts twice: algorithm.use_kl_in_reward and \
                 actor_rollout_ref.actor.use_kl_loss are both on"
                    .to_owned(),
            );
        }
        for (key, is_on, coefficient) in [
            ("actor_rollout_ref.actor.kl_loss_coef", actor.use_kl_loss, actor.kl_loss_coef),
            ("algorithm.kl_ctrl.kl_coef", algorithm.use_kl_in_reward, algorithm.kl_ctrl.kl_coef),
        ] {
            if is_on && coefficient == 0.0 {
                warnings.push(format!("{key} is 0: the KL is measured and changes nothing"));
            }
        }
        let n = config.actor_rollout_ref.rollout.n;
        let by_group = !matches!(
            algorithm.adv_estimator,
            AdvEstimator::ReinforcePlusPlus
                | AdvEstimator::Remax
                | AdvEstimator::Gae
                | AdvEstimator::GroupPpo
        );
        if by_group && n < 2 {
            return Err(Error::option(
                "actor_rollout_ref.rollout.n",
                format!("{n} response(s) to a problem cannot be compared with each other; use 2 or more"),
            ));
        }
        let overlong = &config.reward.overlong_buffer;
        let overlong = overlong.enable.then(|| Overlong {
            max_response_length: config.data.max_response_length as f64,
            buffer: overlong.len as f64,
            penalty_factor: overlong.penalty_factor,
            ..Overlong::verl()
        });
        let resolved = Self {
            estimator: config::estimator(config),
            kl: config::kl_in_reward(config),
            next_kl_coef: None,
            controller: algorithm.kl_ctrl.clone(),
            overlong,
            kl_in_loss: actor.use_kl_loss,
            sparse_below: algorithm.group_params.sparse_below,
            was_sparse: None,
            spoilt: None,
            warnings,
        };
        resolved.check()?;
        Ok(resolved)
    }

    fn check(&self) -> Result<()> {
        match &self.estimator {
            Estimator::Filtered(options) => options.check()?,
            Estimator::ReinforcePlusPlus(options) => options.check()?,
            Estimator::Gae(options) => options.check()?,
            Estimator::GroupPpo(options) => options.check()?,
            _ => {}
        }
        if let Some(kl) = &self.kl {
            kl.check()?;
            self.controller(1).check()?;
        }
        self.overlong.as_ref().map_or(Ok(()), Overlong::check)
    }

    /// The same with a bug on purpose.
    pub fn spoilt(self, how: Spoilt) -> Self {
        Self { spoilt: Some(how), ..self }
    }

    /// Whether advantages are divided by the standard deviation of a group.
    pub fn is_normalised(&self) -> bool {
        match &self.estimator {
            Estimator::Grpo(options) => options.std != GroupStd::None,
            Estimator::Filtered(_) => true,
            _ => false,
        }
    }

    /// What goes on from step to step.
    pub fn carried(&self) -> Carried {
        let group_threshold = match &self.estimator {
            Estimator::GroupPpo(options) => Some(options.group_variance_threshold),
            _ => None,
        };
        Carried { kl_coef: self.next_kl_coef, group_threshold, was_sparse: self.was_sparse }
    }

    /// Goes on from there.
    pub fn carry(&mut self, carried: &Carried) {
        (self.next_kl_coef, self.was_sparse) = (carried.kl_coef, carried.was_sparse);
        if let (Estimator::GroupPpo(options), Some(threshold)) =
            (&mut self.estimator, carried.group_threshold)
        {
            options.group_variance_threshold = threshold;
        }
    }

    /// What is legal and yet hardly meant.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Whether advantages need a critic's values.
    pub fn needs_critic(&self) -> bool {
        matches!(self.estimator, Estimator::Gae(_) | Estimator::GroupPpo(_))
    }

    /// Whether a reference policy is read, here or in the loss.
    pub fn needs_reference(&self) -> bool {
        self.kl.is_some() || self.kl_in_loss
    }

    /// Whether advantages need the log-probabilities of the responses.
    pub fn needs_logp_old(&self) -> bool {
        self.kl.is_some() || matches!(self.estimator, Estimator::GroupPpo(_))
    }

    /// Whether advantages need the greedy response to each problem.
    pub fn needs_baselines(&self) -> bool {
        self.estimator == Estimator::Remax
    }

    /// Whether advantages change when the policy has moved, so that each pass over a rollout wants its own.
    pub fn follows_the_policy(&self) -> bool {
        matches!(self.estimator, Estimator::GroupPpo(_))
    }

    /// The advantages of a rollout.
    ///
    /// # Errors
    /// As the formulas; `input` if something is not there that the estimator needs.
    pub fn advantages(&mut self, rollout: &Rollout, seen: &Seen) -> Result<Advantages> {
        let response_mask = &rollout.response_mask;
        let mut figures = Figures::default();
        let scores = self.penalised(seen, response_mask, &mut figures)?;
        let rewards =
            self.charged(&at_last_token(&scores, response_mask), seen, response_mask, &mut figures)?;
        let mut advantages = self.estimated(&rewards, seen, rollout, figures)?;
        match self.spoilt {
            None => {}
            Some(Spoilt::FlippedAdvantages) => advantages.advantages = -advantages.advantages,
            Some(Spoilt::ShiftedMask) => advantages.loss_mask = shifted(&advantages.loss_mask),
        }
        let statistics = metrics::advantages(
            &advantages.advantages,
            &advantages.advantages,
            &advantages.loss_mask,
            None,
            &AdvantageMetrics { processed_excludes: ProcessedExcludes::Filtered },
        )?;
        advantages.figures.advantage_mean = number(&statistics.processed.mean);
        advantages.figures.advantage_std = number(&statistics.processed.std);
        Ok(advantages)
    }

    /// The rewards less the penalty for length.
    fn penalised(&self, seen: &Seen, response_mask: &Tensor, figures: &mut Figures) -> Result<Tensor> {
        let Some(overlong) = &self.overlong else { return Ok(seen.rewards.shallow_clone()) };
        let lengths = response_mask.sum_dim_intlist(1, false, seen.rewards.kind());
        let penalty = reward::overlong(&lengths, overlong)?;
        figures.overlong_penalty = Some(number(&penalty.mean(Kind::Double)));
        Ok(&seen.rewards + penalty)
    }

    /// The rewards of tokens less their KL to the reference policy; the coefficient moves on.
    fn charged(
        &mut self,
        rewards: &Tensor,
        seen: &Seen,
        response_mask: &Tensor,
        figures: &mut Figures,
    ) -> Result<Tensor> {
        let Some(options) = &mut self.kl else { return Ok(rewards.shallow_clone()) };
        // A further pass over the same rollout is charged as the first one was.
        if let (None, Some(next)) = (&seen.logp, self.next_kl_coef) {
            options.kl_coef = next;
        }
        let options = *options;
        let (logp, logp_ref) = (needed(&seen.logp_old, "logp_old")?, needed(&seen.logp_ref, "logp_ref")?);
        let out = kl::in_reward(rewards, logp, logp_ref, response_mask, &options)?;
        figures.kl_coef = Some(options.kl_coef);
        figures.kl_in_reward = Some(number(&out.current_kl));
        let controller = self.controller(rewards.size()[0]);
        let coefficient = Tensor::from(options.kl_coef).to_device(rewards.device());
        let next = kl::controller(&coefficient, Some(&out.current_kl), &controller)?;
        self.next_kl_coef = Some(number(&next));
        Ok(out.rewards)
    }

    fn controller(&self, sequences: i64) -> KlController {
        let KlCtrl { kind, horizon, target_kl, .. } = self.controller;
        KlController { kind, target_kl, horizon, n_steps: sequences as f64 }
    }

    /// The estimator's advantages of the tokens' rewards, `[B, T]`.
    fn estimated(
        &mut self,
        rewards: &Tensor,
        seen: &Seen,
        rollout: &Rollout,
        mut figures: Figures,
    ) -> Result<Advantages> {
        let (group, response_mask) = (&rollout.group, &rollout.response_mask);
        // What a whole response earned, where the estimator looks at responses and not at tokens.
        let outcome = mask::sum(rewards, response_mask, &MaskedSum::along(1))?;
        let every_token = |of_rows: &Tensor| {
            let of_tokens = of_rows.unsqueeze(1).expand_as(response_mask);
            of_tokens.masked_fill(&response_mask.logical_not(), 0.0)
        };
        let mut loss_mask = response_mask.shallow_clone();
        let (mut returns, mut remarks) = (None, Vec::new());
        let advantages = match &self.estimator {
            Estimator::Grpo(options) => every_token(&advantage::group_norm(&outcome, group, options)?),
            Estimator::Filtered(options) => {
                let out = filter::filter(&outcome, group, options)?;
                let kept = out.kept.ne(0.0);
                loss_mask = response_mask.logical_and(&kept.unsqueeze(1));
                figures.kept = Some(number(&out.kept.mean(Kind::Double)));
                let original = every_token(&out.advantages_original);
                let all = AdvantageMetrics { processed_excludes: ProcessedExcludes::Filtered };
                let before = metrics::advantages(&original, &original, response_mask, None, &all)?;
                figures.advantage_std_original = Some(number(&before.original.std));
                remarks.extend(too_few(&kept, rollout.n, options));
                every_token(&out.advantages)
            }
            Estimator::Rloo(options) => every_token(&advantage::rloo(&outcome, group, options)?),
            Estimator::ReinforcePlusPlus(options) => {
                advantage::reinforce_plus_plus(rewards, response_mask, options)?.advantages
            }
            Estimator::ReinforcePlusPlusBaseline(options) => {
                advantage::reinforce_plus_plus_baseline(&outcome, group, response_mask, options)?
            }
            Estimator::Remax => {
                let baselines = needed(&seen.baselines, "baselines")?;
                advantage::remax(rewards, baselines, response_mask)?.advantages
            }
            Estimator::Opo(options) => {
                let lengths = response_mask.sum_dim_intlist(1, false, outcome.kind());
                every_token(&advantage::opo(&outcome, group, &lengths, options)?)
            }
            Estimator::Gpg(options) => every_token(&advantage::gpg(&outcome, group, options)?),
            Estimator::Gae(options) => {
                let out = gae::gae(rewards, needed(&seen.values, "values")?, response_mask, options)?;
                returns = Some(out.returns);
                out.advantages
            }
            Estimator::GroupPpo(options) => {
                let (values, logp_old) =
                    (needed(&seen.values, "values")?, needed(&seen.logp_old, "logp_old")?);
                let logp = seen.logp.as_ref().unwrap_or(logp_old);
                let out = group_ppo::group_ppo(rewards, values, logp, logp_old, response_mask, options)?;
                let share = share_with_advantage(&out.advantages, response_mask);
                let sparse = share < self.sparse_below;
                if sparse {
                    loss_mask = response_mask.logical_and(&out.endpoints.ne(0.0));
                }
                if self.was_sparse != Some(sparse) {
                    remarks.push(path_taken(share, sparse));
                }
                figures.group_threshold = Some(options.group_variance_threshold);
                figures.compression_ratio = Some(number(&out.metrics.compression_ratio));
                figures.efficiency_gain = Some(number(&out.metrics.efficiency_gain));
                figures.algorithm_effectiveness = Some(number(&out.metrics.algorithm_effectiveness));
                figures.total_endpoints = Some(number(&out.metrics.total_endpoints));
                figures.tokens_with_advantage = Some(share);
                figures.sparse = Some(f64::from(u8::from(sparse)));
                let next = GroupPpo { group_variance_threshold: number(&out.threshold), ..*options };
                (self.estimator, self.was_sparse) = (Estimator::GroupPpo(next), Some(sparse));
                returns = Some(out.returns);
                out.advantages
            }
        };
        Ok(Advantages { advantages, returns, loss_mask, figures, remarks })
    }
}

impl Advantages {
    /// The mean advantage of each response, `[B]`.
    ///
    /// # Errors
    /// None that a caller could bring about.
    pub fn of_rows(&self) -> Result<Tensor> {
        mask::mean(&self.advantages, &self.loss_mask, &MaskedMean::along(1))
    }
}

fn contradiction(key: &str, problem: &str) -> Error {
    Error::option(format!("algorithm.{key}"), problem)
}

fn needed<'a>(tensor: &'a Option<Tensor>, name: &str) -> Result<&'a Tensor> {
    tensor.as_ref().ok_or_else(|| Error::input(name, "is needed by this estimator and was not computed"))
}

/// Each response's score at its last token, `[B, T]`; 0 elsewhere.
fn at_last_token(scores: &Tensor, response_mask: &Tensor) -> Tensor {
    let place = response_mask.cumsum(1, Kind::Int64);
    let length = response_mask.sum_dim_intlist(1, true, Kind::Int64);
    let is_last = response_mask.logical_and(&place.eq_tensor(&length));
    scores.unsqueeze(1).expand_as(response_mask).masked_fill(&is_last.logical_not(), 0.0)
}

fn shifted(mask: &Tensor) -> Tensor {
    let moved = mask.roll(1, 1);
    let first = Tensor::arange(mask.size()[1], (Kind::Int64, mask.device())).eq(0);
    moved.masked_fill(&first, 0)
}

fn share_with_advantage(advantages: &Tensor, response_mask: &Tensor) -> f64 {
    let count = |of_tokens: &Tensor| number(&of_tokens.sum(Kind::Int64));
    count(&advantages.ne(0.0).logical_and(response_mask)) / count(response_mask).max(1.0)
}

fn path_taken(share: f64, sparse: bool) -> String {
    let percent = 100.0 * share;
    match sparse {
        true => format!(
            "GROUP-PPO: {percent:.0} % of the tokens have an advantage; only endpoints are trained on"
        ),
        false => {
            format!("GROUP-PPO: {percent:.0} % of the tokens have an advantage; all tokens are trained on")
        }
    }
}

/// A word about groups that are left with too few responses to be normalised anew.
fn too_few(kept: &Tensor, n: usize, options: &Filter) -> Option<String> {
    let left = kept.view([-1, n as i64]).sum_dim_intlist(1i64, false, Kind::Int64);
    let groups = number(&left.lt(2).sum(Kind::Int64));
    (options.compute_new_adv && groups > 0.0).then(|| {
        format!(
            "not enough samples to normalise anew in {groups} group(s), which keep their advantages; raise \
             algorithm.keep_pos_ratio, keep_neg_ratio or actor_rollout_ref.rollout.n"
        )
    })
}

fn number(of_no_axes: &Tensor) -> f64 {
    of_no_axes.double_value(&[])
}
