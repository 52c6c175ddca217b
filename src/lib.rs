//! The executable specification of group-relative policy optimisation.

pub mod arguments;
pub mod axes;
pub mod conformance;
pub mod error;
pub mod evaluate;
pub mod fixture;
pub mod formula;
#[cfg(feature = "torch")]
pub mod llm;
pub mod options;
pub mod reference;
pub mod spec;
#[cfg(feature = "torch")]
pub mod torch;
#[cfg(feature = "torch")]
pub mod train;
pub mod value;

pub use error::{Error, Result};
