//! Judging an implementation's answers against the reference's.

mod tolerance;

pub use tolerance::{Dtype, Mismatch, compare, is_applicable};
