//! The report that others are made of: a line of JSON for the header, one for each outcome as it comes, and one for the
//! footer. Without its footer, a file tells of a run that did not come to its end.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::{Entry, Header, Plain, Record};
use crate::conformance::{Hello, Status};
use crate::file::unwritable;
use crate::{Error, Result};

/// The version of the format.
const FORMAT: u64 = 1;

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine {
    report: u64,
    oracle: String,
    adapter: String,
    started: u64,
    planned: usize,
    hello: Value,
    flags: BTreeMap<String, BTreeMap<String, String>>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct FooterLine {
    complete: bool,
    seconds: Option<f64>,
    counts: BTreeMap<Status, usize>,
}

/// A file of JSON lines that is written as the run goes.
#[derive(Debug)]
pub struct LinesFile {
    file: File,
    path: PathBuf,
}

impl LinesFile {
    /// Starts the file with the header.
    ///
    /// # Errors
    /// `file` if it cannot be written.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let file = File::create(path).map_err(|problem| unwritable(path, &problem))?;
        let mut lines = Self { file, path: path.to_owned() };
        lines.put(&HeaderLine {
            report: FORMAT,
            oracle: header.oracle.clone(),
            adapter: header.adapter.clone(),
            started: header.started,
            planned: header.planned,
            hello: header.hello.to_json(),
            flags: header.flags.clone(),
        })?;
        Ok(lines)
    }

    /// Adds an outcome.
    ///
    /// # Errors
    /// `file` if it cannot be written.
    pub fn add(&mut self, entry: &Entry) -> Result<()> {
        self.put(entry)
    }

    /// Ends the file with the footer.
    ///
    /// # Errors
    /// `file` if it cannot be written.
    pub fn finish(mut self, record: &Record) -> Result<()> {
        let complete = record.is_complete();
        self.put(&FooterLine { complete, seconds: record.seconds, counts: record.counts() })
    }

    fn put(&mut self, line: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string(line).map_err(|problem| Error::file(&self.path, problem))?;
        // One call a line: whoever reads while the run goes sees whole lines.
        let written = self.file.write_all(format!("{text}\n").as_bytes());
        written.map_err(|problem| unwritable(&self.path, &problem))
    }
}

/// Reads a file of JSON lines.
///
/// # Errors
/// `file`, naming the line, for anything that [`LinesFile`] does not write. A file that ends early is read up to there.
pub fn read(path: &Path) -> Result<Record> {
    let text = std::fs::read_to_string(path).map_err(|problem| Error::file(path, problem))?;
    parse(&text).map_err(|problem| Error::file(path, problem))
}

fn parse(text: &str) -> Result<Record, String> {
    // What follows the last line end was being written when the run was cut off.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    if whole.is_empty() {
        return Err("has no whole line; name a file that --jsonl wrote".to_owned());
    }
    let mut lines = whole.split('\n').enumerate();
    let first = lines.next().map(|(_, line)| line).unwrap_or_default();
    let mut record = Record::new(header(first).map_err(|problem| format!("line 1 {problem}"))?);
    let mut seen = HashSet::new();
    let mut is_over = false;
    for (index, line) in lines {
        let wrong = |problem: String| format!("line {} {problem}", index + 1);
        if is_over {
            return Err(wrong("follows the footer".to_owned()));
        }
        let json: Value = serde_json::from_str(line).map_err(|problem| wrong(not_json(&problem)))?;
        if json.get("complete").is_some() {
            record.seconds = footer(json, &record).map_err(wrong)?;
            is_over = true;
            continue;
        }
        let entry = entry(json).map_err(wrong)?;
        if !seen.insert((entry.formula.clone(), entry.case.clone())) {
            return Err(wrong(format!("tells of {} {} for the second time", entry.formula, entry.case)));
        }
        record.entries.push(entry);
    }
    match record.entries.len() {
        count if count > record.header.planned => {
            Err(format!("has {count} outcomes where {} were planned", record.header.planned))
        }
        _ => Ok(record),
    }
}

fn header(line: &str) -> Result<Header, String> {
    let json: Value = serde_json::from_str(line).map_err(|problem| not_json(&problem))?;
    match json.get("report") {
        None => return Err("is not the header of a report; name a file that --jsonl wrote".to_owned()),
        Some(format) if format.as_u64() != Some(FORMAT) => {
            return Err(format!("says format {format}; this version reads {FORMAT}"));
        }
        Some(_) => {}
    }
    let line: HeaderLine = serde_json::from_value(json).map_err(|problem| format!("is wrong: {problem}"))?;
    Ok(Header {
        hello: Hello::from_json(&line.hello).map_err(|problem| format!("is wrong: {problem}"))?,
        adapter: line.adapter,
        oracle: line.oracle,
        started: line.started,
        planned: line.planned,
        flags: line.flags,
    })
}

fn entry(json: Value) -> Result<Entry, String> {
    let entry: Entry = serde_json::from_value(json).map_err(|problem| format!("is wrong: {problem}"))?;
    if entry.detail.is_none() && entry.status != Status::Pass {
        return Err("lacks `detail`, which only a pass may leave out".to_owned());
    }
    let detail = entry.detail.iter();
    let arrays = detail.flat_map(|detail| {
        let outputs = detail.outputs.iter().flat_map(|output| {
            [Some(&output.expected), Some(&output.bound), output.got.as_ref()].into_iter().flatten()
        });
        detail.inputs.values().chain(outputs)
    });
    if !arrays.into_iter().all(Plain::is_sound) {
        return Err("has an array whose shape does not count its entries".to_owned());
    }
    Ok(entry)
}

/// How long the run took, if it came to its end.
fn footer(json: Value, record: &Record) -> Result<Option<f64>, String> {
    let footer: FooterLine =
        serde_json::from_value(json).map_err(|problem| format!("is wrong: {problem}"))?;
    if footer.counts != record.counts() {
        return Err("counts other outcomes than the file has".to_owned());
    }
    if footer.complete != (footer.seconds.is_some() && record.entries.len() == record.header.planned) {
        return Err("says of `complete` what the file does not".to_owned());
    }
    Ok(footer.seconds)
}

fn not_json(problem: &serde_json::Error) -> String {
    format!("is not JSON: {problem}")
}
