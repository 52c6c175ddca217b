//! A whole run: the golden cases and what is made of them, put to one subject.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use super::judge::ask;
use super::{Outcome, Report, Subject, Task};
use crate::fixture::Fixture;
use crate::formula::{Formula, nearest};
use crate::{Error, Result};

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

/// The question of one golden case, or with `CASE~RELATION` what the relation makes of it.
///
/// # Errors
/// `unknown-formula`; `option` for a case that is not there, with the nearest name.
pub fn find(fixtures: &[Fixture], formula: &str, case: &str) -> Result<Task> {
    Formula::<f64>::find(formula)?;
    let cases = fixtures.iter().filter(|fixture| fixture.formula == formula);
    let cases = || cases.clone().flat_map(|fixture| &fixture.cases);
    let (golden, relation) = case.split_once('~').map_or((case, None), |(golden, name)| (golden, Some(name)));
    let unknown = |name: &str, names: Vec<&str>| {
        let hint = nearest(name, names.iter().copied()).map_or_else(
            || match names.as_slice() {
                [] => "it has none".to_owned(),
                names => format!("there are {}", names.join(", ")),
            },
            |near| format!("did you mean `{near}`?"),
        );
        Error::option("case", format!("`{case}` is no case of {formula}; {hint}"))
    };
    let goldens: Vec<Task> = cases().map(|case| Task::of(formula, case)).collect();
    let task = goldens.iter().find(|task| task.case == golden);
    let task =
        task.ok_or_else(|| unknown(golden, goldens.iter().map(|task| task.case.as_str()).collect()))?;
    if relation.is_none() {
        return Ok(task.clone());
    }
    let derived = super::relation::derived(&goldens);
    let of_case: Vec<&Task> =
        derived.iter().filter(|derived| derived.origin == golden).map(|derived| &derived.task).collect();
    match of_case.iter().find(|task| task.case == case) {
        Some(task) => Ok((*task).clone()),
        None => Err(unknown(case, of_case.iter().map(|task| task.case.as_str()).collect())),
    }
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
