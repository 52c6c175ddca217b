//! A whole loss for given log-probabilities: its value, its terms, its gradients and the figures that training reports,
//! in one pass over the tokens.
//!
//! The aggregation is linear: whatever its mode, the loss of the batch is a sum of the tokens' losses, each with a weight
//! that the mask and the options decide ([`weights`]). So tokens can be taken in any order and in any pieces
//! ([`sweep`]), unless the objective looks at whole sequences ([`LossOptions::is_per_token`]).

use tch::{Device, Kind, Tensor};

use super::cuda;
use super::memory::{Element, Fresh, Work, entries, vectorised};
use super::rows::{self, Rows};
use super::sweep::{self, Found, Plan, Real, Sums, Weights};
use crate::axes::Axes;
use crate::options::{Aggregate, LossAggMode, LossOptions, Objective};
use crate::{Error, Result};

/// What [`loss`] gives: the gradients as tensors, and the numbers to be asked for.
#[derive(Debug)]
pub struct FusedLoss {
    /// The loss's gradient by `logp`, `[B, T]`, 0 in masked slots; in single precision at least.
    pub grad_logp: Tensor,
    /// Its gradient by `entropy`, `[B, T]`, if the loss has an entropy term.
    pub grad_entropy: Option<Tensor>,
    sums: TokenSums,
    options: LossOptions,
}

impl FusedLoss {
    /// The loss, its terms and the figures. On a device this waits for them, once for all of them.
    pub fn numbers(&self) -> Numbers {
        self.sums.numbers(&self.options)
    }
}

/// A loss in numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Numbers {
    /// What is minimised.
    pub loss: f64,
    /// The objective, aggregated.
    pub policy_loss: f64,
    /// The KL, aggregated and not yet weighted; 0 when there is none.
    pub kl_loss: f64,
    /// The entropy, aggregated and not yet weighted; 0 when there is none.
    pub entropy_loss: f64,
    /// What training reports.
    pub metrics: Metrics,
}

/// Figures of the tokens that count: the means of [`crate::torch::metrics::policy`], 0 when there are no tokens, and sums.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// The share of tokens whose gain is clipped.
    pub clip_fraction: f64,
    /// The share of tokens whose loss dual clip lowers; 0 when it is off.
    pub clip_fraction_lower: f64,
    /// The mean of -log ratio.
    pub ppo_kl: f64,
    /// The mean ratio.
    pub ratio_mean: f64,
    /// The sum of the tokens' KL terms, each as it enters the loss; 0 when there is none.
    pub kl_sum: f64,
    /// The sum of the tokens' entropies, if they were given.
    pub entropy_sum: f64,
    /// How many tokens count.
    pub tokens: f64,
}

/// Sums over tokens, where they were computed; those of several pieces are added up.
#[derive(Debug)]
pub struct TokenSums(Place);

#[derive(Debug)]
enum Place {
    Cpu(Sums),
    /// In the order of [`Sums::to_array`].
    Device(Tensor),
}

impl TokenSums {
    /// The sums of no tokens.
    pub fn none(device: Device) -> Self {
        Self(match device {
            Device::Cpu => Place::Cpu(Sums::default()),
            device => Place::Device(Tensor::zeros([Sums::COUNT as i64], (Kind::Double, device))),
        })
    }

    /// Adds another piece's, of the same device.
    pub fn add(&mut self, other: &Self) {
        match (&mut self.0, &other.0) {
            (Place::Device(sums), Place::Device(others)) => *sums = &*sums + others,
            (sums, others) => *sums = Place::Cpu(sums.read() + others.read()),
        }
    }

    /// The loss that they are the sums of, its terms and the figures. On a device this waits for them.
    pub fn numbers(&self, options: &LossOptions) -> Numbers {
        numbers(&self.0.read(), options)
    }
}

impl Place {
    fn read(&self) -> Sums {
        match self {
            Self::Cpu(sums) => *sums,
            Self::Device(tensor) => {
                let mut sums = [0.0; Sums::COUNT];
                tensor.to_device(Device::Cpu).copy_data(&mut sums, Sums::COUNT);
                Sums::from_array(sums)
            }
        }
    }
}

pub(super) fn numbers(sums: &Sums, options: &LossOptions) -> Numbers {
    let terms = &options.terms;
    let of_term = |coefficient: f64, sum: f64| if coefficient == 0.0 { 0.0 } else { sum };
    let kl_loss = of_term(terms.kl_loss_coef, sums.kl);
    let entropy_loss = of_term(terms.entropy_coeff, sums.entropy);
    let whole = sums.policy + of_term(terms.kl_loss_coef, terms.kl_loss_coef * kl_loss)
        - of_term(terms.entropy_coeff, terms.entropy_coeff * entropy_loss);
    let mean = |sum: f64| sum / sums.tokens.max(1.0);
    Numbers {
        loss: whole / terms.gradient_accumulation_steps,
        policy_loss: sums.policy,
        kl_loss,
        entropy_loss,
        metrics: Metrics {
            clip_fraction: mean(sums.clipped),
            clip_fraction_lower: mean(sums.lowered),
            ppo_kl: mean(-sums.log_ratio),
            ratio_mean: mean(sums.ratio),
            kl_sum: sums.plain_kl,
            entropy_sum: sums.plain_entropy,
            tokens: sums.tokens,
        },
    }
}

/// The whole loss of a (micro-)batch, as [`crate::torch::objective::actor_loss`] has it for the clipped objective and
/// the trainer puts it together for the others; `group_endpoints` narrows the mask for all of them.
///
/// No graph is built, and inputs that require a gradient are read as they are. What goes back into the model is
/// `(logp * grad_logp).sum()`, whose gradient is the loss's.
///
/// * `logp`, `logp_old`, `advantages`: `[B, T]`; `response_mask`, and `group_endpoints` if given: `[B, T]` bool
/// * `logp_ref`: `[B, T]`, read only if `kl_loss_coef` is not 0
/// * `entropy`: `[B, T]`; read if it is given, for the figures too
///
/// # Errors
/// `shape` if the shapes differ, `option` if one is outside its domain, `input` for a mask that is not boolean, a tensor on
/// another device than `logp`, or `logp_ref` or `entropy` that is needed and absent; `unsupported` on a device that
/// has no fast path (see [`check_device`]).
#[expect(clippy::too_many_arguments, reason = "one for every input of the formula")]
pub fn loss(
    logp: &Tensor,
    logp_old: &Tensor,
    logp_ref: Option<&Tensor>,
    advantages: &Tensor,
    response_mask: &Tensor,
    group_endpoints: Option<&Tensor>,
    entropy: Option<&Tensor>,
    options: &LossOptions,
) -> Result<FusedLoss> {
    options.check()?;
    if let Some(endpoints) = group_endpoints {
        let axes = Axes::default().bind("response_mask", &["B", "T"], &response_mask.size())?;
        axes.bind("group_endpoints", &["B", "T"], &endpoints.size())?;
        of_kind_bool("response_mask", response_mask)?;
        of_kind_bool("group_endpoints", endpoints)?;
        on_device_of(response_mask, "group_endpoints", endpoints)?;
    }
    let (logp_ref, is_entropy_needed) = needed(logp_ref, entropy, options)?;
    let mask = Some(response_mask);
    let given = Given { logp, logp_old, logp_ref, advantages, entropy, mask, is_entropy_needed };
    let mut batch = given.checked(&["B", "T"])?;
    check_device(logp.device())?;
    if let Some(endpoints) = group_endpoints {
        batch.mask = batch.mask.logical_and(endpoints).contiguous();
    }
    let (grad_logp, grad_entropy, sums) = match (logp.device(), batch.kind()) {
        (Device::Cpu, Kind::Double) => batch.on_cpu::<f64>(options)?,
        (Device::Cpu, _) => batch.on_cpu::<f32>(options)?,
        _ => batch.on_cuda(options)?,
    };
    Ok(FusedLoss {
        grad_logp: as_given(grad_logp, logp),
        grad_entropy: grad_entropy.zip(entropy).map(|(gradient, entropy)| as_given(gradient, entropy)),
        sums,
        options: *options,
    })
}

/// The reference's log-probabilities if they are read, and whether the entropy is part of the loss.
fn needed<'a>(
    logp_ref: Option<&'a Tensor>,
    entropy: Option<&Tensor>,
    options: &LossOptions,
) -> Result<(Option<&'a Tensor>, bool)> {
    let (has_kl, has_entropy) = (options.terms.kl_loss_coef != 0.0, options.terms.entropy_coeff != 0.0);
    if has_kl && logp_ref.is_none() {
        return Err(Error::input("logp_ref", "is needed when kl_loss_coef is not 0"));
    }
    if has_entropy && entropy.is_none() {
        return Err(Error::input("entropy", "is needed when entropy_coeff is not 0"));
    }
    Ok((logp_ref.filter(|_| has_kl), has_entropy))
}

/// Some tokens one behind another, `[N]` each, all of which count.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Their log-probabilities.
    pub logp: &'a Tensor,
    /// What they were at sampling time.
    pub logp_old: &'a Tensor,
    /// Under the reference policy; read only if there is a KL term.
    pub logp_ref: Option<&'a Tensor>,
    /// Their advantages.
    pub advantages: &'a Tensor,
    /// Their entropies; read if they are given.
    pub entropy: Option<&'a Tensor>,
    /// What each weighs: its row's entry of [`weights`].
    pub weights: &'a Tensor,
}

/// What [`sweep`] gives.
#[derive(Debug)]
pub struct Swept {
    /// The gradient of the batch's loss by each of these log-probabilities, `[N]`.
    pub grad_logp: Tensor,
    /// The same by each entropy, if the loss has an entropy term.
    pub grad_entropy: Option<Tensor>,
    /// What these tokens add to the batch's sums.
    pub sums: TokenSums,
}

/// A piece of a batch: what some of its tokens add to the loss of the whole, and their gradients, which are final.
///
/// # Errors
/// As [`loss`]; `unsupported` for an objective that looks at whole sequences.
pub fn sweep(tokens: &Tokens<'_>, options: &LossOptions) -> Result<Swept> {
    options.check()?;
    if !options.is_per_token() {
        let what = "this objective looks at whole sequences; its loss cannot be taken in pieces".to_owned();
        return Err(Error::Unsupported { what });
    }
    let Tokens { logp, logp_old, logp_ref, advantages, entropy, weights } = *tokens;
    let (logp_ref, is_entropy_needed) = needed(logp_ref, entropy, options)?;
    let given = Given { logp, logp_old, logp_ref, advantages, entropy, mask: None, is_entropy_needed };
    let batch = given.checked(&["N"])?;
    let axes = Axes::default().bind("logp", &["N"], &logp.size())?;
    axes.bind("weights", &["N"], &weights.size())?;
    on_device_of(logp, "weights", weights)?;
    check_device(logp.device())?;
    let plain = weights.detach().to_kind(batch.kind()).contiguous();
    let (grad_logp, grad_entropy, sums) = match (logp.device(), batch.kind()) {
        (Device::Cpu, Kind::Double) => batch.swept::<f64>(Weights::OfTokens(entries(&plain)?), options)?,
        (Device::Cpu, _) => batch.swept::<f32>(Weights::OfTokens(entries(&plain)?), options)?,
        _ => {
            // Of a flat list every token is a row.
            let weights = weights.detach().to_kind(Kind::Double).contiguous();
            on_device(cuda::loss::loss(&batch, &weights, 1, options)?)
        }
    };
    Ok(Swept {
        grad_logp: as_given(grad_logp, logp),
        grad_entropy: grad_entropy.zip(entropy).map(|(gradient, entropy)| as_given(gradient, entropy)),
        sums,
    })
}

/// A gradient in the kind of what it is the gradient by, in single precision at least.
fn as_given(gradient: Tensor, of: &Tensor) -> Tensor {
    gradient.to_kind(at_least_f32(of.kind()))
}

/// What every token of a row weighs in the loss of the batch, `[B]`, in double precision and without a gradient.
///
/// # Errors
/// `rank` if the mask has not two axes, `option` for a count that is not above 0, `input` if the mask is not boolean.
pub fn weights(response_mask: &Tensor, options: &Aggregate) -> Result<Tensor> {
    options.check()?;
    let axes = Axes::default().bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind_bool("response_mask", response_mask)?;
    if response_mask.device() != Device::Cpu {
        return Ok(cuda::loss::row_weights(response_mask, options));
    }
    let mask = response_mask.contiguous();
    let weights = row_weights(entries(&mask)?, axes.length("B"), axes.length("T"), options);
    Ok(Tensor::from_slice(&weights))
}

/// The weight of every row, whose tokens all weigh the same.
pub(super) fn row_weights(mask: &[u8], rows: usize, width: usize, options: &Aggregate) -> Vec<f64> {
    let counts = vectorised(Counts { mask, rows, width });
    // Where nothing is kept there is nothing to weigh, so that any denominator but 0 will do.
    let tokens = || counts.iter().sum::<f64>().max(1.0);
    let sequences = || (counts.iter().filter(|&&count| count > 0.0).count() as f64).max(1.0);
    let of_sequences = || options.global_batch_size.unwrap_or_else(sequences);
    let denominator = match options.loss_agg_mode {
        LossAggMode::TokenMean => options.batch_num_tokens.unwrap_or_else(tokens),
        LossAggMode::TokenSum => 1.0,
        LossAggMode::SeqMeanTokenSum | LossAggMode::SeqMeanTokenMean => of_sequences(),
        LossAggMode::SeqMeanTokenSumNorm => {
            of_sequences() * options.loss_scale_factor.unwrap_or((width as f64).max(1.0))
        }
    };
    let is_mean = options.loss_agg_mode == LossAggMode::SeqMeanTokenMean;
    let of_row = |&count: &f64| options.dp_size / denominator / if is_mean { count.max(1.0) } else { 1.0 };
    counts.iter().map(of_row).collect()
}

/// How many tokens every row keeps, to be vectorised.
struct Counts<'a> {
    mask: &'a [u8],
    rows: usize,
    width: usize,
}

impl Work for Counts<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run(self) -> Vec<f64> {
        // Loops and no closures, which would not become part of what is compiled for the processor at hand.
        let mut counts = vec![0.0; self.rows];
        for (row, count) in counts.iter_mut().enumerate() {
            let mut kept = 0_u32;
            for &keep in &self.mask[row * self.width..(row + 1) * self.width] {
                kept += u32::from(keep != 0);
            }
            *count = f64::from(kept);
        }
        counts
    }
}

/// The weight of the one loss that each sequence has, of those with a kept token.
fn sequence_weight(mask: &[u8], width: usize, options: &Aggregate) -> f64 {
    let is_kept = |row: &&[u8]| row.iter().any(|&keep| keep != 0);
    let count = || (mask.chunks(width.max(1)).filter(is_kept).count() as f64).max(1.0);
    options.dp_size / options.global_batch_size.unwrap_or_else(count)
}

/// Whether tensors on this device have a fast path.
///
/// # Errors
/// `unsupported`, with what is missing.
pub fn check_device(device: Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        Device::Cuda(_) => cuda::check(),
        other => Err(Error::Unsupported { what: format!("there is no fused loss on {other:?}") }),
    }
}

/// The parts of the loss by themselves are for the CPU.
pub(super) fn check_cpu(device: Device) -> Result<()> {
    match device {
        Device::Cpu => Ok(()),
        other => {
            Err(Error::Unsupported { what: format!("this fast path is for the CPU, not for {other:?}") })
        }
    }
}

/// What a pass is given: tensors of one shape on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given<'a> {
    pub(super) logp: &'a Tensor,
    pub(super) logp_old: &'a Tensor,
    pub(super) logp_ref: Option<&'a Tensor>,
    pub(super) advantages: &'a Tensor,
    pub(super) entropy: Option<&'a Tensor>,
    /// `None` if every token counts.
    pub(super) mask: Option<&'a Tensor>,
    pub(super) is_entropy_needed: bool,
}

impl Given<'_> {
    /// The same in the form that the passes read, if it is as they want it.
    pub(super) fn checked(&self, names: &[&'static str]) -> Result<Batch> {
        let Self { logp, logp_old, logp_ref, advantages, entropy, mask, is_entropy_needed } = *self;
        let numbers = [
            ("logp", Some(logp)),
            ("logp_old", Some(logp_old)),
            ("advantages", Some(advantages)),
            ("logp_ref", logp_ref),
            ("entropy", entropy),
        ];
        let mut axes = Axes::default();
        for (name, tensor) in numbers.into_iter().chain([("response_mask", mask)]) {
            let Some(tensor) = tensor else { continue };
            axes = axes.bind(name, names, &tensor.size())?;
            on_device_of(logp, name, tensor)?;
        }
        mask.map_or(Ok(()), |mask| of_kind_bool("response_mask", mask))?;

        let is_double = numbers.iter().filter_map(|(_, tensor)| *tensor).any(|of| of.kind() == Kind::Double);
        let kind = if is_double { Kind::Double } else { Kind::Float };
        // Their memory alone is read, so that a graph behind them is no matter.
        let plain = |tensor: &Tensor| match tensor.kind() == kind && tensor.is_contiguous() {
            true => tensor.shallow_clone(),
            false => tensor.detach().to_kind(kind).contiguous(),
        };
        let every = || Tensor::ones(logp.size(), (Kind::Bool, logp.device()));
        Ok(Batch {
            logp: plain(logp),
            logp_old: plain(logp_old),
            logp_ref: logp_ref.map(plain),
            advantages: plain(advantages),
            entropy: entropy.map(plain),
            mask: mask.map_or_else(every, Tensor::contiguous),
            is_entropy_needed,
        })
    }
}

/// The tensors of a batch, checked, of one kind and contiguous.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) logp: Tensor,
    pub(super) logp_old: Tensor,
    pub(super) logp_ref: Option<Tensor>,
    pub(super) advantages: Tensor,
    pub(super) entropy: Option<Tensor>,
    pub(super) mask: Tensor,
    /// Whether the entropy is part of the loss.
    pub(super) is_entropy_needed: bool,
}

type Out = (Tensor, Option<Tensor>, TokenSums);

fn on_device((grad_logp, grad_entropy, sums): cuda::loss::Out) -> Out {
    (grad_logp, grad_entropy, TokenSums(Place::Device(sums)))
}

impl Batch {
    /// Of the numbers: single precision, or double if any of them was.
    pub(super) fn kind(&self) -> Kind {
        self.logp.kind()
    }

    /// The loss of the batch on CUDA; nothing waits for it.
    fn on_cuda(&self, options: &LossOptions) -> Result<Out> {
        let weights = cuda::loss::row_weights(&self.mask, &options.terms.aggregate);
        Ok(on_device(cuda::loss::loss(self, &weights, self.logp.size()[1], options)?))
    }

    /// The loss of the batch on the CPU.
    fn on_cpu<F: Real + Element>(&self, options: &LossOptions) -> Result<Out> {
        let shape = self.logp.size();
        let (rows, width) = (shape[0] as usize, shape[1] as usize);
        let of_rows = row_weights(entries(&self.mask)?, rows, width, &options.terms.aggregate);
        let of_rows: Vec<F> = of_rows.into_iter().map(F::of).collect();
        self.swept(Weights::OfRows { of_rows: &of_rows, width }, options)
    }

    /// The pass itself, with the weights of the tokens.
    fn swept<F: Real + Element>(&self, weights: Weights<'_, F>, options: &LossOptions) -> Result<Out> {
        let tokens = self.tokens(weights)?;
        let shape = self.logp.size();
        let mut grad_logp = Fresh::unwritten(&shape);
        let mut grad_entropy = self.is_entropy_needed.then(|| Fresh::unwritten(&shape));
        let policy = of_rows(&tokens, &shape, options, grad_logp.entries_mut()?);
        let found = Found {
            grad_logp: grad_logp.entries_mut()?,
            grad_entropy: grad_entropy.as_mut().map(Fresh::entries_mut).transpose()?,
            losses: None,
        };
        let mut sums = sweep::sweep(&tokens, &Plan::of(options), found);
        sums.policy += policy;
        Ok((grad_logp.into_tensor(), grad_entropy.map(Fresh::into_tensor), TokenSums(Place::Cpu(sums))))
    }

    pub(super) fn tokens<'a, F: Element>(&'a self, weights: Weights<'a, F>) -> Result<sweep::Tokens<'a, F>> {
        Ok(sweep::Tokens {
            logp: entries(&self.logp)?,
            logp_old: entries(&self.logp_old)?,
            logp_ref: self.logp_ref.as_ref().map(entries).transpose()?,
            advantages: entries(&self.advantages)?,
            entropy: self.entropy.as_ref().map(entries).transpose()?,
            mask: entries(&self.mask)?,
            weights,
            first: 0,
        })
    }
}

/// The policy term of an objective that looks at whole sequences: its gradient is written, its weighted loss returned.
fn of_rows<F: Real>(
    tokens: &sweep::Tokens<'_, F>,
    shape: &[i64],
    options: &LossOptions,
    grad_logp: &mut [F],
) -> f64 {
    let width = shape.last().map_or(0, |&width| width as usize);
    let steps = options.terms.gradient_accumulation_steps;
    let mut rows = Rows { grad_logp, losses: None };
    match &options.objective {
        Objective::Gspo(gspo) => rows::gspo(tokens, width, gspo, steps, &mut rows).policy,
        Objective::GeoMean(gmpo) => {
            let advantages = mean_advantages(tokens, width);
            let weight = sequence_weight(tokens.mask, width, &options.terms.aggregate);
            rows::gmpo(tokens, width, &advantages, [weight, steps], gmpo, &mut rows).policy
        }
        _ => 0.0,
    }
}

/// The mean of each row's kept advantages; 0 where none is kept.
fn mean_advantages<F: Real>(tokens: &sweep::Tokens<'_, F>, width: usize) -> Vec<F> {
    let rows = tokens.mask.chunks(width.max(1)).zip(tokens.advantages.chunks(width.max(1)));
    rows.map(|(mask, advantages)| {
        let (sum, count) = rows::kept_sum(mask, |t| advantages[t].wide());
        F::of(sum / count.max(1.0))
    })
    .collect()
}

fn at_least_f32(kind: Kind) -> Kind {
    if kind == Kind::Double { kind } else { Kind::Float }
}

fn of_kind_bool(argument: &str, tensor: &Tensor) -> Result<()> {
    if tensor.kind() == Kind::Bool {
        return Ok(());
    }
    Err(Error::input(argument, format!("is a tensor of {:?} where Bool is wanted", tensor.kind())))
}

fn on_device_of(first: &Tensor, argument: &str, tensor: &Tensor) -> Result<()> {
    if tensor.device() == first.device() {
        return Ok(());
    }
    let devices = (tensor.device(), first.device());
    Err(Error::input(
        argument,
        format!("is on {:?} where {:?} is wanted, as of the others", devices.0, devices.1),
    ))
}
