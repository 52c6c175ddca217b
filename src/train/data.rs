//! Problems in GSM8K's format, and the files that hold them.

use std::fs::File;
use std::io::{BufRead, BufReader, ErrorKind};
use std::path::Path;

use clap::ValueEnum;
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::{Field, Row};
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::builtin::{self, Level};
use super::hub::{self, Hub};
use crate::{Error, Result, config};

/// One problem: a question, and a worked answer whose last line is `#### ` and the final number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What is asked.
    pub question: String,
    /// The worked solution, ending in `#### N`.
    pub answer: String,
}

/// Problems to train on and problems held out, with the words that say where they came from.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Problems for the rollouts.
    pub train: Vec<Problem>,
    /// Problems for the evaluation; none of them is in `train`.
    pub test: Vec<Problem>,
    /// Where the problems came from, for the first line of output and the run's record.
    pub source: String,
    /// The level of built-in problems; `None` for GSM8K itself.
    pub level: Option<Level>,
}

/// The problems that a configuration asks for.
///
/// # Errors
/// As [`folder`], [`jsonl`], [`parquet()`] and [`hub::gsm8k`]; `option` for a level that there is not.
pub fn load(data: &config::Data) -> Result<Dataset> {
    let (name, path) = (data.train_files.as_str(), Path::new(&data.train_files));
    let mut dataset = match name.strip_prefix("builtin:") {
        Some(level) => match Level::from_str(level, true) {
            Ok(level) => builtin::problems(level, data.seed),
            Err(_) => {
                let problem =
                    format!("there are no problems `{name}`; use builtin:tiny, easy, medium or hard");
                return Err(Error::option("data.train_files", problem));
            }
        },
        None if name == "gsm8k" => hub::gsm8k(&Hub { progress: true, ..Hub::default() })?,
        None if path.is_dir() => folder(path)?,
        None => {
            let train = file(path)?;
            let test = data.val_files.as_ref().ok_or_else(|| {
                Error::option(
                    "data.val_files",
                    format!("is needed beside {name}: problems that are held out"),
                )
            })?;
            Dataset { train, test: file(Path::new(test))?, source: name.to_owned(), level: None }
        }
    };
    if let (Some(test), true) =
        (&data.val_files, name.starts_with("builtin:") || name == "gsm8k" || path.is_dir())
    {
        dataset.test = file(Path::new(test))?;
    }
    for (problems, most) in
        [(&mut dataset.train, data.train_max_samples), (&mut dataset.test, data.val_max_samples)]
    {
        problems.truncate(usize::try_from(most).unwrap_or(usize::MAX));
    }
    Ok(dataset)
}

/// A file of problems, by its ending.
fn file(path: &Path) -> Result<Vec<Problem>> {
    match path.extension().is_some_and(|ending| ending == "parquet") {
        true => parquet(path),
        false => jsonl(path),
    }
}

/// GSM8K as its authors publish it: `train.jsonl` and `test.jsonl` in one folder.
///
/// # Errors
/// `file` as [`jsonl`] gives it.
pub fn folder(folder: &Path) -> Result<Dataset> {
    Ok(Dataset {
        train: jsonl(&folder.join("train.jsonl"))?,
        test: jsonl(&folder.join("test.jsonl"))?,
        source: format!("GSM8K from {}", folder.display()),
        level: None,
    })
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

/// Where a run stands in its problems.
#[derive(Debug, Clone)]
pub struct Draws {
    problems: Vec<Problem>,
    /// Decides the order; `None` keeps the file's.
    seed: Option<u64>,
    /// Problems drawn so far.
    pub position: usize,
    order: (usize, Vec<usize>),
}

impl Draws {
    /// All problems before any comes again, in an order drawn from `seed` anew each time.
    pub fn new(problems: Vec<Problem>, seed: Option<u64>) -> Self {
        Self { order: (usize::MAX, Vec::new()), problems, seed, position: 0 }
    }

    /// The next problems.
    pub fn next(&mut self, count: usize) -> Vec<&Problem> {
        let mut places = Vec::with_capacity(count);
        for position in self.position..self.position + count {
            let (epoch, place) = (position / self.problems.len(), position % self.problems.len());
            if self.order.0 != epoch {
                let order = match self.seed {
                    Some(seed) => order(self.problems.len(), seed.wrapping_add(epoch as u64)),
                    None => (0..self.problems.len()).collect(),
                };
                self.order = (epoch, order);
            }
            places.push(self.order.1[place]);
        }
        self.position += count;
        places.into_iter().map(|place| &self.problems[place]).collect()
    }
}

/// The parser counts lines within what it was given, which is one line.
fn in_line(error: &serde_json::Error) -> String {
    error.to_string().replace(" at line 1 column", " at column")
}

fn order(length: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
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
