//! Ordinary tests: the command, the specification, the fixtures, the laws of the formulas, the shape of the code, the
//! language model and the trainer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod command;
mod conventions;
mod documents;
mod errata;
mod fixtures;
mod kills;
mod laws;
#[cfg(feature = "torch")]
mod llm;
mod readme;
mod schema;
mod spec;
mod tidy;
#[cfg(feature = "torch")]
mod train;
