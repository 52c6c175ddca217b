//! The whole loss of tokens in one launch.
#![allow(unsafe_code)]

use std::ffi::c_void;

use tch::{Kind, Tensor};

use super::{Gpu, Launch, Program, Source, pointer};
use crate::Result;
use crate::fused::loss::Batch;
use crate::fused::sweep::Sums;
use crate::options::{Aggregate, Clip, ImportanceLevel, KlPenalty, LossAggMode, LossOptions, Objective};

/// One of the kernels that the loss's source becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Variant {
    real: &'static str,
    objective: &'static str,
    kl: &'static str,
}

const REALS: [&str; 2] = ["float", "double"];
const OBJECTIVES: [&str; 6] = ["VANILLA", "GPG", "CISPO", "SAPO", "GSPO", "GMPO"];
const KLS: [&str; 5] = ["KL_NONE", "KL_K1", "KL_ABS", "KL_K2", "KL_K3"];

impl Variant {
    /// Every one.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for real in REALS {
            for objective in OBJECTIVES {
                all.extend(KLS.map(|kl| Self { real, objective, kl }));
            }
        }
        all
    }

    /// The one that computes this loss from tensors of this kind.
    pub fn of(options: &LossOptions, kind: Kind) -> Self {
        let terms = &options.terms;
        Self {
            real: if kind == Kind::Double { "double" } else { "float" },
            objective: match options.objective {
                Objective::Vanilla => "VANILLA",
                Objective::Gpg => "GPG",
                Objective::Cispo(_) => "CISPO",
                Objective::Sapo(_) => "SAPO",
                Objective::Gspo(_) => "GSPO",
                Objective::GeoMean(_) => "GMPO",
            },
            kl: match terms.kl_loss_type {
                _ if terms.kl_loss_coef == 0.0 => "KL_NONE",
                KlPenalty::K1 | KlPenalty::K1Plus => "KL_K1",
                KlPenalty::Abs | KlPenalty::AbsPlus => "KL_ABS",
                KlPenalty::K2 | KlPenalty::K2Plus => "KL_K2",
                KlPenalty::K3 | KlPenalty::K3Plus => "KL_K3",
            },
        }
    }

    /// Its program.
    pub fn program(&self) -> Program {
        let Self { real, objective, kl } = self;
        let definitions =
            [format!("-DREAL={real}"), format!("-DOBJECTIVE={objective}"), format!("-DKL={kl}")];
        Program { source: Source::Loss, definitions: definitions.to_vec() }
    }
}

/// The options as the kernel takes them; the order is that of `Plan` in `kernels/loss.cu`. An absent limit is an
/// infinite one.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Plan {
    own: RatioPlan,
    told: RatioPlan,
    tau_pos: f64,
    tau_neg: f64,
    log_ratio_max: f64,
    by_sequence: f64,
    by_mean: f64,
    kl_input_limit: f64,
    kl_output_limit: f64,
    kl_weight_limit: f64,
    kl_coef: f64,
    kl_through: f64,
    kl_weighed: f64,
    entropy_coeff: f64,
    per_step: f64,
    infinity: f64,
}

#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct RatioPlan {
    limit: f64,
    low: f64,
    high: f64,
    c: f64,
}

impl RatioPlan {
    fn of(clip: &Clip) -> Self {
        Self {
            limit: clip.log_ratio_clamp.unwrap_or(f64::INFINITY),
            low: 1.0 - clip.clip_ratio_low,
            high: 1.0 + clip.clip_ratio_high,
            c: clip.clip_ratio_c.unwrap_or(f64::INFINITY),
        }
    }
}

impl Plan {
    fn of(options: &LossOptions) -> Self {
        let terms = &options.terms;
        let or_infinite = |limit: Option<f64>| limit.unwrap_or(f64::INFINITY);
        let yes = |holds: bool| f64::from(u8::from(holds));
        let mut plan = Self {
            own: RatioPlan::of(&options.clip()),
            told: RatioPlan::of(&options.clip()),
            tau_pos: 1.0,
            tau_neg: 1.0,
            log_ratio_max: f64::INFINITY,
            by_sequence: 0.0,
            by_mean: 1.0,
            kl_input_limit: or_infinite(terms.kl_input_clamp),
            kl_output_limit: or_infinite(terms.kl_output_clamp),
            kl_weight_limit: or_infinite(terms.clip.log_ratio_clamp),
            kl_coef: terms.kl_loss_coef,
            kl_through: yes(terms.kl_loss_type.straight_through()),
            kl_weighed: yes(terms.kl_ratio_weight),
            entropy_coeff: terms.entropy_coeff,
            per_step: 1.0 / terms.gradient_accumulation_steps,
            infinity: f64::INFINITY,
        };
        match &options.objective {
            Objective::Vanilla | Objective::Gpg => {}
            Objective::Cispo(cispo) => {
                plan.own.limit = or_infinite(cispo.log_ratio_clamp);
                plan.own.low = cispo.clip_ratio_low.map_or(f64::NEG_INFINITY, |low| 1.0 - low);
                plan.own.high = cispo.upper_bound();
            }
            Objective::Sapo(sapo) => {
                plan.own.limit = or_infinite(sapo.log_ratio_clamp);
                (plan.tau_pos, plan.tau_neg) = (sapo.tau_pos, sapo.tau_neg);
            }
            Objective::Gspo(gspo) => {
                let level = gspo.importance_sampling_level;
                plan.log_ratio_max = or_infinite(gspo.log_ratio_max);
                plan.by_sequence = yes(level != ImportanceLevel::SequenceToken);
                plan.by_mean = yes(level != ImportanceLevel::SequenceSum);
            }
            Objective::GeoMean(gmpo) => {
                (plan.own.low, plan.own.high) = (-gmpo.clip_ratio_low, gmpo.clip_ratio_high);
            }
        }
        plan
    }

    /// The numbers in the kernel's order.
    fn to_vec(self) -> Vec<f64> {
        let Self { own, told, tau_pos, tau_neg, log_ratio_max, by_sequence, by_mean, .. } = self;
        let Self {
            kl_input_limit, kl_output_limit, kl_weight_limit, kl_coef, kl_through, kl_weighed, ..
        } = self;
        let Self { entropy_coeff, per_step, infinity, .. } = self;
        let of_ratio = |RatioPlan { limit, low, high, c }: RatioPlan| [limit, low, high, c];
        let rest = [
            tau_pos,
            tau_neg,
            log_ratio_max,
            by_sequence,
            by_mean,
            kl_input_limit,
            kl_output_limit,
            kl_weight_limit,
            kl_coef,
            kl_through,
            kl_weighed,
            entropy_coeff,
            per_step,
            infinity,
        ];
        [of_ratio(own).as_slice(), &of_ratio(told), &rest].concat()
    }
}

/// The options' numbers in the order of the kernel's `Plan`, for a test that runs the kernel's arithmetic on the CPU.
pub fn plan(options: &LossOptions) -> Vec<f64> {
    Plan::of(options).to_vec()
}

/// `Tokens` of the kernel.
#[repr(C)]
struct Tokens {
    logp: *const c_void,
    logp_old: *const c_void,
    logp_ref: *const c_void,
    advantages: *const c_void,
    entropy: *const c_void,
    mask: *const c_void,
    row_weights: *const c_void,
    sequence_weight: *const c_void,
    count: i64,
    width: i64,
}

/// `Found` of the kernel.
#[repr(C)]
struct Found {
    grad_logp: *mut c_void,
    grad_entropy: *mut c_void,
    sums: *mut c_void,
}

/// Threads of a block.
const THREADS: u32 = 256;
/// Blocks at most: a few for each multiprocessor of the largest device, and so many rows of sums to add up at the end.
const BLOCKS: i64 = 1024;

/// What the kernel gives: the gradients by `logp` and by `entropy`, and the sums, all still on the device.
pub(in crate::fused) type Out = (Tensor, Option<Tensor>, Tensor);

/// The loss of tensors on a CUDA device: of rows of `width` tokens, each row with the weight of its tokens.
pub(in crate::fused) fn loss(
    batch: &Batch,
    row_weights: &Tensor,
    width: i64,
    options: &LossOptions,
) -> Result<Out> {
    let (kind, device) = (batch.logp.kind(), batch.logp.device());
    let grad_logp = batch.logp.empty_like();
    let grad_entropy = batch.is_entropy_needed.then(|| batch.logp.empty_like());
    let count = batch.logp.numel() as i64;
    if count == 0 {
        return Ok((grad_logp, grad_entropy, Tensor::zeros([Sums::COUNT as i64], (Kind::Double, device))));
    }
    let (rows, threads) = (count / width, i64::from(THREADS));
    let units = if options.is_per_token() { (count + threads - 1) / threads } else { rows };
    let blocks = units.clamp(1, BLOCKS);
    let sums = Tensor::empty([blocks, Sums::COUNT as i64], (Kind::Double, device));
    let sequence_weight = sequence_weight(&batch.mask, &options.terms.aggregate);
    let of = |tensor: &Tensor| tensor.data_ptr().cast_const();
    let of_some = |tensor: Option<&Tensor>| tensor.map_or(std::ptr::null(), of);
    let tokens = Tokens {
        logp: of(&batch.logp),
        logp_old: of(&batch.logp_old),
        logp_ref: of_some(batch.logp_ref.as_ref()),
        advantages: of(&batch.advantages),
        entropy: of_some(batch.entropy.as_ref()),
        mask: of(&batch.mask),
        row_weights: of(row_weights),
        sequence_weight: of(&sequence_weight),
        count,
        width,
    };
    let found = Found {
        grad_logp: grad_logp.data_ptr(),
        grad_entropy: grad_entropy.as_ref().map_or(std::ptr::null_mut(), Tensor::data_ptr),
        sums: sums.data_ptr(),
    };
    let plan = Plan::of(options);
    let gpu = Gpu::of(device)?;
    let arguments = [pointer(&tokens), pointer(&plan), pointer(&found)];
    // SAFETY: the arguments are laid out as the kernel declares them, and every pointer in them is of a contiguous
    // tensor on this device, of the kind that the variant is compiled for and of as many entries as it goes over.
    unsafe { gpu.launch(&Variant::of(options, kind).program(), c"loss", blocks, THREADS, &arguments)? };
    Ok((grad_logp, grad_entropy, sums.sum_dim_intlist(0i64, false, Kind::Double)))
}

/// The weight of every row's tokens, `[B]`, computed where the mask is: nothing waits. What
/// [`weights`](crate::fused::loss::weights) gives off the CPU; the arguments have been checked.
pub fn row_weights(mask: &Tensor, options: &Aggregate) -> Tensor {
    let [rows, width] = [0, 1].map(|axis| mask.size()[axis]);
    let ones = Tensor::full([rows], options.dp_size, (Kind::Double, mask.device()));
    let counts = || mask.sum_dim_intlist(1i64, false, Kind::Double);
    let over_tokens = |weights: Tensor| match options.batch_num_tokens {
        Some(count) => weights / count,
        None => weights / mask.sum(Kind::Double).clamp_min(1.0),
    };
    let over_sequences = |weights: Tensor| match options.global_batch_size {
        Some(count) => weights / count,
        None => weights / counts().gt(0.0).sum(Kind::Double).clamp_min(1.0),
    };
    match options.loss_agg_mode {
        LossAggMode::TokenMean => over_tokens(ones),
        LossAggMode::TokenSum => ones,
        LossAggMode::SeqMeanTokenSum => over_sequences(ones),
        LossAggMode::SeqMeanTokenMean => over_sequences(ones) / counts().clamp_min(1.0),
        LossAggMode::SeqMeanTokenSumNorm => {
            over_sequences(ones) / options.loss_scale_factor.unwrap_or((width as f64).max(1.0))
        }
    }
}

/// The weight of a sequence's one loss, without axes.
fn sequence_weight(mask: &Tensor, options: &Aggregate) -> Tensor {
    let one = Tensor::full([1i64], options.dp_size, (Kind::Double, mask.device()));
    match options.global_batch_size {
        Some(count) => one / count,
        None if mask.dim() == 2 => one / mask.any_dim(1, false).sum(Kind::Double).clamp_min(1.0),
        None => one,
    }
}
