//! The record of a run: one folder with the configuration, a line of figures a step, rollouts to read, the curves, and the
//! page that shows them.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use chrono::Utc;
use ndarray::Array1;
use ndarray_stats::Quantile1dExt;
use ndarray_stats::interpolate::Higher;
use noisy_float::types::n64;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::algorithm::Figures;
use super::critic::CriticMetrics;
use super::evaluate::Evaluation;
use super::page::{self, Chart, Group, Page, Response, State};
use super::rollout::Rollout;
use super::step::StepMetrics;
use super::tensorboard::Events;
use super::{curves, lines};
use crate::config::Config;
use crate::file::replace;
use crate::llm::Tokenizer;
use crate::{Error, Result};

/// One training step's figures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalLine {
    /// The number of training steps made before it.
    pub step: usize,
    /// The share of right responses to held-out problems, the answer taken after its mark.
    pub eval_accuracy: f64,
    /// The same with the last number as the answer.
    pub eval_accuracy_flexible: f64,
    /// For several k, the chance that one of k responses is right.
    pub eval_pass_at: Vec<(usize, f64)>,
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
            eval_accuracy: evaluation.accuracy,
            eval_accuracy_flexible: evaluation.accuracy_flexible,
            eval_pass_at: evaluation.pass_at.clone(),
            eval_problems: evaluation.problems,
            eval_length_mean: evaluation.length_mean,
            eval_seconds: evaluation.seconds,
        }
    }
}

/// So many problems of a step are shown with all of their responses.
const SHOWN: usize = 2;

/// All responses to the step's first problems, token by token. `advantages` is `[B, T]`.
///
/// # Errors
/// As [`Tokenizer::decode`].
pub fn groups(
    step: usize,
    tokenizer: &Tokenizer,
    rollout: &Rollout,
    rewards: &Tensor,
    advantages: &Tensor,
) -> Result<Vec<Group>> {
    let rewards: Vec<f64> = Vec::try_from(rewards.to_kind(Kind::Double)).unwrap_or_default();
    let response = |row: usize| -> Result<Response> {
        let own: Vec<f64> =
            Vec::try_from(advantages.select(0, row as i64).to_kind(Kind::Double)).unwrap_or_default();
        let texts = pieces(tokenizer, &rollout.answers[row])?;
        Ok(Response { reward: rewards[row], tokens: texts.into_iter().zip(own).collect() })
    };
    let firsts = (0..rollout.texts.len()).step_by(rollout.n).take(SHOWN);
    firsts
        .map(|first| {
            Ok(Group {
                step,
                prompt: rollout.problems[first].question.clone(),
                answer: rollout.problems[first].answer.clone(),
                responses: (first..first + rollout.n).map(response).collect::<Result<Vec<_>>>()?,
            })
        })
        .collect()
}

/// What each token adds to the text: nothing where it is part of a character that later ones complete.
fn pieces(tokenizer: &Tokenizer, tokens: &[i64]) -> Result<Vec<String>> {
    let mut shown = 0;
    (1..=tokens.len())
        .map(|end| {
            let text = tokenizer.decode(&tokens[..end])?;
            let is_whole = !text.ends_with(char::REPLACEMENT_CHARACTER) || end == tokens.len();
            let piece = text.get(shown..).filter(|_| is_whole).unwrap_or_default().to_owned();
            shown += piece.len();
            Ok(piece)
        })
        .collect()
}

/// Steps may be quicker than a picture of them.
const BETWEEN_PICTURES: Duration = Duration::from_secs(5);

/// The page shows so many groups at most: the newest, and some of all the others.
const ON_PAGE: usize = 40;

/// The open run folder.
#[derive(Debug)]
pub struct Run {
    folder: PathBuf,
    title: String,
    facts: Vec<(String, String)>,
    of: usize,
    metrics: File,
    rollouts: File,
    events: Option<Events>,
    steps: Vec<StepLine>,
    evaluations: Vec<EvalLine>,
    groups: Vec<Group>,
    health: Vec<String>,
    started: (Instant, usize),
    drawn: Option<Instant>,
}

impl Run {
    /// Makes the run folder (`trainer.default_local_dir`, else `runs/<UTC time>-<seed>`) and writes the configuration.
    /// `title` stands over the curves; the run has `of` steps.
    ///
    /// # Errors
    /// `file` if the folder exists and is not empty, or cannot be written.
    pub fn create(config: &Config, title: &str, of: usize) -> Result<Self> {
        let folder = match &config.trainer.default_local_dir {
            Some(folder) => folder.clone(),
            None => {
                let time = Utc::now().format("%Y-%m-%dT%H-%M-%SZ");
                Path::new("runs").join(format!("{time}-{}", config.data.seed))
            }
        };
        vacant(&folder)?;
        fs::create_dir_all(&folder).map_err(|error| Error::file(&folder, error))?;
        let mut text = serde_json::to_string_pretty(config).map_err(|error| Error::file(&folder, error))?;
        text.push('\n');
        replace(&folder.join(CONFIG), text)?;
        let none: [Event; 0] = [];
        Self::open(folder, config, title, of, (&none, &[]))
    }

    /// Opens the folder of a run that goes on after `step`; what it recorded of later steps is taken away.
    ///
    /// # Errors
    /// `file` if the folder's records cannot be read or written.
    pub fn resume(folder: &Path, config: &Config, title: &str, of: usize, step: usize) -> Result<Self> {
        let (metrics, rollouts) = (folder.join(METRICS), folder.join(ROLLOUTS));
        let lines: Vec<Event> = records(&metrics)?;
        let lines: Vec<Event> = lines.into_iter().filter(|line| line.step() <= step).collect();
        let groups: Vec<Group> = records(&rollouts)?;
        let groups: Vec<Group> = groups.into_iter().filter(|group| group.step <= step).collect();
        let mut run = Self::open(folder.to_owned(), config, title, of, (&lines, &groups))?;
        for line in lines {
            match line {
                Event::Step(line) => run.steps.push(*line),
                Event::Eval(line) => run.evaluations.push(line),
            }
        }
        (run.groups, run.started.1) = (groups, step);
        Ok(run)
    }

    /// The folder, of whose records these are kept.
    fn open(
        folder: PathBuf,
        config: &Config,
        title: &str,
        of: usize,
        (lines, groups): (&[Event], &[Group]),
    ) -> Result<Self> {
        let writes_events = config.trainer.logger.iter().any(|name| name == "tensorboard");
        let events = || Events::create(&folder.join("tensorboard"));
        let algorithm = &config.algorithm;
        let facts = [
            ("model", config.actor_rollout_ref.model.path.clone()),
            ("problems", config.data.train_files.clone()),
            ("estimator", said(&algorithm.adv_estimator)),
            ("objective", said(&config.actor_rollout_ref.actor.policy_loss.loss_mode)),
            ("problems a step", config.data.train_batch_size.to_string()),
            ("responses each", config.actor_rollout_ref.rollout.n.to_string()),
            ("learning rate", config.actor_rollout_ref.actor.optim.lr.to_string()),
            ("seed", config.data.seed.to_string()),
        ];
        Ok(Self {
            title: title.to_owned(),
            facts: facts.map(|(name, value)| (name.to_owned(), value)).to_vec(),
            of,
            metrics: lines::start(&folder.join(METRICS), lines)?,
            rollouts: lines::start(&folder.join(ROLLOUTS), groups)?,
            events: writes_events.then(events).transpose()?,
            steps: Vec::new(),
            evaluations: Vec::new(),
            groups: Vec::new(),
            health: Vec::new(),
            started: (Instant::now(), 0),
            drawn: None,
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

    /// The file for the responses to held-out problems after a step.
    pub fn answers(&self, step: usize) -> PathBuf {
        self.folder.join("evaluations").join(format!("step-{step:06}.jsonl"))
    }

    /// Records a training step, some of its responses and what it says of the run's health. The pictures are drawn anew
    /// if that is some seconds ago.
    ///
    /// # Errors
    /// `file` if the folder cannot be written.
    pub fn step(&mut self, line: StepLine, groups: Vec<Group>, health: Vec<String>) -> Result<()> {
        lines::append(&mut self.metrics, &self.folder.join(METRICS), &Event::Step(Box::new(line.clone())))?;
        for group in &groups {
            lines::append(&mut self.rollouts, &self.folder.join(ROLLOUTS), group)?;
        }
        self.scalars("train", line.step, &line)?;
        self.steps.push(line);
        self.groups.extend(groups);
        self.health.extend(health);
        match self.drawn.is_none_or(|drawn| drawn.elapsed() > BETWEEN_PICTURES) {
            true => self.draw(self.running()),
            false => Ok(()),
        }
    }

    /// Records an evaluation and draws the pictures anew.
    ///
    /// # Errors
    /// `file` if the folder cannot be written.
    pub fn evaluation(&mut self, line: EvalLine) -> Result<()> {
        lines::append(&mut self.metrics, &self.folder.join(METRICS), &Event::Eval(line.clone()))?;
        self.scalars("eval", line.step, &line)?;
        self.evaluations.push(line);
        self.draw(self.running())
    }

    /// The last pictures: the run is at its end, or was stopped for a reason.
    ///
    /// # Errors
    /// `file` if the folder cannot be written.
    pub fn end(&mut self, stopped: Option<&str>) -> Result<()> {
        self.draw(stopped.map_or(State::Done, |why| State::Stopped(why.to_owned())))
    }

    fn scalars(&mut self, prefix: &str, step: usize, line: &impl Serialize) -> Result<()> {
        let Some(events) = &mut self.events else { return Ok(()) };
        let line = serde_json::to_value(line).map_err(|error| Error::file(&self.folder, error))?;
        let named: Vec<(String, f64)> = line
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((format!("{prefix}/{name}"), value.as_f64()?)))
            .collect();
        events.scalars(step, named.iter().map(|(name, value)| (name.as_str(), *value)))
    }

    fn running(&self) -> State {
        let step = self.steps.last().map_or(self.started.1, |line| line.step);
        let made = step - self.started.1;
        let left = |seconds: f64| seconds / made as f64 * self.of.saturating_sub(step) as f64;
        let seconds_left = (made > 0).then(|| left(self.started.0.elapsed().as_secs_f64()));
        State::Running { step, of: self.of, seconds_left }
    }

    fn draw(&mut self, state: State) -> Result<()> {
        self.drawn = Some(Instant::now());
        let path = self.folder.join("curves.svg");
        let picture = curves::svg(&self.title, &self.steps, &self.evaluations)
            .map_err(|problem| Error::file(&path, problem))?;
        replace(&path, picture)?;
        // Half of the place is for the newest, the rest for some from the beginning on.
        let older = self.groups.len().saturating_sub(ON_PAGE / 2);
        let every = older.div_ceil(ON_PAGE / 2).max(1);
        let shown: Vec<Group> = (0..self.groups.len())
            .filter(|&place| place >= older || place % every == 0)
            .map(|place| self.groups[place].clone())
            .collect();
        let page = Page {
            title: &self.title,
            state,
            facts: &self.facts,
            charts: &self.charts(),
            health: &self.health,
            rollouts: &shown,
        };
        replace(&self.folder.join("index.html"), page::html(&page)?)
    }

    /// The figures that the run has, each with its picture.
    fn charts(&self) -> Vec<Chart> {
        type Figure = fn(&StepLine) -> Option<f64>;
        let quantities: [(&str, Figure); 14] = [
            ("reward", |line| Some(line.reward_mean)),
            ("KL to the reference policy (nats a token)", |line| line.update.kl),
            ("KL charged to the rewards (nats)", |line| line.advantages.kl_in_reward),
            ("share of tokens clipped", |line| Some(line.update.clip_fraction)),
            ("entropy (nats)", |line| Some(line.update.entropy)),
            ("response length (tokens)", |line| Some(line.response_length_mean)),
            ("share of groups whose rewards differ", |line| Some(line.groups_differing)),
            ("norm of the gradient", |line| Some(line.update.grad_norm)),
            ("loss", |line| Some(line.update.loss)),
            ("value loss", |line| line.critic.as_ref().map(|critic| critic.value_loss)),
            ("share of responses kept", |line| line.advantages.kept),
            ("GROUP-PPO: threshold", |line| line.advantages.group_threshold),
            ("GROUP-PPO: compression", |line| line.advantages.compression_ratio),
            ("tokens a second, sampled", |line| Some(line.rollout_tokens_per_s)),
        ];
        let x = |step: usize| step as f64;
        let accuracy = Chart {
            title: "share of right responses".to_owned(),
            points: self.steps.iter().map(|line| (x(line.step), line.accuracy)).collect(),
            beside: Some((
                "held out".to_owned(),
                self.evaluations.iter().map(|line| (x(line.step), line.eval_accuracy)).collect(),
            )),
        };
        let others = quantities.into_iter().filter_map(|(title, figure)| {
            let points: Vec<(f64, f64)> =
                self.steps.iter().filter_map(|line| Some((x(line.step), figure(line)?))).collect();
            (!points.is_empty()).then(|| Chart { title: title.to_owned(), points, beside: None })
        });
        std::iter::once(accuracy).chain(others).collect()
    }
}

/// A value by the name that a configuration has for it.
fn said(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
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
        true => Err(Error::file(
            folder,
            "there is something here already; give another folder as trainer.default_local_dir",
        )),
        false => Ok(()),
    }
}

/// The configuration of a run, in its folder.
pub const CONFIG: &str = "config.json";
const METRICS: &str = "metrics.jsonl";
const ROLLOUTS: &str = "rollouts.jsonl";

/// One line of metrics.jsonl.
#[derive(Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum Event {
    Step(Box<StepLine>),
    Eval(EvalLine),
}

impl Event {
    fn step(&self) -> usize {
        match self {
            Self::Step(line) => line.step,
            Self::Eval(line) => line.step,
        }
    }
}

/// The whole lines of a file; the last one may have been cut short.
fn records<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = fs::read_to_string(path).map_err(|error| Error::file(path, error))?;
    let mut lines = text.lines().enumerate().peekable();
    let mut records = Vec::new();
    while let Some((number, line)) = lines.next() {
        match serde_json::from_str(line) {
            Ok(record) => records.push(record),
            Err(_) if lines.peek().is_none() => break,
            Err(error) => {
                return Err(Error::file(path, format!("line {} cannot be read ({error})", number + 1)));
            }
        }
    }
    Ok(records)
}
