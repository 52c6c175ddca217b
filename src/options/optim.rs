//! Options of `optim.*`.

use serde::{Deserialize, Serialize};

use super::{finite, not_negative, positive, share};
use crate::{Error, Result};

/// Options of `optim.adamw`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AdamW {
    /// The learning rate; at least 0.
    pub lr: f64,
    /// Decay of the gradient's running mean; in [0, 1).
    pub beta1: f64,
    /// Decay of the squared gradient's running mean; in [0, 1).
    pub beta2: f64,
    /// Added to the root; at least 0.
    pub eps: f64,
    /// The parameters shrink by `lr * weight_decay` a step; at least 0.
    pub weight_decay: f64,
}

impl AdamW {
    /// `torch.optim.AdamW` as it comes; the specification's default.
    pub fn torch() -> Self {
        Self { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01 }
    }

    /// CS336 assignment 5: betas 0.9 and 0.95, no weight decay.
    pub fn cs336(lr: f64) -> Self {
        Self { lr, beta2: 0.95, weight_decay: 0.0, ..Self::torch() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        not_negative("lr", self.lr)?;
        for (option, beta) in [("beta1", self.beta1), ("beta2", self.beta2)] {
            if !(0.0..1.0).contains(&beta) {
                return Err(Error::option(option, format!("{beta} is not at least 0 and below 1")));
            }
        }
        not_negative("eps", self.eps)?;
        not_negative("weight_decay", self.weight_decay)
    }
}

/// Options of `optim.clip_grad_norm`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ClipGradNorm {
    /// The norm that is allowed; above 0.
    pub max_norm: f64,
    /// Added to the norm that is divided by; at least 0.
    pub eps: f64,
}

impl ClipGradNorm {
    /// `torch.nn.utils.clip_grad_norm_`; the specification's default is the norm 1.
    pub fn torch(max_norm: f64) -> Self {
        Self { max_norm, eps: 1e-6 }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        positive("max_norm", self.max_norm)?;
        not_negative("eps", self.eps)
    }
}

/// Options of `optim.lora`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// The update is scaled by alpha over the rank; finite.
    pub alpha: f64,
    /// The rank, which must be that of the matrices; `None` takes theirs.
    pub rank: Option<usize>,
}

impl Lora {
    /// PEFT's alpha of 8, whatever the rank; the specification's default.
    pub fn peft() -> Self {
        Self { alpha: 8.0, rank: None }
    }

    /// `003_grpo_trainer_guide.md`: alpha 32 at rank 16, so twice the product of the matrices.
    pub fn guide() -> Self {
        Self { alpha: 32.0, rank: Some(16) }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if alpha is not finite.
    pub fn check(&self) -> Result<()> {
        finite("alpha", self.alpha)
    }
}

/// The course of the learning rate after the warm-up (clauses `optim.schedule.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleKind {
    /// It stays.
    Constant,
    /// It falls in a straight line.
    Linear,
    /// It falls along half a cosine.
    Cosine,
}

/// Options of `optim.schedule`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Schedule {
    /// The course after the warm-up.
    pub kind: ScheduleKind,
    /// So many steps lead up to the full rate.
    pub warmup_steps: u32,
    /// After so many steps the rate is at its lowest; at least 1, and at least `warmup_steps` unless it is constant.
    pub total_steps: u32,
    /// The lowest rate over the full one, in [0, 1]; the constant course does not read it.
    pub min_ratio: f64,
}

impl Schedule {
    /// verl's default: constant, without warm-up; the specification's default.
    pub fn constant() -> Self {
        Self { kind: ScheduleKind::Constant, warmup_steps: 0, total_steps: 1, min_ratio: 0.0 }
    }

    /// transformers' `get_linear_schedule_with_warmup`.
    pub fn linear(warmup_steps: u32, total_steps: u32) -> Self {
        Self { kind: ScheduleKind::Linear, warmup_steps, total_steps, min_ratio: 0.0 }
    }

    /// transformers' `get_cosine_schedule_with_warmup`.
    pub fn cosine(warmup_steps: u32, total_steps: u32) -> Self {
        Self { kind: ScheduleKind::Cosine, ..Self::linear(warmup_steps, total_steps) }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if one of them is outside its domain.
    pub fn check(&self) -> Result<()> {
        let least = if self.kind == ScheduleKind::Constant { 1 } else { self.warmup_steps.max(1) };
        if self.total_steps < least {
            let problem = format!("{} is below {least}, the least that the warm-up leaves", self.total_steps);
            return Err(Error::option("total_steps", problem));
        }
        share("min_ratio", self.min_ratio)
    }
}
