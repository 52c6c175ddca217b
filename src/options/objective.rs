//! Options of `objective.*`.

use serde::{Deserialize, Serialize};

use super::{
    Aggregate, KlEstimate, KlPenalty, Ratio, finite, not_negative, positive, positive_or_null, share,
};
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
        share("clip_ratio_low", self.clip_ratio_low)?;
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
    /// Whether each token's KL estimate is multiplied by its ratio, through which gradient flows.
    pub kl_ratio_weight: bool,
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
            kl_ratio_weight: false,
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

/// Which loss `objective.dispatch` computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// Policy gradient with the raw rewards.
    NoBaseline,
    /// Policy gradient with advantages.
    ReinforceWithBaseline,
    /// The clipped objective.
    GrpoClip,
}

/// Options of `objective.dispatch`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Dispatch {
    /// The loss.
    pub loss_type: LossType,
    /// The ratio is clipped to [1 - this, 1 + this] in GRPO-Clip; in [0, 1], and without effect elsewhere.
    pub cliprange: f64,
}

impl Dispatch {
    /// GRPO-Clip at 0.2; the specification's default.
    pub fn grpo_clip() -> Self {
        Self { loss_type: LossType::GrpoClip, cliprange: 0.2 }
    }

    /// The raw rewards themselves.
    pub fn no_baseline() -> Self {
        Self { loss_type: LossType::NoBaseline, ..Self::grpo_clip() }
    }

    /// Advantages, without ratio and clipping.
    pub fn reinforce_with_baseline() -> Self {
        Self { loss_type: LossType::ReinforceWithBaseline, ..Self::grpo_clip() }
    }

    /// The clipped objective's own options.
    pub fn clip(&self) -> Clip {
        Clip { clip_ratio_low: self.cliprange, clip_ratio_high: self.cliprange, ..Clip::eq29() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if the range is not in [0, 1].
    pub fn check(&self) -> Result<()> {
        share("cliprange", self.cliprange)
    }
}

/// What the ratio of `objective.gspo` is, and where its gradient goes (clause `objective.gspo.level`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportanceLevel {
    /// The geometric mean of the tokens' ratios, with its own gradient.
    Sequence,
    /// The same value; its gradient at a token is that of the token's log-probability alone.
    SequenceToken,
    /// The product of the tokens' ratios, with its own gradient.
    SequenceSum,
}

/// Options of `objective.gspo`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gspo {
    /// The ratio is clipped from below at 1 - this; in [0, 1].
    pub clip_ratio_low: f64,
    /// The ratio is clipped from above at 1 + this; not negative.
    pub clip_ratio_high: f64,
    /// The sequence's log-ratio is clamped from above before the exponential; above 0. `None` leaves it alone.
    pub log_ratio_max: Option<f64>,
    /// What the ratio is.
    pub importance_sampling_level: ImportanceLevel,
}

impl Gspo {
    /// The paper's sequence ratio with its bounds; the specification's default.
    pub fn paper() -> Self {
        Self {
            clip_ratio_low: 3e-4,
            clip_ratio_high: 4e-4,
            log_ratio_max: None,
            importance_sampling_level: ImportanceLevel::Sequence,
        }
    }

    /// verl 0.9.1 with the paper's bounds: GSPO-token, log-ratio at most 10.
    pub fn verl() -> Self {
        Self {
            log_ratio_max: Some(10.0),
            importance_sampling_level: ImportanceLevel::SequenceToken,
            ..Self::paper()
        }
    }

    /// TRL's RLOO: the whole sequence's ratio, clipped at 0.2.
    pub fn trl_rloo() -> Self {
        Self {
            clip_ratio_low: 0.2,
            clip_ratio_high: 0.2,
            importance_sampling_level: ImportanceLevel::SequenceSum,
            ..Self::paper()
        }
    }

    /// The clipping's own options.
    pub fn clip(&self) -> Clip {
        Clip { clip_ratio_low: self.clip_ratio_low, clip_ratio_high: self.clip_ratio_high, ..Clip::eq29() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a bound is outside its domain.
    pub fn check(&self) -> Result<()> {
        self.clip().check()?;
        positive_or_null("log_ratio_max", self.log_ratio_max)
    }
}

/// What `clip_ratio_high` means to `objective.cispo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CispoBound {
    /// The weight is at most 1 + `clip_ratio_high`.
    OnePlusEps,
    /// The weight is at most `clip_ratio_high` itself.
    Absolute,
}

/// Options of `objective.cispo`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Cispo {
    /// The weight is at least 1 - this; in [0, 1]. `None` sets no lower bound.
    pub clip_ratio_low: Option<f64>,
    /// The upper bound, as `cispo_bound` says; not negative.
    pub clip_ratio_high: f64,
    /// What `clip_ratio_high` means.
    pub cispo_bound: CispoBound,
    /// The log-ratio is clamped to [-c, c] before the exponential; `None` leaves it alone.
    pub log_ratio_clamp: Option<f64>,
}

impl Cispo {
    /// As the paper has it, bounded from above only, at Eq. 29's 0.2; the specification's default.
    pub fn minimax() -> Self {
        Self {
            clip_ratio_low: None,
            clip_ratio_high: 0.2,
            cispo_bound: CispoBound::OnePlusEps,
            log_ratio_clamp: None,
        }
    }

    /// verl 0.9.1: within [0.8, 1.2], log-ratio within 20.
    pub fn verl() -> Self {
        Self { clip_ratio_low: Some(0.2), log_ratio_clamp: Some(20.0), ..Self::minimax() }
    }

    /// TRL 1.16 at its recommended bound: at most 5.
    pub fn trl() -> Self {
        Self { clip_ratio_high: 5.0, cispo_bound: CispoBound::Absolute, ..Self::minimax() }
    }

    /// The largest weight.
    pub fn upper_bound(&self) -> f64 {
        match self.cispo_bound {
            CispoBound::OnePlusEps => 1.0 + self.clip_ratio_high,
            CispoBound::Absolute => self.clip_ratio_high,
        }
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
        self.clip_ratio_low.map_or(Ok(()), |low| share("clip_ratio_low", low))?;
        not_negative("clip_ratio_high", self.clip_ratio_high)?;
        self.ratio().check()
    }
}

/// Options of `objective.gmpo`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gmpo {
    /// Where A < 0 a token's log-ratio counts as at least minus this; not negative.
    pub clip_ratio_low: f64,
    /// Where A > 0 a token's log-ratio counts as at most this; not negative.
    pub clip_ratio_high: f64,
}

impl Gmpo {
    /// The paper's range, ratios within (e^-0.4, e^0.4); the specification's default.
    pub fn paper() -> Self {
        Self { clip_ratio_low: 0.4, clip_ratio_high: 0.4 }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a bound is negative or not finite.
    pub fn check(&self) -> Result<()> {
        not_negative("clip_ratio_low", self.clip_ratio_low)?;
        not_negative("clip_ratio_high", self.clip_ratio_high)
    }
}

/// Options of `objective.sapo`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sapo {
    /// The temperature of the gate where A > 0; above 0.
    pub tau_pos: f64,
    /// The temperature of the gate elsewhere; above 0.
    pub tau_neg: f64,
    /// The log-ratio is clamped to [-c, c] before the exponential; `None` leaves it alone.
    pub log_ratio_clamp: Option<f64>,
}

impl Sapo {
    /// The paper's temperatures; the specification's default.
    pub fn paper() -> Self {
        Self { tau_pos: 1.0, tau_neg: 1.05, log_ratio_clamp: None }
    }

    /// verl 0.9.1: the paper's temperatures, log-ratio within 20.
    pub fn verl() -> Self {
        Self { log_ratio_clamp: Some(20.0), ..Self::paper() }
    }

    /// The ratio's own options.
    pub fn ratio(&self) -> Ratio {
        Ratio { log_ratio_clamp: self.log_ratio_clamp }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a temperature is not above 0, or the clamp is outside its domain.
    pub fn check(&self) -> Result<()> {
        positive("tau_pos", self.tau_pos)?;
        positive("tau_neg", self.tau_neg)?;
        self.ratio().check()
    }
}
