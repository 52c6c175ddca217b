//! Options of `kl.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{finite, positive, positive_or_null};
use crate::Result;

/// How KL(policy || reference) is estimated from the sampled token, with d = logp - logp_ref (clause `kl.estimate`).
///
/// The forms with "+" keep the estimator's value and take the gradient of k2 (straight-through).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum KlPenalty {
    /// d.
    #[serde(rename = "k1", alias = "kl")]
    K1,
    /// |d|.
    #[serde(rename = "abs")]
    Abs,
    /// d^2 / 2.
    #[serde(rename = "k2", alias = "mse")]
    K2,
    /// exp(-d) + d - 1.
    #[serde(rename = "k3", alias = "low_var_kl")]
    K3,
    /// The value of k1 with the gradient of k2.
    #[serde(rename = "k1+", alias = "kl+")]
    K1Plus,
    /// The value of abs with the gradient of k2.
    #[serde(rename = "abs+")]
    AbsPlus,
    /// k2 with the gradient of k2, also where a clamp bites.
    #[serde(rename = "k2+", alias = "mse+")]
    K2Plus,
    /// The value of k3 with the gradient of k2.
    #[serde(rename = "k3+", alias = "low_var_kl+")]
    K3Plus,
}

impl KlPenalty {
    /// Whether the gradient is that of k2 instead of the estimator's own.
    pub fn straight_through(self) -> bool {
        matches!(self, Self::K1Plus | Self::AbsPlus | Self::K2Plus | Self::K3Plus)
    }
}

/// Options of `kl.estimate`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KlEstimate {
    /// The estimator.
    pub kl_penalty: KlPenalty,
    /// d is clamped to [-c, c] first; `None` leaves it alone.
    pub input_clamp: Option<f64>,
    /// The estimate is clamped to [-c, c] last; `None` leaves it alone.
    pub output_clamp: Option<f64>,
}

impl KlEstimate {
    /// Schulman's k3 as it stands in the GRPO papers, unclamped; the specification's default.
    pub fn k3() -> Self {
        Self { kl_penalty: KlPenalty::K3, input_clamp: None, output_clamp: None }
    }

    /// verl 0.9.1's `low_var_kl`: k3 with d within 20 and the estimate within 10.
    pub fn verl() -> Self {
        Self { kl_penalty: KlPenalty::K3, input_clamp: Some(20.0), output_clamp: Some(10.0) }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a clamp is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive_or_null("input_clamp", self.input_clamp)?;
        positive_or_null("output_clamp", self.output_clamp)
    }
}

/// Options of `kl.in_reward`; in JSON all of them stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KlInReward {
    /// What the estimate is multiplied by before it is taken from the score.
    pub kl_coef: f64,
    /// The estimate.
    #[serde(flatten)]
    pub estimate: KlEstimate,
}

impl KlInReward {
    /// verl's `apply_kl_penalty`: 0.001 times an unclamped k1; the specification's default.
    pub fn verl() -> Self {
        let estimate = KlEstimate { kl_penalty: KlPenalty::K1, input_clamp: None, output_clamp: None };
        Self { kl_coef: 0.001, estimate }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the coefficient is not finite or a clamp is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        finite("kl_coef", self.kl_coef)?;
        self.estimate.check()
    }
}

/// Whether the coefficient of the KL penalty is adapted (clauses `kl.controller.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum KlControllerType {
    /// It stays as it is.
    Fixed,
    /// It follows the measured KL towards the target.
    Adaptive,
}

/// Options of `kl.controller`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct KlController {
    /// Whether the coefficient is adapted; `type` in JSON.
    #[serde(rename = "type")]
    pub kind: KlControllerType,
    /// The KL that is aimed at, in nats; above 0.
    pub target_kl: f64,
    /// In how many sequences a KL that is off by a fifth or more changes the coefficient by a fifth; above 0.
    pub horizon: f64,
    /// How many sequences the measured KL is of; above 0.
    pub n_steps: f64,
}

impl KlController {
    /// verl's configuration as it comes: fixed; the specification's default.
    pub fn verl() -> Self {
        Self { kind: KlControllerType::Fixed, target_kl: 0.1, horizon: 10_000.0, n_steps: 1.0 }
    }

    /// Ziegler et al. (arXiv 1909.08593), for batches of `n_steps` sequences, at verl's target and horizon.
    pub fn adaptive(n_steps: f64) -> Self {
        Self { kind: KlControllerType::Adaptive, n_steps, ..Self::verl() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the target, the horizon or the number of steps is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive("target_kl", self.target_kl)?;
        positive("horizon", self.horizon)?;
        positive("n_steps", self.n_steps)
    }
}
