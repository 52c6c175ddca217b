//! Options of `advantage.filter`.

use serde::{Deserialize, Serialize};

use super::{EpsMode, GroupNorm, LoneMember, not_negative, share};
use crate::{Error, Result};

/// The estimator whose advantages are filtered (clause `filter.estimator`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdvEstimator {
    /// Group-normalised: the only one that can be.
    Grpo,
    /// Generalised advantage estimation.
    Gae,
    /// Leave-one-out.
    Rloo,
    /// REINFORCE++.
    ReinforcePlusPlus,
    /// `ReMax`.
    Remax,
}

/// Options of `advantage.filter`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Filter {
    /// The share of the samples with a positive advantage that is kept, the best first; in [0, 1].
    pub keep_pos_ratio: f64,
    /// The share of the samples with a negative advantage that is kept, the worst first; in [0, 1].
    pub keep_neg_ratio: f64,
    /// Whether the kept samples are normalised again, among themselves.
    pub compute_new_adv: bool,
    /// A group whose standard deviation is below it gets 0; not negative.
    pub eps: f64,
    /// What the only member of a group has for an advantage.
    pub singleton: LoneMember,
    /// The estimator; any but `Grpo` is refused.
    pub adv_estimator: AdvEstimator,
}

impl Filter {
    /// The guide's defaults: everything is kept; with a group of one taken as it is, the specification's default.
    pub fn guide() -> Self {
        Self {
            keep_pos_ratio: 1.0,
            keep_neg_ratio: 1.0,
            compute_new_adv: false,
            eps: 1e-6,
            singleton: LoneMember::Raw,
            adv_estimator: AdvEstimator::Grpo,
        }
    }

    /// The code behind the guide: it refuses a group of one.
    pub fn published() -> Self {
        Self { singleton: LoneMember::Error, ..Self::guide() }
    }

    /// The guide's recommendation: half of the negative, 70 % of the positive samples, normalised again.
    pub fn recommended() -> Self {
        Self { keep_pos_ratio: 0.7, keep_neg_ratio: 0.5, compute_new_adv: true, ..Self::guide() }
    }

    /// Whether no sample is ever filtered.
    pub fn keeps_all(&self) -> bool {
        self.keep_pos_ratio == 1.0 && self.keep_neg_ratio == 1.0
    }

    /// The normalisation's own options.
    pub fn group_norm(&self) -> GroupNorm {
        GroupNorm {
            eps: self.eps,
            eps_mode: EpsMode::Threshold,
            singleton: self.singleton.into(),
            ..GroupNorm::eq28()
        }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if any of them is outside its domain, `unsupported` for another estimator than `Grpo`.
    pub fn check(&self) -> Result<()> {
        share("keep_pos_ratio", self.keep_pos_ratio)?;
        share("keep_neg_ratio", self.keep_neg_ratio)?;
        not_negative("eps", self.eps)?;
        if self.adv_estimator == AdvEstimator::Grpo {
            return Ok(());
        }
        let what = "only the advantages of `adv_estimator` = \"grpo\" can be filtered by sign within a group";
        Err(Error::Unsupported { what: what.to_owned() })
    }
}
