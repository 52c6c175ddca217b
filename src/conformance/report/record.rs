//! A run as it is kept: what a report needs of every outcome, and no more.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Verdict, verdict};
use crate::conformance::{Dtype, Hello, Outcome, Status, worst};
use crate::fixture::{Expected, Fixture};
use crate::value::{Array, number, number_from};

/// Everything that is known before the first question is put.
#[derive(Debug, Clone, PartialEq)]
pub struct Header {
    /// Who is judged.
    pub hello: Hello,
    /// How the subject was named on the command line.
    pub adapter: String,
    /// The version of the judge.
    pub oracle: String,
    /// When the run started, in seconds since 1970.
    pub started: u64,
    /// How many questions are to be put.
    pub planned: usize,
    /// By formula and flag: what an implementation that fails a case with the flag got wrong.
    pub flags: BTreeMap<String, BTreeMap<String, String>>,
}

impl Header {
    /// The header of a run that starts now.
    pub fn now(hello: &Hello, adapter: &str, planned: usize, fixtures: &[Fixture]) -> Self {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let flags = fixtures.iter().filter(|fixture| !fixture.flags.is_empty());
        Self {
            hello: hello.clone(),
            adapter: adapter.to_owned(),
            oracle: env!("CARGO_PKG_VERSION").to_owned(),
            started,
            planned,
            flags: flags.map(|fixture| (fixture.formula.clone(), fixture.flags.clone())).collect(),
        }
    }
}

/// A run, finished or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What was known before.
    pub header: Header,
    /// How each question went, in the order in which they were put.
    pub entries: Vec<Entry>,
    /// How long the run took, in seconds; `None` if it did not come to its end.
    pub seconds: Option<f64>,
}

/// How one question went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The formula's id.
    pub formula: String,
    /// The case's slug; that of a relation is `CASE~RELATION`.
    pub case: String,
    /// How it went.
    pub status: Status,
    /// Why, in a sentence.
    pub message: String,
    /// What a failure looks like, the most telling first.
    pub diagnosis: Vec<String>,
    /// The clauses that it is about.
    pub clauses: Vec<String>,
    /// The flags of the case.
    pub flags: Vec<String>,
    /// The largest error over its tolerance: above 1 is too far off. `None` if nothing was compared.
    #[serde(with = "real")]
    pub excess: Option<f64>,
    /// How long the answer took.
    pub seconds: f64,
    /// The question and both answers; left out where it passed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<Detail>,
}

/// A question, the right answer and the one given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detail {
    /// Every option.
    pub options: Map<String, Value>,
    /// The inputs by name.
    pub inputs: BTreeMap<String, Plain>,
    /// The code of the error that is expected, if it is an error.
    pub error: Option<String>,
    /// The outputs and gradients that are expected, if it is an answer.
    pub outputs: Vec<Compared>,
}

/// An output or gradient that is expected, and what came.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compared {
    /// The output's name, or `grad:` and the input's.
    pub name: String,
    /// What the reference says.
    pub expected: Plain,
    /// Its bound, in units of roundoff.
    pub bound: Plain,
    /// What the subject says, if it says anything.
    pub got: Option<Plain>,
}

/// An array as it stands in JSON. It is not read by the table of formulas, so a report outlives the formulas it is about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plain {
    /// The length of each axis.
    pub shape: Vec<usize>,
    /// The entries, row-major: numbers, or texts.
    pub data: Vec<Value>,
}

impl Record {
    /// A run of which nothing is known yet but how it starts.
    pub fn new(header: Header) -> Self {
        Self { header, entries: Vec::new(), seconds: None }
    }

    /// Whether every question was put.
    pub fn is_complete(&self) -> bool {
        self.seconds.is_some() && self.entries.len() == self.header.planned
    }

    /// How many questions went each way.
    pub fn counts(&self) -> BTreeMap<Status, usize> {
        counts(self.entries.iter())
    }

    /// What the run says of the subject. A run that was cut short has not passed.
    pub fn verdict(&self) -> Verdict {
        verdict(&self.counts(), self.is_complete())
    }

    /// The outcomes by formula, both in the order in which they came.
    pub fn by_formula(&self) -> Vec<(&str, Vec<&Entry>)> {
        let mut formulas: Vec<(&str, Vec<&Entry>)> = Vec::new();
        for entry in &self.entries {
            match formulas.iter_mut().find(|(formula, _)| *formula == entry.formula) {
                Some((_, entries)) => entries.push(entry),
                None => formulas.push((&entry.formula, vec![entry])),
            }
        }
        formulas
    }

    /// What the flags of a case say about whoever fails it.
    pub fn meanings<'a>(&'a self, entry: &'a Entry) -> impl Iterator<Item = (&'a str, &'a str)> {
        let known = self.header.flags.get(&entry.formula);
        entry.flags.iter().map(move |flag| {
            let meaning = known.and_then(|flags| flags.get(flag)).map_or("", String::as_str);
            (flag.as_str(), meaning)
        })
    }
}

/// How many of these went each way.
pub(super) fn counts<'a>(entries: impl Iterator<Item = &'a Entry>) -> BTreeMap<Status, usize> {
    let mut counts: BTreeMap<Status, usize> = Status::ALL.into_iter().map(|status| (status, 0)).collect();
    for entry in entries {
        *counts.entry(entry.status).or_default() += 1;
    }
    counts
}

impl Entry {
    /// What is kept of an outcome.
    pub fn of(outcome: &Outcome) -> Self {
        let task = &outcome.task;
        let excesses = outcome.judged.iter().filter_map(|judged| Some(judged.worst.as_ref()?.excess));
        Self {
            formula: task.formula.clone(),
            case: task.case.clone(),
            status: outcome.status,
            message: outcome.message.clone(),
            diagnosis: outcome.diagnosis.clone(),
            clauses: task.clauses.clone(),
            flags: task.flags.clone(),
            excess: excesses.max_by(f64::total_cmp),
            seconds: outcome.seconds,
            detail: (outcome.status != Status::Pass).then(|| Detail::of(outcome)),
        }
    }

    /// Whether there is no right answer where there should be one.
    pub fn is_bad(&self) -> bool {
        matches!(self.status, Status::Fail | Status::Error | Status::Hang)
    }

    /// Why it went as it did, in the most telling words that there are.
    pub fn why(&self) -> &str {
        self.diagnosis.first().unwrap_or(&self.message)
    }

    /// What it is told by among others: its most telling diagnosis, or else how it went.
    pub fn headline(&self) -> &str {
        match (self.diagnosis.first(), self.status) {
            (Some(diagnosis), _) => diagnosis,
            (None, Status::Fail) => "the answer is wrong",
            (None, _) => &self.message,
        }
    }
}

impl Detail {
    fn of(outcome: &Outcome) -> Self {
        let question = &outcome.task.question;
        let (error, outputs) = match &outcome.task.expected {
            Expected::Error(code) => (Some(code.clone()), Vec::new()),
            Expected::Answer(answer) => {
                let values = answer.outputs.iter().map(|(name, array)| (name.clone(), array));
                let gradients = answer.gradients.iter().map(|(name, array)| (format!("grad:{name}"), array));
                let compared = values.chain(gradients).filter_map(|(name, expected)| {
                    let judged = outcome.judged.iter().find(|judged| judged.name == name);
                    Some(Compared {
                        expected: Plain::of(expected),
                        bound: Plain::of(answer.bounds.get(&name)?),
                        got: judged.map(|judged| Plain::of(&judged.got)),
                        name,
                    })
                });
                (None, compared.collect())
            }
        };
        let inputs = question.inputs.iter().map(|(name, array)| (name.clone(), Plain::of(array)));
        Self { options: question.options.clone(), inputs: inputs.collect(), error, outputs }
    }
}

impl Plain {
    fn of(array: &Array) -> Self {
        let json = array.to_json();
        let data = json.get("data").and_then(Value::as_array).cloned();
        Self { shape: array.shape.clone(), data: data.unwrap_or_default() }
    }

    /// Whether the shape counts the entries, and each is a number or a text.
    pub fn is_sound(&self) -> bool {
        let count = self.shape.iter().try_fold(1_usize, |product, &axis| product.checked_mul(axis));
        count == Some(self.data.len()) && self.data.iter().all(|entry| entry.is_number() || entry.is_string())
    }

    /// The numbers; a text that is none is NaN.
    pub fn reals(&self) -> Vec<f64> {
        self.data.iter().map(|entry| number_from(entry).unwrap_or(f64::NAN)).collect()
    }
}

impl Compared {
    /// The error of each entry over its tolerance, with that tolerance; empty if there is nothing to compare.
    pub fn excesses(&self, dtype: Dtype) -> Vec<(f64, f64)> {
        let Some(got) = self.got.as_ref().filter(|got| got.shape == self.expected.shape) else {
            return Vec::new();
        };
        let (expected, bound, got) = (self.expected.reals(), self.bound.reals(), got.reals());
        let entries = expected.iter().zip(&bound).zip(&got);
        let one = |((&expected, &bound), &got): ((&f64, &f64), &f64)| {
            let worst = worst(&[expected], &[bound], &[got], dtype);
            worst.map_or((f64::INFINITY, 0.0), |worst| (worst.excess, worst.tolerance))
        };
        entries.map(one).collect()
    }
}

/// A time in UTC, `2026-11-21` and `10:43:00` with something between.
pub(super) fn utc(seconds: u64, between: &str) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days from 0000-03-01, in eras of 400 years; a year that begins in March ends with its leap day.
    let shifted = days + 719_468;
    let (era, day) = (shifted / 146_097, shifted % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = era * 400 + year + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}{between}{hour:02}:{minute:02}:{second:02}")
}

/// A number that may be infinite, which JSON has no number for.
mod real {
    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};
    use serde_json::Value;

    use super::{number, number_from};

    pub(super) fn serialize<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
        value.map(number).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f64>, D::Error> {
        match Option::<Value>::deserialize(deserializer)? {
            None => Ok(None),
            Some(json) => {
                let wrong = || D::Error::custom("`excess` is not a number");
                number_from(&json).map(Some).ok_or_else(wrong)
            }
        }
    }
}
