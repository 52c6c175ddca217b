//! Options of `advantage.group_ppo`.

use serde::{Deserialize, Serialize};

use super::{Gae, not_negative, positive, share};
use crate::{Error, Result};

/// The scores that close a run (clause `group-ppo.score`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupScore {
    /// Algorithm 2: squares of sums over the open run.
    Paper,
    /// The published code: sums of squares over the open run against a product over the whole response.
    Gp2,
}

/// What stands for the size of a token's policy gradient (clause `group-ppo.size`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupSize {
    /// `logp - logp_old`.
    LogRatio,
    /// `exp(logp - logp_old) - 1`.
    RatioMinusOne,
}

/// Where the tokens are counted from that the scores are held against (clause `group-ppo.counter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupCounter {
    /// From the start of the open run.
    Group,
    /// From the start of the response.
    Sequence,
}

/// A token's advantage, as the scores see it (clause `group-ppo.estimate`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupAdv {
    /// `rewards - values`.
    OneStep,
    /// Generalised advantage estimation.
    Gae,
}

/// The return of an endpoint (clause `group-ppo.return`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndpointReturn {
    /// The rewards of its run.
    Segment,
    /// The rewards of the response up to it.
    Prefix,
    /// That of generalised advantage estimation.
    Gae,
}

/// Options of `advantage.group_ppo`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupPpo {
    /// The weight of the group score in the comparison; above 0.
    pub group_variance_threshold: f64,
    /// The number of tokens at which a run closes whatever its scores are; at least 2, `None` for no limit.
    pub group_max_size: Option<u64>,
    /// Is added to the PPO score; not negative.
    pub group_epsilon: f64,
    /// Whether the threshold moves after the batch.
    pub adaptive_threshold: bool,
    /// How far it moves towards the mean quotient of the scores; in [0, 1].
    pub threshold_lr: f64,
    /// It never moves below this; above 0.
    pub min_threshold: f64,
    /// It never moves above this; not below `min_threshold`.
    pub max_threshold: f64,
    /// The scores.
    pub group_score: GroupScore,
    /// What stands for the size of the gradient.
    pub group_g: GroupSize,
    /// The PPO score has to be above it; not negative.
    pub group_gate: f64,
    /// Where the tokens are counted from.
    pub group_counter: GroupCounter,
    /// The advantage that the scores see.
    pub group_adv: GroupAdv,
    /// The return of an endpoint.
    pub endpoint_return: EndpointReturn,
    /// GAE's discount, where one of the two before is `Gae`; in [0, 1].
    pub gamma: f64,
    /// GAE's decay, as well.
    pub lam: f64,
}

impl GroupPpo {
    /// Algorithm 2 with every parameter of the document at the document's value; the specification's default.
    pub fn algorithm2() -> Self {
        Self {
            group_variance_threshold: 1.0,
            group_max_size: Some(16),
            group_epsilon: 1e-6,
            adaptive_threshold: true,
            threshold_lr: 0.01,
            min_threshold: 0.1,
            max_threshold: 10.0,
            group_score: GroupScore::Paper,
            group_g: GroupSize::LogRatio,
            group_gate: 1e-8,
            group_counter: GroupCounter::Group,
            group_adv: GroupAdv::OneStep,
            endpoint_return: EndpointReturn::Segment,
            gamma: 1.0,
            lam: 1.0,
        }
    }

    /// The published code (`verl_modify`, commit `f2a03f0`), which reads none of the document's parameters.
    pub fn published() -> Self {
        Self {
            group_max_size: None,
            group_epsilon: 0.0,
            adaptive_threshold: false,
            group_score: GroupScore::Gp2,
            group_g: GroupSize::RatioMinusOne,
            group_counter: GroupCounter::Sequence,
            endpoint_return: EndpointReturn::Prefix,
            ..Self::algorithm2()
        }
    }

    /// The options of generalised advantage estimation, where it is asked for.
    pub fn gae(&self) -> Gae {
        Gae::eq16(self.gamma, self.lam)
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if any of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        positive("group_variance_threshold", self.group_variance_threshold)?;
        if let Some(size @ 0..2) = self.group_max_size {
            return Err(Error::option(
                "group_max_size",
                format!("{size} is below 2; use null to set no limit"),
            ));
        }
        not_negative("group_epsilon", self.group_epsilon)?;
        share("threshold_lr", self.threshold_lr)?;
        positive("min_threshold", self.min_threshold)?;
        positive("max_threshold", self.max_threshold)?;
        if self.min_threshold > self.max_threshold {
            let problem = format!("{} is below min_threshold, {}", self.max_threshold, self.min_threshold);
            return Err(Error::option("max_threshold", problem));
        }
        not_negative("group_gate", self.group_gate)?;
        share("gamma", self.gamma)?;
        share("lam", self.lam)
    }
}
