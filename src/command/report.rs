//! What is told of a run: the reports of `verify`, and `report` and `diff`, which read its JSON lines.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use grpo_oracle::conformance::report::{
    Entry, Header, LinesFile, Record, badge, diff, diff_table, html, junit, read, table, verdict_line,
};
use grpo_oracle::conformance::{Outcome, Subject, Task, Verdict, run};
use grpo_oracle::file::{clear, replace};
use grpo_oracle::fixture::Fixture;
use grpo_oracle::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// The reports that `verify` writes.
#[derive(Args)]
pub(crate) struct ReportFiles {
    /// Write a line of JSON an outcome to this file as the run goes; `report` and `diff` read it.
    #[arg(long, value_name = "FILE")]
    jsonl: Option<PathBuf>,
    #[command(flatten)]
    finished: FinishedFiles,
    /// Show the verdict alone, and no progress.
    #[arg(long, short)]
    quiet: bool,
}

/// The reports that can be made of a run afterwards.
#[derive(Args)]
pub(crate) struct FinishedFiles {
    /// Write the report as one HTML page to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the report as JUnit XML, for CI, to this file.
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write a badge, as shields.io reads it, to this file.
    #[arg(long, value_name = "FILE")]
    badge: Option<PathBuf>,
}

/// A file with the outcomes of a run, and what to make of it.
#[derive(Args)]
pub(crate) struct Show {
    /// The file that `verify --jsonl` wrote.
    file: PathBuf,
    #[command(flatten)]
    files: FinishedFiles,
    /// Show the verdict alone.
    #[arg(long, short)]
    quiet: bool,
}

/// Two files with the outcomes of a run each.
#[derive(Args)]
pub(crate) struct Compare {
    /// The file of the earlier run.
    old: PathBuf,
    /// The file of the later run.
    new: PathBuf,
    /// Show the changes as JSON.
    #[arg(long)]
    json: bool,
}

/// A run that is being told of.
struct Telling<'a> {
    files: &'a FinishedFiles,
    lines: Option<LinesFile>,
    record: Record,
    bar: ProgressBar,
    quiet: bool,
    /// The first line that could not be written; the run goes on for the sake of the other reports.
    problem: Option<Error>,
}

impl ReportFiles {
    /// Makes sure that the files can be written, that nothing of an earlier run is left in them, and that none of them
    /// is the one that is read.
    pub(crate) fn clear(&self, input: Option<&Path>) -> Result<()> {
        let paths: Vec<&Path> = self.jsonl.as_deref().into_iter().chain(self.finished.paths()).collect();
        distinct(&input.into_iter().chain(paths.iter().copied()).collect::<Vec<_>>())?;
        paths.into_iter().try_for_each(clear)
    }

    /// Starts the reports. Until the end comes, each says that the run was cut short.
    fn start(&self, header: Header) -> Result<Telling<'_>> {
        let lines = self.jsonl.as_ref().map(|path| LinesFile::create(path, &header)).transpose()?;
        let bar = if self.quiet { ProgressBar::hidden() } else { bar("judging", header.planned) };
        let record = Record::new(header);
        self.finished.write(&record)?;
        Ok(Telling { files: &self.finished, lines, record, bar, quiet: self.quiet, problem: None })
    }
}

impl FinishedFiles {
    fn paths(&self) -> impl Iterator<Item = &Path> {
        [&self.html, &self.junit, &self.badge].into_iter().flatten().map(PathBuf::as_path)
    }

    fn write(&self, record: &Record) -> Result<()> {
        if let Some(path) = &self.html {
            replace(path, html(record)?)?;
        }
        if let Some(path) = &self.junit {
            replace(path, junit(record)?)?;
        }
        if let Some(path) = &self.badge {
            replace(path, format!("{:#}\n", badge(record)))?;
        }
        Ok(())
    }
}

impl Telling<'_> {
    /// Tells of an outcome.
    fn add(&mut self, outcome: &Outcome) {
        let entry = Entry::of(outcome);
        let written = self.lines.as_mut().map_or(Ok(()), |lines| lines.add(&entry));
        if let Err(problem) = written {
            self.lines = None;
            self.problem = Some(problem);
        }
        self.record.entries.push(entry);
        self.bar.inc(1);
    }

    /// Tells of the end, which the run has come to if there is a number of seconds.
    fn finish(mut self, seconds: Option<f64>) -> Result<ExitCode> {
        self.bar.finish_and_clear();
        self.record.seconds = seconds;
        print(&self.record, self.quiet);
        self.files.write(&self.record)?;
        if let Some(lines) = self.lines {
            lines.finish(&self.record)?;
        }
        self.problem.map_or_else(|| Ok(exit_code(self.record.verdict())), Err)
    }
}

/// Puts the questions to a subject and tells how it went.
pub(crate) fn judged(
    subject: &mut dyn Subject,
    adapter: &str,
    tasks: Vec<Task>,
    fixtures: &[Fixture],
    files: &ReportFiles,
) -> Result<ExitCode> {
    let mut telling = files.start(Header::now(subject.hello(), adapter, tasks.len(), fixtures))?;
    let report = run(subject, adapter, tasks, |outcome| telling.add(outcome));
    telling.finish(report.seconds)
}

/// `report`: a run told anew.
pub(crate) fn show(arguments: &Show) -> Result<ExitCode> {
    let paths: Vec<&Path> = [arguments.file.as_path()].into_iter().chain(arguments.files.paths()).collect();
    distinct(&paths)?;
    let record = read(&arguments.file)?;
    print(&record, arguments.quiet);
    arguments.files.write(&record)?;
    Ok(exit_code(record.verdict()))
}

/// `diff`: what changed between two runs.
pub(crate) fn compare(arguments: &Compare) -> Result<ExitCode> {
    let diff = diff(&read(&arguments.old)?, &read(&arguments.new)?);
    let text = if arguments.json { format!("{:#}\n", diff.to_json()) } else { diff_table(&diff) };
    say(&text);
    Ok(ExitCode::from(u8::from(diff.is_worse())))
}

fn exit_code(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Passed => ExitCode::SUCCESS,
        Verdict::Failed => ExitCode::from(1),
        Verdict::Incomplete => ExitCode::from(3),
    }
}

fn print(record: &Record, quiet: bool) {
    say(&if quiet { verdict_line(record) } else { table(record) });
}

/// Colour goes to terminals alone. The exit status says the same if nobody listens any more.
fn say(text: &str) {
    _ = anstream::stdout().write_all(text.as_bytes());
}

/// Two reports in one file would be one report, and one in the file that is read would be its end.
fn distinct(paths: &[&Path]) -> Result<()> {
    let whole = |path: &Path| {
        path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
    };
    let twice = paths
        .iter()
        .enumerate()
        .find(|(index, path)| paths[..*index].iter().any(|earlier| whole(earlier) == whole(path)));
    match twice {
        Some((_, path)) => Err(Error::file(path, "is named twice; give each report a file of its own")),
        None => Ok(()),
    }
}

/// Progress on standard error; nothing is drawn where that is not a terminal.
pub(super) fn bar(what: &'static str, length: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {elapsed} left {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length as u64).with_style(style.progress_chars("=> ")).with_message(what)
}
