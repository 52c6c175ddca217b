//! AdamW and the global-norm gradient clip over a plain list of parameters. tch's own optimiser wants its `VarStore`,
//! which the model does not use.

use tch::{Kind, Tensor, no_grad};

use super::checkpoint::State;
use crate::Result;
use crate::config::{Optim, Scheduler};
use crate::options::{Schedule, ScheduleKind};
use crate::torch::optim;

/// What AdamW is tuned with; fields as PyTorch names them.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct AdamWOptions {
    /// The learning rate.
    pub lr: f64,
    /// Decay of the gradient's running mean.
    pub beta1: f64,
    /// Decay of the squared gradient's running mean.
    pub beta2: f64,
    /// Added to the root of the squared gradient's mean.
    pub eps: f64,
    /// Decoupled: the parameters shrink by `lr * weight_decay` a step.
    pub weight_decay: f64,
}

impl AdamWOptions {
    /// PyTorch's betas and eps, no weight decay: what RL trainers use.
    pub fn at(lr: f64) -> Self {
        Self { lr, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0 }
    }
}

impl AdamWOptions {
    /// As a section of the configuration has them.
    pub fn of(optim: &Optim) -> Self {
        let Optim { lr, betas: (beta1, beta2), weight_decay, .. } = *optim;
        Self { lr, beta1, beta2, eps: 1e-8, weight_decay }
    }
}

/// The learning rate of every step of a run: warm-up, then its schedule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Course {
    lr: f64,
    schedule: Schedule,
}

impl Course {
    /// The course of a run of so many steps.
    ///
    /// # Errors
    /// `option` for a warm-up that is longer than the run or a share outside [0, 1].
    pub fn of(optim: &Optim, total_steps: usize) -> Result<Self> {
        let by_ratio = || (optim.lr_warmup_steps_ratio * total_steps as f64) as u32;
        let warmup_steps =
            optim.lr_warmup_steps.and_then(|steps| u32::try_from(steps).ok()).unwrap_or_else(by_ratio);
        let schedule = Schedule {
            kind: match optim.lr_scheduler_type {
                Scheduler::Constant => ScheduleKind::Constant,
                Scheduler::Linear => ScheduleKind::Linear,
                Scheduler::Cosine => ScheduleKind::Cosine,
            },
            warmup_steps,
            total_steps: u32::try_from(total_steps.max(1)).unwrap_or(u32::MAX),
            min_ratio: optim.min_lr_ratio,
        };
        schedule.check()?;
        Ok(Self { lr: optim.lr, schedule })
    }

    /// The learning rate of a step, counted from 1. As in PyTorch's schedulers the first step of a warm-up has 0.
    ///
    /// # Errors
    /// None that a caller could bring about.
    pub fn lr(&self, step: usize) -> Result<f64> {
        let step = Tensor::from(step.saturating_sub(1) as f64);
        Ok(self.lr * optim::schedule(&step, &self.schedule)?.double_value(&[]))
    }
}

/// The optimiser: the parameters that it moves and their two running means.
#[derive(Debug)]
pub struct AdamW {
    /// The options; the learning rate may be changed between steps.
    pub options: AdamWOptions,
    slots: Vec<Slot>,
    steps: i32,
}

#[derive(Debug)]
struct Slot {
    param: Tensor,
    /// The parameter in f32, where it is itself too coarse to change by little: the steps are made here.
    master: Option<Tensor>,
    m: Tensor,
    v: Tensor,
}

impl Slot {
    fn new(param: Tensor) -> Self {
        let master = is_half(&param).then(|| no_grad(|| param.detach().to_kind(Kind::Float)));
        let zeros = || master.as_ref().unwrap_or(&param).zeros_like();
        Self { m: zeros(), v: zeros(), master, param }
    }
}

fn is_half(tensor: &Tensor) -> bool {
    matches!(tensor.kind(), Kind::BFloat16 | Kind::Half)
}

impl AdamW {
    /// An optimiser of `parameters`, which are shallow clones of the model's leaves. Those in bf16 or f16 are kept in
    /// f32 besides.
    pub fn new(parameters: impl IntoIterator<Item = Tensor>, options: AdamWOptions) -> Self {
        Self { options, slots: parameters.into_iter().map(Slot::new).collect(), steps: 0 }
    }

    /// Puts what it carries from step to step into a checkpoint, under names that begin with `prefix`.
    ///
    /// # Errors
    /// None that a caller could bring about.
    pub fn save(&self, prefix: &str, state: &mut State) -> Result<()> {
        state.value(format!("{prefix}.steps"), &self.steps)?;
        for (index, slot) in self.slots.iter().enumerate() {
            state.tensor(format!("{prefix}.{index}.m"), &slot.m);
            state.tensor(format!("{prefix}.{index}.v"), &slot.v);
            slot.master.iter().for_each(|master| state.tensor(format!("{prefix}.{index}.master"), master));
        }
        Ok(())
    }

    /// Takes it out of one.
    ///
    /// # Errors
    /// As [`State::restore`].
    pub fn restore(&mut self, prefix: &str, state: &mut State) -> Result<()> {
        self.steps = state.take(&format!("{prefix}.steps"))?;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            state.restore(&format!("{prefix}.{index}.m"), &mut slot.m)?;
            state.restore(&format!("{prefix}.{index}.v"), &mut slot.v)?;
            if let Some(master) = &mut slot.master {
                state.restore(&format!("{prefix}.{index}.master"), master)?;
            }
        }
        Ok(())
    }

    /// Forgets all gradients.
    pub fn zero_grad(&mut self) {
        for slot in &mut self.slots {
            slot.param.zero_grad();
        }
    }

    /// Scales all gradients so that their global norm is at most `max_norm`; returns the norm before that.
    pub fn clip_grad_norm(&self, max_norm: f64) -> f64 {
        clip_grad_norm(self.slots.iter().map(|slot| &slot.param), max_norm)
    }

    /// One step; parameters without a gradient stay as they are. The arithmetic is that of
    /// [`crate::torch::optim::adamw`], which a test holds it against, in place: new tensors for everything took six
    /// times as long.
    pub fn step(&mut self) {
        self.steps += 1;
        let AdamWOptions { lr, beta1, beta2, eps, weight_decay } = self.options;
        let (correction1, correction2) = (1.0 - beta1.powi(self.steps), 1.0 - beta2.powi(self.steps));
        no_grad(|| {
            for Slot { param, master, m, v } in &mut self.slots {
                let grad = param.grad();
                if !grad.defined() {
                    continue;
                }
                let grad = grad.to_kind(m.kind());
                let moved = master.as_mut().unwrap_or(param);
                let _ = moved.g_mul_scalar_(1.0 - lr * weight_decay);
                let _ = m.lerp_(&grad, 1.0 - beta1);
                let _ = v.g_mul_scalar_(beta2).addcmul_(&grad, &(&grad * (1.0 - beta2)));
                let denominator = v.sqrt() / correction2.sqrt() + eps;
                let _ = moved.addcdiv_(&(&*m * (-lr / correction1)), &denominator);
                if let Some(master) = master {
                    param.copy_(master);
                }
            }
        });
    }
}

/// Scales the gradients of `parameters` so that their global norm is at most `max_norm`, as
/// `torch.nn.utils.clip_grad_norm_` does; returns the norm before that.
pub fn clip_grad_norm<'a>(parameters: impl Iterator<Item = &'a Tensor>, max_norm: f64) -> f64 {
    no_grad(|| {
        let mut grads: Vec<Tensor> = parameters.map(Tensor::grad).filter(Tensor::defined).collect();
        if grads.is_empty() {
            return 0.0;
        }
        let norm = |grad: &Tensor| if is_half(grad) { grad.to_kind(Kind::Float).norm() } else { grad.norm() };
        let norms: Vec<Tensor> = grads.iter().map(|grad| norm(grad).to_kind(Kind::Float)).collect();
        let norm = Tensor::stack(&norms, 0).norm().double_value(&[]);
        let scale = max_norm / (norm + 1e-6);
        if scale < 1.0 {
            for grad in &mut grads {
                let _ = grad.g_mul_scalar_(scale);
            }
        }
        norm
    })
}
