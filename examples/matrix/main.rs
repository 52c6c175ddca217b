//! What public packages compute, formula by formula: writes docs/matrix.md from a run of each package's adapter.
//!
//!     cargo run --release --example matrix -- docs/matrix.md \
//!         verl-0.9.1="/tmp/verl/bin/python examples/adapters/verl_adapter.py" \
//!         trl-1.16="/tmp/trl/bin/python examples/adapters/trl_adapter.py" \
//!         openrlhf-0.11="/tmp/openrlhf/bin/python examples/adapters/openrlhf_adapter.py"
//!
//! Each package is named by its page in spec/conventions/. An adapter is asked four times over: the cases with finite
//! numbers in masked slots (`--finite-padding`), the cases as they are, their inputs with no options at all, which asks
//! for the package's own defaults and is judged by the reference with the options of that page, and by `identify`.

mod identified;
mod notes;

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use grpo_oracle::conformance::{
    Identification, Limits, Outcome, Process, Report, Status, Subject, Task, identify, plan, run,
};
use grpo_oracle::convention::Convention;
use grpo_oracle::evaluate::{Question, evaluate};
use grpo_oracle::fixture::{self, Expected, Fixture};
use grpo_oracle::formula::Formula;
use notes::note;
use serde_json::Map;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match write(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            eprintln!("error: {problem}");
            ExitCode::from(2)
        }
    }
}

fn write(arguments: &[String]) -> Result<(), Box<dyn Error>> {
    let [path, packages @ ..] = arguments else {
        return Err("give the file to write, then CONVENTION=COMMAND for each package".into());
    };
    let fixtures = fixture::built_in()?;
    let packages = packages.iter().map(|argument| {
        let (name, command) = argument.split_once('=').ok_or("a package is CONVENTION=COMMAND")?;
        Package::judge(Convention::find(name)?, command, &fixtures)
    });
    let packages = packages.collect::<Result<Vec<_>, Box<dyn Error>>>()?;
    let beside = format!("{path}.new");
    std::fs::write(&beside, page(&packages)?)?;
    Ok(std::fs::rename(beside, path)?)
}

/// A package, and what became of every question.
struct Package {
    convention: Convention,
    /// The cases, with finite numbers in masked slots.
    asked: Report,
    /// The cases as they are.
    poisoned: Report,
    /// The cases' inputs with no options, judged by the convention.
    defaults: Report,
    /// Its settings, told by its answers to questions with no options.
    identified: Identification,
}

impl Package {
    fn judge(convention: Convention, command: &str, fixtures: &[Fixture]) -> Result<Self, Box<dyn Error>> {
        let limits = Limits { answer: Duration::from_secs(60), hello: Duration::from_secs(300), restarts: 3 };
        let mut poisoned = Process::start(command, limits)?;
        let mut finite = Process::start(&format!("{command} --finite-padding"), limits)?;
        let formulas = finite.hello().formulas.clone();
        let cases = plan(fixtures, &formulas, false);
        let by_default = by_default(&convention, fixtures, &formulas)?;
        Ok(Self {
            convention,
            asked: run(&mut finite, command, cases.clone(), |_| {}),
            poisoned: run(&mut poisoned, command, cases, |_| {}),
            defaults: run(&mut finite, command, by_default, |_| {}),
            identified: identify(&mut finite, fixtures, &formulas, |_| {})?,
        })
    }

    fn of<'a>(&self, report: &'a Report, formula: &str) -> Vec<&'a Outcome> {
        report.outcomes.iter().filter(|outcome| outcome.task.formula == formula).collect()
    }
}

/// Every input of the cases that have an answer, asked without options.
fn by_default(
    convention: &Convention,
    fixtures: &[Fixture],
    formulas: &[String],
) -> Result<Vec<Task>, Box<dyn Error>> {
    let (mut tasks, mut seen) = (Vec::new(), BTreeSet::new());
    let named = |fixture: &&Fixture| {
        formulas.contains(&fixture.formula) && convention.formulas.contains_key(&fixture.formula)
    };
    for fixture in fixtures.iter().filter(named) {
        let options = convention.options(&fixture.formula)?;
        for case in fixture.cases.iter().filter(|case| matches!(case.expected, Expected::Answer(_))) {
            let inputs = case.question.inputs.clone();
            let question = Question { options: options.clone(), inputs: inputs.clone() };
            let Ok(answer) = evaluate(&fixture.formula, &question) else { continue };
            if seen.insert((fixture.formula.clone(), question.to_json().to_string())) {
                let mut task = Task::of(&fixture.formula, case);
                task.question = Question { options: Map::new(), inputs };
                task.expected = Expected::Answer(answer);
                task.rivals = Vec::new();
                tasks.push(task);
            }
        }
    }
    Ok(tasks)
}

fn has_answer(outcome: &Outcome) -> bool {
    matches!(outcome.task.expected, Expected::Answer(_))
}

/// An answer that is wrong, or none where there is one.
fn differs(outcome: &Outcome) -> bool {
    has_answer(outcome) && matches!(outcome.status, Status::Fail | Status::Error | Status::Hang)
}

fn page(packages: &[Package]) -> Result<String, Box<dyn Error>> {
    let mut page = String::from("# What public packages compute\n\n");
    let names: Vec<String> = packages.iter().map(name).collect();
    let started = packages.first().map_or(0, |package| package.asked.started);
    writeln!(
        page,
        "Made on {} by `cargo run --release --example matrix` with grpo-oracle {}: {} in single precision, each run \
         through its adapter in `examples/adapters/`. Not written by hand.\n",
        date(started),
        env!("CARGO_PKG_VERSION"),
        names.join(", ")
    )?;
    page.push_str(INTRODUCTION);
    overview(&mut page, packages)?;
    for package in packages {
        section(&mut page, package)?;
    }
    Ok(page)
}

const INTRODUCTION: &str = "\
A difference is a convention, not a verdict: the specification had to choose, and says where others chose otherwise. Where \
options reproduce a package's choice, they stand on its page in [spec/conventions](../spec/conventions/README.md), and the \
column *at its defaults* says how far the reference with those options agrees with the package with its own.

* **as asked**: of the golden cases that the package has the options for, how many it answers within the tolerance. The \
rest are *unsupported*: the case asks for options that the package does not have. A bound that it always has counts as any \
other where neither bites. Masked slots hold finite numbers here, and those of outputs are not looked at.
* **at its defaults**: of the cases' inputs, asked with no options, how many agree with the package's page. What the page \
says in words and no option says counts against it here.
* **masked NaN**: how many answers of those in *as asked* are lost when masked slots hold NaN and infinities, as they do in \
the fixtures (`r[mask.select]`). Whether they ever do in a trainer is another matter.
* **refused**: of the questions with bad input (shapes that do not match, NaN where the mask keeps it, options out of \
their domain), how many get an error of any kind instead of a number.

";

/// The title of its page, less the version, and the version that answered.
fn name(package: &Package) -> String {
    let title = package.convention.title.split(' ').next().unwrap_or_default();
    format!("{title} {}", package.asked.hello.version)
}

/// Formula by package: right answers at the cases' options, over those given.
fn overview(page: &mut String, packages: &[Package]) -> Result<(), Box<dyn Error>> {
    let columns: Vec<String> = packages.iter().map(name).collect();
    writeln!(page, "| formula | {} |\n|---|{}", columns.join(" | "), "---|".repeat(packages.len()))?;
    for formula in Formula::<f64>::all() {
        let cells = packages.iter().map(|package| {
            let (asked, by_default) =
                (package.of(&package.asked, formula.id), package.of(&package.defaults, formula.id));
            if asked.is_empty() {
                return String::new();
            }
            format!("{}; defaults {}", share(&asked), share(&by_default))
        });
        let cells: Vec<String> = cells.collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            writeln!(page, "| `{}` | {} |", formula.id, cells.join(" | "))?;
        }
    }
    Ok(writeln!(page)?)
}

/// `right of answered`.
fn share(outcomes: &[&Outcome]) -> String {
    let right = outcomes.iter().filter(|one| has_answer(one) && one.status == Status::Pass).count();
    let wrong = outcomes.iter().filter(|one| differs(one)).count();
    if right + wrong == 0 { "-".to_owned() } else { format!("{right} of {}", right + wrong) }
}

fn section(page: &mut String, package: &Package) -> Result<(), Box<dyn Error>> {
    let convention = package.convention.name;
    writeln!(
        page,
        "## {}\n\nIts options: [{convention}](../spec/conventions/{convention}.md).\n",
        name(package)
    )?;
    page.push_str(
        "| formula | as asked | unsupported | at its defaults | masked NaN | refused | not given |\n\
         |---|---|---|---|---|---|---|\n",
    );
    for formula in &package.asked.hello.formulas {
        let asked = package.of(&package.asked, formula);
        let unsupported = asked.iter().filter(|one| one.status == Status::Unsupported).count();
        let lost = lost(&asked, &package.of(&package.poisoned, formula));
        let by_default = share(&package.of(&package.defaults, formula));
        writeln!(
            page,
            "| `{formula}` | {} | {unsupported} | {by_default} | {lost} | {} | {} |",
            share(&asked),
            refused(&asked),
            not_given(&asked)
        )?;
    }
    writeln!(page)?;
    identified::section(page, &package.identified)?;
    differences(page, package)
}

/// Right answers that are none when masked slots hold NaN.
fn lost(finite: &[&Outcome], poisoned: &[&Outcome]) -> usize {
    let pairs = finite.iter().zip(poisoned).filter(|(finite, poisoned)| {
        has_answer(finite) && finite.status == Status::Pass && poisoned.status != Status::Pass
    });
    pairs.count()
}

fn refused(outcomes: &[&Outcome]) -> String {
    let asked = |one: &&&Outcome| {
        !has_answer(one) && !matches!(one.status, Status::Unsupported | Status::NotApplicable)
    };
    let total = outcomes.iter().filter(asked).count();
    let is_refused = |one: &&&Outcome| one.status == Status::Pass || one.message.starts_with("the error is");
    let refused = outcomes.iter().filter(asked).filter(is_refused).count();
    if total == 0 { "-".to_owned() } else { format!("{refused} of {total}") }
}

/// The outputs and gradients that the package does not have.
fn not_given(outcomes: &[&Outcome]) -> String {
    let told = outcomes.iter().filter_map(|one| one.message.strip_prefix("not given: "));
    let names: BTreeSet<&str> = told.flat_map(|names| names.split(", ")).collect();
    names.into_iter().collect::<Vec<_>>().join(" ")
}

/// What the package does instead, each told once, by its first case.
fn differences(page: &mut String, package: &Package) -> Result<(), Box<dyn Error>> {
    writeln!(page, "\nWhere it differs:\n")?;
    let groups = grouped(package);
    for (read, cases) in &groups {
        let Some((first, when)) = cases.values().next() else { continue };
        let formulas: BTreeSet<&str> = cases.keys().map(|(formula, _)| *formula).collect();
        let formulas: Vec<String> = formulas.into_iter().map(|formula| format!("`{formula}`")).collect();
        let clauses: Vec<String> = first.task.clauses.iter().map(|clause| link(clause)).collect();
        let message = first.message.split(": off by").next().unwrap_or_default();
        let count = if cases.len() == 1 { "1 case".to_owned() } else { format!("{} cases", cases.len()) };
        let read =
            if read.starts_with('`') && !read.contains(' ') { String::new() } else { format!("{read} ") };
        writeln!(
            page,
            "* {read}{count} of {}, such as `{}`{when}: {message}. Clauses: {}.",
            formulas.join(", "),
            first.task.case,
            clauses.join(", ")
        )?;
    }
    if groups.is_empty() {
        writeln!(page, "* nowhere.")?;
    }
    Ok(writeln!(page)?)
}

/// The cases on which the package differs, by formula and name; those at its own defaults are told so.
type Cases<'a> = BTreeMap<(&'a str, &'a str), (&'a Outcome, &'static str)>;

/// The cases by what there is to say of them, or by their formula.
fn grouped(package: &Package) -> Vec<(String, Cases<'_>)> {
    let mut groups: Vec<(String, Cases<'_>)> = Vec::new();
    for (report, when) in [(&package.asked, ""), (&package.defaults, " (at its defaults)")] {
        for outcome in report.outcomes.iter().filter(|outcome| differs(outcome)) {
            let task = &outcome.task;
            let read = note(package.convention.name, &task.formula, &task.case, &task.clauses);
            let read = read.map_or_else(|| format!("`{}`", task.formula), str::to_owned);
            let place = groups.iter().position(|group| group.0 == read).unwrap_or_else(|| {
                groups.push((read, Cases::new()));
                groups.len() - 1
            });
            groups[place].1.entry((&task.formula, &task.case)).or_insert((outcome, when));
        }
    }
    groups
}

fn link(clause: &str) -> String {
    let family = clause.split('.').next().unwrap_or_default();
    let file = if family == "all" { "README" } else { family };
    format!("[`{clause}`](../spec/{file}.md)")
}

/// The day of a time in seconds since 1970, by the civil calendar.
fn date(seconds: u64) -> String {
    let days = seconds / 86400 + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02}")
}
