//! The second oracle: `examples/adapters/mpmath_adapter.py`, written from `spec/` alone, in 50-digit arithmetic.
//!
//! It runs where Python has mpmath (after `./setup`: `.venv`); elsewhere its trials are shown as ignored, or fail with
//! `GRPO_ORACLE_REQUIRE_MPMATH=1`.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use grpo_oracle::conformance::{Dtype, is_applicable};
use grpo_oracle::evaluate::{Evaluation, Question, evaluate, named_json};
use grpo_oracle::fixture::{self, Expected};
use grpo_oracle::formula::Formula;
use grpo_oracle::value::number_from;
use libtest_mimic::Failed;
use serde_json::{Value, json};

use crate::questions::{self, SMALL};

/// Random questions of each formula beside the fixtures; `GRPO_ORACLE_SECOND` asks for another number.
const RANDOM: usize = 12;
/// The bits of a value that must agree.
const VALUE_BITS: i32 = 48;
/// The bits of a gradient that must agree.
const GRADIENT_BITS: i32 = 40;

/// A Python with mpmath, if there is one.
pub(crate) fn python() -> Option<PathBuf> {
    let of_setup = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    [of_setup, PathBuf::from("python3")].into_iter().find(|python| {
        let import = Command::new(python).args(["-c", "import mpmath"]).stderr(Stdio::null()).status();
        import.is_ok_and(|status| status.success())
    })
}

/// Both oracles agree on every fixture and on random questions.
pub(crate) fn agrees(id: &str, python: &Path) -> Result<(), Failed> {
    let mut adapter = Adapter::start(python)?;
    let mut agreement = Agreement::default();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1");
    for case in &fixture::read(&fixture::path_of(&root, id))?.cases {
        let place = format!("case {}", case.id);
        match &case.expected {
            Expected::Answer(expected) => {
                agreement.judge(&place, expected, &adapter.ask(id, &case.question)?)?
            }
            Expected::Error(code) => {
                let answer = adapter.ask(id, &case.question)?;
                if answer["error"]["kind"] != json!(code) {
                    return Err(format!("{place}: the error `{code}` is expected, not {answer}").into());
                }
            }
        }
    }
    let random =
        std::env::var("GRPO_ORACLE_SECOND").ok().and_then(|count| count.parse().ok()).unwrap_or(RANDOM);
    for question in questions::stream(Formula::<f64>::find(id)?, SMALL).take(random) {
        let place = question.to_json().to_string();
        let answer = adapter.ask(id, &question)?;
        match evaluate(id, &question) {
            Ok(expected) => agreement.judge(&place, &expected, &answer)?,
            Err(error) if answer["error"]["kind"] == json!(error.code()) => {}
            Err(error) => {
                return Err(format!("the error {error} is expected, not {answer} on {place}").into());
            }
        }
    }
    println!("{id}: {agreement}");
    Ok(())
}

/// The adapter's process, spoken to in lines of JSON.
struct Adapter {
    process: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    count: u64,
}

impl Adapter {
    fn start(python: &Path) -> Result<Self, Failed> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/adapters/mpmath_adapter.py");
        let mut process =
            Command::new(python).arg(script).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (to, from) = (process.stdin.take(), process.stdout.take());
        let (Some(to), Some(from)) = (to, from) else { return Err("the adapter has no pipes".into()) };
        Ok(Self { process, to, from: BufReader::new(from), count: 0 })
    }

    fn ask(&mut self, id: &str, question: &Question) -> Result<Value, Failed> {
        self.count += 1;
        let request = json!({
            "id": self.count, "cmd": "run", "formula": id,
            "options": question.options, "inputs": named_json(&question.inputs), "want": wanted(id, question)?,
        });
        writeln!(self.to, "{request}")?;
        let mut line = String::new();
        self.from.read_line(&mut line)?;
        let answer: Value =
            serde_json::from_str(&line).map_err(|problem| format!("{problem}: {line:?} to {request}"))?;
        if answer["id"] == json!(self.count) {
            Ok(answer)
        } else {
            Err(format!("{answer} to {request}").into())
        }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        let _ = writeln!(self.to, "{}", json!({ "id": self.count + 1, "cmd": "bye" }));
        let _ = self.process.wait();
    }
}

/// Every output, and the gradient by every input that has one.
fn wanted(id: &str, question: &Question) -> Result<Vec<String>, Failed> {
    let formula = Formula::<f64>::find(id)?;
    let outputs = formula.outputs.iter().map(|output| output.name.to_owned());
    let gradients =
        grpo_oracle::evaluate::differentiable(formula, question).map(|input| format!("grad:{input}"));
    Ok(outputs.chain(gradients).collect())
}

/// How many bits the two oracles have in common.
#[derive(Default)]
struct Agreement {
    values: Vec<f64>,
    gradients: Vec<f64>,
    exact: usize,
    conditioned: usize,
    not_applicable: usize,
}

impl Agreement {
    fn judge(&mut self, place: &str, expected: &Evaluation, answer: &Value) -> Result<(), Failed> {
        if !is_applicable(expected.margin, Dtype::F64) {
            self.not_applicable += 1;
            return Ok(());
        }
        for (name, bounds) in &expected.bounds {
            let (right, wanted_bits) = match name.strip_prefix("grad:") {
                Some(input) => (&expected.gradients[input], GRADIENT_BITS),
                None => (&expected.outputs[name], VALUE_BITS),
            };
            let got = &answer["ok"][name]["data"];
            let got: Option<Vec<f64>> =
                got.as_array().and_then(|data| data.iter().map(number_from).collect());
            let got = got.filter(|got| got.len() == right.len());
            let got = got.ok_or_else(|| format!("{place}: `{name}` is not answered: {answer}"))?;
            for (index, ((&right, &bound), got)) in
                right.reals().iter().zip(bounds.reals()).zip(got).enumerate()
            {
                let error = difference(right, got);
                let bits = -(error / right.abs().max(f64::MIN_POSITIVE)).log2();
                if error == 0.0 {
                    self.exact += 1;
                } else if bits >= f64::from(wanted_bits) {
                    let all = if name.starts_with("grad:") { &mut self.gradients } else { &mut self.values };
                    all.push(bits.min(60.0));
                } else if error <= 4.0 * Dtype::F64.unit_roundoff() * bound + f64::MIN_POSITIVE {
                    self.conditioned += 1;
                } else {
                    let problem = format!("`{name}` entry {index} is {right:e} here and {got:e} there");
                    return Err(format!("{place}: {problem}: {bits:.1} bits agree, bound {bound:e}").into());
                }
            }
        }
        Ok(())
    }
}

impl std::fmt::Display for Agreement {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let least = |bits: &[f64]| match bits.iter().copied().reduce(f64::min) {
            Some(least) => format!("{} agree in {least:.1} bits or more", bits.len()),
            None => "none differs".to_owned(),
        };
        write!(
            f,
            "{} entries are equal; of the others, values: {}; gradients: {}; within their bound where conditioning \
             forbids more: {}; questions with an uncertain branch: {}",
            self.exact,
            least(&self.values),
            least(&self.gradients),
            self.conditioned,
            self.not_applicable,
        )
    }
}

/// How far apart two numbers are; 0 for the same infinity, or for two NaNs.
fn difference(left: f64, right: f64) -> f64 {
    if left == right || (left.is_nan() && right.is_nan()) {
        return 0.0;
    }
    let difference = (left - right).abs();
    if difference.is_nan() { f64::INFINITY } else { difference }
}
