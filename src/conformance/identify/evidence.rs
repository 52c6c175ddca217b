//! What a subject answered, and how a setting's own answers go with it.

use super::Setting;
use super::questions::Asking;
use crate::Result;
use crate::conformance::{Dtype, is_applicable, worst};
use crate::evaluate::{Evaluation, Question, evaluate_outputs, evaluate_with};
use crate::formula::{Formula, Gradient};
use crate::value::{Array, Data, Kind, Named};

/// Every question of one formula that was answered.
#[derive(Debug)]
pub(super) struct Evidence {
    pub(super) formula: &'static Formula<f64>,
    pub(super) dtype: Dtype,
    pub(super) answers: Vec<Answered>,
}

/// A question with the subject's answer.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) asking: Asking,
    pub(super) got: Got,
}

/// What came back.
#[derive(Debug)]
pub(super) enum Got {
    /// Arrays by name.
    Arrays(Named),
    /// An error; which one is a matter of `verify`.
    Error(String),
}

/// How a setting goes with all of the answers.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Score {
    /// How many questions it answers as the subject did.
    pub(super) agreed: usize,
    /// How many outputs and gradients of all questions agree: what a search climbs by.
    pub(super) parts: f64,
    /// The first question that it answers otherwise, and how.
    pub(super) first: Option<(String, String)>,
}

/// How a setting goes with one answer.
enum Match {
    /// Within the tolerance.
    Agrees,
    /// Rounding may take another branch there: nothing is decided.
    Undecided,
    /// Outside of it: how, and the share of the answer that agrees.
    Differs(String, f64),
}

impl Evidence {
    /// Whether no answer speaks against the setting and one at least speaks for it.
    pub(super) fn allows(&self, setting: &Setting) -> bool {
        let mut agreed = 0;
        for read in [evaluate_outputs as Read, with_gradients] {
            for answered in &self.answers {
                match self.compare(setting, answered, read) {
                    Match::Agrees => agreed += 1,
                    Match::Undecided => {}
                    Match::Differs(..) => return false,
                }
            }
        }
        agreed > 0
    }

    /// Whether the answers from this one on allow the setting too.
    pub(super) fn still_allows(&self, setting: &Setting, from: usize) -> bool {
        let mut later = self.answers.iter().skip(from);
        later.all(|answered| !matches!(self.compare(setting, answered, with_gradients), Match::Differs(..)))
    }

    /// How many answers are as the setting has them. Gradients, which are dear, are looked at once all outputs agree,
    /// or if the caller insists.
    pub(super) fn score(&self, setting: &Setting, insists: bool) -> Score {
        if insists {
            return self.score_by(setting, with_gradients);
        }
        let outputs = self.score_by(setting, evaluate_outputs);
        if outputs.first.is_some() {
            return outputs;
        }
        let whole = self.score_by(setting, with_gradients);
        Score { parts: outputs.parts + whole.parts, ..whole }
    }

    fn score_by(&self, setting: &Setting, read: Read) -> Score {
        let mut score = Score { agreed: 0, parts: 0.0, first: None };
        for answered in &self.answers {
            match self.compare(setting, answered, read) {
                Match::Agrees => {
                    score.agreed += 1;
                    score.parts += 1.0;
                }
                Match::Undecided => {}
                Match::Differs(how, parts) => {
                    score.parts += parts;
                    score.first.get_or_insert_with(|| (answered.asking.name.clone(), how));
                }
            }
        }
        score
    }

    fn compare(&self, setting: &Setting, answered: &Answered, read: Read) -> Match {
        let inputs = &answered.asking.question.inputs;
        let question = Question { options: setting.clone(), inputs: inputs.clone() };
        match (read(self.formula.id, &question), &answered.got) {
            (Err(_), Got::Error(_)) => Match::Agrees,
            (Err(error), Got::Arrays(_)) => Match::Differs(
                format!("there is an answer where the error `{}` is expected", error.code()),
                0.0,
            ),
            (Ok(_), Got::Error(message)) => {
                Match::Differs(format!("there is an error ({message}) where an answer is expected"), 0.0)
            }
            (Ok(right), Got::Arrays(got)) => self.compare_arrays(&right, got, inputs),
        }
    }

    fn compare_arrays(&self, right: &Evaluation, got: &Named, inputs: &Named) -> Match {
        if !is_applicable(right.margin, self.dtype) {
            return Match::Undecided;
        }
        let kept = kept(self.formula, inputs);
        let (mut agreed, mut all, mut problem) = (0, 0, None);
        for (name, expected) in parts(right) {
            let (Some(got), Some(bound)) = (got.get(&name), right.bounds.get(&name)) else { continue };
            all += 1;
            if expected.shape != got.shape {
                let (got, expected) = (&got.shape, &expected.shape);
                problem.get_or_insert_with(|| {
                    format!("`{name}` has the shape {got:?} where {expected:?} is expected")
                });
                continue;
            }
            let of = |array: &Array| select(array, kept);
            match worst(&of(expected), &of(bound), &of(got), self.dtype) {
                Some(worst) if worst.excess > 1.0 => {
                    problem.get_or_insert_with(|| format!("`{name}` {worst}"));
                }
                _ => agreed += 1,
            }
        }
        match problem {
            Some(how) => Match::Differs(how, f64::from(agreed) / f64::from(all)),
            None if all == 0 => Match::Undecided,
            None => Match::Agrees,
        }
    }
}

/// A reading of the reference: with gradients, or quickly without.
type Read = fn(&str, &Question) -> Result<Evaluation>;

/// With the gradients that flow: those that stop are 0 whatever the options are.
fn with_gradients(id: &str, question: &Question) -> Result<Evaluation> {
    evaluate_with(id, question, |input| input.gradient == Gradient::Flows)
}

/// The outputs, and the gradients as `grad:` and the input's name.
fn parts(answer: &Evaluation) -> impl Iterator<Item = (String, &Array)> {
    let outputs = answer.outputs.iter().map(|(name, array)| (name.clone(), array));
    outputs.chain(answer.gradients.iter().map(|(name, array)| (format!("grad:{name}"), array)))
}

/// The first mask with its shape: what stands in slots that it leaves out says nothing about options.
fn kept<'a>(formula: &Formula<f64>, inputs: &'a Named) -> Option<(&'a [usize], &'a [bool])> {
    let mut masks = formula.inputs.iter().filter(|input| input.kind == Kind::Mask);
    masks.find_map(|input| match inputs.get(input.name).map(|array| (&array.shape, &array.data)) {
        Some((shape, Data::Mask(mask))) => Some((shape.as_slice(), mask.as_slice())),
        _ => None,
    })
}

fn select(array: &Array, kept: Option<(&[usize], &[bool])>) -> Vec<f64> {
    match kept {
        Some((shape, mask)) if array.shape == shape => {
            array.reals().iter().zip(mask).filter(|(_, keep)| **keep).map(|(entry, _)| *entry).collect()
        }
        _ => array.reals().to_vec(),
    }
}

/// How many kinds of answer these settings give to a question: two are told apart where one is an error and the other
/// not, or where no answer is within the tolerance of both.
pub(super) fn kinds(
    formula: &Formula<f64>,
    dtype: Dtype,
    asking: &Asking,
    settings: &[Setting],
    gradients: bool,
) -> usize {
    let read: Read = if gradients { with_gradients } else { evaluate_outputs };
    let kept = kept(formula, &asking.question.inputs);
    let mut kinds: Vec<Option<Evaluation>> = Vec::new();
    for setting in settings {
        let question = Question { options: setting.clone(), inputs: asking.question.inputs.clone() };
        let answer = read(formula.id, &question).ok();
        if answer.as_ref().is_some_and(|answer| !is_applicable(answer.margin, dtype)) {
            continue;
        }
        let is_like = |other: &Option<Evaluation>| match (other, &answer) {
            (None, None) => true,
            (Some(a), Some(b)) => !is_told_apart(a, b, kept, dtype),
            _ => false,
        };
        if !kinds.iter().any(is_like) {
            kinds.push(answer);
        }
    }
    kinds.len()
}

fn is_told_apart(
    one: &Evaluation,
    other: &Evaluation,
    kept: Option<(&[usize], &[bool])>,
    dtype: Dtype,
) -> bool {
    let named: Vec<(String, &Array)> = parts(other).collect();
    parts(one).any(|(name, a)| {
        let Some((_, b)) = named.iter().find(|(other, _)| *other == name) else { return false };
        let (Some(bound_a), Some(bound_b)) = (one.bounds.get(&name), other.bounds.get(&name)) else {
            return false;
        };
        // Twice the larger bound: then no answer can be within the tolerance of both.
        let bounds: Vec<f64> =
            select(bound_a, kept).iter().zip(select(bound_b, kept)).map(|(a, b)| 2.0 * a.max(b)).collect();
        worst(&select(a, kept), &bounds, &select(b, kept), dtype).is_some_and(|worst| worst.excess > 1.0)
    })
}
