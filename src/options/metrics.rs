//! Options of `metrics.*`.

use serde::{Deserialize, Serialize};

use super::positive;
use crate::{Error, Result};

/// Which tokens the statistics of the processed advantages leave out (clause `metrics.advantages.processed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessedExcludes {
    /// Those of samples that were filtered out.
    Filtered,
    /// Those whose advantage is exactly 0, kept ones among them.
    Zeros,
}

/// Options of `metrics.advantages`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct AdvantageMetrics {
    /// What the processed statistics leave out.
    pub processed_excludes: ProcessedExcludes,
}

impl AdvantageMetrics {
    /// `000_compute_new_adv.md`: filtered samples are left out; the specification's default.
    pub fn document() -> Self {
        Self { processed_excludes: ProcessedExcludes::Filtered }
    }

    /// The published code of that document: every advantage of 0 is left out.
    pub fn easyr1_brian() -> Self {
        Self { processed_excludes: ProcessedExcludes::Zeros }
    }
}

/// Options of `metrics.health`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HealthRules {
    /// `kl_divergence` is healthy below it.
    pub max_kl_divergence: f64,
    /// `ppo_ratio_clipped` is healthy below it.
    pub max_ppo_ratio_clipped: f64,
    /// What is to be near a number is healthy less than this far from it.
    pub near: f64,
}

impl HealthRules {
    /// `003_grpo_trainer_guide.md`: KL below 0.1, less than 30 % clipped; it puts no number on "near", 0.2 is ours.
    pub fn guide() -> Self {
        Self { max_kl_divergence: 0.1, max_ppo_ratio_clipped: 0.3, near: 0.2 }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a maximum or `near` is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        positive("max_kl_divergence", self.max_kl_divergence)?;
        positive("max_ppo_ratio_clipped", self.max_ppo_ratio_clipped)?;
        positive("near", self.near)
    }
}

/// Options of `metrics.pass_at_k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassAtK {
    /// How many samples are drawn; at least 1.
    pub k: u64,
}

impl PassAtK {
    /// Chen et al. (2021) at this k; the specification's default is 1.
    pub fn chen(k: u64) -> Self {
        Self { k }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if k is 0.
    pub fn check(&self) -> Result<()> {
        if self.k >= 1 { Ok(()) } else { Err(Error::option("k", "0 is not at least 1")) }
    }
}
