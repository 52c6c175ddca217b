//! Options of `sampling.*`.

use serde::{Deserialize, Serialize};

use super::{finite, not_negative};
use crate::{Error, Result};

/// Options of `sampling.repeat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeat {
    /// How often each prompt is sampled; from 1 to 65,536.
    pub n: usize,
    /// Whether the copies of a prompt stand side by side, or the whole batch is repeated.
    pub interleave: bool,
}

impl Repeat {
    /// verl's `rollout.n`: each prompt n times in a row; the specification's default is n = 4.
    pub fn verl(n: usize) -> Self {
        Self { n, interleave: true }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if n is 0 or above 65,536, which only a mistake can be.
    pub fn check(&self) -> Result<()> {
        at_least_1("n", self.n)?;
        if self.n <= 65_536 {
            return Ok(());
        }
        Err(Error::option("n", format!("{} is above 65536; no prompt is sampled so often", self.n)))
    }
}

/// When a group is worth keeping (clauses `sampling.dynamic.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DynamicRule {
    /// Its rewards are not all equal.
    Differ,
    /// Its mean reward lies strictly between `low` and `high`.
    MeanInRange,
}

/// What becomes of a group of one where rewards must differ (clause `sampling.dynamic.differ`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DynamicSingleton {
    /// It is kept.
    Keep,
    /// It is dropped.
    Drop,
}

/// Options of `sampling.dynamic`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Dynamic {
    /// When a group is kept.
    pub rule: DynamicRule,
    /// The mean must be above this; read by `MeanInRange`.
    pub low: f64,
    /// The mean must be below this; read by `MeanInRange`, above `low`.
    pub high: f64,
    /// What becomes of a group of one; read by `Differ`.
    pub singleton: DynamicSingleton,
}

impl Dynamic {
    /// DAPO as verl's recipe computes it; the specification's default.
    pub fn dapo() -> Self {
        Self { rule: DynamicRule::Differ, low: 0.0, high: 1.0, singleton: DynamicSingleton::Keep }
    }

    /// OpenRLHF: a mean between 0 and 1.
    pub fn openrlhf() -> Self {
        Self { rule: DynamicRule::MeanInRange, ..Self::dapo() }
    }

    /// EasyR1: a mean between 0.01 and 0.99.
    pub fn easyr1() -> Self {
        Self { low: 0.01, high: 0.99, ..Self::openrlhf() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the bounds are not finite or not in order.
    pub fn check(&self) -> Result<()> {
        finite("low", self.low)?;
        finite("high", self.high)?;
        if self.low < self.high {
            return Ok(());
        }
        Err(Error::option("low", format!("{} is not below high, {}", self.low, self.high)))
    }
}

/// Options of `sampling.resample`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Resample {
    /// So many samples are taken in any case; at least 1.
    pub group_size: usize,
    /// No more than so many are taken; at least `group_size`.
    pub max_samples: usize,
    /// Rewards whose sample standard deviation is below this count as equal; 0 asks whether they are equal.
    pub tolerance: f64,
}

impl Resample {
    /// `004_grpo_dapo_fix.md`, which leaves `max_samples` open: 8 here; the specification's default.
    pub fn fix() -> Self {
        Self { group_size: 4, max_samples: 8, tolerance: 1e-6 }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        at_least_1("group_size", self.group_size)?;
        not_negative("tolerance", self.tolerance)?;
        if self.max_samples >= self.group_size {
            return Ok(());
        }
        let problem = format!("{} is below group_size, {}", self.max_samples, self.group_size);
        Err(Error::option("max_samples", problem))
    }
}

/// Options of `sampling.distribution`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Distribution {
    /// The logits are divided by it; 0 takes the most likely token.
    pub temperature: f64,
    /// Only so many most likely tokens stay; at least 1. `None` keeps all.
    pub top_k: Option<usize>,
    /// Only the fewest most likely tokens that reach this probability stay; in (0, 1]. `None` keeps all, as 1 does.
    pub top_p: Option<f64>,
}

impl Distribution {
    /// The softmax itself; the specification's default.
    pub fn plain() -> Self {
        Self { temperature: 1.0, top_k: None, top_p: None }
    }

    /// The most likely token.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, ..Self::plain() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        not_negative("temperature", self.temperature)?;
        self.top_k.map_or(Ok(()), |k| at_least_1("top_k", k))?;
        match self.top_p {
            Some(p) if !(p > 0.0 && p <= 1.0) => {
                Err(Error::option("top_p", format!("{p} is not above 0 and at most 1")))
            }
            _ => Ok(()),
        }
    }
}

fn at_least_1(option: &str, value: usize) -> Result<()> {
    if value >= 1 { Ok(()) } else { Err(Error::option(option, format!("{value} is not at least 1"))) }
}
