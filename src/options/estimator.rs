//! Options of a whole advantage: one of the estimators with its own.

use serde::Serialize;

use super::{Filter, Gae, Gpg, GroupNorm, GroupPpo, Opo, ReinforcePlusPlus, ReinforcePlusPlusBaseline, Rloo};

/// An estimator of advantages with its options.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Estimator {
    /// Normalised within the group.
    Grpo(GroupNorm),
    /// The same of those that a filter keeps.
    Filtered(Filter),
    /// Less the mean of the others.
    Rloo(Rloo),
    /// Discounted returns, whitened.
    ReinforcePlusPlus(ReinforcePlusPlus),
    /// Less the group's mean, whitened.
    ReinforcePlusPlusBaseline(ReinforcePlusPlusBaseline),
    /// Less the reward of the greedy response.
    Remax,
    /// Less the length-weighted mean.
    Opo(Opo),
    /// GPG's scaled difference from the mean.
    Gpg(Gpg),
    /// PPO's.
    Gae(Gae),
    /// At the ends of groups of tokens.
    GroupPpo(GroupPpo),
}
