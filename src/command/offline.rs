//! `export` and `judge`: questions and answers in files, for implementations that no pipe reaches.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use grpo_oracle::conformance::{Answers, Dtype, export as lines, run};
use grpo_oracle::{Error, Result};

use super::verify::{Format, Selection, conclude};

/// What to write.
#[derive(Args)]
pub(crate) struct Export {
    /// The file to write.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// The format that the implementation computes in.
    #[arg(long, value_name = "DTYPE")]
    dtype: Format,
    #[command(flatten)]
    selection: Selection,
}

/// What to read.
#[derive(Args)]
pub(crate) struct Judge {
    /// The file of answers, a line each, in any order.
    answers: PathBuf,
    /// The format of the export; may be left out where the file has the answer to hello.
    #[arg(long, value_name = "DTYPE")]
    dtype: Option<Format>,
    #[command(flatten)]
    selection: Selection,
}

pub(crate) fn export(arguments: &Export) -> Result<String> {
    let dtype = Dtype::from(arguments.dtype);
    let tasks = arguments.selection.plan(|_| true)?;
    let lines = lines(&tasks, dtype);
    write_whole(&arguments.out, &(lines.join("\n") + "\n"))?;
    // Two of them are hello and bye.
    let (count, dtype) = (lines.len() - 2, dtype.name());
    Ok(format!(
        "wrote {count} questions to {}; judge the answers with `grpo-oracle judge FILE --dtype {dtype}` and the options \
         of this export\n",
        arguments.out.display()
    ))
}

pub(crate) fn judge(arguments: &Judge) -> Result<ExitCode> {
    let mut tasks = arguments.selection.plan(|_| true)?;
    let mut answers = Answers::read(&arguments.answers, &mut tasks, arguments.dtype.map(Dtype::from))?;
    let report = run(&mut answers, &arguments.answers.display().to_string(), tasks, |_| {});
    Ok(conclude(&report))
}

/// Writes a file that is whole or not there: beside first, then in place.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(".part");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .map_err(|problem| Error::file(path, problem))
}
