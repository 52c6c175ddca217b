//! What a run found, and how it is told: a table, JSON lines, JUnit, a page, a badge, and what changed since another run.

mod badge;
mod diff;
mod html;
mod junit;
mod lines;
mod record;
mod table;

use std::collections::BTreeMap;

use super::{Hello, Outcome, Status};

pub use badge::badge;
pub use diff::{Change, Diff, Kind, diff};
pub use html::html;
pub use junit::junit;
pub use lines::{LinesFile, read};
pub use record::{Compared, Detail, Entry, Header, Plain, Record};
pub use table::{diff_table, table, verdict_line};

/// A run, finished or not.
#[derive(Debug, Clone)]
pub struct Report {
    /// Who was judged.
    pub hello: Hello,
    /// How the subject was named on the command line.
    pub adapter: String,
    /// The version of the judge.
    pub oracle: String,
    /// When the run started, in seconds since 1970.
    pub started: u64,
    /// How many questions were to be put.
    pub planned: usize,
    /// How each went, in the order in which they were put.
    pub outcomes: Vec<Outcome>,
    /// How long the run took, in seconds; `None` if it did not come to its end.
    pub seconds: Option<f64>,
}

/// What a run says of the subject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Every question was answered, none wrongly, and one at least rightly.
    Passed,
    /// An answer is wrong.
    Failed,
    /// No answer is wrong, but not every question was answered for, or none was judged.
    Incomplete,
}

impl Report {
    /// How many questions went each way.
    pub fn counts(&self) -> BTreeMap<Status, usize> {
        let mut counts: BTreeMap<Status, usize> = Status::ALL.into_iter().map(|status| (status, 0)).collect();
        for outcome in &self.outcomes {
            *counts.entry(outcome.status).or_default() += 1;
        }
        counts
    }

    /// What the run says of the subject. A run that was cut short has not passed.
    pub fn verdict(&self) -> Verdict {
        verdict(&self.counts(), self.seconds.is_some() && self.outcomes.len() == self.planned)
    }
}

impl Verdict {
    /// The word that reports use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Incomplete => "incomplete",
        }
    }
}

/// The one place that decides what is green.
fn verdict(counts: &BTreeMap<Status, usize>, is_complete: bool) -> Verdict {
    let count = |status| counts.get(&status).copied().unwrap_or(0);
    if count(Status::Fail) > 0 {
        return Verdict::Failed;
    }
    let is_answered = count(Status::Error) + count(Status::Hang) == 0 && count(Status::Pass) > 0;
    if is_complete && is_answered { Verdict::Passed } else { Verdict::Incomplete }
}
