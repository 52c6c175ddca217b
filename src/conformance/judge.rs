//! One question, one answer, one verdict.

use super::{Dtype, Fault, Reply, Request, Subject, Worst, is_applicable, worst};
use crate::evaluate::{Evaluation, Question, differentiable};
use crate::fixture::{Case, Expected, RivalAnswer};
use crate::formula::Formula;
use crate::value::{Array, Named};

/// How a question went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Status {
    /// The answer is right.
    Pass,
    /// The answer is wrong.
    Fail,
    /// The adapter does not do this.
    Unsupported,
    /// There is no answer: the adapter ended, or what it said is none.
    Error,
    /// There is no answer: the adapter said nothing.
    Hang,
    /// At this precision an honest implementation may answer otherwise, or the question cannot be put.
    NotApplicable,
}

impl Status {
    /// Every status, in the order of reports.
    pub const ALL: [Self; 6] =
        [Self::Pass, Self::Fail, Self::Unsupported, Self::Error, Self::Hang, Self::NotApplicable];

    /// The word that reports use.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pass => "pass",
            Self::Fail => "fail",
            Self::Unsupported => "unsupported",
            Self::Error => "error",
            Self::Hang => "hang",
            Self::NotApplicable => "not-applicable",
        }
    }
}

/// A question that is put to a subject, and what is known about it.
#[derive(Debug, Clone)]
pub struct Task {
    /// The formula's id.
    pub formula: String,
    /// The case's slug; that of a relation is `CASE~RELATION`.
    pub case: String,
    /// What the question was made of a case by, if it was.
    pub relation: Option<&'static str>,
    /// The clauses that it is about.
    pub clauses: Vec<String>,
    /// The flags of the case.
    pub flags: Vec<String>,
    /// The formats in which every input is exact.
    pub exact_in: Vec<String>,
    /// Options and inputs.
    pub question: Question,
    /// The right answer.
    pub expected: Expected,
    /// What well-known wrong variants answer.
    pub rivals: Vec<RivalAnswer>,
}

impl Task {
    /// The question of a golden case.
    pub fn of(formula: &str, case: &Case) -> Self {
        Self {
            formula: formula.to_owned(),
            case: case.id.clone(),
            relation: None,
            clauses: case.clauses.clone(),
            flags: case.flags.clone(),
            exact_in: case.exact_in.clone(),
            question: case.question.clone(),
            expected: case.expected.clone(),
            rivals: case.rivals.clone(),
        }
    }

    /// Why the question decides nothing in this format, if it does not.
    pub fn not_applicable(&self, dtype: Dtype) -> Option<String> {
        let texts_only = self.exact_in.is_empty();
        if !texts_only && !self.exact_in.iter().any(|format| format == dtype.name()) {
            return Some(format!("{} does not represent the inputs", dtype.name()));
        }
        match &self.expected {
            Expected::Answer(answer) if !is_applicable(answer.margin, dtype) => Some(format!(
                "rounding in {} may take another branch (margin {:e})",
                dtype.name(),
                answer.margin
            )),
            _ => None,
        }
    }

    /// What is asked for: every output, and the gradient by every input that has one.
    pub fn want(&self) -> Vec<String> {
        match &self.expected {
            Expected::Answer(answer) => answer.bounds.keys().cloned().collect(),
            // What would be asked for if the question had an answer.
            Expected::Error(_) => Formula::<f64>::find(&self.formula).map_or_else(
                |_| Vec::new(),
                |row| {
                    let outputs = row.outputs.iter().map(|output| output.name.to_owned());
                    outputs
                        .chain(differentiable(row, &self.question).map(|input| format!("grad:{input}")))
                        .collect()
                },
            ),
        }
    }
}

/// An output or gradient beside what it should be.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// The output's name, or `grad:` and the input's.
    pub name: String,
    /// What the reference says.
    pub expected: Array,
    /// Its bound, in units of roundoff.
    pub bound: Array,
    /// What the subject says.
    pub got: Array,
    /// The entry that is furthest off, if there is an entry.
    pub worst: Option<Worst>,
}

impl Judged {
    /// Whether it is near enough.
    pub fn is_right(&self) -> bool {
        self.expected.shape == self.got.shape && self.worst.as_ref().is_none_or(|worst| worst.excess <= 1.0)
    }
}

/// How one question went, and why.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// The question.
    pub task: Task,
    /// How it went.
    pub status: Status,
    /// Why, in a sentence. Empty where it passed, unless the subject did not give everything that was wanted.
    pub message: String,
    /// What a failure looks like, the most telling first.
    pub diagnosis: Vec<String>,
    /// The answer beside the right one; empty if there was none to compare.
    pub judged: Vec<Judged>,
    /// How long the answer took, in seconds.
    pub seconds: f64,
}

/// Puts a question to a subject and judges the answer.
pub(super) fn ask(subject: &mut dyn Subject, task: Task) -> Outcome {
    let dtype = subject.hello().dtype;
    if let Some(why) = task.not_applicable(dtype) {
        return outcome(task, Status::NotApplicable, why);
    }
    let want = task.want();
    let start = std::time::Instant::now();
    let reply = subject.ask(&Request { formula: &task.formula, question: &task.question, want: &want });
    let seconds = start.elapsed().as_secs_f64();
    Outcome { seconds, ..judge(task, dtype, reply) }
}

/// Judges an answer.
pub fn judge(task: Task, dtype: Dtype, reply: Result<Reply, Fault>) -> Outcome {
    if let Some(why) = task.not_applicable(dtype) {
        return outcome(task, Status::NotApplicable, why);
    }
    match (reply, &task.expected) {
        (Err(fault @ Fault::Hung(_)), _) => outcome(task, Status::Hang, fault.to_string()),
        (Err(fault), _) => outcome(task, Status::Error, fault.to_string()),
        (Ok(Reply::Unsupported(why)), _) => outcome(task, Status::Unsupported, why),
        (Ok(Reply::Error { kind, .. }), Expected::Error(code)) if kind == *code => {
            outcome(task, Status::Pass, String::new())
        }
        (Ok(Reply::Error { kind, message }), Expected::Error(code)) => {
            let problem = format!("the error is `{kind}` ({message}) where `{code}` is expected");
            outcome(task, Status::Fail, problem)
        }
        (Ok(Reply::Answer(_)), Expected::Error(code)) => {
            let problem = format!("there is an answer where the error `{code}` is expected");
            outcome(task, Status::Fail, problem)
        }
        (Ok(Reply::Error { kind, message }), Expected::Answer(_)) => {
            let problem = format!("the error is `{kind}` ({message}) where an answer is expected");
            outcome(task, Status::Fail, problem)
        }
        (Ok(Reply::Answer(got)), Expected::Answer(expected)) => {
            let (status, message, judged) = compared(&task, dtype, &got, expected);
            Outcome { judged, ..outcome(task, status, message) }
        }
    }
}

/// Judges an answer that is not an error, where none is expected.
fn compared(task: &Task, dtype: Dtype, got: &Named, expected: &Evaluation) -> (Status, String, Vec<Judged>) {
    let values = expected.outputs.iter().map(|(name, array)| (name.clone(), array));
    let gradients = expected.gradients.iter().map(|(name, array)| (format!("grad:{name}"), array));
    let judged = values.chain(gradients).filter_map(|(name, expected_array)| {
        let (bound, got) = (expected.bounds.get(&name)?.clone(), got.get(&name)?.clone());
        let worst = worst(expected_array.reals(), bound.reals(), got.reals(), dtype);
        Some(Judged { name, expected: expected_array.clone(), bound, got, worst })
    });
    let judged: Vec<Judged> = judged.collect();
    let wrong: Vec<String> = judged.iter().filter(|judged| !judged.is_right()).map(wrong).collect();
    let missing: Vec<String> = task
        .want()
        .into_iter()
        .filter(|name| !got.contains_key(name))
        .map(|name| format!("`{name}`"))
        .collect();
    let missing =
        if missing.is_empty() { String::new() } else { format!("not given: {}", missing.join(", ")) };
    // A formula is its first output: an answer without it has not been judged, however right the rest is.
    let first = Formula::<f64>::find(&task.formula).ok().and_then(|row| row.outputs.first());
    let has_first = first.is_none_or(|output| got.contains_key(output.name));
    match (wrong.is_empty(), has_first) {
        (false, _) => (Status::Fail, wrong.join("; "), judged),
        (true, true) => (Status::Pass, missing, judged),
        (true, false) => (Status::Unsupported, missing, judged),
    }
}

/// What is wrong with an output or gradient, in a sentence.
fn wrong(judged: &Judged) -> String {
    if judged.expected.shape == judged.got.shape {
        let worst = judged.worst.as_ref().map(ToString::to_string).unwrap_or_default();
        return format!("`{}` {worst}", judged.name);
    }
    let (wanted, got) = (&judged.expected.shape, &judged.got.shape);
    format!("`{}` has the shape {got:?} where {wanted:?} is expected", judged.name)
}

fn outcome(task: Task, status: Status, message: String) -> Outcome {
    Outcome { task, status, message, diagnosis: Vec::new(), judged: Vec::new(), seconds: 0.0 }
}
