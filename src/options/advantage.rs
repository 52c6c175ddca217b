//! Options of `advantage.*`.

use serde::{Deserialize, Serialize};

use super::not_negative;
use crate::Result;

/// Which standard deviation divides a group's centred rewards (clause `advantage.group-norm.std`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupStd {
    /// Divisor n - 1, as `torch.std` computes it.
    Sample,
    /// Divisor n, as `numpy.std` computes it.
    Population,
    /// No division at all: Dr. GRPO, Eq. 31.
    None,
}

/// How `eps` keeps the quotient finite (clause `advantage.group-norm.eps`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpsMode {
    /// `(r - mean) / (std + eps)`.
    Add,
    /// `(r - mean) / std`, and 0 for a group whose std is below eps.
    Threshold,
}

/// What the only member of a group gets (clause `advantage.group-norm.singleton`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Singleton {
    /// Its own reward.
    Raw,
    /// Its reward normalised with mean 0 and standard deviation 1, as verl does: r / (1 + eps).
    UnitStd,
    /// 0.
    Zero,
    /// The error `group-size`.
    Error,
}

/// Options of `advantage.group_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// The divisor.
    pub std: GroupStd,
    /// The small number; not negative.
    pub eps: f64,
    /// What `eps` does.
    pub eps_mode: EpsMode,
    /// What a group of one gets.
    pub singleton: Singleton,
}

impl GroupNorm {
    /// Eq. 28 with the sample standard deviation and eps 1e-6; the specification's default.
    pub fn eq28() -> Self {
        Self { std: GroupStd::Sample, eps: 1e-6, eps_mode: EpsMode::Add, singleton: Singleton::Raw }
    }

    /// Eq. 31 (Dr. GRPO): the mean is subtracted and nothing is divided.
    pub fn dr_grpo() -> Self {
        Self { std: GroupStd::None, ..Self::eq28() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if `eps` is negative or not finite.
    pub fn check(&self) -> Result<()> {
        not_negative("eps", self.eps)
    }
}
