//! How many held-out problems are solved: greedily, or in one of several samples (pass@k).

use std::fs::{self, File};
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::data::Problem;
use super::{lines, progress, prompt, rollout};
use crate::config::Config;
use crate::llm::{Llm, Sampling};
use crate::options::{Gsm8k, PassAtK};
use crate::torch::{metrics, reward};
use crate::{Error, Result};

/// How problems are asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Examination {
    /// How responses are sampled; the temperature 0 takes the likeliest tokens.
    pub sampling: Sampling,
    /// Responses to each problem.
    pub n: usize,
    /// Responses at a time.
    pub batch: usize,
}

impl Examination {
    /// As `actor_rollout_ref.rollout.val_kwargs` says.
    ///
    /// # Errors
    /// `option` for no responses.
    pub fn of(config: &Config, device: Device) -> Result<Self> {
        let asked = &config.actor_rollout_ref.rollout.val_kwargs;
        if asked.n == 0 {
            let key = "actor_rollout_ref.rollout.val_kwargs.n";
            return Err(Error::option(key, "0 is too small; use at least 1"));
        }
        let sampling = Sampling {
            temperature: if asked.do_sample { asked.temperature } else { 0.0 },
            top_p: asked.top_p,
            top_k: usize::try_from(asked.top_k).ok(),
            max_new_tokens: config.data.max_response_length,
            seed: config.data.seed,
            fused: config.actor_rollout_ref.model.uses_fused_kernels(device == Device::Cpu),
        };
        let batch = config.data.train_batch_size * config.actor_rollout_ref.rollout.n;
        Ok(Self { sampling, n: asked.n, batch })
    }
}

/// How many problems were solved.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The mean over problems of the share of right responses, the answer taken after its mark.
    pub accuracy: f64,
    /// The same with the last number as the answer.
    pub accuracy_flexible: f64,
    /// For k = 1, 2, 4, ... up to the responses to a problem: the chance that one of k is right.
    pub pass_at: Vec<(usize, f64)>,
    /// Problems asked.
    pub problems: usize,
    /// The mean number of response tokens.
    pub length_mean: f64,
    /// How long it took.
    pub seconds: f64,
}

impl Evaluation {
    /// The standard error of the accuracy, were the problems drawn from many alike.
    pub fn standard_error(&self) -> f64 {
        (self.accuracy * (1.0 - self.accuracy) / self.problems as f64).sqrt()
    }
}

/// One problem's responses; a line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Answered {
    problem: usize,
    question: String,
    answer: String,
    responses: Vec<String>,
    lengths: Vec<usize>,
    strict: Vec<bool>,
    flexible: Vec<bool>,
}

/// Asks every problem. With a file, each one's responses are written there as they come, and problems that it already
/// holds are not asked again: an evaluation that was cut short goes on.
///
/// # Errors
/// As [`rollout::respond`]; `file` if the file cannot be written, or is of other problems.
pub fn evaluate(
    llm: &Llm,
    problems: &[Problem],
    examination: &Examination,
    file: Option<&Path>,
) -> Result<Evaluation> {
    let started = Instant::now();
    let Examination { sampling, n, batch } = examination;
    let mut answered = file.map(|path| read(path, problems, *n)).transpose()?.unwrap_or_default();
    let mut out = file.map(|path| open(path, &answered)).transpose()?;
    let left: Vec<usize> = (answered.len()..problems.len()).collect();
    let parts = left.chunks((batch / n).max(1));
    let bar = progress::bar("evaluation", parts.len() * sampling.max_new_tokens);
    for part in parts {
        let mut prompts = Vec::with_capacity(part.len() * n);
        for &problem in part {
            prompts.extend(vec![prompt::tokens(&llm.tokenizer, &problems[problem])?; *n]);
        }
        // Another seed for every part: the same row would else draw the same numbers each time.
        let seed = super::seed_of(sampling.seed, part[0] as u64);
        let generation = rollout::respond(llm, &prompts, &Sampling { seed, ..sampling.clone() }, &bar)?;
        for (&problem, responses) in part.iter().zip(generation.tokens.chunks(*n)) {
            let line = judged(llm, problem, &problems[problem], responses)?;
            if let (Some(out), Some(path)) = (&mut out, file) {
                lines::append(out, path, &line)?;
            }
            answered.push(line);
        }
    }
    bar.finish_and_clear();
    sum_up(&answered, *n, started.elapsed().as_secs_f64())
}

fn judged(llm: &Llm, place: usize, problem: &Problem, responses: &[Vec<i64>]) -> Result<Answered> {
    let texts = responses.iter().map(|tokens| llm.tokenizer.decode(tokens)).collect::<Result<Vec<_>>>()?;
    let right = |how: &Gsm8k| -> Result<Vec<bool>> {
        texts.iter().map(|text| Ok(reward::gsm8k(text, &problem.answer, how)? > 0.0)).collect()
    };
    Ok(Answered {
        problem: place,
        question: problem.question.clone(),
        answer: problem.answer.clone(),
        strict: right(&Gsm8k::strict())?,
        flexible: right(&Gsm8k::flexible())?,
        lengths: responses.iter().map(Vec::len).collect(),
        responses: texts,
    })
}

fn sum_up(answered: &[Answered], n: usize, seconds: f64) -> Result<Evaluation> {
    let all = (answered.len() * n).max(1) as f64;
    let share = |right: fn(&Answered) -> &[bool]| {
        answered.iter().flat_map(right).filter(|&&is_right| is_right).count() as f64 / all
    };
    let correct: Vec<i64> =
        answered.iter().map(|line| line.strict.iter().filter(|&&right| right).count() as i64).collect();
    let (samples, correct) = (vec![n as i64; answered.len()], Tensor::from_slice(&correct));
    let mut pass_at = Vec::new();
    let powers = std::iter::successors(Some(1), |k| Some(2 * k)).take_while(|&k| k <= n);
    for k in powers.filter(|_| !answered.is_empty()) {
        let chance = metrics::pass_at_k(&Tensor::from_slice(&samples), &correct, &PassAtK::chen(k as u64))?;
        pass_at.push((k, chance.mean(Kind::Double).double_value(&[])));
    }
    Ok(Evaluation {
        accuracy: share(|line| &line.strict),
        accuracy_flexible: share(|line| &line.flexible),
        pass_at,
        problems: answered.len(),
        length_mean: answered.iter().flat_map(|line| &line.lengths).sum::<usize>() as f64 / all,
        seconds,
    })
}

/// The problems that the file holds whole: the first ones, in their order.
fn read(path: &Path, problems: &[Problem], n: usize) -> Result<Vec<Answered>> {
    let Ok(text) = fs::read_to_string(path) else { return Ok(Vec::new()) };
    let mut answered = Vec::new();
    for line in text.lines() {
        let Ok(line) = serde_json::from_str::<Answered>(line) else { break }; // cut short while it was written
        let is_this = problems.get(answered.len()).is_some_and(|problem| problem.question == line.question);
        if !is_this || line.responses.len() != n {
            return Err(Error::file(path, "is of another evaluation; move it away to evaluate anew"));
        }
        answered.push(line);
    }
    Ok(answered)
}

/// The file with what was read of it and nothing behind that, to be written on.
fn open(path: &Path, answered: &[Answered]) -> Result<File> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(|error| Error::file(path, error))?;
    }
    lines::start(path, answered)
}
