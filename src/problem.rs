//! Problems in GSM8K's format, and the files that hold them.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use ::parquet::file::reader::{FileReader, SerializedFileReader};
use ::parquet::record::{Field, Row};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// One problem: a question, and a worked answer whose last line is `#### ` and the final number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// The worked solution, ending in `#### N`.
    pub answer: String,
}

/// One file of problems, one JSON object with `question` and `answer` a line; empty lines are passed over.
///
/// # Errors
/// `file` if the file is missing or holds no problem, and with the line's number if a line is not a problem.
pub fn jsonl(path: &Path) -> Result<Vec<Problem>> {
    let file = File::open(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            Error::file(path, "there is no such file; the data folder must hold train.jsonl and test.jsonl")
        }
        _ => Error::file(path, error),
    })?;
    let mut problems = Vec::new();
    for (number, line) in BufReader::new(file).lines().enumerate() {
        let broken =
            |problem: &dyn std::fmt::Display| Error::file(path, format!("line {}: {problem}", number + 1));
        let line = line.map_err(|error| broken(&error))?;
        if line.trim().is_empty() {
            continue;
        }
        let problem: Problem = serde_json::from_str(&line).map_err(|error| {
            broken(&format!("not an object with `question` and `answer` ({})", in_line(&error)))
        })?;
        problems.push(checked(problem).map_err(|problem| broken(&problem))?);
    }
    not_empty(problems, path)
}

/// One Parquet file of problems with the text columns `question` and `answer`, as the hub holds GSM8K, or with these two
/// within `extra_info`, as verl prepares it.
///
/// # Errors
/// `file` if the file cannot be read or holds no problem, and with the row's number if a row is not a problem.
pub fn parquet(path: &Path) -> Result<Vec<Problem>> {
    let file = File::open(path).map_err(|error| Error::file(path, error))?;
    let unreadable = |error| Error::file(path, format!("not a readable Parquet file ({error})"));
    let reader = SerializedFileReader::new(file).map_err(unreadable)?;
    let mut problems = Vec::new();
    for (number, row) in reader.get_row_iter(None).map_err(unreadable)?.enumerate() {
        let row = row.map_err(unreadable)?;
        let problem = problem(&row)
            .and_then(checked)
            .map_err(|problem| Error::file(path, format!("row {}: {problem}", number + 1)))?;
        problems.push(problem);
    }
    not_empty(problems, path)
}

/// The parser counts lines within what it was given, which is one line.
fn in_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

fn problem(row: &Row) -> Result<Problem, String> {
    // verl's preparation of GSM8K keeps what was published in a column of columns.
    let published = row.get_column_iter().find_map(|(name, field)| match field {
        Field::Group(inner) if name == "extra_info" => Some(inner),
        _ => None,
    });
    let row = published.unwrap_or(row);
    let text = |wanted: &str| match row.get_column_iter().find(|(name, _)| name.as_str() == wanted) {
        Some((_, Field::Str(text))) => Ok(text.clone()),
        Some(_) => Err(format!("`{wanted}` is not text")),
        None => Err(format!("there is no column `{wanted}`")),
    };
    Ok(Problem { question: text("question")?, answer: text("answer")? })
}

fn checked(problem: Problem) -> Result<Problem, String> {
    // Without the mark no response could ever be rewarded.
    match problem.answer.contains("#### ") {
        true => Ok(problem),
        false => Err("the answer has no line `#### N` with the final number".to_owned()),
    }
}

fn not_empty(problems: Vec<Problem>, path: &Path) -> Result<Vec<Problem>> {
    match problems.is_empty() {
        true => Err(Error::file(path, "the file holds no problems")),
        false => Ok(problems),
    }
}
