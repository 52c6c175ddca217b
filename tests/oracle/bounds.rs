//! Whether the bound bounds: honest single precision, in several orders of summation, on many random questions.

use grpo_oracle::Result;
use grpo_oracle::conformance::{Dtype, is_applicable, worst};
use grpo_oracle::evaluate::Question;
use grpo_oracle::evaluate::{Evaluation, differentiable, evaluate, evaluate_outputs, gradient, read};
use grpo_oracle::formula::Formula;
use grpo_oracle::reference::Real;
use libtest_mimic::Failed;

use crate::questions::{self, LARGE, SMALL};
use crate::single::{BACKWARD, FORWARD, PAIRWISE, STRIDED, Single};

/// Gradients cost a pass an entry, so only some questions, and small ones, are asked for them.
const GRADIENT_EVERY: usize = 16;

/// Evaluates the formula 400 times in single precision, a quarter of them in each order of summation, and compares with
/// the bound. `GRPO_ORACLE_EVALUATIONS` asks for another number: of each family, shared among its formulas.
pub(crate) fn hold(id: &str) -> Result<(), Failed> {
    let wanted = match std::env::var("GRPO_ORACLE_EVALUATIONS") {
        Ok(text) => {
            let of_family: usize =
                text.parse().map_err(|problem| format!("GRPO_ORACLE_EVALUATIONS: {problem}"))?;
            let family = |id: &str| id.split('.').next().map(str::to_owned);
            of_family.div_ceil(Formula::<f64>::all().filter(|other| family(other.id) == family(id)).count())
        }
        Err(_) => 400,
    };
    let (mut evaluations, mut skipped, mut largest) = (0, 0, 0.0_f64);
    let formula = Formula::<f64>::find(id)?;
    let (mut small, mut large) = (questions::stream(formula, SMALL), questions::stream(formula, LARGE));
    for index in 0.. {
        if evaluations >= wanted {
            break;
        }
        let with_gradients = index % GRADIENT_EVERY == 0;
        let Some(question) = (if with_gradients { small.next() } else { large.next() }) else { break };
        let expected = if with_gradients { evaluate(id, &question) } else { evaluate_outputs(id, &question) };
        let Some(expected) = expected.ok().filter(|expected| is_applicable(expected.margin, Dtype::F32))
        else {
            skipped += 1;
            if skipped > 20 * (wanted + 100) {
                return Err(format!("of {skipped} questions only {} are applicable", evaluations / 4).into());
            }
            continue;
        };
        for excess in [
            excess(id, &question, &expected, Single::<FORWARD>)?,
            excess(id, &question, &expected, Single::<BACKWARD>)?,
            excess(id, &question, &expected, Single::<PAIRWISE>)?,
            excess(id, &question, &expected, Single::<STRIDED>)?,
        ] {
            if excess > 1.0 {
                return Err(format!("{excess:.3} times the tolerance on {}", question.to_json()).into());
            }
            largest = largest.max(excess);
            evaluations += 1;
        }
    }
    println!(
        "{id}: {evaluations} evaluations in single precision within the bound, the furthest at {:.1} % of the tolerance; \
         {skipped} questions not applicable",
        100.0 * largest
    );
    Ok(())
}

/// How far the furthest entry of the answer is off, over its tolerance.
fn excess<R: Real>(
    id: &str,
    question: &Question,
    expected: &Evaluation,
    single: impl Fn(f32) -> R + Copy,
) -> Result<f64> {
    let lift = |value: f64| single(value as f32);
    let mut largest = 0.0_f64;
    let mut judge = |right: &[f64], bounds: &[f64], got: ndarray::ArrayD<R>| {
        let got: Vec<f64> = got.iter().map(|entry| entry.value()).collect();
        if let Some(worst) = worst(right, bounds, &got, Dtype::F32) {
            largest = largest.max(worst.excess);
        }
    };
    for (name, output) in read(id, question, lift)? {
        judge(expected.outputs[name].reals(), expected.bounds[name].reals(), output);
    }
    if !expected.gradients.is_empty() {
        for input in differentiable(Formula::<f64>::find(id)?, question) {
            let bounds = &expected.bounds[&format!("grad:{input}")];
            judge(expected.gradients[input].reals(), bounds.reals(), gradient(id, question, input, lift)?);
        }
    }
    Ok(largest)
}
