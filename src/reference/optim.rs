//! The optimiser: AdamW, the gradient clip, LoRA, the learning rate's schedule.

use ndarray::{Array2, ArrayD, ArrayRef1, ArrayRef2, ArrayRefD, Zip};

use super::Real;
use crate::axes::Axes;
use crate::options::{AdamW, ClipGradNorm, Lora, Schedule, ScheduleKind};
use crate::{Error, Result};

/// What [`adamw`] gives: the state after the step.
#[derive(Debug, Clone, PartialEq)]
pub struct AdamWOutput<R> {
    /// The parameters.
    pub param: ArrayD<R>,
    /// The gradient's running mean.
    pub m: ArrayD<R>,
    /// The squared gradient's running mean.
    pub v: ArrayD<R>,
}

/// One step of AdamW, which decays the parameters apart from the gradient.
///
/// ```text
/// m <- beta1 m + (1 - beta1) grad        v <- beta2 v + (1 - beta2) grad^2
/// param <- (1 - lr weight_decay) param - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)
/// ```
///
/// Clauses `optim.adamw` and below. Loshchilov and Hutter (arXiv 1711.05101) algorithm 2; `torch.optim.AdamW`.
///
/// * `param`, `grad`, `m`, `v`: any one shape; data, no gradient flows; `m` and `v` start at 0
/// * `step`: the number of this step, from 1
///
/// # Errors
/// `rank` or `shape` if the shapes differ, `option` if an option is outside its domain, `input` if `step` is not a
/// whole number of at least 1 or an entry of `v` is negative.
///
/// # Example
/// ```
/// use grpo_oracle::{options::AdamW, reference::optim};
/// use ndarray::array;
/// let one = |x: f64| array![x].into_dyn();
/// let options = AdamW { lr: 0.5, beta1: 0.5, beta2: 0.75, eps: 0.0, weight_decay: 0.0 };
/// let first = optim::adamw(&one(1.0), &one(4.0), &one(0.0), &one(0.0), 1.0, &options)?;
/// assert_eq!((first.m, first.v), (one(2.0), one(4.0)));
/// assert_eq!(first.param, one(0.5)); // the first step is lr long, whatever the gradient's size
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn adamw<R: Real>(
    param: &ArrayRefD<R>,
    grad: &ArrayRefD<R>,
    m: &ArrayRefD<R>,
    v: &ArrayRefD<R>,
    step: R,
    options: &AdamW,
) -> Result<AdamWOutput<R>> {
    options.check()?;
    Axes::default()
        .bind_any("param", param.shape())?
        .bind_any("grad", grad.shape())?
        .bind_any("m", m.shape())?
        .bind_any("v", v.shape())?;
    let step = whole(step, 1)?;
    if let Some(v) = v.iter().find(|v| v.value() < 0.0) {
        return Err(Error::input(
            "v",
            format!("has the entry {}, below 0, and is a mean of squares", v.value()),
        ));
    }
    let of = |option: f64| R::constant(option);
    let (one, beta1, beta2) = (of(1.0), of(options.beta1), of(options.beta2));
    let m = Zip::from(m).and(grad).map_collect(|&m, &g| beta1 * m + (one - beta1) * g);
    let v = Zip::from(v).and(grad).map_collect(|&v, &g| beta2 * v + (one - beta2) * (g * g));
    let (correction1, correction2) = (one - power(beta1, step), one - power(beta2, step));
    let kept = one - of(options.lr) * of(options.weight_decay);
    let param = Zip::from(param).and(&m).and(&v).map_collect(|&param, &m, &v| {
        let scaled = (m / correction1) / ((v / correction2).sqrt() + of(options.eps));
        kept * param - of(options.lr) * scaled
    });
    Ok(AdamWOutput { param, m, v })
}

/// The step as a whole number of at least `least`.
fn whole<R: Real>(step: R, least: u32) -> Result<u64> {
    let value = step.value();
    if value.fract() == 0.0 && value >= f64::from(least) {
        return Ok(value as u64);
    }
    Err(Error::input("step", format!("is {value}; it must be a whole number of at least {least}")))
}

/// A whole power, by squaring.
fn power<R: Real>(base: R, exponent: u64) -> R {
    if exponent == 0 {
        return R::constant(1.0);
    }
    let half = power(base, exponent / 2);
    if exponent.is_multiple_of(2) { half * half } else { half * half * base }
}

/// What [`clip_grad_norm`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct ClipGradNormOutput<R> {
    /// The gradient, scaled down if it was too long.
    pub grad: ArrayD<R>,
    /// Its norm before that.
    pub norm: R,
}

/// The gradient with its Euclidean norm limited.
///
/// ```text
/// norm = sqrt(sum grad^2)        grad <- grad min(1, max_norm / (norm + eps))
/// ```
///
/// Clauses `optim.clip-grad-norm` and below. Pascanu et al. (arXiv 1211.5063); `torch.nn.utils.clip_grad_norm_`.
///
/// * `grad`: any shape, all parameters' gradients together; data, no gradient flows
///
/// No entries have the norm 0.
///
/// # Errors
/// `option` if `max_norm` is not above 0 or eps is negative.
///
/// # Example
/// ```
/// use grpo_oracle::{options::ClipGradNorm, reference::optim};
/// use ndarray::array;
/// let exact = ClipGradNorm { max_norm: 2.5, eps: 0.0 };
/// let clipped = optim::clip_grad_norm(&array![3.0, -4.0].into_dyn(), &exact)?;
/// assert_eq!((clipped.grad, clipped.norm), (array![1.5, -2.0].into_dyn(), 5.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn clip_grad_norm<R: Real>(grad: &ArrayRefD<R>, options: &ClipGradNorm) -> Result<ClipGradNormOutput<R>> {
    options.check()?;
    Axes::default().bind_any("grad", grad.shape())?;
    let norm = R::sum(grad.iter().map(|&g| g * g)).sqrt();
    let coefficient = R::constant(1.0).min(R::constant(options.max_norm) / (norm + R::constant(options.eps)));
    Ok(ClipGradNormOutput { grad: grad.mapv(|g| g * coefficient), norm })
}

/// A linear layer with a low-rank update of its frozen weights.
///
/// ```text
/// y = x w^T + (alpha / rank) x a^T b^T
/// ```
///
/// Clauses `optim.lora` and below. Hu et al. (arXiv 2106.09685) Eq. 3; PEFT.
///
/// * `x`: `[B, I]`; gradient flows
/// * `w`: `[O, I]`, the frozen weights; constants, no gradient flows
/// * `a`: `[R, I]`; gradient flows
/// * `b`: `[O, R]`, at first 0, so that the update is too; gradient flows
///
/// # Errors
/// `rank` or `shape` if the shapes do not fit; `option` if alpha is not finite, or if `rank` is given and is not R, or
/// if R is 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Lora, reference::optim};
/// use ndarray::array;
/// let (x, w) = (array![[1.0, 2.0]], array![[10.0, 0.0], [0.0, 10.0]]);
/// let (a, b) = (array![[1.0, 1.0]], array![[0.0], [1.0]]); // adds alpha (x1 + x2) to the second output
/// let y = optim::lora(&x, &w, &a, &b, &Lora { alpha: 4.0, rank: Some(1) })?;
/// assert_eq!(y, array![[10.0, 32.0]]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn lora<R: Real>(
    x: &ArrayRef2<R>,
    w: &ArrayRef2<R>,
    a: &ArrayRef2<R>,
    b: &ArrayRef2<R>,
    options: &Lora,
) -> Result<Array2<R>> {
    options.check()?;
    let axes = Axes::default().bind("x", &["B", "I"], x.shape())?.bind("w", &["O", "I"], w.shape())?;
    let rank = axes.bind("a", &["R", "I"], a.shape())?.bind("b", &["O", "R"], b.shape())?.length("R");
    if rank == 0 || options.rank.is_some_and(|said| said != rank) {
        return Err(Error::option("rank", format!("must be that of the matrices, {rank}, and at least 1")));
    }
    let scale = R::constant(options.alpha) / R::constant(rank as f64);
    let low = Array2::from_shape_fn((x.nrows(), rank), |(row, r)| dot(&x.row(row), &a.row(r)));
    Ok(Array2::from_shape_fn((x.nrows(), w.nrows()), |(row, out)| {
        let frozen = w.row(out).mapv(R::detach);
        dot(&x.row(row), &frozen) + scale * dot(&low.row(row), &b.row(out))
    }))
}

fn dot<R: Real>(left: &ArrayRef1<R>, right: &ArrayRef1<R>) -> R {
    R::sum(left.iter().zip(right).map(|(&left, &right)| left * right))
}

/// What the learning rate is multiplied by at a step.
///
/// ```text
/// scale = step / warmup_steps                                     while step < warmup_steps
/// scale = 1                                                       constant
/// scale = min_ratio + (1 - min_ratio) (1 - progress)              linear
/// scale = min_ratio + (1 - min_ratio) (1 + cos(pi progress)) / 2  cosine
/// progress = min(1, (step - warmup_steps) / max(1, total_steps - warmup_steps))
/// ```
///
/// Clauses `optim.schedule` and below. transformers `get_linear_schedule_with_warmup` and its fellows; the cosine is that
/// of Loshchilov and Hutter (arXiv 1608.03983) Eq. 5.
///
/// * `step`: how many steps were taken before this one, from 0
///
/// # Errors
/// `option` if an option is outside its domain, `input` if `step` is not a whole number of at least 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Schedule, reference::optim};
/// let linear = Schedule::linear(2, 10);
/// let scale = |step: f64| optim::schedule(step, &linear);
/// assert_eq!((scale(0.0)?, scale(1.0)?, scale(2.0)?), (0.0, 0.5, 1.0));
/// assert_eq!((scale(4.0)?, scale(10.0)?, scale(11.0)?), (0.75, 0.0, 0.0));
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn schedule<R: Real>(step: R, options: &Schedule) -> Result<R> {
    options.check()?;
    whole(step, 0)?;
    let of = |number: f64| R::constant(number);
    let (one, warmup_steps) = (of(1.0), f64::from(options.warmup_steps));
    if step.value() < warmup_steps {
        return Ok(step / of(warmup_steps));
    }
    let left = f64::from(options.total_steps) - warmup_steps;
    let progress = one.min((step - of(warmup_steps)) / of(left.max(1.0)));
    let course = match options.kind {
        ScheduleKind::Constant => return Ok(one),
        ScheduleKind::Linear => one - progress,
        ScheduleKind::Cosine => (one + (of(std::f64::consts::PI) * progress).cos()) / of(2.0),
    };
    Ok(of(options.min_ratio) + (one - of(options.min_ratio)) * course)
}
