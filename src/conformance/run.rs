//! A whole run: the golden cases and what is made of them, put to one subject.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::judge::ask;
use super::{Outcome, Report, Subject, Task};
use crate::fixture::Fixture;

/// The questions for a subject that has these formulas: every golden case, and what relations make of it.
pub fn plan(fixtures: &[Fixture], formulas: &[String], relations: bool) -> Vec<Task> {
    let mut tasks = Vec::new();
    for fixture in fixtures.iter().filter(|fixture| formulas.contains(&fixture.formula)) {
        let golden: Vec<Task> = fixture.cases.iter().map(|case| Task::of(&fixture.formula, case)).collect();
        let derived = if relations { super::relation::derived(&golden) } else { Vec::new() };
        tasks.extend(golden);
        tasks.extend(derived.into_iter().map(|derived| derived.task));
    }
    tasks
}

/// Puts every question to the subject; `seen` is told of each outcome as it comes.
pub fn run(
    subject: &mut dyn Subject,
    adapter: &str,
    tasks: Vec<Task>,
    mut seen: impl FnMut(&Outcome),
) -> Report {
    let start = Instant::now();
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let planned = tasks.len();
    let mut outcomes = Vec::with_capacity(planned);
    for task in tasks {
        let mut outcome = ask(subject, task);
        outcome.diagnosis = super::diagnosis::diagnose(&outcome, subject.hello().dtype);
        seen(&outcome);
        outcomes.push(outcome);
    }
    Report {
        hello: subject.hello().clone(),
        adapter: adapter.to_owned(),
        oracle: env!("CARGO_PKG_VERSION").to_owned(),
        started,
        planned,
        outcomes,
        seconds: Some(start.elapsed().as_secs_f64()),
    }
}
