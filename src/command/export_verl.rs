//! `export-verl`: a configuration as a job for verl.

use std::path::{Path, PathBuf};

use clap::Args;
use grpo_oracle::config::{self, Config, Read, preset};
use grpo_oracle::verl::export::{Export, export};
use grpo_oracle::{Result, file};

/// What is exported, and where to.
#[derive(Args)]
pub(crate) struct ExportVerl {
    /// A configuration in YAML, the config.json of a run, or a preset: tiny, demo, gsm8k
    config: PathBuf,
    /// What is to be otherwise, such as trainer.total_training_steps=100
    #[arg(value_name = "KEY=VALUE")]
    overrides: Vec<String>,
    /// What a file leaves open is as in this preset
    #[arg(long, default_value = "demo")]
    preset: String,
    /// Write the job as a YAML file, too
    #[arg(long, value_name = "FILE")]
    yaml: Option<PathBuf>,
}

/// A file over a preset, or a preset alone, with what the arguments say otherwise.
pub(crate) fn read(config: &Path, preset: &str, overrides: &[String]) -> Result<Read> {
    let name = config.to_string_lossy();
    let is_preset = preset::NAMES.contains(&name.as_ref()) && !config.exists();
    let start: Config = preset::preset(if is_preset { &name } else { preset })?;
    config::as_written(start, (!is_preset).then_some(config), overrides)
}

pub(crate) fn export_verl(arguments: &ExportVerl) -> Result<String> {
    let ExportVerl { config, preset, overrides, .. } = arguments;
    let job: Export = export(&read(config, preset, overrides)?)?;
    for note in &job.notes {
        eprintln!("note: {note}");
    }
    if let Some(path) = &arguments.yaml {
        file::replace(path, job.yaml())?;
    }
    Ok(job.command_line())
}
