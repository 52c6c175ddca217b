//! What the trials did, counted, and the table of it.

use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use grpo_oracle::conformance::{Dtype, is_applicable};

/// What a trial did.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) formula: &'static str,
    pub(super) questions: usize,
    /// Those on which the reference's error has been agreed to.
    pub(super) errors: usize,
    /// Those whose answer has been held against the reference's, in double and in single precision.
    pub(super) applicable: [usize; 2],
    /// Those of them whose gradients have been, too.
    pub(super) gradients: usize,
    pub(super) calls: usize,
    pub(super) is_whole: bool,
    pub(super) seconds: f64,
}

static TALLIES: Mutex<Vec<Tally>> = Mutex::new(Vec::new());

impl Tally {
    /// Counts an answer of this margin.
    pub(super) fn count_answer(&mut self, margin: f64, has_gradients: bool) {
        for (applicable, dtype) in self.applicable.iter_mut().zip([Dtype::F64, Dtype::F32]) {
            *applicable += usize::from(is_applicable(margin, dtype));
        }
        self.gradients += usize::from(has_gradients && is_applicable(margin, Dtype::F64));
    }

    /// Keeps it for the table.
    pub(super) fn keep(self) {
        TALLIES.lock().unwrap_or_else(PoisonError::into_inner).push(self);
    }

    fn line(&self) -> [String; 9] {
        let share = 100.0 * self.gradients as f64 / self.applicable[0].max(1) as f64;
        [
            self.formula.to_owned(),
            self.questions.to_string(),
            self.applicable[0].to_string(),
            self.applicable[1].to_string(),
            self.errors.to_string(),
            if self.gradients == 0 { "-".to_owned() } else { format!("{share:.0} %") },
            self.calls.to_string(),
            format!("{:.1}", self.seconds),
            if self.is_whole { "whole domain" } else { "" }.to_owned(),
        ]
    }
}

const HEAD: [&str; 9] = [
    "formula",
    "questions",
    "applicable in f64",
    "in f32",
    "errors agreed",
    "with gradients",
    "calls",
    "seconds",
    "",
];

/// What all the trials did that passed, a line each, and the sum; `None` if there was none.
pub(super) fn table() -> Option<String> {
    let mut tallies = TALLIES.lock().unwrap_or_else(PoisonError::into_inner);
    if tallies.is_empty() {
        return None;
    }
    tallies.sort_by_key(|tally| tally.formula);
    let mut sum = Tally { formula: "all of them", ..Tally::default() };
    for tally in tallies.iter() {
        sum.questions += tally.questions;
        sum.errors += tally.errors;
        sum.applicable.iter_mut().zip(tally.applicable).for_each(|(sum, count)| *sum += count);
        sum.gradients += tally.gradients;
        sum.calls += tally.calls;
        sum.seconds += tally.seconds;
    }
    let lines: Vec<[String; 9]> = tallies.iter().chain([&sum]).map(Tally::line).collect();
    let width =
        |column: usize| lines.iter().map(|line| line[column].len()).fold(HEAD[column].len(), usize::max);
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut table = markdown(&HEAD.map(str::to_owned), &widths);
    let rule = |column: usize| {
        if is_text(column) {
            "-".repeat(widths[column])
        } else {
            format!("{}:", "-".repeat(widths[column] - 1))
        }
    };
    table += &markdown(&std::array::from_fn(rule), &widths);
    lines.iter().for_each(|line| table += &markdown(line, &widths));
    Some(table)
}

/// Whether the column starts at the left.
fn is_text(column: usize) -> bool {
    column == 0 || column + 1 == HEAD.len()
}

fn markdown(cells: &[String; 9], widths: &[usize; 9]) -> String {
    let mut line = String::new();
    for (column, (cell, &width)) in cells.iter().zip(widths).enumerate() {
        _ = if is_text(column) {
            write!(line, "| {cell:width$} ")
        } else {
            write!(line, "| {cell:>width$} ")
        };
    }
    line + "|\n"
}
