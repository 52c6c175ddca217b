//! What is checked of every formula with every backend.

use std::collections::BTreeSet;

use grpo_oracle::conformance::{Task, derived, is_applicable};
use grpo_oracle::evaluate::{Question, evaluate};
use grpo_oracle::fixture::{self, Expected};
use grpo_oracle::formula::{ANY, Formula, Input};
use libtest_mimic::Failed;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::json;

use crate::backend::{Backend, judge};
use crate::questions;

/// The errors that libtorch raises on the CPU alone, since the values of another device would have to be waited for
/// (`src/torch/` says so of each function): their questions are not asked there. An index beyond the vocabulary would
/// stop the device for every later question.
const UNSEEN: &[(&str, &[&str])] = &[
    ("too-few", &["mask.variance", "mask.whiten", "advantage.gae"]),
    ("too-few", &["advantage.reinforce_plus_plus", "advantage.reinforce_plus_plus_baseline"]),
    ("group-size", &["advantage.pass_at_k", "metrics.pass_at_k"]),
    ("input", &["advantage.opo", "kl.full", "metrics.pass_at_k", "optim.adamw", "optim.schedule"]),
    ("index", &["logprob.token"]),
];

/// Whether the backend cannot see what is wrong with the values of a question that ends in this error.
pub(crate) fn is_unseen(id: &str, code: &str, backend: Backend) -> bool {
    backend.is_cuda() && UNSEEN.iter().any(|(unseen, formulas)| *unseen == code && formulas.contains(&id))
}

/// The formulas with a recursion over the tokens.
pub(crate) const RECURSIVE: &[&str] =
    &["advantage.reinforce_plus_plus", "advantage.td_error", "advantage.gae", "advantage.group_ppo"];

/// Every golden case whose inputs the format represents: values, gradients or the error's code.
pub(crate) fn fixtures(id: &str, backend: Backend) -> Result<(), Failed> {
    // Not from the folder, so that the trials can be carried to a machine without the sources.
    let fixture = fixture::built_in_of(id)?;
    let (mut judged, mut not_applicable) = (0, Vec::new());
    for case in &fixture.cases {
        if matches!(&case.expected, Expected::Error(code) if is_unseen(id, code, backend)) {
            not_applicable.push(case.id.as_str());
            continue;
        }
        let answer = backend.answer(id, &case.question);
        match (&case.expected, answer) {
            (Expected::Error(code), Err(error)) if error.code() == code => judged += 1,
            (Expected::Error(code), answer) => {
                return Err(format!("case {}: expected the error `{code}`, got {answer:?}", case.id).into());
            }
            (Expected::Answer(_), Err(error)) => return Err(format!("case {}: {error}", case.id).into()),
            (Expected::Answer(expected), Ok(answer)) => {
                let has_numbers = case.question.inputs.values().any(|array| !array.reals().is_empty());
                let exact =
                    !has_numbers || case.exact_in.iter().any(|dtype| dtype == backend.input_dtype().name());
                if !exact || !is_applicable(expected.margin, backend.compute_dtype()) {
                    not_applicable.push(case.id.as_str());
                    continue;
                }
                judge(expected, &answer).map_err(|problem| format!("case {}: {problem}", case.id))?;
                judged += 1;
            }
        }
    }
    if judged == 0 {
        return Err("no case was judged".into());
    }
    println!("{id}, {}: {judged} cases judged, not applicable: {not_applicable:?}", backend.name());
    Ok(())
}

/// Generated questions of every family, with NaN in masked slots: values and gradients within the derived tolerance.
pub(crate) fn random(id: &str, backend: Backend) -> Result<(), Failed> {
    let formula = Formula::<f64>::find(id)?;
    let mut judged = 0_u32;
    let mut skipped = 0_u32;
    let mut runner = TestRunner::new(Config { source_file: Some(file!()), ..Config::default() });
    let outcome = runner.run(&questions::strategy(formula, questions::SMALL), |question| {
        let expected = evaluate(id, &question);
        if expected.as_ref().is_err_and(|error| is_unseen(id, error.code(), backend)) {
            return Ok(());
        }
        let expected = match (expected, backend.answer(id, &question)) {
            (Ok(expected), Ok(answer)) => Ok((expected, answer)),
            (Err(expected), Err(got)) if expected.code() == got.code() => return Ok(()),
            (expected, got) => {
                Err(TestCaseError::fail(format!("the reference says {expected:?}, the backend {got:?}")))
            }
        };
        let (expected, answer) = expected?;
        if !is_applicable(expected.margin, backend.compute_dtype()) {
            return Ok(());
        }
        judge(&expected, &answer)
            .map_err(|problem| TestCaseError::fail(format!("{problem}\n{}", question.to_json())))
    });
    // The runner's closure cannot count, so that applicability is measured on a sample of its own.
    for question in questions::sample(formula, 64) {
        match evaluate(id, &question) {
            Ok(expected) if is_applicable(expected.margin, backend.compute_dtype()) => judged += 1,
            _ => skipped += 1,
        }
    }
    outcome.map_err(|failure| Failed::from(failure.to_string()))?;
    if judged <= skipped {
        return Err(format!("of {} questions only {judged} are applicable", judged + skipped).into());
    }
    Ok(())
}

/// What relations make of the golden cases, NaN in masked slots, another order, more padding and the like: the answer
/// that follows. That the reference's own answers follow is held in `tests/it/kills.rs`.
pub(crate) fn relations(id: &str, backend: Backend) -> Result<(), Failed> {
    let fixture = fixture::built_in_of(id)?;
    let golden: Vec<Task> = fixture.cases.iter().map(|case| Task::of(id, case)).collect();
    let dtype = backend.input_dtype();
    let (mut judged, mut relations) = (0, BTreeSet::new());
    let derived = derived(&golden);
    for task in derived.iter().map(|derived| &derived.task) {
        let Expected::Answer(expected) = &task.expected else { continue };
        let is_exact = task.exact_in.iter().any(|format| format == dtype.name());
        if !is_exact || !is_applicable(expected.margin, backend.compute_dtype()) {
            continue;
        }
        let answer =
            backend.answer(id, &task.question).map_err(|error| format!("case {}: {error}", task.case))?;
        judge(expected, &answer).map_err(|problem| format!("case {}: {problem}", task.case))?;
        judged += 1;
        relations.extend(task.relation);
    }
    println!("{id}, {}: {judged} of {} questions judged, by {relations:?}", backend.name(), derived.len());
    if judged == 0 && !derived.is_empty() {
        return Err(format!("of {} questions none is applicable", derived.len()).into());
    }
    Ok(())
}

/// Sequences of up to 100 tokens, for the formulas with a recursion over them.
pub(crate) fn long(id: &str, backend: Backend) -> Result<(), Failed> {
    let (mut judged, mut asked) = (0, 0);
    let questions = questions::stream(Formula::<f64>::find(id)?, questions::LONG);
    let is_long = |question: &Question| question.inputs["rewards"].shape[1] >= 40;
    for question in questions.filter(is_long).take(8) {
        asked += 1;
        let expected = match evaluate(id, &question) {
            Ok(expected) if is_applicable(expected.margin, backend.compute_dtype()) => expected,
            _ => continue,
        };
        judge(&expected, &backend.answer(id, &question)?)
            .map_err(|problem| format!("{problem}\n{}", question.to_json()))?;
        judged += 1;
    }
    println!("{id}, {}: {judged} of {asked} long questions judged", backend.name());
    if judged * 4 < asked {
        return Err(format!("of {asked} questions only {judged} are applicable").into());
    }
    Ok(())
}

/// Wrong shapes, missing inputs and bad options: the same error code from both sides.
pub(crate) fn rejects(id: &str, backend: Backend) -> Result<(), Failed> {
    let formula = Formula::<f64>::find(id)?;
    let question = questions::sample(formula, 32).into_iter().find(|question| evaluate(id, question).is_ok());
    let question = question.ok_or("no question of the sample is answered")?;
    let same = |what: &str, question: &Question, code: &[&str]| {
        let reference = evaluate(id, question).err().map(|error| error.code());
        let other = backend.answer(id, question).err().map(|error| error.code());
        if reference == other && reference.is_some_and(|reference| code.contains(&reference)) {
            return Ok(());
        }
        Err(Failed::from(format!(
            "{what}: the reference says {reference:?}, the backend {other:?}, wanted {code:?}"
        )))
    };
    for input in formula.inputs.iter().filter(|input| input.is_needed(&question.options)) {
        let mut missing = question.clone();
        missing.inputs.remove(input.name);
        same(&format!("`{}` missing", input.name), &missing, &["input"])?;

        let mut longer = question.clone();
        let shares_axis =
            |other: &Input| other.name != input.name && other.axes.first() == input.axes.first();
        let has_peer =
            formula.inputs.iter().any(|other| shares_axis(other) && other.is_needed(&question.options));
        if let Some(array) = longer.inputs.get_mut(input.name)
            && has_peer
            && questions::lengthen(array)
        {
            same(&format!("`{}` longer", input.name), &longer, &["shape", "input"])?;
        }
        let mut deeper = question.clone();
        // What may have any shape, and alone has it, may have one more axis.
        let any_will_do = input.axes == ANY && !has_peer;
        if let Some(array) = deeper.inputs.get_mut(input.name)
            && !any_will_do
            && questions::deepen(array)
        {
            same(&format!("`{}` with another axis", input.name), &deeper, &["rank", "shape", "input"])?;
        }
    }
    for option in formula.options {
        let mut bad = question.clone();
        bad.options.insert(option.name.to_owned(), json!("no such value"));
        same(&format!("option `{}` of the wrong type", option.name), &bad, &["option"])?;
    }
    Ok(())
}
