//! AdamW and the global-norm gradient clip over a plain list of parameters. tch's own optimiser wants its `VarStore`,
//! which the model does not use.

use tch::{Device, Kind, Tensor, no_grad, no_grad_guard};

use super::checkpoint::State;
use crate::Result;
use crate::config::{Optim, Scheduler};
use crate::fused;
use crate::fused::optim::Parameter;
use crate::options::{AdamW, ClipGradNorm, Schedule, ScheduleKind};
use crate::torch::optim;

/// AdamW as a section of the configuration has it.
pub fn adamw_of(optim: &Optim) -> AdamW {
    let Optim { lr, betas: (beta1, beta2), weight_decay, .. } = *optim;
    AdamW { lr, beta1, beta2, weight_decay, ..AdamW::torch() }
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

/// AdamW: the parameters that it moves and their two running means.
#[derive(Debug)]
pub struct Optimizer {
    /// The options; the learning rate may be changed between steps.
    pub options: AdamW,
    /// Whether a step is one pass over the memory, where there is such a path.
    fused: bool,
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

    /// The gradient as a launch for all parameters of a device takes it; `None` if there is none or the parameter does
    /// not go with the others.
    fn grad_on(&self, device: Device) -> Option<Tensor> {
        let grad = self.param.grad();
        (grad.defined() && has_kernels(&self.param, device)).then(|| grad.contiguous())
    }
}

/// Whether a tensor is as the kernels of a device take parameters and gradients.
fn has_kernels(tensor: &Tensor, device: Device) -> bool {
    let is_known = matches!(tensor.kind(), Kind::Float | Kind::BFloat16);
    is_known && tensor.device() == device && tensor.is_contiguous()
}

fn is_half(tensor: &Tensor) -> bool {
    matches!(tensor.kind(), Kind::BFloat16 | Kind::Half)
}

impl Optimizer {
    /// An optimiser of `parameters`, which are shallow clones of the model's leaves. Those in bf16 or f16 are kept in
    /// f32 besides. `fused` steps go over the memory once: on the CPU parameter by parameter, on a CUDA device in one
    /// launch for all.
    pub fn new(parameters: impl IntoIterator<Item = Tensor>, options: AdamW, fused: bool) -> Self {
        Self { options, fused, slots: parameters.into_iter().map(Slot::new).collect(), steps: 0 }
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
    ///
    /// # Errors
    /// `unsupported` if a fused clip cannot run on the device.
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<f64> {
        let parameters = || self.slots.iter().map(|slot| &slot.param);
        let grads: Vec<Tensor> = parameters().map(Tensor::grad).filter(Tensor::defined).collect();
        let Some(device) = grads.first().map(Tensor::device) else { return Ok(0.0) };
        if self.fused && device.is_cuda() && grads.iter().all(|grad| has_kernels(grad, device)) {
            let grads: Vec<&Tensor> = grads.iter().collect();
            let norm = fused::optim::clip_on_device(device, &grads, &ClipGradNorm::torch(max_norm))?;
            return Ok(norm.double_value(&[]));
        }
        Ok(clip_grad_norm(parameters(), max_norm))
    }

    /// One step; parameters without a gradient stay as they are. The arithmetic is that of
    /// [`crate::torch::optim::adamw`], which a test holds both ways against, in place: new tensors for everything took
    /// six times as long.
    ///
    /// # Errors
    /// `unsupported` if parameters share memory, or if a fused step cannot run on the device.
    pub fn step(&mut self) -> Result<()> {
        self.steps += 1;
        let _no_grad = no_grad_guard();
        let together = self.step_together()?;
        for (Slot { param, master, m, v }, is_done) in self.slots.iter_mut().zip(together) {
            if is_done {
                continue;
            }
            let grad = param.grad();
            if !grad.defined() {
                continue;
            }
            let grad = grad.to_kind(m.kind());
            let moved = master.as_mut().unwrap_or(param);
            if self.fused && grad.device() == Device::Cpu && moved.is_contiguous() {
                fused::optim::adamw_(moved, &grad.contiguous(), m, v, f64::from(self.steps), &self.options)?;
            } else {
                step_in_place(moved, &grad, m, v, self.steps, &self.options);
            }
            if let Some(master) = master {
                param.copy_(master);
            }
        }
        Ok(())
    }

    /// Fused, on a CUDA device: the step of all parameters in f32 and bf16 there, in one launch. Says of each slot whether
    /// it is done.
    fn step_together(&self) -> Result<Vec<bool>> {
        let none = vec![false; self.slots.len()];
        let Some(device) = self.slots.first().map(|slot| slot.param.device()) else { return Ok(none) };
        if !self.fused || !device.is_cuda() {
            return Ok(none);
        }
        let grads: Vec<Option<Tensor>> = self.slots.iter().map(|slot| slot.grad_on(device)).collect();
        let pairs = self.slots.iter().zip(&grads);
        let parameters: Vec<Parameter> = pairs
            .filter_map(|(slot, grad)| {
                let Slot { param, master, m, v } = slot;
                let coarse = master.as_ref().map(|_| param);
                Some(Parameter {
                    param: master.as_ref().unwrap_or(param),
                    grad: grad.as_ref()?,
                    m,
                    v,
                    coarse,
                })
            })
            .collect();
        fused::optim::adamw_on_device(device, &parameters, f64::from(self.steps), &self.options)?;
        Ok(grads.iter().map(Option::is_some).collect())
    }
}

/// The step by libtorch's operations.
fn step_in_place(
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    steps: i32,
    options: &AdamW,
) {
    let AdamW { lr, beta1, beta2, eps, weight_decay } = *options;
    let (correction1, correction2) = (1.0 - beta1.powi(steps), 1.0 - beta2.powi(steps));
    let _ = param.g_mul_scalar_(1.0 - lr * weight_decay);
    let _ = m.lerp_(grad, 1.0 - beta1);
    let _ = v.g_mul_scalar_(beta2).addcmul_(grad, &(grad * (1.0 - beta2)));
    let denominator = v.sqrt() / correction2.sqrt() + eps;
    let _ = param.addcdiv_(&(&*m * (-lr / correction1)), &denominator);
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
