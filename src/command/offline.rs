//! `export` and `judge`: questions and answers in files, for implementations that no pipe reaches.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use grpo_oracle::Result;
use grpo_oracle::conformance::{Answers, Dtype, export as lines};
use grpo_oracle::file::replace;

use super::report::{ReportFiles, judged};
use super::subject::{Format, Questions};

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
    questions: Questions,
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
    questions: Questions,
    #[command(flatten)]
    reports: ReportFiles,
}

pub(crate) fn export(arguments: &Export) -> Result<String> {
    let dtype = Dtype::from(arguments.dtype);
    let questions = &arguments.questions;
    let tasks = questions.plan(&questions.fixtures()?, |_| true)?;
    let lines = lines(&tasks, dtype);
    replace(&arguments.out, lines.join("\n") + "\n")?;
    // Two of them are hello and bye.
    let (count, dtype) = (lines.len() - 2, dtype.name());
    Ok(format!(
        "wrote {count} questions to {}; judge the answers with `grpo-oracle judge FILE --dtype {dtype}` and the options \
         of this export\n",
        arguments.out.display()
    ))
}

pub(crate) fn judge(arguments: &Judge) -> Result<ExitCode> {
    arguments.reports.clear(Some(&arguments.answers))?;
    let fixtures = arguments.questions.fixtures()?;
    let mut tasks = arguments.questions.plan(&fixtures, |_| true)?;
    let mut answers = Answers::read(&arguments.answers, &mut tasks, arguments.dtype.map(Dtype::from))?;
    let adapter = arguments.answers.display().to_string();
    judged(&mut answers, &adapter, tasks, &fixtures, &arguments.reports)
}
