//! `verify`: an implementation judged on the golden cases.

use std::process::ExitCode;

use clap::Args;
use grpo_oracle::Result;
use grpo_oracle::conformance::{Verdict, plan, run};

use super::subject::Who;

/// Who is judged, and on what.
#[derive(Args)]
pub(crate) struct Verify {
    #[command(flatten)]
    who: Who,
    /// Leave out the relations: questions made of the golden ones.
    #[arg(long)]
    no_relations: bool,
}

pub(crate) fn verify(arguments: &Verify) -> Result<ExitCode> {
    let who = &arguments.who;
    let mut subject = who.subject()?;
    let formulas = who.formulas(subject.as_ref())?;
    let tasks = plan(&who.fixtures()?, &formulas, !arguments.no_relations);
    let report = run(subject.as_mut(), who.name(), tasks, |_| {});
    for (status, count) in report.counts() {
        println!("{:16}{count}", status.word());
    }
    Ok(match report.verdict() {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Failed => ExitCode::from(1),
        Verdict::Incomplete => ExitCode::from(3),
    })
}
