//! One page that needs nothing but a browser: no network, no other file, and for reading no script.

use std::collections::BTreeSet;

use minijinja::Environment;
use serde_json::{Value, json};

use super::record::{Compared, Detail, Entry, Plain, Record, counts, utc};
use super::table::{grouped, verdict_sentence};
use crate::conformance::{Dtype, Status};
use crate::formula::Formula;
use crate::value::number;
use crate::{Error, Result, spec};

/// How many entries of one array are shown.
const ENTRIES: usize = 256;

/// How many cases of one finding are told in full: the rest show the same, and a page must open on a phone.
const FULL: usize = 12;

/// The run as a page.
///
/// # Errors
/// None that is known of; a template is fallible by its type.
pub fn html(record: &Record) -> Result<String> {
    let wrong = |problem: minijinja::Error| Error::file("page.html", format!("{problem:#}"));
    let mut environment = Environment::new();
    environment.add_template("page.css", include_str!("page.css")).map_err(wrong)?;
    environment.add_template("page.js", include_str!("page.js")).map_err(wrong)?;
    environment.add_template("page.html", include_str!("page.html")).map_err(wrong)?;
    let page = environment.get_template("page.html").map_err(wrong)?;
    page.render(minijinja::value::Serde(page_values(record))).map_err(wrong)
}

/// Everything that the page shows, as plain values: the template computes nothing.
pub(super) fn page_values(record: &Record) -> Value {
    let header = &record.header;
    let hello = &header.hello;
    let formulas = record.by_formula();
    json!({
        "name": hello.name, "version": hello.version, "language": hello.language,
        "dtype": hello.dtype.name(), "adapter": header.adapter, "oracle": header.oracle,
        "roundoff": short(hello.dtype.unit_roundoff()),
        "started": utc(header.started, " "), "started_machine": utc(header.started, "T"),
        "seconds": record.seconds.map(|seconds| format!("{seconds:.1}")),
        "verdict": record.verdict().word(), "sentence": verdict_sentence(record),
        "complete": record.is_complete(), "planned": header.planned, "put": record.entries.len(),
        "formulas_known": Formula::<f64>::all().count(),
        "counts": count_values(&record.entries.iter().collect::<Vec<_>>()),
        "findings": formulas.iter().any(|(_, entries)| entries.iter().any(|entry| entry.is_bad())),
        "formulas": formulas.iter().map(|(id, entries)| formula_values(record, id, entries)).collect::<Vec<_>>(),
        "clauses": clause_values(record),
        "data": data(record),
    })
}

fn count_values(entries: &[&Entry]) -> Value {
    let counts = counts(entries.iter().copied());
    counts.into_iter().map(|(status, count)| json!({ "word": status.word(), "count": count })).collect()
}

fn formula_values(record: &Record, id: &str, entries: &[&Entry]) -> Value {
    let of = |status: Status| -> Vec<&Entry> {
        entries.iter().copied().filter(|entry| entry.status == status).collect()
    };
    let bad = [Status::Fail, Status::Error, Status::Hang].into_iter().filter_map(|status| {
        let entries = of(status);
        let groups = grouped(&entries).into_iter().map(|(headline, cases)| {
            let (full, rest) = cases.split_at(cases.len().min(FULL));
            let full: Vec<Value> = full.iter().map(|entry| case_values(record, entry)).collect();
            let rest: Vec<Value> = rest.iter().map(|entry| quiet_values(entry)).collect();
            json!({ "headline": headline, "count": cases.len(), "cases": full, "rest": rest })
        });
        let groups: Vec<Value> = groups.collect();
        (!entries.is_empty())
            .then(|| json!({ "word": status.word(), "count": entries.len(), "groups": groups }))
    });
    let quiet = [Status::Unsupported, Status::NotApplicable, Status::Pass].into_iter().filter_map(|status| {
        let entries = of(status);
        let rows: Vec<Value> = entries.iter().map(|entry| quiet_values(entry)).collect();
        (!entries.is_empty()).then(|| json!({ "word": status.word(), "count": rows.len(), "rows": rows }))
    });
    let nearest = of(Status::Pass).into_iter().filter_map(|entry| entry.excess).max_by(f64::total_cmp);
    let summary = Formula::<f64>::find(id).map_or("", |formula| formula.summary);
    let family = id.split('.').next().unwrap_or_default();
    json!({
        "id": id, "family": family, "summary": summary, "total": entries.len(), "counts": count_values(entries),
        "nearest": nearest.map(short),
        "bad": bad.collect::<Vec<_>>(), "quiet": quiet.collect::<Vec<_>>(),
    })
}

/// A case that is told in a row of a table.
fn quiet_values(entry: &Entry) -> Value {
    json!({
        "case": entry.case, "message": entry.message, "clauses": entry.clauses,
        "excess": entry.excess.map(short),
    })
}

/// A case that is told in full.
fn case_values(record: &Record, entry: &Entry) -> Value {
    let flags = record.meanings(entry).map(|(name, meaning)| json!({ "name": name, "meaning": meaning }));
    let dtype = record.header.hello.dtype;
    json!({
        "case": entry.case, "word": entry.status.word(), "message": entry.message,
        "diagnosis": entry.diagnosis, "clauses": entry.clauses, "flags": flags.collect::<Vec<_>>(),
        "detail": entry.detail.as_ref().map(|detail| detail_values(&entry.formula, detail, dtype)),
    })
}

fn detail_values(formula: &str, detail: &Detail, dtype: Dtype) -> Value {
    let defaults = Formula::<f64>::find(formula).map(|row| (row.defaults)()).unwrap_or_default();
    let options = detail.options.iter().map(|(name, value)| {
        let differs = defaults.get(name).is_some_and(|default| default != value);
        json!({ "name": name, "value": value.to_string(), "differs": differs })
    });
    let inputs = detail.inputs.iter().map(|(name, array)| {
        json!({ "name": name, "shape": shape(array), "more": more(array), "rows": rows(array, cell) })
    });
    json!({
        "options": options.collect::<Vec<_>>(), "inputs": inputs.collect::<Vec<_>>(), "error": detail.error,
        "outputs": detail.outputs.iter().map(|output| output_values(output, dtype)).collect::<Vec<_>>(),
    })
}

fn output_values(output: &Compared, dtype: Dtype) -> Value {
    let (expected, got) = (&output.expected, output.got.as_ref());
    let excesses = output.excesses(dtype);
    let wrong = excesses.iter().filter(|(excess, _)| *excess > 1.0).count();
    let heat = rows(expected, |index, _| {
        let excess = excesses.get(index).map(|(excess, _)| *excess);
        json!({ "text": excess.map_or_else(|| "-".to_owned(), short), "level": excess.map(level) })
    });
    let entries = expected.data.iter().enumerate().take(ENTRIES).map(|(index, value)| {
        let (excess, tolerance) = excesses.get(index).copied().unzip();
        let given = got.and_then(|got| got.data.get(index));
        let real = |value: &Value| crate::value::number_from(value).unwrap_or(f64::NAN);
        let off = given.filter(|_| excess.is_some()).map(|given| short((real(given) - real(value)).abs()));
        json!({
            "at": position(&expected.shape, index), "expected": cell(index, value),
            "got": given.map(|given| cell(index, given)), "off": off, "allowed": tolerance.map(short),
            "excess": excess.map(short), "level": excess.map(level),
        })
    });
    json!({
        "name": output.name, "shape": shape(expected), "got_shape": got.map(shape),
        "same_shape": got.is_some_and(|got| got.shape == expected.shape),
        "given": got.is_some(), "wrong": wrong, "count": expected.data.len(), "more": more(expected),
        "heat": (expected.data.len() > 1 && !excesses.is_empty()).then_some(heat),
        "entries": entries.collect::<Vec<_>>(),
    })
}

/// The rows of an array along its last axis, each with its position and its cells.
fn rows(array: &Plain, cell: impl Fn(usize, &Value) -> Value) -> Value {
    let width = array.shape.last().copied().unwrap_or(1).max(1);
    let shown = &array.data[..array.data.len().min(ENTRIES)];
    let rows = shown.chunks(width).enumerate().map(|(row, entries)| {
        let cells = entries.iter().enumerate().map(|(column, entry)| cell(row * width + column, entry));
        let leading = array.shape.split_last().map_or(&[][..], |(_, leading)| leading);
        json!({ "at": position(leading, row), "cells": cells.collect::<Vec<_>>() })
    });
    rows.collect()
}

fn more(array: &Plain) -> usize {
    array.data.len().saturating_sub(ENTRIES)
}

fn shape(array: &Plain) -> String {
    let axes: Vec<String> = array.shape.iter().map(usize::to_string).collect();
    if axes.is_empty() { "scalar".to_owned() } else { axes.join(" × ") }
}

/// Where an entry stands, `1, 0`.
fn position(shape: &[usize], mut index: usize) -> String {
    let mut axes: Vec<String> = Vec::new();
    for &axis in shape.iter().rev() {
        axes.push((index % axis.max(1)).to_string());
        index /= axis.max(1);
    }
    axes.reverse();
    axes.join(", ")
}

/// An entry with all of its digits.
fn cell(_: usize, value: &Value) -> Value {
    json!(match value {
        Value::Number(number) => match number.as_f64() {
            Some(real) if number.is_f64() && real != 0.0 && !(1e-4..1e15).contains(&real.abs()) => {
                format!("{real:e}")
            }
            Some(real) if number.is_f64() => real.to_string(),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

/// A number with as many digits as a reader wants of an error.
fn short(value: f64) -> String {
    match value {
        value if value.is_nan() => "NaN".to_owned(),
        value if value.is_infinite() => "∞".to_owned(),
        0.0 => "0".to_owned(),
        value if (0.01..100.0).contains(&value.abs()) => format!("{value:.2}"),
        value if (100.0..1e4).contains(&value.abs()) => format!("{value:.0}"),
        value => format!("{value:.1e}"),
    }
}

/// How hot an error is: 0 to 2 within the tolerance, 3 to 5 beyond it.
fn level(excess: f64) -> u8 {
    match excess {
        excess if excess <= 0.1 => 0,
        excess if excess <= 0.5 => 1,
        excess if excess <= 1.0 => 2,
        excess if excess <= 10.0 => 3,
        excess if excess <= 1e4 => 4,
        _ => 5,
    }
}

/// The text of every clause that a case is about which did not pass.
fn clause_values(record: &Record) -> Value {
    let bad = record.entries.iter().filter(|entry| entry.is_bad());
    let ids: BTreeSet<&str> = bad.flat_map(|entry| entry.clauses.iter().map(String::as_str)).collect();
    let clause = |id: &str| {
        let text = spec::clause(id).unwrap_or("is not a clause of this version of the specification");
        json!({ "id": id, "paragraphs": text.split("\n\n").collect::<Vec<_>>() })
    };
    ids.into_iter().map(clause).collect()
}

/// What a script can read from the page, safe to stand between the tags of one.
fn data(record: &Record) -> String {
    let case = |entry: &Entry| {
        json!([entry.formula, entry.case, entry.status.word(), entry.excess.map(number), entry.headline()])
    };
    let json = json!({
        "oracle": record.header.oracle, "adapter": record.header.adapter, "hello": record.header.hello.to_json(),
        "started": record.header.started, "planned": record.header.planned, "seconds": record.seconds,
        "complete": record.is_complete(), "verdict": record.verdict().word(),
        "columns": ["formula", "case", "status", "excess", "headline"],
        "cases": record.entries.iter().map(case).collect::<Vec<_>>(),
    });
    json.to_string().replace('<', "\\u003c").replace('\u{2028}', "\\u2028").replace('\u{2029}', "\\u2029")
}
