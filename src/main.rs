//! The `grpo-oracle` command.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use grpo_oracle::convention::Convention;
use grpo_oracle::evaluate::{Evaluation, Question, evaluate, evaluate_outputs};
use grpo_oracle::fixture;
use grpo_oracle::formula::{Formula, Gradient, Needed, RULES};
use grpo_oracle::{Error, Result, spec};
use serde_json::{Value, json};

/// The executable specification of group-relative policy optimisation.
#[derive(Parser)]
#[command(version)]
struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show every formula with its line of maths.
    List,
    /// Show a formula: inputs, options with defaults, outputs, clauses, rivals.
    Explain {
        /// The formula's id, as `list` shows it.
        formula: String,
    },
    /// Show the named conventions, or what one of them computes with which options.
    Conventions {
        /// The convention's name.
        name: Option<String>,
    },
    /// Answer a question read from standard input: {"options": {...}, "inputs": {...}}.
    Eval {
        /// The formula's id, as `list` shows it.
        formula: String,
        /// Options that the question leaves out are those of this convention, not the specification's defaults.
        #[arg(long)]
        convention: Option<String>,
        /// Leave the gradients out: they cost a pass over the input for every entry of it.
        #[arg(long)]
        no_gradients: bool,
    },
    /// Write or check the golden fixtures.
    Fixtures {
        #[command(subcommand)]
        action: FixtureAction,
    },
}

#[derive(Subcommand)]
enum FixtureAction {
    /// Write every fixture anew.
    Generate {
        /// The folder.
        #[arg(default_value = "fixtures/v1")]
        folder: PathBuf,
    },
    /// Check that the files are what `generate` would write.
    Check {
        /// The folder.
        #[arg(default_value = "fixtures/v1")]
        folder: PathBuf,
    },
}

fn main() -> ExitCode {
    let action = Command::parse().action;
    match run(action) {
        Ok(text) => match std::io::stdout().write_all(text.as_bytes()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(_) => ExitCode::from(2), // nobody is listening any more
        },
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn run(action: Action) -> Result<String> {
    match action {
        Action::List => Ok(list()),
        Action::Explain { formula } => explain(&formula),
        Action::Conventions { name } => conventions(name.as_deref()),
        Action::Eval { formula, convention, no_gradients } => {
            eval(&formula, convention.as_deref(), if no_gradients { evaluate_outputs } else { evaluate })
        }
        Action::Fixtures { action: FixtureAction::Generate { folder } } => {
            let files = fixture::generate(&folder)?;
            Ok(format!("wrote {} fixture files under {}\n", files.len(), folder.display()))
        }
        Action::Fixtures { action: FixtureAction::Check { folder } } => {
            let cases = fixture::check(&folder)?;
            Ok(format!("{cases} cases under {} are as the reference gives them\n", folder.display()))
        }
    }
}

fn list() -> String {
    let width = Formula::<f64>::all().map(|formula| formula.id.len()).max().unwrap_or(0);
    Formula::<f64>::all().map(|formula| format!("{:width$}  {}\n", formula.id, formula.summary)).collect()
}

fn explain(id: &str) -> Result<String> {
    let formula = Formula::<f64>::find(id)?;
    let defaults = (formula.defaults)();
    let mut text = format!("{}\n    {}\n    source: {}\n", formula.id, formula.summary, formula.source);
    text.push_str("\ninputs\n");
    for input in formula.inputs {
        let gradient = match input.gradient {
            Gradient::Flows => "; gradient flows",
            Gradient::Stops => "; a constant, its gradient is 0",
            Gradient::None => "",
        };
        let optional = match input.needed {
            Needed::Always => String::new(),
            Needed::UnlessZero(option) => format!("; not read when {option} is 0"),
            Needed::When(option, values) => format!("; read only when {option} is {}", values.join(" or ")),
            Needed::Optional => "; may be left out".to_owned(),
        };
        text.push_str(&format!("    {} {}{gradient}{optional}\n", input.name, input.shape()));
    }
    text.push_str("\noptions\n");
    for option in formula.options {
        let default = defaults.get(option.name).unwrap_or(&Value::Null);
        let (name, values, meaning) = (option.name, option.values, option.meaning);
        text.push_str(&format!("    {name} = {default}  ({values})\n        {meaning}\n"));
    }
    text.push_str("\noutputs\n");
    for output in formula.outputs {
        text.push_str(&format!("    {} [{}]\n", output.name, output.axes.join(", ")));
    }
    text.push_str("\nclauses\n");
    for id in formula.clauses {
        text.push_str(&format!("    r[{id}]\n"));
        let lines = spec::clause(id).unwrap_or_default().lines().filter(|line| !line.is_empty());
        lines.for_each(|line| text.push_str(&format!("        {line}\n")));
    }
    text.push_str(&format!("    and those of every formula: {}\n", RULES.join(", ")));
    text.push_str("\nrivals: what well-known wrong variants do\n");
    for rival in formula.rivals {
        text.push_str(&format!("    {}  {}\n", rival.name, rival.options));
    }
    text.push_str("\nconventions: what differs from the defaults above\n");
    for convention in Convention::all()? {
        if let Some(options) = convention.formulas.get(id) {
            text.push_str(&format!("    {}  {options}\n", convention.name));
        }
    }
    Ok(text)
}

fn conventions(name: Option<&str>) -> Result<String> {
    let Some(name) = name else {
        let all = Convention::all()?;
        let width = all.iter().map(|convention| convention.name.len()).max().unwrap_or(0);
        let line = |convention: &Convention| format!("{:width$}  {}\n", convention.name, convention.title);
        return Ok(all.iter().map(line).collect());
    };
    let convention = Convention::find(name)?;
    let mut text = format!("{}\n    {}\n", convention.name, convention.title);
    for id in convention.formulas.keys() {
        text.push_str(&format!("\n{id}\n"));
        for (option, value) in convention.options(id)? {
            text.push_str(&format!("    {option} = {value}\n"));
        }
    }
    Ok(text)
}

fn eval(
    id: &str,
    convention: Option<&str>,
    evaluate: fn(&str, &Question) -> Result<Evaluation>,
) -> Result<String> {
    // Before waiting for input.
    Formula::<f64>::find(id)?;
    let convention = convention.map(|name| Convention::find(name)?.options(id)).transpose()?;
    let mut text = String::new();
    let mut stdin = std::io::stdin();
    if stdin.is_terminal() {
        eprintln!("reading {{\"options\": ..., \"inputs\": ...}} from the terminal; end it with Ctrl-D");
    }
    stdin.read_to_string(&mut text).map_err(|problem| Error::file("standard input", problem))?;
    let mut json: Value = serde_json::from_str(&text)
        .map_err(|problem| Error::file("standard input", format!("is not JSON: {problem}")))?;
    if let (Some(mut options), Some(question)) = (convention, json.as_object_mut()) {
        match question.get("options") {
            None | Some(Value::Null) => _ = question.insert("options".to_owned(), options.into()),
            Some(Value::Object(given)) => {
                options.extend(given.clone());
                question.insert("options".to_owned(), options.into());
            }
            Some(_) => {} // what is wrong with it is said below
        }
    }
    // An error of the formula is an answer too: its code stands in the output for programs to read.
    match Question::from_json(id, &json).and_then(|question| evaluate(id, &question)) {
        Ok(answer) => Ok(format!("{}\n", answer.to_json())),
        Err(error) => {
            let answer = json!({ "error": { "kind": error.code(), "message": error.to_string() } });
            println!("{answer}");
            Err(error)
        }
    }
}
