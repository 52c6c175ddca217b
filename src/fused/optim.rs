//! A step of AdamW in one pass over the memory: each number is read once and written once, where libtorch's own
//! operations go over it a dozen times. On the CPU in as many threads as libtorch has, on a CUDA device in one launch for
//! all parameters of a model; there the gradients' norm and their clip are as few.

use tch::{Device, Kind, Tensor};

use super::cuda::{self, Gpu};
use super::memory::{Element, Work, entries, entries_mut, vectorised};
use super::sweep::Real;
use crate::axes::Axes;
use crate::options::{AdamW, ClipGradNorm};
use crate::{Error, Result};

/// Tensors with fewer numbers than this are not worth a second thread.
const WORTH_A_THREAD: usize = 1 << 17;

/// What [`adamw`] gives: everything after the step.
#[derive(Debug)]
pub struct Stepped {
    /// The parameters.
    pub param: Tensor,
    /// The gradient's running mean.
    pub m: Tensor,
    /// The squared gradient's running mean.
    pub v: Tensor,
}

/// One step of AdamW. See [`crate::torch::optim::adamw`].
///
/// # Errors
/// `shape` or `rank` if the shapes differ, `option` if one is outside its domain, `input` for a step that is no whole
/// number above 0 or a mean of squares below 0; `unsupported` on a device that is neither the CPU nor one of CUDA's.
pub fn adamw(
    param: &Tensor,
    grad: &Tensor,
    m: &Tensor,
    v: &Tensor,
    step: &Tensor,
    options: &AdamW,
) -> Result<Stepped> {
    options.check()?;
    Axes::default()
        .bind_any("param", &param.size())?
        .bind_any("grad", &grad.size())?
        .bind_any("m", &m.size())?
        .bind_any("v", &v.size())?
        .bind("step", &[], &step.size())?;
    check_device(param.device())?;
    let number = step.double_value(&[]);
    if number.fract() != 0.0 || number < 1.0 {
        return Err(Error::input("step", format!("is {number}; it must be a whole number of at least 1")));
    }
    if v.lt(0.0).any().int64_value(&[]) != 0 {
        return Err(Error::input("v", "has an entry below 0, and is a mean of squares"));
    }
    let all = [param, grad, m, v];
    let kind = if all.iter().any(|of| of.kind() == Kind::Double) { Kind::Double } else { Kind::Float };
    let [mut param, grad, mut m, mut v] = all.map(|of| of.detach().to_kind(kind).contiguous().copy());
    match param.device() {
        Device::Cpu => adamw_(&mut param, &grad, &mut m, &mut v, number, options)?,
        device => {
            let whole = Parameter { param: &param, grad: &grad, m: &m, v: &v, coarse: None };
            cuda::optim::adamw(&Gpu::of(device)?, &[whole], number, options)?;
        }
    }
    Ok(Stepped { param, m, v })
}

/// Whether there are fast paths of the optimiser on a device.
fn check_device(device: Device) -> Result<()> {
    match device {
        Device::Cpu | Device::Cuda(_) => Ok(()),
        other => Err(Error::Unsupported { what: format!("there is no fused optimiser on {other:?}") }),
    }
}

/// What [`clip_grad_norm`] gives.
#[derive(Debug)]
pub struct Clipped {
    /// The gradient, scaled down if it was too long.
    pub grad: Tensor,
    /// Its norm before that, without axes.
    pub norm: Tensor,
}

/// The gradient with its Euclidean norm limited. See [`crate::torch::optim::clip_grad_norm`].
///
/// # Errors
/// `option` if `max_norm` is not above 0 or eps is negative; `unsupported` as [`adamw`].
pub fn clip_grad_norm(grad: &Tensor, options: &ClipGradNorm) -> Result<Clipped> {
    options.check()?;
    Axes::default().bind_any("grad", &grad.size())?;
    check_device(grad.device())?;
    let kind = if grad.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let mut grad = grad.detach().to_kind(kind).contiguous().copy();
    let norm = match grad.device() {
        Device::Cpu => {
            let norm = match kind {
                Kind::Double => clip::<f64>(&mut grad, options)?,
                _ => clip::<f32>(&mut grad, options)?,
            };
            Tensor::from(norm)
        }
        device => cuda::optim::clip_grad_norm(&Gpu::of(device)?, &[&grad], options)?,
    };
    Ok(Clipped { grad, norm: norm.to_kind(kind) })
}

/// In place, on the CPU; gives the norm.
fn clip<F: Real + Element>(grad: &mut Tensor, options: &ClipGradNorm) -> Result<f64> {
    let grad = entries_mut::<F>(grad)?;
    let norm = grad.iter().map(|&entry| entry.wide() * entry.wide()).sum::<f64>().sqrt();
    let factor = options.max_norm / (norm + options.eps);
    if factor < 1.0 {
        grad.iter_mut().for_each(|entry| *entry = *entry * F::of(factor));
    }
    Ok(norm)
}

/// A parameter of a model with what a step needs besides: contiguous tensors of one size on one device.
#[derive(Debug, Clone, Copy)]
pub struct Parameter<'a> {
    /// What is moved, f32 or f64.
    pub param: &'a Tensor,
    /// Its gradient, of the same kind or bf16.
    pub grad: &'a Tensor,
    /// The gradient's running mean, of the parameter's kind.
    pub m: &'a Tensor,
    /// The squared gradient's running mean, of the parameter's kind.
    pub v: &'a Tensor,
    /// The parameter once more, in bf16, to be kept up with it.
    pub coarse: Option<&'a Tensor>,
}

/// One step of parameters of one kind on a CUDA device, in place and in one launch, for whoever has checked the options.
/// No two tensors may share memory. No graph knows of it.
///
/// # Errors
/// `unsupported` for tensors that are not as [`Parameter`] has them.
pub fn adamw_on_device(device: Device, parameters: &[Parameter], step: f64, options: &AdamW) -> Result<()> {
    cuda::optim::adamw(&Gpu::of(device)?, parameters, step, options)
}

/// Scales gradients on a CUDA device, in place, as one vector whose norm is limited; gives its norm before that, f64 on the
/// device. Each is contiguous and of one kind, or bf16.
///
/// # Errors
/// As [`adamw_on_device`].
pub fn clip_on_device(device: Device, grads: &[&Tensor], options: &ClipGradNorm) -> Result<Tensor> {
    cuda::optim::clip_grad_norm(&Gpu::of(device)?, grads, options)
}

/// The same in place, for whoever has checked the arguments: four contiguous tensors of one kind, f32 or f64, and as many
/// numbers, on the CPU, no two of which share memory. No graph knows of it.
///
/// # Errors
/// `unsupported` for tensors that are not like this.
pub fn adamw_(
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    step: f64,
    options: &AdamW,
) -> Result<()> {
    match param.kind() {
        Kind::Double => in_place::<f64>(param, grad, m, v, step, options),
        _ => in_place::<f32>(param, grad, m, v, step, options),
    }
}

fn in_place<F: Real + Element + Send + Sync>(
    param: &mut Tensor,
    grad: &Tensor,
    m: &mut Tensor,
    v: &mut Tensor,
    step: f64,
    options: &AdamW,
) -> Result<()> {
    let count = param.numel();
    let mut places = [&*param, grad, m, v].map(|of| of.data_ptr() as usize);
    places.sort_unstable();
    let is_apart = |pair: &[usize]| pair[1] - pair[0] >= count * size_of::<F>();
    let fits = [grad, m, v].iter().all(|of| of.numel() == count) && places.windows(2).all(is_apart);
    if count > 0 && !fits {
        let what =
            "a step of AdamW in place wants four tensors of one size, each with its own memory".to_owned();
        return Err(Error::Unsupported { what });
    }
    let plan = Plan::of(step, options);
    let threads = if count < WORTH_A_THREAD { 1 } else { tch::get_num_threads().max(1) as usize };
    let each = count.div_ceil(threads).max(1);
    let grad = entries::<F>(grad)?.chunks(each);
    let (param, m, v) = (entries_mut::<F>(param)?, entries_mut::<F>(m)?, entries_mut::<F>(v)?);
    let moved = param.chunks_mut(each).zip(m.chunks_mut(each)).zip(v.chunks_mut(each));
    let mut parts = grad.zip(moved).map(|(grad, ((param, m), v))| Step { param, grad, m, v, plan: &plan });
    let first = parts.next();
    std::thread::scope(|scope| {
        for part in parts {
            scope.spawn(|| vectorised(part));
        }
        first.map(vectorised);
    });
    Ok(())
}

/// The options and the step as the pass needs them; the order is that of `Plan` in `kernels/optim.cu`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Plan<F> {
    shrunk: F,
    lr: F,
    beta1: F,
    beta2: F,
    new1: F,
    new2: F,
    correction1: F,
    correction2: F,
    eps: F,
}

impl<F: Real> Plan<F> {
    pub(super) fn of(step: f64, options: &AdamW) -> Self {
        let &AdamW { lr, beta1, beta2, eps, weight_decay } = options;
        // 1 - beta^step, of which a beta near 1 leaves few digits to anything but this.
        let correction = |beta: f64| F::of(-(step * beta.ln()).exp_m1());
        Self {
            shrunk: F::of(1.0 - lr * weight_decay),
            lr: F::of(lr),
            beta1: F::of(beta1),
            beta2: F::of(beta2),
            new1: F::of(1.0 - beta1),
            new2: F::of(1.0 - beta2),
            correction1: correction(beta1),
            correction2: correction(beta2),
            eps: F::of(eps),
        }
    }
}

/// Some of the numbers of a tensor, to be vectorised.
struct Step<'a, F> {
    param: &'a mut [F],
    grad: &'a [F],
    m: &'a mut [F],
    v: &'a mut [F],
    plan: &'a Plan<F>,
}

impl<F: Real> Work for Step<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let Self { param, grad, m, v, plan } = self;
        let count = param.len();
        let (grad, m, v) = (&grad[..count], &mut m[..count], &mut v[..count]);
        for i in 0..count {
            m[i] = m[i] * plan.beta1 + grad[i] * plan.new1;
            v[i] = v[i] * plan.beta2 + grad[i] * grad[i] * plan.new2;
            let root = (v[i] / plan.correction2).sqrt() + plan.eps;
            param[i] = param[i] * plan.shrunk - m[i] / plan.correction1 / root * plan.lr;
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::adamw_;
    use crate::options::AdamW;

    #[test]
    fn shared_memory_is_refused() {
        let own = || Tensor::ones([8], (Kind::Float, tch::Device::Cpu));
        let (mut param, grad, mut m, mut v) = (own(), own(), own(), own());
        assert!(adamw_(&mut param, &grad, &mut m, &mut v, 1.0, &AdamW::torch()).is_ok());
        let mut same = m.shallow_clone();
        assert!(adamw_(&mut param, &grad, &mut m, &mut same, 1.0, &AdamW::torch()).is_err());
        let long = Tensor::ones([12], (Kind::Float, tch::Device::Cpu));
        let (mut left, mut right) = (long.narrow(0, 0, 8), long.narrow(0, 4, 8));
        assert!(adamw_(&mut param, &grad, &mut left, &mut right, 1.0, &AdamW::torch()).is_err());
        assert!(adamw_(&mut param, &grad.narrow(0, 0, 7), &mut m, &mut v, 1.0, &AdamW::torch()).is_err());
    }
}
