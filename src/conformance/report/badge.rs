//! A badge, as shields.io reads it from a file.

use serde_json::{Value, json};

use super::{Record, Verdict};
use crate::conformance::Status;

/// The badge's file. It is green for a run that passed, and for no other.
pub fn badge(record: &Record) -> Value {
    let counts = record.counts();
    let count =
        |status: Status| (counts[&status] > 0).then(|| format!("{} {}", counts[&status], status.word()));
    let some = |statuses: &[Status]| statuses.iter().filter_map(|&status| count(status)).collect::<Vec<_>>();
    let (color, mut parts) = match record.verdict() {
        Verdict::Passed if counts[&Status::Unsupported] == 0 => ("brightgreen", some(&[Status::Pass])),
        Verdict::Passed => ("green", some(&[Status::Pass, Status::Unsupported])),
        Verdict::Failed => ("red", some(&[Status::Fail, Status::Pass])),
        Verdict::Incomplete => ("orange", some(&[Status::Error, Status::Hang])),
    };
    if !record.is_complete() {
        parts.insert(0, format!("incomplete: {} of {}", record.entries.len(), record.header.planned));
    } else if record.verdict() == Verdict::Incomplete {
        parts.insert(0, "incomplete".to_owned());
    }
    json!({
        "schemaVersion": 1,
        "label": format!("grpo-oracle {}", record.header.hello.dtype.name()),
        "message": parts.join(", "),
        "color": color,
        "isError": record.verdict() != Verdict::Passed,
    })
}
