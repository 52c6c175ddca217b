//! Kernels on NVIDIA devices: CUDA C++ from `kernels/`, compiled by NVRTC at first use for the device at hand, and
//! launched on libtorch's current stream, so that they take their turn among its own.
//!
//! Nothing of CUDA is needed to build: libcuda and NVRTC are looked for when a kernel is first wanted ([`check`]).
//!
//! What launches kernels is given where they run ([`Launch`]): a device, or in a test the CPU, which the same sources are
//! compiled for.
#![allow(unsafe_code)]

pub mod head;
pub mod loss;
pub mod optim;

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_void};
use std::sync::{Mutex, OnceLock, PoisonError};

use cudarc::driver::{result as driver, sys as driver_sys};
use cudarc::nvrtc::{result as nvrtc, sys as nvrtc_sys};
use tch::{Device, Kind, Tensor};

use crate::{Error, Result};

/// Whether kernels can be compiled and run here.
///
/// # Errors
/// `unsupported`, with what is missing.
pub fn check() -> Result<()> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: opens the library, which has no other effect than its own initialisation.
    if !PRESENT.get_or_init(|| unsafe { driver_sys::is_culib_present() }) {
        return Err(unsupported("there is no CUDA driver (libcuda)"));
    }
    check_compiler()
}

/// Whether kernels can be compiled here, for whatever device.
///
/// # Errors
/// `unsupported` if there is no NVRTC.
pub fn check_compiler() -> Result<()> {
    static PRESENT: OnceLock<bool> = OnceLock::new();
    // SAFETY: as above.
    if *PRESENT.get_or_init(|| unsafe { nvrtc_sys::is_culib_present() }) {
        return Ok(());
    }
    Err(unsupported(
        "there is no NVRTC (libnvrtc), which compiles the kernels; PyTorch's package brings it along",
    ))
}

fn unsupported(what: &str) -> Error {
    Error::Unsupported { what: format!("the fast paths cannot run on CUDA: {what}") }
}

/// A file of kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// `kernels/loss.cu`
    Loss,
    /// `kernels/head.cu`, with `kernels/bf16.cu` before it
    Head,
    /// `kernels/optim.cu`, likewise
    Optim,
}

impl Source {
    /// The text.
    pub fn text(self) -> &'static str {
        match self {
            Self::Loss => include_str!("../kernels/loss.cu"),
            Self::Head => concat!(include_str!("../kernels/bf16.cu"), include_str!("../kernels/head.cu")),
            Self::Optim => concat!(include_str!("../kernels/bf16.cu"), include_str!("../kernels/optim.cu")),
        }
    }
}

/// What is compiled at a time.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    /// The kernels.
    pub source: Source,
    /// What they are compiled with, as `-D` options.
    pub definitions: Vec<String>,
}

impl Program {
    /// Every one that may be wanted.
    pub fn all() -> Vec<Self> {
        let mut all: Vec<Self> = loss::Variant::all().iter().map(loss::Variant::program).collect();
        all.push(head::program());
        all.extend([Kind::Float, Kind::Double].map(optim::program));
        all
    }

    /// Machine code for an architecture such as `sm_90`; needs no device.
    ///
    /// # Errors
    /// `unsupported` without NVRTC, or with what the compiler has to say.
    pub fn compile(&self, architecture: &str) -> Result<Vec<u8>> {
        compile(self.source.text(), &self.definitions, architecture)
    }
}

/// Where kernels run.
pub trait Launch {
    /// The device that their tensors are on.
    fn device(&self) -> Device;

    /// Launches a kernel of a program: so many blocks of so many threads each, with pointers to its arguments.
    ///
    /// # Errors
    /// `unsupported`, with what the compiler or the driver says.
    ///
    /// # Safety
    /// The arguments point to what the kernel declares, and it writes to no memory but tensors' that the caller may
    /// write to.
    unsafe fn launch(
        &self,
        program: &Program,
        kernel: &CStr,
        blocks: i64,
        threads: u32,
        arguments: &[*const c_void],
    ) -> Result<()>;
}

/// The address of a tensor's entries for a kernel, which goes over `count` of them.
fn entries(at: &impl Launch, tensor: &Tensor, kind: Kind, count: i64) -> Result<*mut c_void> {
    let is_plain = tensor.kind() == kind && tensor.device() == at.device() && tensor.is_contiguous();
    if is_plain && tensor.numel() as i64 == count {
        return Ok(tensor.data_ptr());
    }
    Err(unsupported(&format!(
        "a tensor of {:?}, {:?} on {:?}, is not a contiguous one of {count} {kind:?} on {:?}",
        tensor.size(),
        tensor.kind(),
        tensor.device(),
        at.device()
    )))
}

/// An argument as [`Launch::launch`] takes it.
fn pointer<T>(argument: &T) -> *const c_void {
    std::ptr::from_ref(argument).cast()
}

/// A kernel's source as machine code.
fn compile(source: &str, definitions: &[String], architecture: &str) -> Result<Vec<u8>> {
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

/// An NVIDIA device.
#[derive(Debug, Clone, Copy)]
pub struct Gpu {
    index: i32,
}

/// A program on a device, loaded for as long as the process lives.
#[derive(Debug, Clone, Copy)]
struct Loaded {
    context: driver_sys::CUcontext,
    module: driver_sys::CUmodule,
}

// SAFETY: handles of the driver, which may be used from any thread.
unsafe impl Send for Loaded {}

impl Gpu {
    /// The one of this name.
    ///
    /// # Errors
    /// `unsupported` if it is no CUDA device, or without what [`check`] looks for.
    pub fn of(device: Device) -> Result<Self> {
        let Device::Cuda(index) = device else {
            return Err(unsupported(&format!("{device:?} is not a CUDA device")));
        };
        check()?;
        Ok(Self { index: index as i32 })
    }

    /// A program, compiled unless it has been before.
    fn loaded(self, program: &Program) -> Result<Loaded> {
        static LOADED: OnceLock<Mutex<HashMap<i32, HashMap<Program, Loaded>>>> = OnceLock::new();
        let loaded = LOADED.get_or_init(Mutex::default);
        let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let loaded = loaded.entry(self.index).or_default();
        if let Some(there) = loaded.get(program) {
            return Ok(*there);
        }
        let there = self.load(program)?;
        loaded.insert(program.clone(), there);
        Ok(there)
    }

    fn load(self, program: &Program) -> Result<Loaded> {
        use driver_sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        driver::init().map_err(failed)?;
        let handle = driver::device::get(self.index).map_err(failed)?;
        // SAFETY: the device was just asked for. Its primary context, which libtorch works in, is never given back.
        let (major, minor, context) = unsafe {
            let ask = |attribute| driver::device::get_attribute(handle, attribute).map_err(failed);
            (ask(MAJOR)?, ask(MINOR)?, driver::primary_ctx::retain(handle).map_err(failed)?)
        };
        let code = program.compile(&format!("sm_{major}{minor}"))?;
        // SAFETY: the code is what NVRTC made for this device; the module is never unloaded.
        let module = within(context, || unsafe { driver::module::load_data(code.as_ptr().cast()) })?;
        Ok(Loaded { context, module })
    }
}

impl Launch for Gpu {
    fn device(&self) -> Device {
        Device::Cuda(self.index as usize)
    }

    /// On libtorch's current stream.
    unsafe fn launch(
        &self,
        program: &Program,
        kernel: &CStr,
        blocks: i64,
        threads: u32,
        arguments: &[*const c_void],
    ) -> Result<()> {
        let blocks = u32::try_from(blocks).map_err(|_| unsupported("there are too many blocks"))?;
        let Loaded { context, module } = self.loaded(program)?;
        let stream = current_stream(self.index)?;
        let mut arguments: Vec<*mut c_void> = arguments.iter().map(|argument| argument.cast_mut()).collect();
        // SAFETY: as the caller promises; the module belongs to this context and is never unloaded.
        within(context, || unsafe {
            let function = driver::module::get_function(module, kernel.to_owned())?;
            driver::launch_kernel(function, (blocks, 1, 1), (threads, 1, 1), 0, stream, &mut arguments)
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
