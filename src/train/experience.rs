//! What the models make of a rollout: all that advantages and updates are computed from, beside the rollout itself.

use tch::Tensor;

use super::algorithm::Algorithm;
use super::critic::Critic;
use super::rollout::{self, Rollout};
use super::step::StepOptions;
use crate::Result;
use crate::config::Config;
use crate::llm::{Llm, Model};

/// What a rollout is worth to the models: all that advantages are computed from.
#[derive(Debug)]
pub struct Seen {
    /// What each response earned, `[B]`.
    pub rewards: Tensor,
    /// What the greedy response to each row's problem earned, `[B]`; ReMax's baseline.
    pub baselines: Option<Tensor>,
    /// Log-probabilities when the responses were sampled, `[B, T]`; `None` where the update's own pass gives them.
    pub logp_old: Option<Tensor>,
    /// The same under the policy as it is now, if it has moved since.
    pub logp: Option<Tensor>,
    /// The same under the reference policy.
    pub logp_ref: Option<Tensor>,
    /// The critic's values, `[B, T]`.
    pub values: Option<Tensor>,
}

impl Seen {
    /// Nothing but the rewards, `[B]`.
    pub fn rewards(rewards: Tensor) -> Self {
        Self { rewards, baselines: None, logp_old: None, logp: None, logp_ref: None, values: None }
    }
}

/// Those who look at a rollout.
pub struct Models<'a> {
    /// The policy that sampled it.
    pub policy: &'a Llm,
    /// The policy that it must not drift away from, if that is measured.
    pub reference: Option<&'a Model>,
    /// The critic, if there is one.
    pub critic: Option<&'a Critic>,
}

impl Models<'_> {
    /// Rewards, log-probabilities and values, as far as the algorithm asks for them.
    ///
    /// # Errors
    /// As [`Rollout::rewards`] and the formulas.
    pub fn look_at(
        &self,
        rollout: &Rollout,
        algorithm: &Algorithm,
        config: &Config,
        updating: &StepOptions,
    ) -> Result<Seen> {
        let (responses, grading) = (rollout.responses(), rollout::grading(config));
        let logp = |model: &Model| updating.logp(model, rollout);
        // The policy moves between optimiser steps. A single one needs no pass of its own: nothing has moved yet.
        let several = config.actor_rollout_ref.actor.ppo_epochs > 1
            || rollout.texts.len() > updating.mini_batch * rollout.n;
        let is_kept = config.algorithm.rollout_correction.bypass_mode;
        let logp_old = || if is_kept { Ok(rollout.logp()) } else { logp(&self.policy.model) };
        let longest = config.data.max_response_length;
        let baselines = || rollout.baselines(self.policy, longest, updating.fused, &grading);
        Ok(Seen {
            rewards: rollout.rewards(&grading)?,
            baselines: algorithm.needs_baselines().then(baselines).transpose()?,
            logp_old: (several || is_kept || algorithm.needs_logp_old()).then(logp_old).transpose()?,
            logp: None,
            logp_ref: self.reference.map(logp).transpose()?,
            values: self.critic.map(|critic| critic.values(&responses)).transpose()?,
        })
    }
}
