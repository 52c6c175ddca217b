//! Options of `logprob.*`.

use serde::{Deserialize, Serialize};

use super::positive;
use crate::Result;

/// Options of `logprob.token`.
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
        self.log_ratio_clamp.map_or(Ok(()), |clamp| positive("log_ratio_clamp", clamp))
    }
}
