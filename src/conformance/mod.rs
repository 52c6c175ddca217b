//! Judging an implementation's answers against the reference's.

mod tolerance;

pub use tolerance::{Dtype, Worst, compare, is_applicable, worst};
