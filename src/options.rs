//! Every formula's options: plain data whose field names are those of the specification, of the fixtures and of
//! `grpo-oracle eval`. There is no `Default`; the constructors are named after the source they follow.

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

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

/// Which standard deviation divides a group's centred rewards (clause `advantage.group-norm.std`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GroupStd {
    /// Divisor n - 1, as `torch.std` computes it.
    Sample,
    /// Divisor n, as `numpy.std` computes it.
    Population,
    /// No division at all: Dr. GRPO, Eq. 31.
    None,
}

/// How `eps` keeps the quotient finite (clause `advantage.group-norm.eps`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EpsMode {
    /// `(r - mean) / (std + eps)`.
    Add,
    /// `(r - mean) / std`, and 0 for a group whose std is below eps.
    Threshold,
}

/// What the only member of a group gets (clause `advantage.group-norm.singleton`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Singleton {
    /// Its own reward.
    Raw,
    /// Its reward normalised with mean 0 and standard deviation 1, as verl does: r / (1 + eps).
    UnitStd,
    /// 0.
    Zero,
    /// The error `group-size`.
    Error,
}

/// Options of `advantage.group_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct GroupNorm {
    /// The divisor.
    pub std: GroupStd,
    /// The small number; not negative.
    pub eps: f64,
    /// What `eps` does.
    pub eps_mode: EpsMode,
    /// What a group of one gets.
    pub singleton: Singleton,
}

impl GroupNorm {
    /// Eq. 28 with the sample standard deviation and eps 1e-6; the specification's default.
    pub fn eq28() -> Self {
        Self { std: GroupStd::Sample, eps: 1e-6, eps_mode: EpsMode::Add, singleton: Singleton::Raw }
    }

    /// Eq. 31 (Dr. GRPO): the mean is subtracted and nothing is divided.
    pub fn dr_grpo() -> Self {
        Self { std: GroupStd::None, ..Self::eq28() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if `eps` is negative or not finite.
    pub fn check(&self) -> Result<()> {
        not_negative("eps", self.eps)
    }
}

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

/// How KL(policy || reference) is estimated from the sampled token, with d = logp - logp_ref (clause `kl.estimate`).
///
/// The forms with "+" keep the estimator's value and take the gradient of k2 (straight-through).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
        self.input_clamp.map_or(Ok(()), |clamp| positive("input_clamp", clamp))?;
        self.output_clamp.map_or(Ok(()), |clamp| positive("output_clamp", clamp))
    }
}

/// How per-token losses become one number (clauses `aggregate.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LossAggMode {
    /// The sum over all kept tokens over their number.
    TokenMean,
    /// The sum over all kept tokens.
    TokenSum,
    /// The mean over sequences of each sequence's sum.
    SeqMeanTokenSum,
    /// The mean over sequences of each sequence's mean.
    SeqMeanTokenMean,
    /// `seq-mean-token-sum` over a constant length.
    SeqMeanTokenSumNorm,
}

/// Options of `aggregate.loss`. Counts that are `None` are taken from the batch at hand; to split a batch into parts
/// whose losses sum to the whole, give every part the counts of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Aggregate {
    /// The mode.
    pub loss_agg_mode: LossAggMode,
    /// The constant length of `seq-mean-token-sum-norm`; `None` is the padded width T.
    pub loss_scale_factor: Option<f64>,
    /// The denominator of `token-mean`; `None` is the number of kept tokens.
    pub batch_num_tokens: Option<f64>,
    /// The denominator of the `seq-mean` modes; `None` is the number of sequences with a kept token.
    pub global_batch_size: Option<f64>,
    /// The number of data-parallel ranks whose gradients are averaged afterwards; the loss is multiplied by it.
    pub dp_size: f64,
}

impl Aggregate {
    /// A mode with every count taken from the batch at hand.
    pub fn local(loss_agg_mode: LossAggMode) -> Self {
        Self {
            loss_agg_mode,
            loss_scale_factor: None,
            batch_num_tokens: None,
            global_batch_size: None,
            dp_size: 1.0,
        }
    }

    /// Eq. 29: each sequence's mean, averaged over the sequences.
    pub fn eq29() -> Self {
        Self::local(LossAggMode::SeqMeanTokenMean)
    }

    /// DAPO: every token of the batch weighs the same; the specification's default.
    pub fn dapo() -> Self {
        Self::local(LossAggMode::TokenMean)
    }

    /// Dr. GRPO: each sequence's sum over a constant length.
    pub fn dr_grpo(loss_scale_factor: f64) -> Self {
        Self { loss_scale_factor: Some(loss_scale_factor), ..Self::local(LossAggMode::SeqMeanTokenSumNorm) }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a count is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        for (name, count) in [
            ("loss_scale_factor", self.loss_scale_factor),
            ("batch_num_tokens", self.batch_num_tokens),
            ("global_batch_size", self.global_batch_size),
            ("dp_size", Some(self.dp_size)),
        ] {
            count.map_or(Ok(()), |count| positive(name, count))?;
        }
        Ok(())
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

/// How the final answer is found in a response (clauses `reward.gsm8k.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GsmMethod {
    /// The number after the last `####` that a number follows.
    Strict,
    /// The last number of the response.
    Flexible,
}

/// Options of `reward.gsm8k`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gsm8k {
    /// How the answer is found.
    pub method: GsmMethod,
}

impl Gsm8k {
    /// The marker `####` is required; the specification's default.
    pub fn strict() -> Self {
        Self { method: GsmMethod::Strict }
    }

    /// The last number counts.
    pub fn flexible() -> Self {
        Self { method: GsmMethod::Flexible }
    }
}

fn finite(option: &str, value: f64) -> Result<()> {
    if value.is_finite() { Ok(()) } else { Err(Error::option(option, format!("{value} is not finite"))) }
}

fn not_negative(option: &str, value: f64) -> Result<()> {
    if value.is_finite() && value >= 0.0 {
        return Ok(());
    }
    Err(Error::option(option, format!("{value} is not a finite number of at least 0")))
}

fn positive(option: &str, value: f64) -> Result<()> {
    if value.is_finite() && value > 0.0 {
        return Ok(());
    }
    Err(Error::option(option, format!("{value} is not a finite number above 0")))
}
