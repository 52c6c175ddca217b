//! The subcommands.

pub(crate) mod eval;
pub(crate) mod extract;
pub(crate) mod identify;
pub(crate) mod offline;
pub(crate) mod report;
pub(crate) mod show;
pub(crate) mod verify;
