//! The optimiser: AdamW, the gradient clip, LoRA, the learning rate's schedule.

use tch::{Device, Kind, Tensor};

use super::{any_seen, at_least_f32};
use crate::axes::Axes;
use crate::options::{AdamW, ClipGradNorm, Lora, Schedule, ScheduleKind};
use crate::{Error, Result};

/// What [`adamw`] gives: the state after the step.
#[derive(Debug)]
pub struct AdamWOutput {
    /// The parameters.
    pub param: Tensor,
    /// The gradient's running mean.
    pub m: Tensor,
    /// The squared gradient's running mean.
    pub v: Tensor,
}

/// One step of AdamW, which decays the parameters apart from the gradient. See [`crate::reference::optim::adamw`].
///
/// Gives new tensors, without gradient; `step` has no axes and may stand on the CPU, whatever the device of the rest.
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if an option is outside its domain, `input` if `step` is not a whole
/// number of at least 1 or an entry of `v` is negative, of those two what stands on the CPU: another device would have
/// to be waited for, so there the caller answers for the values.
pub fn adamw(
    param: &Tensor,
    grad: &Tensor,
    m: &Tensor,
    v: &Tensor,
    step: &Tensor,
    options: &AdamW,
) -> Result<AdamWOutput> {
    options.check()?;
    Axes::default()
        .bind_any("param", &param.size())?
        .bind_any("grad", &grad.size())?
        .bind_any("m", &m.size())?
        .bind_any("v", &v.size())?
        .bind("step", &[], &step.size())?;
    whole(step, 1)?;
    if any_seen(&v.lt(0.0)) {
        return Err(Error::input("v", "has an entry below 0, and is a mean of squares"));
    }
    let data = |tensor: &Tensor| at_least_f32(&tensor.detach());
    let (param, grad) = (data(param), data(grad));
    let m = data(m) * options.beta1 + &grad * (1.0 - options.beta1);
    let v = data(v) * options.beta2 + grad.square() * (1.0 - options.beta2);
    // 1 - beta^step, of which a beta near 1 leaves few digits to anything but double precision.
    let correction =
        |beta: f64| (step.detach().to_kind(Kind::Double) * beta.ln()).expm1().neg().to_kind(param.kind());
    let root = (&v / correction(options.beta2)).sqrt() + options.eps;
    let scaled = &m / correction(options.beta1) / root;
    let param = param * (1.0 - options.lr * options.weight_decay) - scaled * options.lr;
    Ok(AdamWOutput { param, m, v })
}

/// The step is a whole number of at least `least`, as far as one may look without waiting for a device.
fn whole(step: &Tensor, least: i64) -> Result<()> {
    if step.device() != Device::Cpu {
        return Ok(());
    }
    let value = step.double_value(&[]);
    if value.fract() == 0.0 && value >= least as f64 {
        return Ok(());
    }
    Err(Error::input("step", format!("is {value}; it must be a whole number of at least {least}")))
}

/// What [`clip_grad_norm`] gives.
#[derive(Debug)]
pub struct ClipGradNormOutput {
    /// The gradient, scaled down if it was too long.
    pub grad: Tensor,
    /// Its norm before that, without axes.
    pub norm: Tensor,
}

/// The gradient with its Euclidean norm limited. See [`crate::reference::optim::clip_grad_norm`].
///
/// # Errors
/// `option` if `max_norm` is not above 0 or eps is negative.
pub fn clip_grad_norm(grad: &Tensor, options: &ClipGradNorm) -> Result<ClipGradNormOutput> {
    options.check()?;
    Axes::default().bind_any("grad", &grad.size())?;
    let grad = at_least_f32(&grad.detach());
    let norm = grad.square().sum(None).sqrt();
    let coefficient = (norm.full_like(options.max_norm) / (&norm + options.eps)).clamp_max(1.0);
    Ok(ClipGradNormOutput { grad: grad * coefficient, norm })
}

/// A linear layer with a low-rank update of its frozen weights, `[B, O]`. See [`crate::reference::optim::lora`].
///
/// # Errors
/// `rank` or `shape` if the shapes do not fit; `option` if alpha is not finite, or if `rank` is given and is not R, or
/// if R is 0.
pub fn lora(x: &Tensor, w: &Tensor, a: &Tensor, b: &Tensor, options: &Lora) -> Result<Tensor> {
    options.check()?;
    let axes = Axes::default().bind("x", &["B", "I"], &x.size())?.bind("w", &["O", "I"], &w.size())?;
    let rank = axes.bind("a", &["R", "I"], &a.size())?.bind("b", &["O", "R"], &b.size())?.length("R");
    if rank == 0 || options.rank.is_some_and(|said| said != rank) {
        return Err(Error::option("rank", format!("must be that of the matrices, {rank}, and at least 1")));
    }
    let x = at_least_f32(x);
    let frozen = x.matmul(&at_least_f32(w).detach().tr());
    let update = x.matmul(&at_least_f32(a).tr()).matmul(&at_least_f32(b).tr());
    Ok(frozen + update * (options.alpha / rank as f64))
}

/// What the learning rate is multiplied by at a step, without axes. See [`crate::reference::optim::schedule`].
///
/// # Errors
/// `rank` if `step` has axes, `option` if an option is outside its domain, `input` if `step` is on the CPU and not a
/// whole number of at least 0: another device would have to be waited for, so there the caller answers for it.
pub fn schedule(step: &Tensor, options: &Schedule) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("step", &[], &step.size())?;
    whole(step, 0)?;
    let step = at_least_f32(&step.detach());
    let warmup_steps = f64::from(options.warmup_steps);
    let left = (f64::from(options.total_steps) - warmup_steps).max(1.0);
    let progress = ((&step - warmup_steps) / left).clamp_max(1.0);
    let course = match options.kind {
        ScheduleKind::Constant => None,
        ScheduleKind::Linear => Some(1.0 - progress),
        ScheduleKind::Cosine => Some(((progress * std::f64::consts::PI).cos() + 1.0) / 2.0),
    };
    let scale = course
        .map_or_else(|| step.ones_like(), |course| course * (1.0 - options.min_ratio) + options.min_ratio);
    let warming = &step / warmup_steps.max(1.0);
    Ok(warming.where_self(&step.lt(warmup_steps), &scale))
}
