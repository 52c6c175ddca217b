//! Options of `objective.*`.

use serde::{Deserialize, Serialize};

use super::{Aggregate, KlEstimate, KlPenalty, Ratio, finite, not_negative};
use crate::{Error, Result};

/// Options of `objective.clip`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Clip {
    /// The ratio is clipped from below at 1 - this; in [0, 1].
    pub clip_ratio_low: f64,
    /// The ratio is clipped from above at 1 + this; not negative.
    pub clip_ratio_high: f64,
    /// Dual clip: where A < 0 the loss is at most -c A; above 1. `None` turns it off.
    pub clip_ratio_c: Option<f64>,
    /// The log-ratio is clamped to [-c, c] before the exponential; `None` leaves it alone.
    pub log_ratio_clamp: Option<f64>,
}

impl Clip {
    /// Eq. 29 at eps 0.2: symmetric, without dual clip, without clamp; the specification's default.
    pub fn eq29() -> Self {
        Self { clip_ratio_low: 0.2, clip_ratio_high: 0.2, clip_ratio_c: None, log_ratio_clamp: None }
    }

    /// DAPO's clip-higher: 0.2 below, 0.28 above.
    pub fn dapo() -> Self {
        Self { clip_ratio_high: 0.28, ..Self::eq29() }
    }

    /// verl 0.9.1: 0.2 both ways, dual clip at 3, log-ratio within 20.
    pub fn verl() -> Self {
        Self { clip_ratio_c: Some(3.0), log_ratio_clamp: Some(20.0), ..Self::eq29() }
    }

    /// The ratio's own options.
    pub fn ratio(&self) -> Ratio {
        Ratio { log_ratio_clamp: self.log_ratio_clamp }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a bound is outside its domain.
    pub fn check(&self) -> Result<()> {
        not_negative("clip_ratio_low", self.clip_ratio_low)?;
        if self.clip_ratio_low > 1.0 {
            return Err(Error::option("clip_ratio_low", format!("{} is above 1", self.clip_ratio_low)));
        }
        not_negative("clip_ratio_high", self.clip_ratio_high)?;
        if let Some(c) = self.clip_ratio_c
            && !(c > 1.0 && c.is_finite())
        {
            return Err(Error::option(
                "clip_ratio_c",
                format!("{c} is not above 1; use null to turn dual clip off"),
            ));
        }
        self.ratio().check()
    }
}

/// Options of `objective.actor_loss`; in JSON all of them stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ActorLoss {
    /// The policy term.
    #[serde(flatten)]
    pub clip: Clip,
    /// The estimator of the KL term.
    pub kl_loss_type: KlPenalty,
    /// As [`KlEstimate::input_clamp`].
    pub kl_input_clamp: Option<f64>,
    /// As [`KlEstimate::output_clamp`].
    pub kl_output_clamp: Option<f64>,
    /// The weight of the KL term; 0 leaves it out, and then `logp_ref` is not read.
    pub kl_loss_coef: f64,
    /// The weight of the entropy bonus; 0 leaves it out, and then `entropy` is not read.
    pub entropy_coeff: f64,
    /// How each of the three terms is aggregated.
    #[serde(flatten)]
    pub aggregate: Aggregate,
    /// The loss is divided by it; at least 1.
    pub gradient_accumulation_steps: f64,
}

impl ActorLoss {
    /// Eq. 29 without KL and entropy, aggregated as DAPO does; the specification's default.
    pub fn grpo() -> Self {
        Self {
            clip: Clip::eq29(),
            kl_loss_type: KlPenalty::K3,
            kl_input_clamp: None,
            kl_output_clamp: None,
            kl_loss_coef: 0.0,
            entropy_coeff: 0.0,
            aggregate: Aggregate::dapo(),
            gradient_accumulation_steps: 1.0,
        }
    }

    /// The KL term's own options.
    pub fn kl(&self) -> KlEstimate {
        KlEstimate {
            kl_penalty: self.kl_loss_type,
            input_clamp: self.kl_input_clamp,
            output_clamp: self.kl_output_clamp,
        }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if any of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        self.clip.check()?;
        self.kl().check()?;
        finite("kl_loss_coef", self.kl_loss_coef)?;
        finite("entropy_coeff", self.entropy_coeff)?;
        self.aggregate.check()?;
        if self.gradient_accumulation_steps.is_finite() && self.gradient_accumulation_steps >= 1.0 {
            return Ok(());
        }
        Err(Error::option(
            "gradient_accumulation_steps",
            format!("{} is not at least 1", self.gradient_accumulation_steps),
        ))
    }
}
