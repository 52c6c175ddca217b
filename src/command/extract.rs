//! `extract`: one case as a small repro of its own, to read or to run.

use std::fmt::Write as _;
use std::path::Path;

use grpo_oracle::conformance::{Dtype, Task, find, tolerance};
use grpo_oracle::evaluate::Evaluation;
use grpo_oracle::fixture::{self, Expected};
use grpo_oracle::value::{Array, Data, Named};
use grpo_oracle::{Result, spec};
use serde_json::Value;

/// What stands around the case in a script.
const SCRIPT: &str = include_str!("extract.py");

pub(crate) fn extract(formula: &str, case: &str, python: bool, folder: Option<&Path>) -> Result<String> {
    let fixtures = match folder {
        Some(folder) => fixture::read_all(folder)?,
        None => fixture::built_in()?,
    };
    let task = find(&fixtures, formula, case)?;
    let meaning = |flag: &String| {
        let fixture = fixtures.iter().find(|fixture| fixture.formula == formula)?;
        Some(format!("{flag}: {}", fixture.flags.get(flag)?))
    };
    let flags: Vec<String> = task.flags.iter().filter_map(meaning).collect();
    Ok(if python { script(&task, &flags) } else { text(&task, &flags) })
}

/// To read: the question, the answer, how near is near enough, and why.
fn text(task: &Task, flags: &[String]) -> String {
    let mut text = format!("{}, case {}\n", task.formula, task.case);
    for flag in flags {
        let _ = writeln!(text, "    {flag}");
    }
    let _ = writeln!(text, "\nquestion, as `grpo-oracle eval {}` takes it", task.formula);
    let _ = writeln!(text, "{}", flat(&task.question.to_json(), 0));
    text.push_str("\nanswer\n");
    match &task.expected {
        Expected::Error(code) => _ = writeln!(text, "    the error `{code}`"),
        Expected::Answer(answer) => answer_table(&mut text, task, answer),
    }
    text.push_str("\nclauses\n");
    text.push_str(&clauses(task, "    "));
    if !task.rivals.is_empty() {
        text.push_str("\nrivals: what well-known wrong variants answer\n");
        for rival in &task.rivals {
            for (name, array) in &rival.outputs {
                let _ = writeln!(text, "    {}: {name} = {}", rival.name, array.to_json()["data"]);
            }
        }
    }
    text
}

/// Every entry with its tolerance in each format.
fn answer_table(text: &mut String, task: &Task, answer: &Evaluation) {
    for dtype in Dtype::ALL {
        if let Some(why) = task.not_applicable(dtype) {
            let _ = writeln!(text, "    {}: not applicable, {why}", dtype.name());
        }
    }
    for (name, array) in parts(answer) {
        let _ = writeln!(text, "    {name} {:?}", array.shape);
        let _ = writeln!(text, "        entry  {:>24}  within f64      f32      bf16", "expected");
        let bounds = answer.bounds.get(&name).map(Array::reals).unwrap_or_default();
        for (index, (value, &bound)) in array.reals().iter().zip(bounds).enumerate() {
            let within = Dtype::ALL.map(|dtype| format!("{:8.1e}", tolerance(bound, dtype)));
            let _ = writeln!(text, "        {index:5}  {value:>24}    {}", within.join(" "));
        }
    }
}

/// The outputs, and the gradients as `grad:` and the input's name.
fn parts(answer: &Evaluation) -> Vec<(String, &Array)> {
    let outputs = answer.outputs.iter().map(|(name, array)| (name.clone(), array));
    let gradients = answer.gradients.iter().map(|(name, array)| (format!("grad:{name}"), array));
    outputs.chain(gradients).collect()
}

fn clauses(task: &Task, indent: &str) -> String {
    let mut text = String::new();
    for id in &task.clauses {
        let _ = writeln!(text, "{indent}r[{id}]");
        for line in spec::clause(id).unwrap_or_default().lines().filter(|line| !line.is_empty()) {
            let _ = writeln!(text, "{indent}    {line}");
        }
    }
    text
}

/// JSON with a line for every field and none for entries.
fn flat(json: &Value, depth: usize) -> String {
    match json {
        Value::Object(fields) if depth < 2 && !fields.is_empty() => {
            let pad = "  ".repeat(depth + 1);
            let fields: Vec<String> = fields
                .iter()
                .map(|(name, value)| {
                    format!("{pad}{}: {}", Value::from(name.as_str()), flat(value, depth + 1))
                })
                .collect();
            format!("{{\n{}\n{}}}", fields.join(",\n"), "  ".repeat(depth))
        }
        flat => flat.to_string(),
    }
}

/// To run: a script that says what is wrong until its function is right.
fn script(task: &Task, flags: &[String]) -> String {
    let mut about: String = format!("{}, case {}\n", task.formula, task.case);
    for flag in flags {
        let _ = writeln!(about, "{flag}");
    }
    let _ = write!(about, "\n{}", clauses(task, ""));
    let comment: String =
        about.lines().map(|line| format!("# {line}").trim_end().to_owned() + "\n").collect();
    let (mut expected, mut bounds, mut error, mut margin) =
        ("{}".to_owned(), "{}".to_owned(), None, f64::INFINITY);
    match &task.expected {
        Expected::Error(code) => error = Some(code.as_str()),
        Expected::Answer(answer) => {
            expected = python_named(parts(answer));
            bounds = python_named(answer.bounds.iter().map(|(name, array)| (name.clone(), array)).collect());
            margin = answer.margin;
        }
    }
    let options = task.question.options.iter();
    let options: Vec<String> =
        options.map(|(name, value)| format!("    {name:?}: {},\n", python(value))).collect();
    let outputs: Vec<String> = match &task.expected {
        Expected::Answer(answer) => answer.outputs.keys().cloned().collect(),
        Expected::Error(_) => Vec::new(),
    };
    let inputs =
        |inputs: &Named| python_named(inputs.iter().map(|(name, array)| (name.clone(), array)).collect());
    SCRIPT
        .replace("# ABOUT\n", &comment)
        .replace("\"OPTIONS\"", &format!("{{\n{}}}", options.concat()))
        .replace("\"INPUTS\"", &inputs(&task.question.inputs))
        .replace("\"EXPECTED\"", &expected)
        .replace("\"BOUNDS\"", &bounds)
        .replace("\"OUTPUTS\"", &python(&Value::from(outputs)))
        .replace("\"ERROR\"", &error.map_or_else(|| "None".to_owned(), |code| format!("{code:?}")))
        .replace("\"MARGIN\"", &real(margin))
        .replace("\"EXACT_IN\"", &python(&Value::from(task.exact_in.clone())))
}

fn python_named(arrays: Vec<(String, &Array)>) -> String {
    let fields: Vec<String> =
        arrays.iter().map(|(name, array)| format!("    {name:?}: {},\n", python_array(array))).collect();
    format!("{{\n{}}}", fields.concat())
}

/// Nested lists, or a number alone.
fn python_array(array: &Array) -> String {
    let entries: Vec<String> = match &array.data {
        Data::Real(data) => data.iter().map(|&number| real(number)).collect(),
        Data::Mask(data) => data.iter().map(|&keep| u8::from(keep).to_string()).collect(),
        Data::Integer(data) => data.iter().map(ToString::to_string).collect(),
        Data::Text(data) => data.iter().map(|text| python(&Value::from(text.as_str()))).collect(),
    };
    nested(&array.shape, &entries)
}

fn nested(shape: &[usize], entries: &[String]) -> String {
    let Some((&length, rest)) = shape.split_first() else { return entries.concat() };
    let width: usize = rest.iter().product();
    let part =
        |index: usize| nested(rest, entries.get(index * width..(index + 1) * width).unwrap_or_default());
    format!("[{}]", (0..length).map(part).collect::<Vec<_>>().join(", "))
}

/// A number as Python writes it, `nan` and `inf` being names in the script.
fn real(number: f64) -> String {
    match number {
        _ if number.is_nan() => "nan".to_owned(),
        f64::INFINITY => "inf".to_owned(),
        f64::NEG_INFINITY => "-inf".to_owned(),
        _ => Value::from(number).to_string(),
    }
}

/// JSON as a Python literal; what JSON escapes in a text, Python reads alike.
fn python(json: &Value) -> String {
    match json {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Array(list) => format!("[{}]", list.iter().map(python).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}
