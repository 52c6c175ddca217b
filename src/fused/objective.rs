//! The objectives by themselves: the loss of every token (GMPO: of every sequence) with the gradient of their sum, by
//! the passes that [`loss`](super::loss) makes. Names and arguments are those of [`crate::torch::objective`]; on the CPU
//! only.

use tch::{Kind, Tensor};

use super::loss::{Batch, Given, check_cpu};
use super::memory::{Element, Fresh};
use super::rows::{self, Rows};
use super::sweep::{Found, Plan, Real, Sums, Weights, sweep};
use crate::Result;
use crate::axes::Axes;
use crate::options::{
    ActorLoss, Aggregate, Cispo, Clip, Gmpo, Gspo, LossAggMode, LossOptions, Objective, Sapo,
};

/// Losses and the gradient of their sum.
#[derive(Debug)]
pub struct Losses {
    /// The loss of every token, `[B, T]`, or of every sequence, `[B]`.
    pub loss: Tensor,
    /// The gradient of the losses' sum by `logp`, `[B, T]`.
    pub grad_logp: Tensor,
}

/// The naive policy-gradient loss of every token. See [`crate::torch::objective::policy_gradient`].
///
/// # Errors
/// `shape` if the shapes differ; `unsupported` off the CPU.
pub fn policy_gradient(logp: &Tensor, advantages: &Tensor) -> Result<Losses> {
    Axes::default().bind("logp", &["B", "T"], &logp.size())?.bind(
        "advantages",
        &["B", "T"],
        &advantages.size(),
    )?;
    let every = Tensor::ones(logp.size(), (Kind::Bool, logp.device()));
    let (losses, _) = of_tokens(logp, logp, advantages, &every, &summed(Objective::Gpg, Clip::eq29()))?;
    Ok(losses)
}

/// The clipped surrogate loss of every token. See [`crate::torch::objective::clip`].
///
/// # Errors
/// `shape` if the shapes differ, `option` if a bound is outside its domain, `input` if `response_mask` is not boolean;
/// `unsupported` off the CPU.
pub fn clip(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Clip,
) -> Result<Losses> {
    let options = summed(Objective::Vanilla, *options);
    Ok(of_tokens(logp, logp_old, advantages, response_mask, &options)?.0)
}

/// The loss of every token with a bounded ratio as its constant weight. See [`crate::torch::objective::cispo`].
///
/// # Errors
/// As [`clip`].
pub fn cispo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Cispo,
) -> Result<Losses> {
    let options = summed(Objective::Cispo(*options), Clip::eq29());
    Ok(of_tokens(logp, logp_old, advantages, response_mask, &options)?.0)
}

/// The loss of every token with a soft gate in the place of the clip. See [`crate::torch::objective::sapo`].
///
/// # Errors
/// As [`clip`].
pub fn sapo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Sapo,
) -> Result<Losses> {
    let options = summed(Objective::Sapo(*options), Clip::eq29());
    Ok(of_tokens(logp, logp_old, advantages, response_mask, &options)?.0)
}

/// What [`gspo`] gives.
#[derive(Debug)]
pub struct GspoLosses {
    /// The losses and the gradient.
    pub losses: Losses,
    /// The ratio of every sequence, `[B]`.
    pub ratio: Tensor,
    /// The share of kept tokens whose gain is clipped; 0 when there are none.
    pub clip_fraction: f64,
}

/// The clipped loss of every token with the ratio of its sequence. See [`crate::torch::objective::gspo`].
///
/// # Errors
/// As [`clip`].
pub fn gspo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Gspo,
) -> Result<GspoLosses> {
    options.check()?;
    let batch = checked(logp, logp_old, advantages, response_mask)?;
    match batch.kind() {
        Kind::Double => batch.gspo::<f64>(options),
        _ => batch.gspo::<f32>(options),
    }
}

/// The loss of every sequence with the geometric mean of its tokens' clipped ratios.
/// See [`crate::torch::objective::gmpo`].
///
/// # Errors
/// As [`clip`], with one advantage a sequence.
pub fn gmpo(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &Gmpo,
) -> Result<Losses> {
    options.check()?;
    let axes = Axes::default()
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("advantages", &["B"], &advantages.size())?;
    axes.bind("response_mask", &["B", "T"], &response_mask.size())?;
    let of_tokens = advantages.unsqueeze(1).expand(logp.size(), false);
    let batch = checked(logp, logp_old, &of_tokens, response_mask)?;
    match batch.kind() {
        Kind::Double => batch.gmpo::<f64>(options),
        _ => batch.gmpo::<f32>(options),
    }
}

/// The sum of the tokens' losses, and no other term.
pub(super) fn summed(objective: Objective, clip: Clip) -> LossOptions {
    let aggregate = Aggregate::local(LossAggMode::TokenSum);
    LossOptions { objective, terms: ActorLoss { clip, aggregate, ..ActorLoss::grpo() } }
}

/// The losses of tokens, their gradient, and the sums over them.
pub(super) fn of_tokens(
    logp: &Tensor,
    logp_old: &Tensor,
    advantages: &Tensor,
    response_mask: &Tensor,
    options: &LossOptions,
) -> Result<(Losses, Sums)> {
    options.check()?;
    let batch = checked(logp, logp_old, advantages, response_mask)?;
    match batch.kind() {
        Kind::Double => batch.losses::<f64>(options),
        _ => batch.losses::<f32>(options),
    }
}

fn checked(logp: &Tensor, logp_old: &Tensor, advantages: &Tensor, response_mask: &Tensor) -> Result<Batch> {
    let mask = Some(response_mask);
    let given =
        Given { logp, logp_old, logp_ref: None, advantages, entropy: None, mask, is_entropy_needed: false };
    let batch = given.checked(&["B", "T"])?;
    check_cpu(logp.device())?;
    Ok(batch)
}

impl Batch {
    fn losses<F: Real + Element>(&self, options: &LossOptions) -> Result<(Losses, Sums)> {
        let (shape, one) = (self.logp.size(), [F::of(1.0)]);
        let tokens = self.tokens(alike(&one))?;
        let (mut loss, mut grad_logp) = (Fresh::zeros(&shape), Fresh::zeros(&shape));
        let found = Found {
            grad_logp: grad_logp.entries_mut()?,
            grad_entropy: None,
            losses: Some(loss.entries_mut()?),
        };
        let sums = sweep(&tokens, &Plan::of(options), found);
        Ok((Losses { loss: loss.into_tensor(), grad_logp: grad_logp.into_tensor() }, sums))
    }

    fn gspo<F: Real + Element>(&self, options: &Gspo) -> Result<GspoLosses> {
        let (shape, one) = (self.logp.size(), [F::of(1.0)]);
        let tokens = self.tokens(alike(&one))?;
        let (mut loss, mut grad_logp) = (Fresh::zeros(&shape), Fresh::zeros(&shape));
        let mut rows = Rows { grad_logp: grad_logp.entries_mut()?, losses: Some(loss.entries_mut()?) };
        let sums = rows::gspo(&tokens, shape[1] as usize, options, 1.0, &mut rows);
        let (_, kept) = rows::kept_sum(tokens.mask, |_| 0.0);
        Ok(GspoLosses {
            losses: Losses { loss: loss.into_tensor(), grad_logp: grad_logp.into_tensor() },
            ratio: of_sequences(sums.ratios, shape[0], 1.0)?,
            clip_fraction: sums.clipped as f64 / kept.max(1.0),
        })
    }

    fn gmpo<F: Real + Element>(&self, options: &Gmpo) -> Result<Losses> {
        let (shape, one) = (self.logp.size(), [F::of(1.0)]);
        let tokens = self.tokens(alike(&one))?;
        let width = shape[1] as usize;
        let of_rows: Vec<F> = tokens.advantages.iter().step_by(width.max(1)).copied().collect();
        let mut grad_logp = Fresh::zeros(&shape);
        let mut rows = Rows { grad_logp: grad_logp.entries_mut()?, losses: None };
        let sums = rows::gmpo(&tokens, width, &of_rows, [1.0, 1.0], options, &mut rows);
        Ok(Losses { loss: of_sequences(sums.losses, shape[0], 0.0)?, grad_logp: grad_logp.into_tensor() })
    }
}

/// One weight for all tokens: they are a single row.
fn alike<F: Real>(weight: &[F; 1]) -> Weights<'_, F> {
    Weights::OfRows { of_rows: weight, width: usize::MAX }
}

/// One number a sequence; sequences without any token, of which the pass knows nothing, have `otherwise`.
fn of_sequences<F: Real + Element>(mut numbers: Vec<F>, count: i64, otherwise: f64) -> Result<Tensor> {
    numbers.resize(count as usize, F::of(otherwise));
    let mut tensor = Fresh::zeros(&[count]);
    tensor.entries_mut()?.copy_from_slice(&numbers);
    Ok(tensor.into_tensor())
}
