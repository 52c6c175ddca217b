//! Options of `mask.*`.

use serde::{Deserialize, Serialize};

use super::{not_negative, positive};
use crate::Result;

/// What a mean over no kept entries is (clause `mask.mean.empty`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EmptyMean {
    /// Exactly 0, with gradient 0.
    Zero,
    /// Not a number, as the quotient 0/0 gives.
    Nan,
}

/// Options of `mask.mean`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MaskedMean {
    /// The axis that is averaged away; `None` averages over everything.
    pub axis: Option<usize>,
    /// What the mean over no kept entries is.
    pub empty: EmptyMean,
}

impl MaskedMean {
    /// Over everything, 0 when nothing is kept.
    pub fn over_all() -> Self {
        Self { axis: None, empty: EmptyMean::Zero }
    }

    /// Along one axis, 0 where nothing is kept.
    pub fn along(axis: usize) -> Self {
        Self { axis: Some(axis), empty: EmptyMean::Zero }
    }
}

/// Options of `mask.sum`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedSum {
    /// The axis that is summed away; `None` sums over everything.
    pub axis: Option<usize>,
}

impl MaskedSum {
    /// Over everything; the specification's default.
    pub fn over_all() -> Self {
        Self { axis: None }
    }

    /// Along one axis.
    pub fn along(axis: usize) -> Self {
        Self { axis: Some(axis) }
    }
}

/// Options of `mask.normalize`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MaskedNormalize {
    /// The axis that is summed away; `None` sums over everything.
    pub axis: Option<usize>,
    /// The sum is divided by it; above 0.
    pub constant: f64,
}

impl MaskedNormalize {
    /// CS336 `masked_normalize` over everything; the specification's default is the constant 1.
    pub fn cs336(constant: f64) -> Self {
        Self { axis: None, constant }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the constant is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive("constant", self.constant)
    }
}

/// What the sum of squared deviations of n numbers is divided by (clause `mask.variance.ddof`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "u8", try_from = "u8")]
pub enum Ddof {
    /// n, as `numpy.var` does.
    Population,
    /// n - 1, as `torch.var` does.
    Sample,
}

impl From<Ddof> for u8 {
    fn from(ddof: Ddof) -> Self {
        match ddof {
            Ddof::Population => 0,
            Ddof::Sample => 1,
        }
    }
}

impl TryFrom<u8> for Ddof {
    type Error = String;

    fn try_from(ddof: u8) -> Result<Self, String> {
        match ddof {
            0 => Ok(Self::Population),
            1 => Ok(Self::Sample),
            _ => Err(format!("{ddof} is neither 0 nor 1")),
        }
    }
}

/// Options of `mask.variance`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MaskedVariance {
    /// The divisor.
    pub ddof: Ddof,
}

impl MaskedVariance {
    /// verl, TRL's PPO and torchtune: divisor n - 1; the specification's default.
    pub fn verl() -> Self {
        Self { ddof: Ddof::Sample }
    }

    /// OpenRLHF and NeMo-RL's REINFORCE++: divisor n.
    pub fn openrlhf() -> Self {
        Self { ddof: Ddof::Population }
    }
}

/// How `eps` keeps the quotient of whitening finite (clause `mask.whiten.eps`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhitenEps {
    /// The variance plus eps, under the root.
    Add,
    /// The variance or eps, whichever is larger, under the root.
    Clamp,
}

/// Options of `mask.whiten`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Whiten {
    /// The divisor of the variance.
    pub ddof: Ddof,
    /// The small number under the root; not negative.
    pub eps: f64,
    /// What `eps` does.
    pub eps_mode: WhitenEps,
    /// Whether the mean becomes 0; if not, it is added back afterwards.
    pub shift_mean: bool,
}

impl Whiten {
    /// verl 0.9.1: divisor n - 1, 1e-8 added under the root, mean 0; the specification's default.
    pub fn verl() -> Self {
        Self { ddof: Ddof::Sample, eps: 1e-8, eps_mode: WhitenEps::Add, shift_mean: true }
    }

    /// OpenRLHF 0.11: divisor n, a variance of at least 1e-8, mean 0.
    pub fn openrlhf() -> Self {
        Self { ddof: Ddof::Population, eps_mode: WhitenEps::Clamp, ..Self::verl() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if eps is negative or not finite.
    pub fn check(&self) -> Result<()> {
        not_negative("eps", self.eps)
    }
}
