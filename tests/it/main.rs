//! Ordinary tests: the command, the specification, the fixtures, the laws of the formulas, evil adapters, the shape of
//! the code, the language model and the trainer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod answers;
mod command;
mod conventions;
mod diagnosis;
mod documents;
mod errata;
mod fixtures;
mod fuzz;
mod laws;
#[cfg(feature = "torch")]
mod llm;
mod process;
mod readme;
mod schema;
mod spec;
mod tidy;
#[cfg(feature = "torch")]
mod train;
mod zoo;
