//! Kernels on NVIDIA devices: CUDA C++ from `kernels/`, compiled by NVRTC at first use for the device at hand, and
//! launched on libtorch's current stream, so that they take their turn among its own.
//!
//! Nothing of CUDA is needed to build: libcuda and NVRTC are looked for when a kernel is first wanted ([`check`]).
#![allow(unsafe_code)]

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::{result as driver, sys as driver_sys};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use tch::{Device, Kind, Tensor};

use super::loss::Batch;
use super::sweep::Sums;
use crate::options::{Aggregate, Clip, ImportanceLevel, KlPenalty, LossAggMode, LossOptions, Objective};
use crate::{Error, Result};

const LOSS: &str = include_str!("kernels/loss.cu");
const HEAD: &str = include_str!("kernels/head.cu");

/// Whether kernels can be compiled and run here.
///
/// # Errors
/// `unsupported`, with what is missing.
pub fn check() -> Result<()> {
    // SAFETY: opens the library, which has no other effect than its own initialisation.
    if !unsafe { driver_sys::is_culib_present() } {
        return Err(unsupported("there is no CUDA driver (libcuda)"));
    }
    check_compiler()
}

/// Whether kernels can be compiled here, for whatever device.
///
/// # Errors
/// `unsupported` if there is no NVRTC.
pub fn check_compiler() -> Result<()> {
    // SAFETY: as above.
    if unsafe { nvrtc_sys::is_culib_present() } {
        return Ok(());
    }
    Err(unsupported(
        "there is no NVRTC (libnvrtc), which compiles the kernels; PyTorch's package brings it along",
    ))
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { what: format!("the fused loss cannot run on CUDA: {what}") }
}

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

    /// What the source is compiled with, as `-D` options.
    pub fn definitions(&self) -> Vec<String> {
        let Self { real, objective, kl } = self;
        vec![format!("-DREAL={real}"), format!("-DOBJECTIVE={objective}"), format!("-DKL={kl}")]
    }

    /// Machine code for an architecture such as `sm_90`; needs no device.
    ///
    /// # Errors
    /// `unsupported` without NVRTC, or with what the compiler has to say.
    pub fn compile(&self, architecture: &str) -> Result<Vec<u8>> {
        compile(LOSS, &self.definitions(), architecture)
    }
}

/// The head's kernels as machine code for an architecture such as `sm_90`; needs no device. Nothing launches them yet: the
/// head on a device is made of libtorch's own.
///
/// # Errors
/// As [`Variant::compile`].
pub fn compile_head(architecture: &str) -> Result<Vec<u8>> {
    compile(HEAD, &[], architecture)
}

/// A kernel's source as machine code.
pub(super) fn compile(source: &str, definitions: &[String], architecture: &str) -> Result<Vec<u8>> {
    check_compiler()?;
    hold_builtins();
    let source = CString::new(source).map_err(|_| unsupported("the source holds a 0"))?;
    let failed = |problem: nvrtc::NvrtcError| unsupported(&format!("NVRTC: {problem:?}"));
    let mut options = definitions.to_vec();
    options.push(format!("--gpu-architecture={architecture}"));
    let program = nvrtc::create_program(&source, Some(c"kernel.cu")).map_err(failed)?;
    // SAFETY: the program was just made, and is done away with after its last use; the buffer has the size that NVRTC
    // asks for.
    unsafe {
        let code = nvrtc::compile_program(program, &options)
            .map_err(|_| unsupported(&log(program)))
            .and_then(|()| {
                let mut size = 0;
                nvrtc_sys::nvrtcGetCUBINSize(program, &raw mut size).result().map_err(failed)?;
                let mut code = vec![0_u8; size];
                nvrtc_sys::nvrtcGetCUBIN(program, code.as_mut_ptr().cast()).result().map_err(failed)?;
                Ok(code)
            });
        nvrtc::destroy_program(program).map_err(failed)?;
        code
    }
}

/// Opens the library that NVRTC opens by name when it compiles: NVRTC looks in the system's folders alone, this program
/// beside PyTorch's wheel too, and what is open already is found. Where that fails, NVRTC may yet find it.
fn hold_builtins() {
    static HELD: OnceLock<Option<libloading::os::unix::Library>> = OnceLock::new();
    HELD.get_or_init(|| {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: two numbers are written; the library does nothing when it is opened.
        unsafe {
            nvrtc_sys::nvrtcVersion(&raw mut major, &raw mut minor).result().ok()?;
            let name = format!("libnvrtc-builtins.so.{major}.{minor}");
            let now = libloading::os::unix::RTLD_NOW;
            libloading::os::unix::Library::open(Some(name), now).ok()
        }
    });
}

/// What the compiler says, on one line.
///
/// # Safety
/// The program has not been destroyed.
unsafe fn log(program: nvrtc_sys::nvrtcProgram) -> String {
    // SAFETY: as the caller promises.
    let log = unsafe { nvrtc::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = log.iter().map(|&character| character as u8).collect();
    let text = CStr::from_bytes_until_nul(&bytes).map(CStr::to_string_lossy).unwrap_or_default();
    format!("NVRTC: {}", text.split_whitespace().collect::<Vec<_>>().join(" "))
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
pub(super) type Out = (Tensor, Option<Tensor>, Tensor);

/// The loss of tensors on a CUDA device: of rows of `width` tokens, each row with the weight of its tokens.
pub(super) fn loss(batch: &Batch, row_weights: &Tensor, width: i64, options: &LossOptions) -> Result<Out> {
    check()?;
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
    let kernel = Kernel::of(Variant::of(options, kind), device)?;
    let arguments =
        [(&raw const tokens).cast::<c_void>(), (&raw const plan).cast(), (&raw const found).cast()];
    // SAFETY: the arguments are laid out as the kernel declares them, and every pointer in them is of a contiguous
    // tensor on this device, of the kind that the variant is compiled for and of as many entries as it goes over.
    unsafe { kernel.launch(blocks as u32, THREADS, &arguments)? };
    Ok((grad_logp, grad_entropy, sums.sum_dim_intlist(0i64, false, Kind::Double)))
}

/// The weight of every row's tokens, `[B]`, computed where the mask is: nothing waits. What
/// [`weights`](super::loss::weights) gives off the CPU; the arguments have been checked.
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

/// A kernel on a device, loaded for as long as the process lives.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    context: driver_sys::CUcontext,
    function: driver_sys::CUfunction,
    device: i32,
}

// SAFETY: handles of the driver, which may be used from any thread.
unsafe impl Send for Kernel {}

impl Kernel {
    /// A variant of the loss, compiled unless it has been before.
    fn of(variant: Variant, device: Device) -> Result<Self> {
        static LOADED: OnceLock<Mutex<HashMap<(Variant, i32), Kernel>>> = OnceLock::new();
        let Device::Cuda(index) = device else {
            return Err(unsupported(&format!("{device:?} is not a CUDA device")));
        };
        let loaded = LOADED.get_or_init(Mutex::default);
        let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(kernel) = loaded.get(&(variant, index as i32)) {
            return Ok(*kernel);
        }
        let kernel = Self::load(LOSS, &variant.definitions(), c"loss", index as i32)?;
        loaded.insert((variant, index as i32), kernel);
        Ok(kernel)
    }

    /// A kernel of a source by its name, compiled for the device.
    pub(super) fn load(source: &str, definitions: &[String], name: &CStr, device: i32) -> Result<Self> {
        use driver_sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        check()?;
        driver::init().map_err(failed)?;
        let handle = driver::device::get(device).map_err(failed)?;
        // SAFETY: the device was just asked for. Its primary context, which libtorch works in, is never given back.
        let (major, minor, context) = unsafe {
            let ask = |attribute| driver::device::get_attribute(handle, attribute).map_err(failed);
            (ask(MAJOR)?, ask(MINOR)?, driver::primary_ctx::retain(handle).map_err(failed)?)
        };
        let code = compile(source, definitions, &format!("sm_{major}{minor}"))?;
        // SAFETY: the code is what NVRTC made for this device; the module is never unloaded.
        let function = within(context, || unsafe {
            let module = driver::module::load_data(code.as_ptr().cast())?;
            driver::module::get_function(module, name.to_owned())
        })?;
        Ok(Self { context, function, device })
    }

    /// Launches it on libtorch's current stream.
    ///
    /// # Safety
    /// The arguments point to what the kernel declares, and it writes to no memory but tensors' that the caller has made.
    pub(super) unsafe fn launch(&self, blocks: u32, threads: u32, arguments: &[*const c_void]) -> Result<()> {
        let stream = current_stream(self.device)?;
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(|argument| argument.cast_mut()).collect();
        // SAFETY: as the caller promises; the function belongs to this context.
        within(self.context, || unsafe {
            driver::launch_kernel(self.function, (blocks, 1, 1), (threads, 1, 1), 0, stream, &mut arguments)
        })
    }
}

/// Does something in a context, and leaves the thread in the one that it was in.
fn within<T>(
    context: driver_sys::CUcontext,
    work: impl FnOnce() -> std::result::Result<T, driver::DriverError>,
) -> Result<T> {
    let before = driver::ctx::get_current().map_err(failed)?;
    // SAFETY: a retained primary context, and the one that the thread was in.
    unsafe { driver::ctx::set_current(context) }.map_err(failed)?;
    let outcome = work().map_err(failed);
    if let Some(before) = before {
        unsafe { driver::ctx::set_current(before) }.map_err(failed)?;
    }
    outcome
}

fn failed(problem: driver::DriverError) -> Error {
    unsupported(&format!("the driver says {problem:?}"))
}

/// libtorch's current stream on a device, by its C interface. Found by name when it is wanted, because a libtorch without
/// CUDA does not have it.
fn current_stream(device: i32) -> Result<driver_sys::CUstream> {
    type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;
    let mut stream = std::ptr::null_mut();
    // SAFETY: the function has this signature in libtorch's `aoti_torch/c/shim.h`, and writes one pointer.
    let code = unsafe {
        let process = libloading::os::unix::Library::this();
        let ask = process
            .get::<CurrentStream>(b"aoti_torch_get_current_cuda_stream\0")
            .map_err(|_| unsupported("libtorch has no CUDA"))?;
        ask(device, &raw mut stream)
    };
    if code == 0 { Ok(stream.cast()) } else { Err(unsupported("libtorch has no current stream there")) }
}
