//! CUDA graphs: what libtorch launches is recorded once and launched again as one, without its host's work between the
//! kernels. `graph.cpp` has the few lines of C++ that tch lacks; where it was compiled without CUDA's headers, nothing is
//! ever recorded.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;

use tch::Device;

use crate::{Error, Result};

unsafe extern "C" {
    fn grpo_graph_problem() -> *const c_char;
    fn grpo_stream_enter(device: c_int, before: *mut *mut c_void) -> c_int;
    fn grpo_stream_leave(before: *mut c_void) -> c_int;
    fn grpo_graph_begin(graph: *mut *mut c_void) -> c_int;
    fn grpo_graph_end(graph: *mut c_void) -> c_int;
    fn grpo_graph_replay(graph: *mut c_void) -> c_int;
    fn grpo_graph_free(graph: *mut c_void) -> c_int;
}

/// The thread's stream on a device that can be recorded, for as long as this lives.
#[derive(Debug)]
pub(super) struct Stream {
    before: *mut c_void,
    /// A stream is the current one of a thread.
    of_thread: PhantomData<*const ()>,
}

impl Stream {
    /// A stream of its own; `None` on a device that is none of CUDA's, and where graphs cannot be recorded.
    pub(super) fn enter(device: Device) -> Option<Self> {
        let Device::Cuda(index) = device else { return None };
        let mut before = std::ptr::null_mut();
        // SAFETY: writes a pointer, which is given back once.
        let entered = said(unsafe { grpo_stream_enter(c_int::try_from(index).ok()?, &raw mut before) });
        entered.ok().map(|()| Self { before, of_thread: PhantomData })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the pointer that entering wrote, for the only time. What could fail is a launch before; whoever reads
        // its results is told.
        unsafe { grpo_stream_leave(self.before) };
    }
}

/// What was launched, to be launched again.
#[derive(Debug)]
pub(super) struct Graph {
    graph: *mut c_void,
}

impl Graph {
    /// Records what `work` launches on the current stream, which is one of [`Stream`]; nothing of it runs. What it reads and
    /// writes has to stay where it is for as long as the graph is replayed.
    ///
    /// # Errors
    /// `unsupported`, with what CUDA says, above all that something waited for the device.
    pub(super) fn record(work: impl FnOnce()) -> Result<Self> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: writes a pointer, which is made an end of once.
        said(unsafe { grpo_graph_begin(&raw mut graph) })?;
        let recorded = Recording(Self { graph });
        work();
        recorded.end()
    }

    /// Launches it all again.
    ///
    /// # Errors
    /// `unsupported`, with what CUDA says.
    pub(super) fn replay(&self) -> Result<()> {
        // SAFETY: a graph that was recorded to its end.
        said(unsafe { grpo_graph_replay(self.graph) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the pointer that recording began with, for the only time.
        unsafe { grpo_graph_free(self.graph) };
    }
}

/// A graph that is being recorded: it has to be ended, also when `work` panics, or the stream stays unusable.
struct Recording(Graph);

impl Recording {
    fn end(self) -> Result<Graph> {
        // SAFETY: recording has begun and not been ended.
        let ended = said(unsafe { grpo_graph_end(self.0.graph) });
        let graph = Graph { graph: self.0.graph };
        std::mem::forget(self);
        ended.map(|()| graph)
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: recording has begun and not been ended; the graph itself makes an end of what there is.
        unsafe { grpo_graph_end(self.0.graph) };
    }
}

/// What a function's code says.
fn said(code: c_int) -> Result<()> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: a string that lives until this thread's next call.
    let problem = unsafe { CStr::from_ptr(grpo_graph_problem()) }.to_string_lossy();
    let first = problem.lines().next().unwrap_or_default();
    Err(Error::Unsupported { what: format!("a CUDA graph cannot be recorded or launched: {first}") })
}

#[cfg(test)]
mod tests {
    use super::{Graph, Stream};
    use tch::{Device, Kind, Tensor};

    #[test]
    fn elsewhere_than_on_cuda_there_is_no_stream() {
        assert!(Stream::enter(Device::Cpu).is_none());
        if !tch::Cuda::is_available() {
            assert!(Stream::enter(Device::Cuda(0)).is_none());
            let problem = Graph::record(|| ()).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(problem.contains("a CUDA graph cannot be recorded"), "{problem}");
        }
    }

    #[test]
    fn a_graph_runs_what_was_recorded() {
        let Some(_stream) = Stream::enter(Device::cuda_if_available()) else {
            return eprintln!("skipped: there is no device, or this was built without CUDA's headers");
        };
        let mut sum = Tensor::zeros([3], (Kind::Float, Device::Cuda(0)));
        let _ = sum.g_add_scalar_(0.0); // loads the kernel
        let graph = Graph::record(|| _ = sum.g_add_scalar_(1.0)).expect("it is recorded");
        assert_eq!(sum.double_value(&[1]), 0.0, "recording runs nothing");
        graph.replay().and_then(|()| graph.replay()).expect("it is launched");
        assert_eq!(sum.double_value(&[1]), 2.0);
    }
}
