//! `prepare-verl`: GSM8K as verl reads it.

use std::path::PathBuf;

use clap::Args;
use grpo_oracle::Result;
use grpo_oracle::verl::data::prepare;

/// Where the problems are, and where they go.
#[derive(Args)]
pub(crate) struct PrepareVerl {
    /// The folder that holds GSM8K's train.jsonl and test.jsonl, as its authors publish them.
    #[arg(value_name = "GSM8K_DIR")]
    gsm8k: PathBuf,
    /// The folder that gets train.parquet and test.parquet.
    out: PathBuf,
}

pub(crate) fn prepare_verl(arguments: &PrepareVerl) -> Result<String> {
    let written = prepare(&arguments.gsm8k, &arguments.out)?;
    let path = |name: &str| arguments.out.join(name).display().to_string();
    let (train, test) = (path("train.parquet"), path("test.parquet"));
    Ok(format!(
        "wrote {} problems to {train} and {} to {test}; for verl:\ndata.train_files={train} data.val_files={test}\n",
        written.train, written.test
    ))
}
