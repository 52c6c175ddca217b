//! What verl 0.9.1 is to us: the engine for machines that this crate's trainer is not for. [`data`] prepares GSM8K as its
//! trainer reads it, [`certificate`] judges the installed verl under a configuration.

pub mod certificate;
pub mod data;
