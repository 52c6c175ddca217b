//! `import-verl`: verl's words as a configuration of ours.

use std::path::PathBuf;

use clap::Args;
use grpo_oracle::verl::import::{import, to_yaml};
use grpo_oracle::{Result, file};

/// What is imported, and where to.
#[derive(Args)]
pub(crate) struct ImportVerl {
    /// Write the configuration to this file instead of showing it
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// A YAML file, a script, a command line as it stands, or KEY=VALUE
    #[arg(
        required = true,
        value_name = "FILE or KEY=VALUE",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    words: Vec<String>,
}

pub(crate) fn import_verl(arguments: &ImportVerl) -> Result<String> {
    let read = import(&arguments.words)?;
    for note in &read.notes {
        eprintln!("note: {note}");
    }
    let text = to_yaml(&read);
    match &arguments.out {
        Some(path) => file::replace(path, text).map(|()| String::new()),
        None => Ok(text),
    }
}
