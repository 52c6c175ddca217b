//! `eval`: the reference's answer to the user's own question.

use std::io::{IsTerminal, Read};

use grpo_oracle::convention::Convention;
use grpo_oracle::evaluate::{Evaluation, Question};
use grpo_oracle::formula::Formula;
use grpo_oracle::{Error, Result};
use serde_json::{Value, json};

pub(crate) fn eval(
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
