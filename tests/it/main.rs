//! Ordinary tests: the command, the fixture files, the specification, the trainer.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod command;
mod fixtures;
mod readme;
