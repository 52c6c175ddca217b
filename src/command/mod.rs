//! The subcommands.

pub(crate) mod certify_verl;
pub(crate) mod eval;
pub(crate) mod export_verl;
pub(crate) mod extract;
pub(crate) mod identify;
pub(crate) mod import_verl;
pub(crate) mod kills;
pub(crate) mod offline;
pub(crate) mod prepare_verl;
pub(crate) mod report;
pub(crate) mod show;
mod subject;
pub(crate) mod verify;
pub(crate) mod zoo;
