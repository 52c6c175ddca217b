//! Options of `logprob.*`.

use serde::{Deserialize, Serialize};

use super::{positive, positive_or_null};
use crate::Result;

/// Options of `logprob.token` and `logprob.entropy`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Softmax {
    /// The logits are divided by it; above 0.
    pub temperature: f64,
}

impl Softmax {
    /// Temperature 1.
    pub fn plain() -> Self {
        Self { temperature: 1.0 }
    }

    /// At a sampling temperature.
    pub fn at(temperature: f64) -> Self {
        Self { temperature }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the temperature is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive("temperature", self.temperature)
    }
}

/// Options of `logprob.ratio`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ratio {
    /// The log-ratio is clamped to [-c, c] before the exponential; `None` leaves it alone.
    pub log_ratio_clamp: Option<f64>,
}

impl Ratio {
    /// The plain importance ratio.
    pub fn unclamped() -> Self {
        Self { log_ratio_clamp: None }
    }

    /// verl since 0.4.1: the log-ratio is clamped to [-20, 20].
    pub fn verl() -> Self {
        Self { log_ratio_clamp: Some(20.0) }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the clamp is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive_or_null("log_ratio_clamp", self.log_ratio_clamp)
    }
}

/// How the log-ratios of a sequence's tokens become one (clause `logprob.sequence-ratio.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SequenceLevel {
    /// Their mean: the ratio is the geometric mean of the tokens' ratios.
    Mean,
    /// Their sum: the ratio is that of the whole sequence's probabilities.
    Sum,
}

/// Options of `logprob.sequence_ratio`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SequenceRatio {
    /// How the tokens' log-ratios become one.
    pub level: SequenceLevel,
    /// The sequence's log-ratio is clamped to [-c, c] before the exponential; `None` leaves it alone.
    pub log_ratio_clamp: Option<f64>,
}

impl SequenceRatio {
    /// GSPO: the geometric mean; the specification's default.
    pub fn gspo() -> Self {
        Self { level: SequenceLevel::Mean, log_ratio_clamp: None }
    }

    /// TRL's RLOO and torchtune: the whole sequence's ratio.
    pub fn whole() -> Self {
        Self { level: SequenceLevel::Sum, ..Self::gspo() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the clamp is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive_or_null("log_ratio_clamp", self.log_ratio_clamp)
    }
}
