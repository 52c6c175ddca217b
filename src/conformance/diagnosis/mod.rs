//! What a failure looks like, in words: what each well-known mistake would answer is computed and compared with what was
//! answered. Nothing is guessed, and what matches nothing is said to match nothing.

mod look;
mod slips;

use std::fmt;

use serde_json::{Map, Value};

use super::{Dtype, Judged, Outcome, Status};
use crate::Result;
use crate::evaluate::{Evaluation, Question, evaluate, evaluate_outputs};
use crate::fixture::Expected;
use crate::formula::{Formula, OptionField, Rival};
use crate::value::Array;

use look::Look;
use slips::SLIPS;

/// Said of a failure that nothing explains.
pub const UNKNOWN: &str = "matches no known variant";

/// How many explanations of one failure are told.
const MOST: usize = 4;

/// How many hypotheses whose outputs are right have their gradients computed; each costs a pass for every entry.
const MOST_GRADIENTS: usize = 5;

/// What the failures of a formula have in common.
#[derive(Debug, Clone, PartialEq)]
pub struct Finding {
    /// In words.
    pub words: String,
    /// The options under which it happens, in words; empty if whatever they are.
    pub condition: String,
    /// How many failing cases it explains.
    pub explained: usize,
    /// How many cases fail.
    pub failing: usize,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { words, condition, explained, failing } = self;
        write!(f, "{words}")?;
        if !condition.is_empty() {
            write!(f, ", where {condition}")?;
        }
        write!(f, " ({explained} of {failing} failing cases)")
    }
}

/// What the failure looks like, the most telling first; nothing where there is none.
pub(super) fn diagnose(outcome: &Outcome, dtype: Dtype) -> Vec<String> {
    if outcome.status != Status::Fail {
        return Vec::new();
    }
    let Some(seen) = Seen::new(outcome, dtype) else { return Vec::new() };
    let mut words = Vec::new();
    let mut gradients = MOST_GRADIENTS;
    for hypothesis in hypotheses(seen.row) {
        if words.len() < MOST && seen.is_as(&hypothesis, &mut gradients) == Some(true) {
            words.push(hypothesis.words);
        }
    }
    if words.is_empty() {
        words.extend(some_factor(&[&seen]).map(|hypothesis| hypothesis.words));
    }
    if words.is_empty() {
        words.push(UNKNOWN.to_owned());
    }
    words.extend(seen.outline());
    words
}

/// What the failures among the outcomes of one formula have in common: what explains them all and contradicts no case that
/// passed, if there is such a thing; what explains most of them if not. `None` if none failed or nothing explains any.
pub fn of_formula(outcomes: &[&Outcome], dtype: Dtype) -> Option<Finding> {
    let of = |status: Status| outcomes.iter().filter(move |outcome| outcome.status == status);
    let failing: Vec<Seen<'_>> = of(Status::Fail).filter_map(|outcome| Seen::new(outcome, dtype)).collect();
    let passing: Vec<Seen<'_>> = of(Status::Pass).filter_map(|outcome| Seen::new(outcome, dtype)).collect();
    let row = failing.first()?.row;
    let factor = some_factor(&failing.iter().collect::<Vec<_>>());
    let mut best: Option<(Finding, usize)> = None;
    for hypothesis in hypotheses(row).into_iter().chain(factor) {
        let so_far =
            best.as_ref().map_or((0, usize::MAX), |(finding, against)| (finding.explained, *against));
        if so_far == (failing.len(), 0) {
            break;
        }
        let explained = explained(&hypothesis, &failing, so_far.0);
        if explained == 0 || explained < so_far.0 || (explained == so_far.0 && so_far.1 == 0) {
            continue;
        }
        let (against, condition) = told_apart(&hypothesis, &failing, &passing);
        if explained > so_far.0 || against < so_far.1 {
            let finding = Finding { words: hypothesis.words, condition, explained, failing: failing.len() };
            best = Some((finding, against));
        }
    }
    best.map(|(finding, _)| finding)
}

/// How many failing cases a hypothesis explains; if it is fewer than `least`, the number may be too large by far.
fn explained(hypothesis: &Hypothesis, failing: &[Seen<'_>], least: usize) -> usize {
    let mut missed = 0;
    for seen in failing {
        missed += usize::from(seen.is_as(hypothesis, &mut usize::MAX.clone()) != Some(true));
        if failing.len() - missed < least {
            break;
        }
    }
    failing.len() - missed
}

/// How many passing cases contradict the hypothesis, and the option by whose value the failing cases differ from them all,
/// if there is one; then none of them counts.
fn told_apart(hypothesis: &Hypothesis, failing: &[Seen<'_>], passing: &[Seen<'_>]) -> (usize, String) {
    let contradicts = |seen: &&Seen<'_>| seen.is_as(hypothesis, &mut usize::MAX.clone()) == Some(false);
    let against: Vec<&Seen<'_>> = passing.iter().filter(contradicts).collect();
    let Some(first) = failing.first().filter(|_| !against.is_empty()) else {
        return (against.len(), String::new());
    };
    for option in first.row.options {
        let value = |seen: &Seen<'_>| seen.question().options.get(option.name).map(ToString::to_string);
        let mut wrong: Vec<String> = failing.iter().filter_map(value).collect();
        wrong.sort();
        wrong.dedup();
        if wrong.len() <= 3
            && against.iter().all(|seen| value(seen).is_none_or(|value| !wrong.contains(&value)))
        {
            return (0, format!("`{}` is {}", option.name, wrong.join(" or ")));
        }
    }
    (against.len(), String::new())
}

/// Something that an implementation may do instead.
struct Hypothesis {
    words: String,
    answer: Answer,
}

/// What an implementation that does so answers.
enum Answer {
    /// The reference's answer under these options.
    Options(Map<String, Value>),
    /// The reference's answer with an option of two values that has the other one.
    Turned(&'static str, [Value; 2]),
    /// What a slip of the table answers.
    Slip(slips::Answer),
    /// An answer that looks like this beside the right one.
    Look(Look),
}

/// That everything is off by the factor of the first failure that is off by one.
fn some_factor(failing: &[&Seen<'_>]) -> Option<Hypothesis> {
    let factor = failing.iter().find_map(|seen| look::factor(seen))?;
    Some(Hypothesis {
        words: format!("off by the factor {factor:.6}"),
        answer: Answer::Look(Look::By(factor)),
    })
}

/// Every hypothesis about a formula, the most plausible first.
fn hypotheses(row: &'static Formula<f64>) -> Vec<Hypothesis> {
    let of_rival = |rival: &Rival| serde_json::from_str(rival.options).ok();
    let overlays: Vec<(&Rival, Map<String, Value>)> =
        row.rivals.iter().filter_map(|rival| Some((rival, of_rival(rival)?))).collect();
    let rivals = overlays
        .iter()
        .map(|(rival, overlay)| (format!("matches rival: {}", rival.name), Answer::Options(overlay.clone())));
    let slips = SLIPS.iter().filter(|slip| (slip.applies)(row));
    let slips = slips.map(|slip| (slip.words.to_owned(), Answer::Slip(slip.answer)));
    let looks = look::looks(row).into_iter().map(|(words, look)| (words, Answer::Look(look)));
    let options = row.options.iter().flat_map(of_option);
    let is_rival = |answer: &Answer| match answer {
        Answer::Options(overlay) => overlays.iter().any(|(_, known)| known == overlay),
        _ => false,
    };
    let options = options.filter(|(_, answer)| !is_rival(answer));
    let all = rivals.chain(slips).chain(looks).chain(options);
    all.map(|(words, answer)| Hypothesis { words, answer }).collect()
}

/// The option with another of its values, whatever is asked for.
fn of_option(option: &OptionField) -> Vec<(String, Answer)> {
    let name = option.name;
    let samples: Vec<Value> = serde_json::from_str(option.samples).unwrap_or_default();
    let mut all = Vec::new();
    if let Ok(values) = <[Value; 2]>::try_from(samples.clone())
        && !values.contains(&Value::Null)
    {
        all.push((format!("`{name}` read the other way round"), Answer::Turned(name, values)));
    }
    let overlay = |value: Value| Map::from_iter([(name.to_owned(), value)]);
    all.extend(
        samples
            .into_iter()
            .map(|value| (format!("as if `{name}` were {value}"), Answer::Options(overlay(value)))),
    );
    all
}

/// An outcome, and what is needed to explain it.
struct Seen<'a> {
    outcome: &'a Outcome,
    row: &'static Formula<f64>,
    dtype: Dtype,
}

impl<'a> Seen<'a> {
    fn new(outcome: &'a Outcome, dtype: Dtype) -> Option<Self> {
        let row = Formula::find(&outcome.task.formula).ok()?;
        Some(Self { outcome, row, dtype })
    }

    fn question(&self) -> &'a Question {
        &self.outcome.task.question
    }

    fn expected(&self) -> Option<&'a Evaluation> {
        match &self.outcome.task.expected {
            Expected::Answer(answer) => Some(answer),
            Expected::Error(_) => None,
        }
    }

    /// The answers that are wrong.
    fn wrong(&self) -> impl Iterator<Item = &'a Judged> {
        self.outcome.judged.iter().filter(|judged| !judged.is_right())
    }

    fn values_are_right(&self) -> bool {
        !self.outcome.judged.is_empty() && self.wrong().all(|judged| is_gradient(&judged.name))
    }

    /// The code of the error that was answered.
    fn error(&self) -> Option<&'a str> {
        if self.outcome.status == Status::Pass {
            return match &self.outcome.task.expected {
                Expected::Error(code) => Some(code),
                Expected::Answer(_) => None,
            };
        }
        self.outcome.message.strip_prefix("the error is `")?.split('`').next()
    }

    /// Whether the inputs are not arrays that go together, on which nothing can be computed.
    fn is_malformed(&self) -> bool {
        let codes = ["rank", "shape", "input", "index"];
        matches!(&self.outcome.task.expected, Expected::Error(code) if codes.contains(&code.as_str()))
    }

    /// Whether the answer is what the hypothesis says; `None` if it says nothing about this question.
    fn is_as(&self, hypothesis: &Hypothesis, gradients: &mut usize) -> Option<bool> {
        match &hypothesis.answer {
            Answer::Look(look) => look.sees(self),
            Answer::Slip(_) if self.is_malformed() => None,
            Answer::Slip(answer) => self.is_answered_by(gradients, |with_gradients| {
                answer(&slips::Ask::new(self.row, self.question(), self.expected(), with_gradients))
            }),
            Answer::Turned(option, [one, other]) => {
                let value = if self.question().options.get(*option) == Some(one) { other } else { one };
                let overlay = Map::from_iter([((*option).to_owned(), value.clone())]);
                let hypothesis = Hypothesis { words: String::new(), answer: Answer::Options(overlay) };
                self.is_as(&hypothesis, gradients)
            }
            Answer::Options(overlay) => {
                let mut question = self.question().clone();
                question.options.extend(overlay.clone());
                if question.options == self.question().options {
                    // It does here what it should.
                    return Some(self.outcome.status == Status::Pass);
                }
                self.is_answered_by(gradients, |with_gradients| {
                    Some(reference(self.row.id, &question, with_gradients))
                })
            }
        }
    }

    /// Whether the answer is this one. The outputs are asked for first: most hypotheses fail by them, and gradients are dear.
    fn is_answered_by(
        &self,
        gradients: &mut usize,
        answer: impl Fn(bool) -> Option<Result<Evaluation>>,
    ) -> Option<bool> {
        let outputs = match answer(false)? {
            Ok(outputs) => outputs,
            Err(error) if self.error() == Some(error.code()) => return Some(true),
            // What the reference refuses of a changed question an implementation may let pass.
            Err(error) if ["option", "input", "non-finite"].contains(&error.code()) => return None,
            Err(_) => return Some(false),
        };
        if self.outcome.judged.is_empty() {
            // An answer beside an expected error is not kept: that there is one has to do. A question that is refused
            // as it should be may be refused before what goes wrong.
            return (self.outcome.status != Status::Pass).then(|| self.error().is_none());
        }
        if !super::is_applicable(outputs.margin, self.dtype) {
            return None;
        }
        let judged = |of_gradients: bool| {
            self.outcome.judged.iter().filter(move |judged| is_gradient(&judged.name) == of_gradients)
        };
        if !judged(false).all(|judged| self.is_near(judged, &outputs)) {
            return Some(false);
        }
        if judged(true).next().is_none() {
            return Some(true);
        }
        *gradients = gradients.checked_sub(1)?;
        let all = answer(true)?.ok()?;
        Some(judged(true).all(|judged| self.is_near(judged, &all)))
    }

    /// Whether an answer is what was foreseen, and, where it is wrong, much nearer to that than to what is right: else every
    /// small imprecision would match what differs little. A foreseen answer is computed along another way than the
    /// reference's own, so that its bound is stretched.
    fn is_near(&self, judged: &Judged, foreseen: &Evaluation) -> bool {
        let array = match judged.name.strip_prefix("grad:") {
            Some(input) => foreseen.gradients.get(input),
            None => foreseen.outputs.get(&judged.name),
        };
        let (Some(array), Some(bound)) = (array, foreseen.bounds.get(&judged.name)) else { return false };
        let entries = array.reals().iter().zip(bound.reals()).zip(judged.got.reals());
        let is_nearer = |at: usize, foreseen: f64| {
            let (Some(&right), Some(&got)) = (judged.expected.reals().get(at), judged.got.reals().get(at))
            else {
                return true;
            };
            let allowed =
                judged.bound.reals().get(at).map_or(0.0, |bound| 4.0 * self.dtype.unit_roundoff() * bound);
            let (far, off) = ((foreseen - got).abs(), (right - got).abs());
            let is_same = foreseen == got || (foreseen.is_nan() && got.is_nan());
            is_same || off <= allowed || far <= 0.25 * off || (off.is_nan() && !far.is_nan())
        };
        array.shape == judged.got.shape
            && entries.into_iter().enumerate().all(|(at, ((&value, &bound), &got))| {
                // A bound without an end leaves the entry open.
                bound == f64::INFINITY || (is_close(value, bound, got, self.dtype) && is_nearer(at, value))
            })
    }

    /// What can be said of the failure as a whole.
    fn outline(&self) -> Option<String> {
        if let Expected::Error(code) = &self.outcome.task.expected {
            return Some(match self.error() {
                Some(got) => format!("says `{got}` of what is the error `{code}`"),
                None => format!("accepts what should be the error `{code}`"),
            });
        }
        if let Some(code) = self.error() {
            return Some(format!("refuses with `{code}` what has an answer"));
        }
        if let Some(judged) = self.wrong().find(|judged| judged.expected.shape != judged.got.shape) {
            return Some(shapes(judged));
        }
        if self.values_are_right() {
            return Some("value right, gradient wrong".to_owned());
        }
        let is_about_values = self.outcome.judged.iter().any(|judged| is_gradient(&judged.name));
        let first =
            self.outcome.judged.iter().find(|judged| is_gradient(&judged.name) && !is_zero(&judged.expected));
        let gradients_are_right = self.wrong().all(|judged| !is_gradient(&judged.name));
        (is_about_values && first.is_some() && gradients_are_right)
            .then(|| "value wrong, gradient right".to_owned())
    }
}

fn shapes(judged: &Judged) -> String {
    let (got, wanted) = (&judged.got.shape, &judged.expected.shape);
    let count = |shape: &[usize]| shape.iter().product::<usize>();
    let reversed: Vec<usize> = wanted.iter().rev().copied().collect();
    let how = if *got == reversed {
        "transposed"
    } else if got.is_empty() {
        "reduced to one number"
    } else if wanted.is_empty() {
        "not reduced"
    } else if count(got) == count(wanted) {
        "reshaped"
    } else if got.len() > wanted.len() {
        "broadcast"
    } else {
        "of another shape"
    };
    format!("`{}` is {how}: {got:?} for {wanted:?}", judged.name)
}

/// The reference's answer, with gradients or without.
fn reference(id: &str, question: &Question, with_gradients: bool) -> Result<Evaluation> {
    if with_gradients { evaluate(id, question) } else { evaluate_outputs(id, question) }
}

fn is_gradient(name: &str) -> bool {
    name.starts_with("grad:")
}

fn is_zero(array: &Array) -> bool {
    array.reals().iter().all(|&entry| entry == 0.0)
}

fn is_close(value: f64, bound: f64, got: f64, dtype: Dtype) -> bool {
    let allowed = 16.0 * dtype.unit_roundoff() * (bound + value.abs()) + f64::MIN_POSITIVE;
    value == got || (value.is_nan() && got.is_nan()) || (got - value).abs() <= allowed
}
