//! The executable specification of group-relative policy optimisation.

pub mod axes;
pub mod error;
#[cfg(feature = "torch")]
pub mod llm;
pub mod options;
pub mod reference;

pub use error::{Error, Result};
