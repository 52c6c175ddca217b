//! Which settings of its options an implementation computes with, told by its answers to questions without options.

mod evidence;
mod fit;
mod questions;
mod search;

use serde_json::{Map, Value, json};

use self::evidence::{Answered, Evidence, Got, kinds};
use self::questions::{Asking, generated, golden, values_of};
use self::search::{Choices, Found, changed, search};
use super::{Dtype, Fault, Hello, Reply, Request, Subject};
use crate::Result;
use crate::convention::Convention;
use crate::fixture::Fixture;
use crate::formula::{Formula, Gradient};

pub use self::fit::{Difference, Fit};

/// A value for every option of a formula.
pub type Setting = Map<String, Value>;

/// So many generated questions are asked beside the golden ones.
const GENERATED: u64 = 10;
/// So many more are there to tell apart what is left, of which at most [`FURTHER`] are asked.
const SPARE: u64 = 40;
const FURTHER: usize = 8;
/// By so many settings the questions are put in order.
const SAMPLE: usize = 24;
/// After so many questions without an answer nothing more of the formula is asked.
const PATIENCE: usize = 3;

/// What an implementation computes.
#[derive(Debug, Clone)]
pub struct Identification {
    /// What it says of itself.
    pub hello: Hello,
    /// Formula by formula.
    pub formulas: Vec<Identified>,
    /// How the named conventions go with that, the best first.
    pub conventions: Vec<Fit>,
}

/// What it computes for one formula.
#[derive(Debug, Clone)]
pub struct Identified {
    /// The formula's id.
    pub formula: String,
    /// How many questions were answered.
    pub answered: usize,
    /// Why others were not, the first reason.
    pub unanswered: Option<String>,
    /// How many questions ended in a fault: a crash, a hang, a line that is no answer.
    pub faults: usize,
    /// How many settings were tried.
    pub tried: usize,
    /// Whether no other combination of the values that are tried is left.
    pub all_tried: bool,
    /// What was found.
    pub finding: Finding,
    /// How each convention that computes the formula goes with it.
    pub(crate) conventions: Vec<(&'static str, Option<Difference>)>,
}

/// Whether a setting was found.
#[derive(Debug, Clone)]
pub enum Finding {
    /// Every answer goes with these settings.
    Found {
        /// Each option with what the answers say of it, the others being as in the first of the settings.
        options: Vec<Told>,
        /// Changes of several options at once that make no difference either.
        alternatives: Vec<Setting>,
        /// The settings themselves: first what a convention has, then the nearest to the defaults.
        settings: Vec<Setting>,
    },
    /// No known setting gives all of the answers.
    NoMatch {
        /// The setting that gives the most of them.
        nearest: Setting,
        /// How many it gives.
        agreed: usize,
        /// The first question that it answers otherwise, and how.
        first: (String, String),
    },
    /// No question was answered, so there is nothing to compare.
    Unanswered,
}

/// What the answers say of one option.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    /// Its name.
    pub name: String,
    /// The values that are possible: one if it is determined.
    pub values: Vec<Value>,
    /// Whether every value that was tried is possible: beside the other options it makes no difference.
    pub is_idle: bool,
}

/// Asks the subject about each of these formulas with no options, and finds the settings that give its answers. `seen`
/// is told of each formula as it is done.
///
/// # Errors
/// `file` if a convention's page cannot be read; `unknown-formula`.
pub fn identify(
    subject: &mut dyn Subject,
    fixtures: &[Fixture],
    formulas: &[String],
    mut seen: impl FnMut(&Identified),
) -> Result<Identification> {
    let conventions = Convention::all()?;
    let mut identified = Vec::new();
    for id in formulas {
        let one = identify_one(subject, fixtures, Formula::find(id)?, &conventions)?;
        seen(&one);
        identified.push(one);
    }
    let fits = fit::rank(&conventions, &identified);
    Ok(Identification { hello: subject.hello().clone(), formulas: identified, conventions: fits })
}

fn identify_one(
    subject: &mut dyn Subject,
    fixtures: &[Fixture],
    formula: &'static Formula<f64>,
    conventions: &[Convention],
) -> Result<Identified> {
    let dtype = subject.hello().dtype;
    let bases = bases(formula, conventions);
    let choices: Choices = formula
        .options
        .iter()
        .map(|option| (option.name.to_owned(), values_of(formula, option.name, &bases)))
        .collect();
    let mut pool = generated(formula, 0..GENERATED, &bases, dtype);
    pool.extend(golden(formula, fixtures, &bases, dtype));
    best_first(formula, dtype, &mut pool, &bases, &choices);

    let mut inquiry = Inquiry::new(formula, dtype);
    for asking in pool {
        inquiry.ask(subject, asking);
    }
    let mut found = search(&inquiry.evidence, &bases, &choices);
    let mut spare = generated(formula, GENERATED..GENERATED + SPARE, &bases, dtype);
    for _ in 0..FURTHER {
        let Some(asking) = telling(&inquiry.evidence, &mut spare, &found.allowed, &choices) else { break };
        let from = inquiry.evidence.answers.len();
        inquiry.ask(subject, asking);
        found.allowed.retain(|setting| inquiry.evidence.still_allows(setting, from));
        if found.allowed.is_empty() {
            found = search(&inquiry.evidence, &bases, &choices);
        }
    }
    Ok(inquiry.conclude(found, &bases, &choices, conventions))
}

/// The specification's defaults and what each convention has for the formula.
fn bases(formula: &Formula<f64>, conventions: &[Convention]) -> Vec<Setting> {
    let mut bases = vec![(formula.defaults)()];
    for setting in conventions.iter().filter_map(|convention| convention.options(formula.id).ok()) {
        if !bases.contains(&setting) {
            bases.push(setting);
        }
    }
    bases
}

/// Puts first the questions that tell the bases and their neighbours apart best.
fn best_first(
    formula: &Formula<f64>,
    dtype: Dtype,
    pool: &mut [Asking],
    bases: &[Setting],
    choices: &Choices,
) {
    let mut settings = bases.to_vec();
    settings.extend(bases.iter().take(1).flat_map(|base| neighbours(base, choices)));
    settings.truncate(SAMPLE);
    pool.sort_by_cached_key(|asking| std::cmp::Reverse(kinds(formula, dtype, asking, &settings, false)));
}

fn neighbours(setting: &Setting, choices: &Choices) -> Vec<Setting> {
    choices.iter().flat_map(|choice| changed(setting, choice)).collect()
}

/// Takes out the spare question that tells the settings apart best, if any does.
fn telling(
    evidence: &Evidence,
    spare: &mut Vec<Asking>,
    allowed: &[Setting],
    choices: &Choices,
) -> Option<Asking> {
    let witnesses = witnesses(allowed, choices);
    if witnesses.len() < 2 {
        return None;
    }
    // Gradients tell what outputs do not, at a price: few questions, then.
    for (gradients, count) in [(false, spare.len()), (true, spare.len().min(5))] {
        let score = |asking: &Asking| kinds(evidence.formula, evidence.dtype, asking, &witnesses, gradients);
        let scores = spare.iter().take(count).map(score);
        // Of equals the first.
        let best = scores.enumerate().max_by_key(|&(index, kinds)| (kinds, std::cmp::Reverse(index)));
        if let Some((index, 2..)) = best {
            return Some(spare.remove(index));
        }
    }
    None
}

/// One setting for each value of each option that is still possible.
fn witnesses(allowed: &[Setting], choices: &Choices) -> Vec<Setting> {
    let mut witnesses: Vec<Setting> = allowed.first().cloned().into_iter().collect();
    for (name, values) in choices {
        for value in values {
            match allowed.iter().find(|setting| setting.get(name) == Some(value)) {
                Some(setting) if !witnesses.contains(setting) => witnesses.push(setting.clone()),
                _ => {}
            }
        }
    }
    witnesses
}

/// The questions of one formula as they are asked.
struct Inquiry {
    evidence: Evidence,
    unanswered: Option<String>,
    faults: usize,
}

impl Inquiry {
    fn new(formula: &'static Formula<f64>, dtype: Dtype) -> Self {
        Self { evidence: Evidence { formula, dtype, answers: Vec::new() }, unanswered: None, faults: 0 }
    }

    fn ask(&mut self, subject: &mut dyn Subject, asking: Asking) {
        if self.faults >= PATIENCE {
            return;
        }
        match put(subject, self.evidence.formula, &asking) {
            Ok(Reply::Answer(arrays)) => {
                self.evidence.answers.push(Answered { asking, got: Got::Arrays(arrays) });
            }
            Ok(Reply::Error { kind, message }) => {
                let got = Got::Error(format!("`{kind}`: {message}"));
                self.evidence.answers.push(Answered { asking, got });
            }
            Ok(Reply::Unsupported(why)) => _ = self.unanswered.get_or_insert(why),
            Err(fault) => {
                self.faults += 1;
                self.unanswered.get_or_insert(fault.to_string());
            }
        }
    }

    fn conclude(
        self,
        found: Found,
        bases: &[Setting],
        choices: &Choices,
        conventions: &[Convention],
    ) -> Identified {
        let evidence = &self.evidence;
        let has_answer = evidence.answers.iter().any(|answered| matches!(answered.got, Got::Arrays(_)));
        let finding = match found.nearest {
            _ if !has_answer => Finding::Unanswered,
            None if !found.allowed.is_empty() => told(&found.allowed, bases, choices),
            nearest => {
                let setting = nearest.map_or_else(|| bases[0].clone(), |(setting, _)| setting);
                let score = evidence.score(&setting, true);
                let nothing = || ("every question".to_owned(), "nothing was decided".to_owned());
                Finding::NoMatch {
                    nearest: setting,
                    agreed: score.agreed,
                    first: score.first.unwrap_or_else(nothing),
                }
            }
        };
        Identified {
            formula: evidence.formula.id.to_owned(),
            answered: evidence.answers.len(),
            unanswered: self.unanswered,
            faults: self.faults,
            tried: found.tried,
            all_tried: found.all,
            conventions: fit::fits(conventions, evidence, &finding),
            finding,
        }
    }
}

/// Asks for everything; a subject that does not have all of that is asked for the outputs, or the first of them.
fn put(subject: &mut dyn Subject, formula: &Formula<f64>, asking: &Asking) -> Result<Reply, Fault> {
    let mut want: Vec<String> = formula.outputs.iter().map(|output| output.name.to_owned()).collect();
    let outputs = want.len();
    let flowing = formula.inputs.iter().filter(|input| input.gradient == Gradient::Flows);
    let given = flowing.filter(|input| asking.question.inputs.contains_key(input.name));
    want.extend(given.map(|input| format!("grad:{}", input.name)));
    let mut lengths = vec![want.len(), outputs, 1];
    lengths.dedup();
    let mut reply = Ok(Reply::Unsupported(String::new()));
    for length in lengths {
        want.truncate(length);
        reply = subject.ask(&Request { formula: formula.id, question: &asking.question, want: &want });
        if !matches!(reply, Ok(Reply::Unsupported(_))) {
            return reply;
        }
    }
    reply
}

/// What is said of each option: beside the setting that a base has, or else the one nearest to the defaults.
fn told(allowed: &[Setting], bases: &[Setting], choices: &Choices) -> Finding {
    let mut settings = allowed.to_vec();
    settings.sort_by_cached_key(|setting| {
        let base = bases.iter().position(|base| base == setting);
        let changes = bases.first().map_or(0, |defaults| changes(defaults, setting).len());
        (base.unwrap_or(bases.len()), changes)
    });
    let nearest = settings.first().cloned().unwrap_or_default();
    let told = |choice: &(String, Vec<Value>)| {
        let (name, all) = choice;
        let mut values: Vec<Value> = nearest.get(name).cloned().into_iter().collect();
        let others = changed(&nearest, choice).filter(|other| settings.contains(other));
        values.extend(others.filter_map(|other| other.get(name).cloned()));
        Told { name: name.clone(), is_idle: all.len() > 1 && values.len() == all.len(), values }
    };
    let options: Vec<Told> = choices.iter().map(told).collect();
    let alternatives = alternatives(&nearest, &settings, &options);
    Finding::Found { options, alternatives, settings }
}

/// Name and value of the options in which another setting differs from one.
fn changes(one: &Setting, other: &Setting) -> Setting {
    let differing = other.iter().filter(|(name, value)| one.get(*name) != Some(value));
    differing.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The least changes of several options at once that leave the answers as they are, where no part of them does.
fn alternatives(nearest: &Setting, settings: &[Setting], options: &[Told]) -> Vec<Setting> {
    let is_told = |name: &str, value: &Value| {
        options.iter().any(|told| told.name == name && told.values.contains(value))
    };
    let all = settings.iter().map(|setting| changes(nearest, setting));
    let mut all: Vec<Setting> =
        all.filter(|changes| changes.iter().any(|(name, value)| !is_told(name, value))).collect();
    all.sort_by_key(Map::len);
    let mut least: Vec<Setting> = Vec::new();
    for changes in all {
        let has = |part: &Setting| part.iter().all(|(name, value)| changes.get(name) == Some(value));
        if !least.iter().any(has) {
            least.push(changes);
        }
    }
    least
}

impl Identification {
    /// Whether a setting was found for every formula.
    pub fn is_found(&self) -> bool {
        self.formulas.iter().all(|one| matches!(one.finding, Finding::Found { .. }))
    }

    /// Whether some formula is computed with no known setting.
    pub fn has_mismatch(&self) -> bool {
        self.formulas.iter().any(|one| matches!(one.finding, Finding::NoMatch { .. }))
    }

    /// Whether some question ended in a crash, a hang or a line that is no answer.
    pub fn has_faults(&self) -> bool {
        self.formulas.iter().any(|one| one.faults > 0)
    }

    /// The whole as JSON.
    pub fn to_json(&self) -> Value {
        let formulas: Vec<Value> = self.formulas.iter().map(Identified::to_json).collect();
        let conventions: Vec<Value> = self.conventions.iter().map(Fit::to_json).collect();
        json!({ "subject": self.hello.to_json(), "formulas": formulas, "conventions": conventions })
    }
}

impl Identified {
    fn to_json(&self) -> Value {
        let finding = match &self.finding {
            Finding::Found { options, alternatives, settings } => {
                let option = |told: &Told| {
                    (told.name.clone(), json!({ "values": told.values, "no_difference": told.is_idle }))
                };
                let options: Map<String, Value> = options.iter().map(option).collect();
                json!({
                    "options": options, "setting": settings.first(), "alternatives": alternatives,
                    "settings": settings.len(),
                })
            }
            Finding::NoMatch { nearest, agreed, first: (question, how) } => json!({
                "nearest": { "setting": nearest, "agreed": agreed, "first": { "question": question, "how": how } },
            }),
            Finding::Unanswered => json!({}),
        };
        let conventions: Vec<&str> = self
            .conventions
            .iter()
            .filter(|(_, difference)| difference.is_none())
            .map(|(name, _)| *name)
            .collect();
        let mut json = json!({
            "formula": self.formula, "finding": self.finding.word(), "answered": self.answered,
            "unanswered": self.unanswered, "faults": self.faults, "tried": self.tried,
            "all_tried": self.all_tried, "conventions": conventions,
        });
        if let (Some(json), Value::Object(finding)) = (json.as_object_mut(), finding) {
            json.extend(finding);
        }
        json
    }
}

impl Finding {
    /// The word that reports use.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Found { .. } => "found",
            Self::NoMatch { .. } => "no-match",
            Self::Unanswered => "unanswered",
        }
    }
}
