//! The optimiser's part of a step in few launches, however many parameters there are.
#![allow(unsafe_code)]

use std::ffi::c_void;

use tch::{Device, Kind, Tensor};

use super::{Launch, Program, Source, entries, pointer, unsupported};
use crate::Result;
use crate::fused::optim::{Parameter, Plan};
use crate::options::{AdamW, ClipGradNorm};

/// Threads of a block.
const THREADS: u32 = 512;
/// Entries that a block goes over.
const PIECE: i64 = 1 << 15;

/// The program for parameters of this kind, f32 or f64.
pub fn program(kind: Kind) -> Program {
    let real = if kind == Kind::Double { "double" } else { "float" };
    Program { source: Source::Optim, definitions: vec![format!("-DREAL={real}")] }
}

/// Where the tensors are, on the device, and how they are cut into blocks.
struct Table {
    program: Program,
    parameters: Tensor,
    pieces: Tensor,
    count: i64,
}

impl Table {
    /// Of gradients alone, or of the parameters and means too.
    fn of(at: &impl Launch, kind: Kind, rows: &[Row]) -> Result<Self> {
        apart(rows)?;
        let (mut words, mut pieces) = (Vec::new(), Vec::new());
        for (index, row) in rows.iter().enumerate() {
            let length = row.grad.numel() as i64;
            let is_coarse = row.grad.kind() == Kind::BFloat16;
            let grad = entries(at, row.grad, if is_coarse { Kind::BFloat16 } else { kind }, length)?;
            let address = |tensor: Option<&Tensor>, kind: Kind| {
                tensor.map_or(Ok(std::ptr::null_mut()), |tensor| entries(at, tensor, kind, length))
            };
            let [param, m, v] = [row.param, row.m, row.v].map(|tensor| address(tensor, kind));
            let coarse = address(row.coarse, Kind::BFloat16)?;
            words.extend([param?, grad, m?, v?, coarse].map(|address| address as i64));
            words.extend([length, i64::from(is_coarse)]);
            for first in (0..length).step_by(PIECE as usize) {
                pieces.extend([index as i64, first]);
            }
        }
        let count = pieces.len() as i64 / 2;
        let there = |words: &[i64]| uploaded(words, at.device());
        Ok(Self { program: program(kind), parameters: there(&words), pieces: there(&pieces), count })
    }

    /// Launches a kernel over all pieces, whose first three arguments are the table's.
    ///
    /// # Safety
    /// `others` are the rest of the kernel's arguments; what it goes over besides the gradients has been in the rows.
    unsafe fn launch(
        &self,
        at: &impl Launch,
        kernel: &std::ffi::CStr,
        others: &[*const c_void],
    ) -> Result<()> {
        if self.count == 0 {
            return Ok(());
        }
        let [parameters, pieces] = [&self.parameters, &self.pieces].map(Tensor::data_ptr);
        let own = [pointer(&parameters), pointer(&pieces), pointer(&PIECE)];
        // SAFETY: as the caller promises; the table's rows hold addresses of contiguous tensors of the kind that the
        // program is compiled for and of the length beside them, and the pieces lie within them.
        unsafe { at.launch(&self.program, kernel, self.count, THREADS, &[&own, others].concat()) }
    }
}

/// A row of the table; what a kernel does not go over may be missing.
struct Row<'a> {
    param: Option<&'a Tensor>,
    grad: &'a Tensor,
    m: Option<&'a Tensor>,
    v: Option<&'a Tensor>,
    coarse: Option<&'a Tensor>,
}

impl<'a> Row<'a> {
    fn of(own: &Parameter<'a>) -> Self {
        let &Parameter { param, grad, m, v, coarse } = own;
        Self { param: Some(param), grad, m: Some(m), v: Some(v), coarse }
    }

    fn of_grad(grad: &'a Tensor) -> Self {
        Self { param: None, grad, m: None, v: None, coarse: None }
    }
}

/// That no two tensors of the rows share memory, which one launch would write to in no order.
fn apart(rows: &[Row]) -> Result<()> {
    let tensors = rows.iter().flat_map(|row| [row.param, Some(row.grad), row.m, row.v, row.coarse]);
    let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let mut places: Vec<(usize, usize)> =
        tensors.flatten().map(|tensor| (tensor.data_ptr() as usize, bytes(tensor))).collect();
    places.retain(|&(_, bytes)| bytes > 0);
    places.sort_unstable();
    if places.windows(2).all(|pair| pair[1].0 - pair[0].0 >= pair[0].1) {
        return Ok(());
    }
    Err(unsupported("two of the optimiser's tensors share memory"))
}

/// Numbers on a device. The copy takes its turn on the stream: asked to wait for it, libtorch would wait for all that was
/// launched before. The driver has taken the numbers when the call returns, since their memory is not pinned.
fn uploaded(words: &[i64], device: Device) -> Tensor {
    Tensor::from_slice(words).to_device_(device, Kind::Int64, true, false)
}

/// One step of AdamW of parameters of one kind, f32 or f64, in place.
///
/// # Errors
/// `unsupported` for tensors that are not contiguous, of the wrong kind or size, or elsewhere, and as
/// [`Launch::launch`].
pub fn adamw(at: &impl Launch, parameters: &[Parameter], step: f64, options: &AdamW) -> Result<()> {
    let Some(first) = parameters.first() else { return Ok(()) };
    let kind = first.param.kind();
    let rows: Vec<Row> = parameters.iter().map(Row::of).collect();
    let table = Table::of(at, kind, &rows)?;
    match kind {
        Kind::Double => {
            let plan = Plan::<f64>::of(step, options);
            // SAFETY: the program for f64 takes this plan, and every row is whole.
            unsafe { table.launch(at, c"adamw", &[pointer(&plan)]) }
        }
        _ => {
            let plan = Plan::<f32>::of(step, options);
            // SAFETY: the program for f32 takes this plan, and every row is whole.
            unsafe { table.launch(at, c"adamw", &[pointer(&plan)]) }
        }
    }
}

/// Scales gradients, of one kind or bf16 among f32, in place, so that their norm is at most `options.max_norm`; gives the
/// norm before that, f64 without axes, still on the device: nothing waits.
///
/// # Errors
/// As [`adamw`].
pub fn clip_grad_norm(at: &impl Launch, grads: &[&Tensor], options: &ClipGradNorm) -> Result<Tensor> {
    let is_double = grads.iter().any(|grad| grad.kind() == Kind::Double);
    let kind = if is_double { Kind::Double } else { Kind::Float };
    let rows: Vec<Row> = grads.iter().map(|grad| Row::of_grad(grad)).collect();
    let table = Table::of(at, kind, &rows)?;
    let of_pieces = Tensor::empty([table.count], (Kind::Double, at.device()));
    let norm = Tensor::empty([0i64; 0], (Kind::Double, at.device()));
    let (partial, whole) = (of_pieces.data_ptr(), norm.data_ptr());
    let ClipGradNorm { max_norm, eps } = *options;
    // SAFETY: the kernels go over gradients alone; the first writes a number a piece, the second one number, and the
    // third to the gradients.
    unsafe {
        table.launch(at, c"clip_squares", &[pointer(&partial)])?;
        let all = [pointer(&partial), pointer(&table.count), pointer(&whole)];
        at.launch(&table.program, c"clip_norm", 1, THREADS, &all)?;
        table.launch(at, c"clip_scale", &[pointer(&whole), pointer(&max_norm), pointer(&eps)])?;
    }
    Ok(norm)
}
