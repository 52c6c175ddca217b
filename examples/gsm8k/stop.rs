//! Runs that end before their end: interrupts, and what libtorch throws.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use grpo_oracle::{Error, Result};

/// Whether the run is to stop after this step.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Asked for by the first Ctrl-C or request to end; the second one ends at once.
    pub(crate) fn on_interrupt() -> Result<Self> {
        let stop = Self::default();
        #[cfg(unix)]
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            let failed =
                |error: std::io::Error| Error::Unsupported { what: format!("no signal is heard: {error}") };
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&stop.0))
                .map_err(failed)?;
            signal_hook::flag::register(signal, Arc::clone(&stop.0)).map_err(failed)?;
        }
        Ok(stop)
    }

    /// Asks for it.
    #[allow(dead_code, reason = "the tests do")]
    pub(crate) fn ask(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Runs `work`; what libtorch throws, a lack of memory above all, comes out as an error of one sentence.
pub(crate) fn in_words<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|thrown| {
        let text = thrown.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| thrown.downcast_ref::<&str>().copied()).unwrap_or("something unknown");
        let what = match text.contains("out of memory") || text.contains("can't allocate memory") {
            true => "the memory does not suffice; use a smaller actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu, \
                     actor_rollout_ref.model.enable_gradient_checkpointing=True or LoRA, and go on from the last \
                     checkpoint with --resume"
                .to_owned(),
            false => format!("libtorch failed: {}", text.lines().next().unwrap_or_default()),
        };
        Err(Error::Unsupported { what })
    })
}
