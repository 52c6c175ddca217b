//! Ordinary tests: the command, the specification, the fixtures, the laws of the formulas, evil adapters, the shape of
//! the code, the language model and the trainer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod adapters;
#[cfg(feature = "torch")]
mod algorithms;
mod answers;
#[cfg(feature = "torch")]
mod checkpoint;
mod command;
mod config;
mod conventions;
mod diagnosis;
mod documents;
mod errata;
mod extract;
mod fixture_schema;
mod fixtures;
#[cfg(feature = "torch")]
mod fused;
#[cfg(feature = "torch")]
mod fused_cuda;
#[cfg(feature = "torch")]
mod fused_kernels;
mod fuzz;
#[cfg(feature = "torch")]
mod head;
mod identify;
mod judge;
mod kills;
mod laws;
#[cfg(feature = "torch")]
mod learn;
#[cfg(feature = "torch")]
mod llm;
#[cfg(feature = "torch")]
mod models;
#[cfg(feature = "torch")]
mod page;
mod planted;
mod process;
mod python;
mod readme;
mod report;
mod schema;
mod spec;
#[cfg(feature = "torch")]
mod tensorboard;
mod tidy;
#[cfg(feature = "torch")]
mod train;
mod verl_certificate;
mod verl_config;
mod verl_data;
mod zoo;
