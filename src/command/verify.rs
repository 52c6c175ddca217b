//! `verify`: an implementation judged on the golden cases.

use std::process::ExitCode;

use clap::Args;
use grpo_oracle::Result;
use grpo_oracle::conformance::end_adapters_on_signals;
use grpo_oracle::formula::Formula;

use super::report::{ReportFiles, judged};
use super::subject::{Questions, Who};

/// Who is judged, and on what.
#[derive(Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    who: Who,
    #[command(flatten)]
    questions: Questions,
    #[command(flatten)]
    reports: ReportFiles,
}

pub(crate) fn verify(arguments: &Verify) -> Result<ExitCode> {
    arguments.reports.clear(None)?;
    end_adapters_on_signals();
    let mut subject = arguments.who.subject()?;
    let formulas = subject.hello().formulas.clone();
    for unknown in formulas.iter().filter(|id| Formula::<f64>::find(id).is_err()) {
        eprintln!(
            "warning: the adapter names the formula `{unknown}`, which is none; `grpo-oracle list` shows all"
        );
    }
    let fixtures = arguments.questions.fixtures()?;
    let tasks = arguments.questions.plan(&fixtures, |id| formulas.iter().any(|formula| formula == id))?;
    judged(subject.as_mut(), arguments.who.name(), tasks, &fixtures, &arguments.reports)
}
