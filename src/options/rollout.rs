//! Options of `rollout.*`.

use serde::{Deserialize, Serialize};

use super::{not_negative, positive, positive_or_null};
use crate::{Error, Result};

/// What an importance weight is the ratio of (clause `rollout.weights.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutIs {
    /// The token's own probabilities.
    Token,
    /// The whole sequence's probabilities, the same for each of its tokens.
    Sequence,
}

/// What becomes of a weight out of bounds (clause `rollout.weights.mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutIsMode {
    /// It is moved to the bound.
    Truncate,
    /// It becomes 0.
    Mask,
}

/// Options of `rollout.weights`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RolloutWeights {
    /// What a weight is the ratio of.
    pub rollout_is: RolloutIs,
    /// What becomes of a weight out of bounds.
    pub rollout_is_mode: RolloutIsMode,
    /// The upper bound; above 0.
    pub rollout_is_threshold: f64,
    /// The lower bound; not negative and not above the upper one. `None` sets none.
    pub rollout_is_threshold_lower: Option<f64>,
    /// The log of the ratio is clamped to [-c, c] before the exponential; above 0. `None` leaves it alone.
    pub safety_bound: Option<f64>,
    /// Whether the weights are divided by their mean.
    pub batch_normalize: bool,
}

impl RolloutWeights {
    /// verl 0.9.1's truncated importance sampling: a token's weight is at most 2; the specification's default.
    pub fn verl() -> Self {
        Self {
            rollout_is: RolloutIs::Token,
            rollout_is_mode: RolloutIsMode::Truncate,
            rollout_is_threshold: 2.0,
            rollout_is_threshold_lower: None,
            safety_bound: Some(20.0),
            batch_normalize: false,
        }
    }

    /// IcePop: a token whose weight is outside [0.5, 5] gets 0.
    pub fn icepop() -> Self {
        Self {
            rollout_is_mode: RolloutIsMode::Mask,
            rollout_is_threshold: 5.0,
            rollout_is_threshold_lower: Some(0.5),
            ..Self::verl()
        }
    }

    /// TRL 1.16's default `sequence_mask`: a sequence whose weight is above 3 gets 0.
    pub fn trl() -> Self {
        Self {
            rollout_is: RolloutIs::Sequence,
            rollout_is_mode: RolloutIsMode::Mask,
            rollout_is_threshold: 3.0,
            safety_bound: None,
            ..Self::verl()
        }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a bound is outside its domain.
    pub fn check(&self) -> Result<()> {
        positive("rollout_is_threshold", self.rollout_is_threshold)?;
        if let Some(lower) = self.rollout_is_threshold_lower {
            not_negative("rollout_is_threshold_lower", lower)?;
            below("rollout_is_threshold_lower", lower, self.rollout_is_threshold)?;
        }
        positive_or_null("safety_bound", self.safety_bound)
    }
}

/// Over what the divergence is taken (clause `rollout.rejection.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionLevel {
    /// Each token by itself.
    Token,
    /// The sum over the sequence's tokens; the sequence stands or falls as one.
    SeqSum,
    /// Their mean.
    SeqMean,
    /// Their maximum.
    SeqMax,
}

/// How a token's divergence is estimated (clause `rollout.rejection.estimator`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RejectionEstimator {
    /// -log ratio, bounded on both sides.
    K1,
    /// (log ratio)^2 / 2, bounded from above.
    K2,
    /// ratio - 1 - log ratio, bounded from above.
    K3,
}

/// Which ratio the bounds of k1 are bounds of (clause `rollout.rejection.orientation`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum K1Orientation {
    /// The sampler's probability over the trainer's, as in verl.
    Inverse,
    /// The trainer's over the sampler's.
    Direct,
}

/// Options of `rollout.rejection`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RolloutRejection {
    /// Over what the divergence is taken.
    pub rollout_rs_level: RejectionLevel,
    /// How it is estimated.
    pub rollout_rs_estimator: RejectionEstimator,
    /// The upper bound: of a ratio for k1, of the divergence otherwise; above 0.
    pub rollout_rs_threshold: f64,
    /// The lower bound of the ratio for k1, above 0; `None` takes 1 over the upper one. Others have none.
    pub rollout_rs_threshold_lower: Option<f64>,
    /// Which ratio the bounds of k1 are bounds of.
    pub rs_k1_orientation: K1Orientation,
    /// A token's log-ratio is clamped to [-c, c] first; above 0. `None` leaves it alone.
    pub safety_bound: Option<f64>,
}

impl RolloutRejection {
    /// verl 0.9.1's `token_k1` at 2: tokens whose ratio is within [1/2, 2] stay; the specification's default.
    pub fn verl() -> Self {
        Self {
            rollout_rs_level: RejectionLevel::Token,
            rollout_rs_estimator: RejectionEstimator::K1,
            rollout_rs_threshold: 2.0,
            rollout_rs_threshold_lower: None,
            rs_k1_orientation: K1Orientation::Inverse,
            safety_bound: Some(20.0),
        }
    }

    /// The bounds that the statistic must lie within, edges included; `None` is no bound.
    pub fn bounds(&self) -> (Option<f64>, f64) {
        let upper = self.rollout_rs_threshold;
        if self.rollout_rs_estimator != RejectionEstimator::K1 {
            return (None, upper);
        }
        let lower = self.rollout_rs_threshold_lower.map_or(-upper.ln(), f64::ln);
        (Some(lower), upper.ln())
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a bound is outside its domain, `unsupported` for the maximum of k1 and for a lower bound of
    /// anything but k1.
    pub fn check(&self) -> Result<()> {
        positive("rollout_rs_threshold", self.rollout_rs_threshold)?;
        positive_or_null("safety_bound", self.safety_bound)?;
        let is_k1 = self.rollout_rs_estimator == RejectionEstimator::K1;
        if is_k1 && self.rollout_rs_level == RejectionLevel::SeqMax {
            let what = "rollout_rs_level seq_max does not go with rollout_rs_estimator k1; use k2 or k3";
            return Err(Error::Unsupported { what: what.to_owned() });
        }
        let Some(lower) = self.rollout_rs_threshold_lower else {
            return if is_k1 && self.rollout_rs_threshold < 1.0 {
                Err(Error::option(
                    "rollout_rs_threshold",
                    format!("{} is below its inverse; give a lower bound", self.rollout_rs_threshold),
                ))
            } else {
                Ok(())
            };
        };
        if !is_k1 {
            let what = "rollout_rs_threshold_lower goes with rollout_rs_estimator k1 only; use null";
            return Err(Error::Unsupported { what: what.to_owned() });
        }
        positive("rollout_rs_threshold_lower", lower)?;
        below("rollout_rs_threshold_lower", lower, self.rollout_rs_threshold)
    }
}

fn below(option: &str, lower: f64, upper: f64) -> Result<()> {
    if lower <= upper { Ok(()) } else { Err(Error::option(option, format!("{lower} is above {upper}"))) }
}
