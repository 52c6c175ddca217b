//! The record of a run: one folder with the configuration, a line of figures a step, readable samples, and the curves.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use chrono::Utc;
use serde::Serialize;

use super::curves;
use super::step::StepMetrics;
use crate::{Error, Result};

/// One training step's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepLine {
    /// The step, from 1.
    pub step: usize,
    /// The mean reward of the sampled responses.
    pub reward_mean: f64,
    /// The share of responses whose marked final answer is right (strict).
    pub accuracy: f64,
    /// The share of responses whose last number is right, marked or not (flexible).
    pub accuracy_flexible: f64,
    /// The share of groups whose rewards are not all equal: only these move the policy.
    pub groups_differing: f64,
    /// The mean number of response tokens.
    pub response_length_mean: f64,
    /// The largest number of response tokens.
    pub response_length_max: usize,
    /// The share of responses that ended by themselves, not at the length limit.
    pub stopped: f64,
    /// Response tokens sampled in a second.
    pub rollout_tokens_per_s: f64,
    /// How long sampling took.
    pub rollout_seconds: f64,
    /// The update's figures; its `seconds` are the update's.
    #[serde(flatten)]
    pub update: StepMetrics,
}

/// One evaluation's figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalLine {
    /// The number of training steps made before it.
    pub step: usize,
    /// The share of held-out problems solved greedily.
    pub eval_accuracy: f64,
    /// Held-out problems asked.
    pub eval_problems: usize,
    /// The mean number of response tokens.
    pub eval_length_mean: f64,
    /// How long it took.
    pub eval_seconds: f64,
}

/// A response to look at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The step, from 1.
    pub step: usize,
    /// The problem.
    pub prompt: String,
    /// What the model wrote.
    pub response: String,
    /// The right answer's last line.
    pub answer: String,
    /// What the response was worth.
    pub reward: f64,
    /// Its advantage within its group.
    pub advantage: f64,
}

/// The open run folder.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    title: String,
    metrics: File,
    rollouts: File,
    steps: Vec<StepLine>,
    evaluations: Vec<EvalLine>,
}

impl Run {
    /// Makes the run folder (`runs/<UTC time>-<seed>` unless `out` names one) and writes the configuration.
    /// `title` stands over the curves.
    ///
    /// # Errors
    /// `file` if the folder exists and is not empty, or cannot be written.
    pub fn create(out: Option<&Path>, seed: u64, title: &str, config: &impl Serialize) -> Result<Self> {
        let folder = match out {
            Some(folder) => folder.to_owned(),
            None => Path::new("runs").join(format!("{}-{seed}", Utc::now().format("%Y-%m-%dT%H-%M-%SZ"))),
        };
        vacant(&folder)?;
        fs::create_dir_all(&folder).map_err(|error| Error::file(&folder, error))?;
        let mut config = serde_json::to_string_pretty(config).map_err(|error| Error::file(&folder, error))?;
        config.push('\n');
        replace(&folder.join("config.json"), config.as_bytes())?;
        Ok(Self {
            title: title.to_owned(),
            metrics: created(&folder.join("metrics.jsonl"))?,
            rollouts: created(&folder.join("rollouts.jsonl"))?,
            steps: Vec::new(),
            evaluations: Vec::new(),
            folder,
        })
    }

    /// Where the run is recorded.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The steps recorded so far.
    pub fn steps(&self) -> &[StepLine] {
        &self.steps
    }

    /// The evaluations recorded so far.
    pub fn evaluations(&self) -> &[EvalLine] {
        &self.evaluations
    }

    /// Records a training step and some of its responses, and draws the curves anew.
    ///
    /// # Errors
    /// `file` if the folder cannot be written.
    pub fn step(&mut self, line: StepLine, samples: &[Sample]) -> Result<()> {
        append(&mut self.metrics, &self.folder.join("metrics.jsonl"), &Event::Step(&line))?;
        for sample in samples {
            append(&mut self.rollouts, &self.folder.join("rollouts.jsonl"), sample)?;
        }
        self.steps.push(line);
        self.draw()
    }

    /// Records an evaluation and draws the curves anew.
    ///
    /// # Errors
    /// `file` if the folder cannot be written.
    pub fn evaluation(&mut self, line: EvalLine) -> Result<()> {
        append(&mut self.metrics, &self.folder.join("metrics.jsonl"), &Event::Eval(&line))?;
        self.evaluations.push(line);
        self.draw()
    }

    fn draw(&self) -> Result<()> {
        let path = self.folder.join("curves.svg");
        let picture =
            curves::svg(&self.title, &self.steps, &self.evaluations).map_err(|problem| Error::file(&path, problem))?;
        replace(&path, picture.as_bytes())
    }
}

/// The error that a folder for a new run would give, if any: asked before the long work starts.
///
/// # Errors
/// `file` if the folder exists and is not empty.
pub fn vacant(folder: &Path) -> Result<()> {
    let occupied = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_some(),
        Err(_) => folder.exists(),
    };
    match occupied {
        true => Err(Error::file(folder, "there is something here already; give another folder with --out")),
        false => Ok(()),
    }
}

/// One line of metrics.jsonl.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event<'a> {
    Step(&'a StepLine),
    Eval(&'a EvalLine),
}

fn created(path: &Path) -> Result<File> {
    File::create(path).map_err(|error| Error::file(path, error))
}

fn append(file: &mut File, path: &Path, line: &impl Serialize) -> Result<()> {
    let mut text = serde_json::to_string(line).map_err(|error| Error::file(path, error))?;
    text.push('\n');
    // One write a line: whoever reads along never sees half of one.
    file.write_all(text.as_bytes()).map_err(|error| Error::file(path, error))
}

/// Writes beside the file and renames, so that the file is whole at every moment.
fn replace(path: &Path, content: &[u8]) -> Result<()> {
    let beside = path.with_extension("part");
    fs::write(&beside, content)
        .and_then(|()| fs::rename(&beside, path))
        .map_err(|error| Error::file(path, error))
}
