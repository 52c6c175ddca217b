//! `zoo`: known-wrong implementations, every one of which has to be caught and named.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use grpo_oracle::conformance::diagnosis::{Finding, UNKNOWN, of_formula};
use grpo_oracle::conformance::{Outcome, Process, Report, Status, Subject, Verdict, plan, run};
use grpo_oracle::fixture::{Fixture, built_in};
use grpo_oracle::{Error, Result};

use super::subject::{Patience, quoted};

/// Where the wrong implementations are.
#[derive(Args)]
pub(crate) struct Zoo {
    /// The folder of the adapters; each says in a line `# expects: ...` what its bug is to be called.
    #[arg(default_value = "examples/adapters/zoo")]
    folder: PathBuf,
    /// The interpreter that runs them.
    #[arg(long, value_name = "COMMAND", default_value = "python3")]
    python: String,
    /// Show every failing case and what it looks like.
    #[arg(long)]
    cases: bool,
    #[command(flatten)]
    patience: Patience,
}

/// The adapter that the others break; it has to pass.
const BASE: &str = "base";

/// How an adapter fared.
struct Fared {
    name: String,
    failing: usize,
    judged: usize,
    /// What each formula that fails is said to have.
    named: Vec<String>,
    /// The failing cases, if they are to be shown.
    failures: Vec<String>,
    /// What is not as it has to be; empty if the adapter is caught and named.
    problem: String,
}

pub(crate) fn zoo(arguments: &Zoo) -> Result<ExitCode> {
    let fixtures = built_in()?;
    let paths = adapters(&arguments.folder)?;
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(8);
    let part = paths.len().div_ceil(threads);
    let all = std::thread::scope(|scope| {
        let fixtures = &fixtures;
        let judging = |paths: &[PathBuf]| -> Result<Vec<Fared>> {
            paths.iter().map(|path| fared(arguments, path, fixtures)).collect()
        };
        let parts: Vec<_> = paths.chunks(part).map(|paths| scope.spawn(move || judging(paths))).collect();
        let joined = parts.into_iter().map(|part| part.join());
        joined.map(|part| part.unwrap_or_else(|_| Err(ended_early()))).collect::<Vec<_>>()
    });
    let mut is_well = true;
    for part in all {
        for fared in part? {
            is_well &= fared.problem.is_empty();
            print!("{}", fared.line());
        }
    }
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

fn fared(arguments: &Zoo, path: &Path, fixtures: &[Fixture]) -> Result<Fared> {
    let command = format!("{} {}", arguments.python, quoted(path));
    let mut subject = Process::start(&command, arguments.patience.into())?;
    judged(path, &mut subject, fixtures, &command, arguments.cases)
}

/// The adapters of a folder by name, the right one first.
fn adapters(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder).map_err(|problem| Error::file(folder, problem))?;
    let paths: std::io::Result<Vec<PathBuf>> = entries.map(|entry| Ok(entry?.path())).collect();
    let mut paths = paths.map_err(|problem| Error::file(folder, problem))?;
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "py"));
    paths.sort_by_key(|path| (name(path) != BASE, path.clone()));
    if paths.is_empty() {
        return Err(Error::file(folder, "holds no adapter; name a folder like examples/adapters/zoo"));
    }
    Ok(paths)
}

fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

fn judged(
    path: &Path,
    subject: &mut dyn Subject,
    fixtures: &[Fixture],
    command: &str,
    cases: bool,
) -> Result<Fared> {
    let formulas = subject.hello().formulas.clone();
    let report = run(subject, command, plan(fixtures, &formulas, true), |_| {});
    let name = name(path);
    let (named, problem) = if name == BASE {
        let is_right = report.verdict() == Verdict::Passed;
        (Vec::new(), if is_right { String::new() } else { format!("is to pass: {}", first_fault(&report)) })
    } else {
        let text = std::fs::read_to_string(path).map_err(|problem| Error::file(path, problem))?;
        let expects: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("# expects: ")).collect();
        caught(&report, &formulas, &expects)
    };
    let failures = report.outcomes.iter().filter(|outcome| cases && outcome.status == Status::Fail);
    let failures = failures.map(|outcome| {
        let (task, words) = (&outcome.task, outcome.diagnosis.join("; "));
        format!("{} {}: {words}\n            {}", task.formula, task.case, outcome.message)
    });
    let failures = failures.collect();
    let count = |status: Status| report.counts()[&status];
    Ok(Fared {
        name,
        failing: count(Status::Fail),
        judged: count(Status::Fail) + count(Status::Pass),
        named,
        failures,
        problem,
    })
}

fn first_fault(report: &Report) -> String {
    let fault = report
        .outcomes
        .iter()
        .find(|outcome| ![Status::Pass, Status::NotApplicable].contains(&outcome.status));
    fault.map_or_else(
        || "nothing was judged".to_owned(),
        |outcome| format!("{} {}: {}", outcome.task.formula, outcome.task.case, outcome.message),
    )
}

/// What the failures of every formula are called, and what of that is not as expected.
fn caught(report: &Report, formulas: &[String], expects: &[&str]) -> (Vec<String>, String) {
    let (mut named, mut problems) = (Vec::new(), Vec::new());
    for formula in formulas {
        let outcomes: Vec<&Outcome> =
            report.outcomes.iter().filter(|outcome| outcome.task.formula == *formula).collect();
        if outcomes.iter().all(|outcome| outcome.status != Status::Fail) {
            problems.push(format!("{formula} escapes"));
            continue;
        }
        let found = of_formula(&outcomes, report.hello.dtype);
        let is_expected = |found: &Finding| expects.contains(&found.words.as_str());
        if !found.as_ref().is_some_and(is_expected) {
            problems.push(format!("{formula} is to be named: {}", expects.join(", or: ")));
        }
        named.push(found.map_or_else(|| UNKNOWN.to_owned(), |found| found.to_string()));
    }
    if outcomes_are_missing(report) {
        problems.push(format!("not every question was answered: {}", first_fault_of_talk(report)));
    }
    (named, problems.join("; "))
}

fn outcomes_are_missing(report: &Report) -> bool {
    let counts = report.counts();
    report.outcomes.len() < report.planned || counts[&Status::Error] + counts[&Status::Hang] > 0
}

fn first_fault_of_talk(report: &Report) -> String {
    let is_fault = |outcome: &&Outcome| [Status::Error, Status::Hang].contains(&outcome.status);
    let fault = report.outcomes.iter().find(is_fault);
    fault.map_or_else(String::new, |outcome| format!("{} {}", outcome.task.case, outcome.message))
}

impl Fared {
    /// A line of the table, and one more for everything that the adapter is called.
    fn line(&self) -> String {
        let mark = if self.problem.is_empty() { "ok" } else { "NO" };
        let Self { name, failing, judged, named, failures, problem } = self;
        let mut text = format!("{mark}  {name:28} {failing:4} of {judged:4} cases fail");
        let mut seen: Vec<&String> = Vec::new();
        for words in named {
            if !seen.contains(&words) {
                text += &format!("\n        {words}");
                seen.push(words);
            }
        }
        for failure in failures {
            text += &format!("\n          {failure}");
        }
        if !problem.is_empty() {
            text += &format!("\n    !   {problem}");
        }
        text + "\n"
    }
}

fn ended_early() -> Error {
    Error::Unsupported {
        what: "judging a part of the zoo ended early; judge its adapters one by one with `verify`".to_owned(),
    }
}
