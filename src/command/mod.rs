//! The subcommands.

pub(crate) mod eval;
pub(crate) mod kills;
pub(crate) mod show;
pub(crate) mod verify;
