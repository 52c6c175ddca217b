//! The record of a run: one folder with the configuration, a line of figures a step, readable samples, and the curves.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::Utc;
use ndarray::Array1;
use ndarray_stats::Quantile1dExt;
use ndarray_stats::interpolate::Higher;
use noisy_float::types::n64;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::algorithm::Figures;
use super::critic::CriticMetrics;
use super::curves;
use super::evaluate::Evaluation;
use super::rollout::Rollout;
use super::step::StepMetrics;
use crate::file::replace;
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
    /// The number of tokens that half of the responses do not exceed.
    pub response_length_median: usize,
    /// The number of tokens that 95 % of the responses do not exceed.
    pub response_length_p95: usize,
    /// The largest number of response tokens.
    pub response_length_max: usize,
    /// The share of responses that ended by themselves, not at the length limit.
    pub stopped: f64,
    /// Response tokens sampled in a second.
    pub rollout_tokens_per_s: f64,
    /// How long sampling took.
    pub rollout_seconds: f64,
    /// Rollouts that it took to find enough groups whose rewards differ.
    pub gen_batches: usize,
    /// Groups that were sampled and left out because their rewards were all equal.
    pub dropped_groups: usize,
    /// The mean reward of all that was sampled, those groups included; `None` where nothing is left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampled_reward: Option<f64>,
    /// The advantages' figures.
    #[serde(flatten)]
    pub advantages: Figures,
    /// The critic's figures.
    #[serde(flatten)]
    pub critic: Option<CriticMetrics>,
    /// The update's figures; its `seconds` are the update's.
    #[serde(flatten)]
    pub update: StepMetrics,
}

impl StepLine {
    /// The figures of a step: `rewards` and `flexible` are the strict and the flexible rewards, `[B]`.
    pub fn of(
        step: usize,
        rollout: &Rollout,
        rewards: &Tensor,
        flexible: &Tensor,
        advantages: Figures,
        critic: Option<CriticMetrics>,
        update: StepMetrics,
    ) -> Self {
        let mean = |values: &Tensor| values.mean(Kind::Double).double_value(&[]);
        let groups = rewards.view([-1, rollout.n as i64]);
        let differing = groups.amax(1i64, false).ne_tensor(&groups.amin(1i64, false));
        let (rows, tokens) = (rollout.lengths.len() as f64, rollout.lengths.iter().sum::<usize>() as f64);
        let mut lengths = Array1::from(rollout.lengths.clone());
        let quantile = |lengths: &mut Array1<usize>, q: f64| {
            lengths.quantile_mut(n64(q), &Higher).unwrap_or(0) // no responses have no quantiles
        };
        Self {
            step,
            reward_mean: mean(rewards),
            accuracy: mean(&rewards.gt(0.0)),
            accuracy_flexible: mean(&flexible.gt(0.0)),
            groups_differing: mean(&differing),
            response_length_mean: tokens / rows,
            response_length_median: quantile(&mut lengths, 0.5),
            response_length_p95: quantile(&mut lengths, 0.95),
            response_length_max: rollout.lengths.iter().copied().max().unwrap_or(0),
            stopped: rollout.stopped.iter().filter(|&&stopped| stopped).count() as f64 / rows,
            rollout_tokens_per_s: rollout.tokens_per_s(),
            rollout_seconds: rollout.seconds,
            gen_batches: rollout.gen_batches,
            dropped_groups: rollout.dropped_groups,
            sampled_reward: rollout.sampled_reward,
            advantages,
            critic,
            update,
        }
    }

    /// The step in one line of text; `of` is the number of steps.
    pub fn summary(&self, of: usize) -> String {
        let Self { update, .. } = self;
        let kl = update.kl.map_or_else(|| "-".to_owned(), |kl| format!("{kl:.4}"));
        format!(
            "step {:>3}/{of}  reward {:.2}  groups differing {:.2}  loss {:+.4}  kl {kl}  clipped {:.2}  ratio {:.3}  \
             grad {:.2}  length {:.0}  rollout {:.0} tok/s  training {:.0} tok/s  {:.1} s",
            self.step,
            self.reward_mean,
            self.groups_differing,
            update.loss,
            update.clip_fraction,
            update.ratio_mean,
            update.grad_norm,
            self.response_length_mean,
            self.rollout_tokens_per_s,
            update.train_tokens_per_s,
            self.rollout_seconds + update.seconds,
        )
    }
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

impl EvalLine {
    /// The figures of an evaluation after `step` training steps.
    pub fn of(step: usize, evaluation: &Evaluation) -> Self {
        Self {
            step,
            eval_accuracy: evaluation.accuracy(),
            eval_problems: evaluation.problems,
            eval_length_mean: evaluation.length_mean,
            eval_seconds: evaluation.seconds,
        }
    }
}

/// A response to look at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sample {
    /// The step, from 1.
    pub step: usize,
    /// The question.
    pub prompt: String,
    /// What the model wrote.
    pub response: String,
    /// The worked solution.
    pub answer: String,
    /// What the response was worth.
    pub reward: f64,
    /// Its advantage within its group.
    pub advantage: f64,
}

/// The best and the worst response to each of the step's first two problems.
pub fn samples(step: usize, rollout: &Rollout, rewards: &Tensor, advantages: &Tensor) -> Vec<Sample> {
    let sample = |row: usize| Sample {
        step,
        prompt: rollout.problems[row].question.clone(),
        response: rollout.texts[row].clone(),
        answer: rollout.problems[row].answer.clone(),
        reward: rewards.double_value(&[row as i64]),
        advantage: advantages.double_value(&[row as i64]),
    };
    let groups = (0..rollout.texts.len()).step_by(rollout.n).take(2);
    groups
        .flat_map(|first| {
            let own = rewards.narrow(0, first as i64, rollout.n as i64);
            [own.argmax(0, false), own.argmin(0, false)]
                .map(|row| sample(first + row.int64_value(&[]) as usize))
        })
        .collect()
}

/// Steps may be quicker than a picture of them.
const BETWEEN_PICTURES: Duration = Duration::from_secs(5);

/// The open run folder.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    title: String,
    metrics: File,
    rollouts: File,
    steps: Vec<StepLine>,
    evaluations: Vec<EvalLine>,
    drawn: Instant,
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
            drawn: Instant::now(),
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

    /// Records a training step and some of its responses, and draws the curves anew if that is some seconds ago.
    ///
    /// # Errors
    /// `file` if the folder cannot be written.
    pub fn step(&mut self, line: StepLine, samples: &[Sample]) -> Result<()> {
        append(&mut self.metrics, &self.folder.join("metrics.jsonl"), &Event::Step(&line))?;
        for sample in samples {
            append(&mut self.rollouts, &self.folder.join("rollouts.jsonl"), sample)?;
        }
        self.steps.push(line);
        match self.drawn.elapsed() > BETWEEN_PICTURES {
            true => self.draw(),
            false => Ok(()),
        }
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

    fn draw(&mut self) -> Result<()> {
        self.drawn = Instant::now();
        let path = self.folder.join("curves.svg");
        let picture = curves::svg(&self.title, &self.steps, &self.evaluations)
            .map_err(|problem| Error::file(&path, problem))?;
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
