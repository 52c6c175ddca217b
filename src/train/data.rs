//! The problems of a run, and the order in which they come.

use std::path::Path;

use clap::ValueEnum;
use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;

use super::builtin::{self, Level};
use super::hub::{self, Hub};
use crate::problem::{jsonl, parquet};
use crate::{Error, Result, config};

pub use crate::problem::Problem;

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

fn order(length: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..length).collect();
    order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    order
}
