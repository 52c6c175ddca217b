//! Ordinary tests: the command, the specification, the fixtures, the laws of the formulas, the shape of the code.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod command;
mod errata;
mod fixtures;
mod laws;
mod readme;
mod spec;
mod tidy;
