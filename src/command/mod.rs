//! The subcommands.

pub(crate) mod eval;
pub(crate) mod offline;
pub(crate) mod show;
pub(crate) mod verify;
pub(crate) mod zoo;
