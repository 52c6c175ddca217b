//! The executable specification of group-relative policy optimisation.

pub mod axes;
pub mod error;
#[cfg(feature = "torch")]
pub mod llm;
#[cfg(feature = "torch")]
pub mod train;

pub use error::{Error, Result};
