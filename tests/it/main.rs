//! Ordinary tests: the command, the fixture files, the specification, laws of the formulas, the shape of the sources.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod command;
mod errata;
mod fixtures;
mod laws;
mod readme;
mod spec;
mod tidy;
