//! The report for people at a terminal. Colour stands in it; who prints it leaves it out where there is no terminal.

use std::fmt::Write;

use anstyle::{AnsiColor, Style};

use super::record::counts;
use super::{Diff, Entry, Kind, Record, Verdict};
use crate::conformance::Status;
use crate::formula::Formula;

/// How many stories are told of one formula; the other reports have them all.
const STORIES: usize = 3;

/// How many lines `diff` has of one kind of change.
const CHANGES: usize = 40;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

/// The whole report: a row a formula, what went wrong, and the verdict.
pub fn table(record: &Record) -> String {
    let mut text = who(record);
    matrix(&mut text, record);
    for (formula, entries) in record.by_formula() {
        failures(&mut text, record, formula, &entries);
    }
    unanswered(&mut text, record);
    skipped(&mut text, record);
    text.push('\n');
    text.push_str(&verdict_line(record));
    text
}

/// The verdict in one line.
pub fn verdict_line(record: &Record) -> String {
    let verdict = record.verdict();
    let style = match verdict {
        Verdict::Passed => colour(AnsiColor::Green),
        Verdict::Failed => colour(AnsiColor::Red),
        Verdict::Incomplete => colour(AnsiColor::Yellow),
    };
    let word = verdict.word().to_uppercase();
    format!("{style}{word}{style:#}: {}\n", verdict_sentence(record))
}

/// Why the verdict is what it is.
pub(super) fn verdict_sentence(record: &Record) -> String {
    let counts = record.counts();
    let (put, planned) = (record.entries.len(), record.header.planned);
    let unanswered = counts[&Status::Error] + counts[&Status::Hang];
    let mut parts = Vec::new();
    if counts[&Status::Fail] > 0 {
        parts.push(format!("{} of {planned} answers are wrong", counts[&Status::Fail]));
    }
    if unanswered > 0 {
        parts.push(format!("{unanswered} of {planned} questions got no answer"));
    }
    if !record.is_complete() {
        parts.push(format!("the run was cut short: {put} of {planned} questions were put"));
    } else if counts[&Status::Pass] == 0 && parts.is_empty() {
        parts.push(format!("not one of {planned} questions got an answer that could be judged"));
    }
    if parts.is_empty() {
        parts.push(format!("{} of {planned} questions are answered rightly", counts[&Status::Pass]));
    }
    for status in [Status::Unsupported, Status::NotApplicable] {
        if counts[&status] > 0 {
            parts.push(format!("{} {}", counts[&status], status.word()));
        }
    }
    parts.join("; ")
}

/// What there is to say of a case that did not pass, line by line.
pub(super) fn story(record: &Record, entry: &Entry) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            let gap = if text.is_empty() { "" } else { "\n" };
            _ = write!(text, "{gap}{name:9}{value}");
        }
    };
    if entry.message != entry.headline() {
        line("answer", &entry.message);
    }
    for diagnosis in entry.diagnosis.iter().skip(1) {
        line("also", diagnosis);
    }
    line("clauses", &entry.clauses.join(", "));
    for (flag, meaning) in record.meanings(entry) {
        line("flag", &format!("{flag}: who fails this {meaning}"));
    }
    line("go on", &format!("grpo-oracle explain {}", entry.formula));
    line("", &format!("grpo-oracle extract {} {}", entry.formula, entry.case));
    text
}

fn who(record: &Record) -> String {
    let header = &record.header;
    let hello = &header.hello;
    let formulas = record.by_formula().len();
    let all = Formula::<f64>::all().count();
    format!(
        "{BOLD}{} {}{BOLD:#} ({}, {}), judged by grpo-oracle {} on {formulas} of {all} formulas\n\n",
        hello.name,
        hello.version,
        hello.language,
        hello.dtype.name(),
        header.oracle,
    )
}

/// The counts by formula and status, and how near the nearest pass came to its tolerance.
fn matrix(text: &mut String, record: &Record) {
    let formulas = record.by_formula();
    let width = formulas.iter().map(|(formula, _)| formula.len()).max().unwrap_or(0).max("formula".len());
    _ = write!(text, "{BOLD}{:width$}", "formula");
    for status in Status::ALL {
        _ = write!(text, "{:>columns$}", status.word(), columns = columns(status));
    }
    _ = writeln!(text, "{:>10}{BOLD:#}", "nearest");
    for (formula, entries) in &formulas {
        row(text, formula, width, entries);
    }
    let all: Vec<&Entry> = record.entries.iter().collect();
    row(text, "all", width, &all);
}

fn row(text: &mut String, name: &str, width: usize, entries: &[&Entry]) {
    let counts = counts(entries.iter().copied());
    _ = write!(text, "{name:width$}");
    for status in Status::ALL {
        let (count, columns) = (counts[&status], columns(status));
        let style = if count == 0 { DIM } else { style(status) };
        let shown = if count == 0 { ".".to_owned() } else { count.to_string() };
        _ = write!(text, "{style}{shown:>columns$}{style:#}");
    }
    let passes = entries.iter().filter(|entry| entry.status == Status::Pass);
    let nearest = passes.filter_map(|entry| entry.excess).max_by(f64::total_cmp);
    let nearest = nearest.map_or_else(|| ".".to_owned(), |excess| format!("{excess:.2}"));
    _ = writeln!(text, "{DIM}{nearest:>10}{DIM:#}");
}

fn columns(status: Status) -> usize {
    status.word().len().max(4) + 2
}

/// What went wrong with a formula: each diagnosis once, told by its first case.
fn failures(text: &mut String, record: &Record, formula: &str, entries: &[&Entry]) {
    let failed: Vec<&Entry> = entries.iter().copied().filter(|entry| entry.status == Status::Fail).collect();
    let groups = grouped(&failed);
    for (headline, cases) in groups.iter().take(STORIES) {
        let Some(first) = cases.first() else { continue };
        let red = colour(AnsiColor::Red);
        let count = many(cases.len(), "case");
        _ = writeln!(text, "\n{red}FAIL{red:#} {BOLD}{formula}{BOLD:#}: {headline} ({count})");
        tell(text, record, first);
    }
    if groups.len() > STORIES {
        let rest = many(groups.len() - STORIES, "other way");
        _ = writeln!(text, "     {DIM}and {rest} in which {formula} fails; --html shows every case{DIM:#}");
    }
}

fn tell(text: &mut String, record: &Record, entry: &Entry) {
    _ = writeln!(text, "     {:9}{}", "case", entry.case);
    for line in story(record, entry).lines() {
        _ = writeln!(text, "     {}", line.trim_end());
    }
}

/// What got no answer: told once for all formulas, since it is the adapter that ended and not a formula that is wrong.
fn unanswered(text: &mut String, record: &Record) {
    for status in [Status::Error, Status::Hang] {
        let entries: Vec<&Entry> = record.entries.iter().filter(|entry| entry.status == status).collect();
        let groups = grouped(&entries);
        for (message, cases) in groups.iter().take(STORIES) {
            let Some(first) = cases.first() else { continue };
            let (style, word) = (style(status), status.word().to_uppercase());
            let count = many(cases.len(), "case");
            _ = writeln!(text, "\n{style}{word}{style:#} {message} ({count})");
            _ = writeln!(text, "     {:9}{} {}", "first", first.formula, first.case);
        }
        if groups.len() > STORIES {
            let rest = many(groups.len() - STORIES, "other message");
            _ = writeln!(text, "     {DIM}and {rest}; --html shows every case{DIM:#}");
        }
    }
}

/// What was not judged, and why.
fn skipped(text: &mut String, record: &Record) {
    let of = |status| record.entries.iter().filter(move |entry: &&Entry| entry.status == status);
    let unsupported: Vec<&Entry> = of(Status::Unsupported).collect();
    let groups = grouped(&unsupported);
    if !groups.is_empty() {
        _ = writeln!(text, "\nunsupported: the adapter says that it does not do this");
    }
    for (why, cases) in groups.iter().take(2 * STORIES) {
        _ = writeln!(text, "     {:>5}  {why}", cases.len());
    }
    if groups.len() > 2 * STORIES {
        let rest = many(groups.len() - 2 * STORIES, "other reason");
        _ = writeln!(text, "     {DIM}and {rest}; --html shows every case{DIM:#}");
    }
    let count = of(Status::NotApplicable).count();
    if count > 0 {
        let dtype = record.header.hello.dtype.name();
        _ = writeln!(
            text,
            "\nnot-applicable: {}: {dtype} does not represent the inputs, or its rounding may take another branch",
            many(count, "case")
        );
    }
    let partly = of(Status::Pass).filter(|entry| !entry.message.is_empty()).count();
    if partly > 0 {
        _ = writeln!(
            text,
            "\npartly answered: {} passed with an output or gradient left out",
            many(partly, "case")
        );
    }
}

/// The entries by what they are told by, the most frequent first.
pub(super) fn grouped<'a>(entries: &[&'a Entry]) -> Vec<(&'a str, Vec<&'a Entry>)> {
    let mut groups: Vec<(&str, Vec<&Entry>)> = Vec::new();
    for &entry in entries {
        match groups.iter_mut().find(|(headline, _)| *headline == entry.headline()) {
            Some((_, cases)) => cases.push(entry),
            None => groups.push((entry.headline(), vec![entry])),
        }
    }
    groups.sort_by_key(|(_, cases)| std::cmp::Reverse(cases.len()));
    groups
}

/// What changed between two runs, for people.
pub fn diff_table(diff: &Diff) -> String {
    let mut text = String::new();
    for (what, old, new) in &diff.about {
        _ = writeln!(text, "{what:12}{old} -> {new}");
    }
    for kind in Kind::ALL {
        let changes: Vec<_> = diff.changes.iter().filter(|change| change.kind() == kind).collect();
        if changes.is_empty() {
            continue;
        }
        let style = match kind {
            Kind::NewlyPassing => colour(AnsiColor::Green),
            kind if kind.is_worse() => colour(AnsiColor::Red),
            _ => BOLD,
        };
        _ = writeln!(text, "\n{style}{}{style:#}: {}", kind.words(), many(changes.len(), "case"));
        for change in changes.iter().take(CHANGES) {
            let word = |status: Option<Status>| status.map_or("-", Status::word);
            let (old, new) = (word(change.old), word(change.new));
            let colon = if change.message.is_empty() { "" } else { ": " };
            let (formula, case, message) = (&change.formula, &change.case, &change.message);
            _ = writeln!(text, "     {formula} {case}  {old} -> {new}{colon}{message}");
        }
        if changes.len() > CHANGES {
            _ = writeln!(text, "     {DIM}and {} more; --json has them all{DIM:#}", changes.len() - CHANGES);
        }
    }
    let gap = if text.is_empty() { "" } else { "\n" };
    let (worse, style) = match diff.is_worse() {
        true => ("WORSE", colour(AnsiColor::Red)),
        false => ("NOT WORSE", colour(AnsiColor::Green)),
    };
    let cut = if diff.is_complete { "" } else { "the new run was cut short; " };
    let counts = diff.counts();
    let better = counts[&Kind::NewlyPassing];
    let bad: usize = counts.iter().filter(|(kind, _)| kind.is_worse()).map(|(_, count)| count).sum();
    _ = writeln!(
        text,
        "{gap}{style}{worse}{style:#}: {cut}{bad} worse, {better} newly passing, {} the same",
        diff.same
    );
    text
}

fn many(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

fn style(status: Status) -> Style {
    match status {
        Status::Pass => colour(AnsiColor::Green),
        Status::Fail => colour(AnsiColor::Red),
        Status::Error | Status::Hang => colour(AnsiColor::Magenta),
        Status::Unsupported => colour(AnsiColor::Yellow),
        Status::NotApplicable => DIM,
    }
}

fn colour(colour: AnsiColor) -> Style {
    colour.on_default().bold()
}
