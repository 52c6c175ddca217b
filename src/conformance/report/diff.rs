//! What changed between two runs.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Entry, Record};
use crate::conformance::Status;

/// What changed between two runs.
#[derive(Debug, Clone, PartialEq)]
pub struct Diff {
    /// What is said of the runs as a whole, where it differs: its name, the old value and the new.
    pub about: Vec<(&'static str, String, String)>,
    /// The cases that went another way.
    pub changes: Vec<Change>,
    /// How many went the same way.
    pub same: usize,
    /// Whether the new run came to its end.
    pub is_complete: bool,
}

/// A case that went another way.
#[derive(Debug, Clone, PartialEq)]
pub struct Change {
    /// The formula's id.
    pub formula: String,
    /// The case's slug.
    pub case: String,
    /// How it went before; `None` if it was not there.
    pub old: Option<Status>,
    /// How it goes now; `None` if it is gone.
    pub new: Option<Status>,
    /// What is said of it now.
    pub message: String,
}

/// What sort of change it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// There is no right answer where there was none that was wrong, or no case.
    NewlyFailing,
    /// What passed is unsupported now.
    NoLongerSupported,
    /// What passed is not among the questions any more.
    GonePass,
    /// It passes now.
    NewlyPassing,
    /// Another status, neither better nor worse.
    Other,
    /// A case that was not there before.
    New,
    /// A case that did not pass, and is not there any more.
    Gone,
}

impl Kind {
    /// Every kind, the worst first.
    pub const ALL: [Self; 7] = [
        Self::NewlyFailing,
        Self::NoLongerSupported,
        Self::GonePass,
        Self::NewlyPassing,
        Self::Other,
        Self::New,
        Self::Gone,
    ];

    /// The words that reports use.
    pub fn words(self) -> &'static str {
        match self {
            Self::NewlyFailing => "newly failing",
            Self::NoLongerSupported => "no longer supported",
            Self::GonePass => "passed, now gone",
            Self::NewlyPassing => "newly passing",
            Self::Other => "otherwise changed",
            Self::New => "new",
            Self::Gone => "gone",
        }
    }

    /// Whether it is for the worse.
    pub fn is_worse(self) -> bool {
        matches!(self, Self::NewlyFailing | Self::NoLongerSupported | Self::GonePass)
    }
}

impl Change {
    /// What sort of change it is.
    pub fn kind(&self) -> Kind {
        let is_bad = |status| matches!(status, Status::Fail | Status::Error | Status::Hang);
        match (self.old, self.new) {
            (Some(old), Some(new)) if is_bad(new) && !is_bad(old) => Kind::NewlyFailing,
            (None, Some(new)) if is_bad(new) => Kind::NewlyFailing,
            (Some(Status::Pass), Some(Status::Unsupported)) => Kind::NoLongerSupported,
            (Some(Status::Pass), None) => Kind::GonePass,
            (Some(_), Some(Status::Pass)) => Kind::NewlyPassing,
            (None, Some(_)) => Kind::New,
            (_, None) => Kind::Gone,
            (Some(_), Some(_)) => Kind::Other,
        }
    }
}

impl Diff {
    /// Whether anything got worse. A run that was cut short might hide it, so that is worse as well.
    pub fn is_worse(&self) -> bool {
        !self.is_complete || self.changes.iter().any(|change| change.kind().is_worse())
    }

    /// How many changes there are of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, usize> {
        let mut counts: BTreeMap<Kind, usize> = Kind::ALL.into_iter().map(|kind| (kind, 0)).collect();
        for change in &self.changes {
            *counts.entry(change.kind()).or_default() += 1;
        }
        counts
    }

    /// The difference as JSON.
    pub fn to_json(&self) -> Value {
        let about = self.about.iter().map(|(name, old, new)| json!({ "what": name, "old": old, "new": new }));
        let changes = self.changes.iter().map(|change| {
            json!({
                "formula": change.formula, "case": change.case, "kind": change.kind().words(),
                "worse": change.kind().is_worse(), "old": change.old, "new": change.new,
                "message": change.message,
            })
        });
        json!({
            "worse": self.is_worse(), "complete": self.is_complete, "same": self.same,
            "about": about.collect::<Vec<_>>(), "changes": changes.collect::<Vec<_>>(),
        })
    }
}

/// What changed from one run to another.
pub fn diff(old: &Record, new: &Record) -> Diff {
    let by_key = |record: &'_ Record| -> BTreeMap<(String, String), Entry> {
        let entries = record.entries.iter();
        entries.map(|entry| ((entry.formula.clone(), entry.case.clone()), entry.clone())).collect()
    };
    let (mut before, after) = (by_key(old), by_key(new));
    let (mut changes, mut same) = (Vec::new(), 0);
    for ((formula, case), entry) in after {
        let key = (formula, case);
        let status = before.remove(&key).map(|entry| entry.status);
        if status == Some(entry.status) {
            same += 1;
            continue;
        }
        let message = if entry.status == Status::Pass { String::new() } else { entry.why().to_owned() };
        changes.push(Change { formula: key.0, case: key.1, old: status, new: Some(entry.status), message });
    }
    // A run that was cut short has not got to the rest: nothing is gone.
    if new.is_complete() {
        changes.extend(before.into_iter().map(|((formula, case), entry)| Change {
            formula,
            case,
            old: Some(entry.status),
            new: None,
            message: String::new(),
        }));
    }
    changes.sort_by(|a, b| (a.kind(), &a.formula, &a.case).cmp(&(b.kind(), &b.formula, &b.case)));
    Diff { about: about(old, new), changes, same, is_complete: new.is_complete() }
}

fn about(old: &Record, new: &Record) -> Vec<(&'static str, String, String)> {
    let facts = |record: &Record| {
        let header = &record.header;
        let complete = if record.is_complete() { "yes" } else { "no" };
        [
            ("name", header.hello.name.clone()),
            ("version", header.hello.version.clone()),
            ("language", header.hello.language.clone()),
            ("dtype", header.hello.dtype.name().to_owned()),
            ("adapter", header.adapter.clone()),
            ("grpo-oracle", header.oracle.clone()),
            ("complete", complete.to_owned()),
            ("verdict", record.verdict().word().to_owned()),
        ]
    };
    let pairs = facts(old).into_iter().zip(facts(new));
    pairs.filter(|(old, new)| old.1 != new.1).map(|((name, old), (_, new))| (name, old, new)).collect()
}
