//! What verl 0.9.1 is to us: the engine for machines that this crate's trainer is not for. [`keys`] says which of its
//! keys means what, [`export`] turns a configuration into its command line and YAML, [`import`] reads them back, [`data`]
//! prepares GSM8K as its trainer reads it, and [`certificate`] judges the installed verl under a configuration.

pub mod certificate;
pub mod data;
pub mod export;
pub mod import;
pub mod keys;
mod scripts;
mod shell;
mod tree;
mod write;
