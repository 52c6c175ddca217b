//! Ordinary tests: the command, the specification, the fixtures, the laws of the formulas, evil adapters, the shape of
//! the code, the language model and the trainer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod answers;
mod command;
mod conventions;
mod documents;
mod errata;
mod extract;
mod fixtures;
mod fuzz;
mod identify;
mod judge;
mod laws;
#[cfg(feature = "torch")]
mod llm;
mod process;
mod readme;
mod report;
mod schema;
mod spec;
mod tidy;
#[cfg(feature = "torch")]
mod train;
