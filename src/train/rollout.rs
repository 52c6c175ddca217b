//! Sampling: several responses to each problem of a step, in one batch, and the tensors that the update reads.

use std::time::Instant;

use indicatif::ProgressBar;
use tch::{Device, Kind, Tensor};

use super::data::{Draws, Problem};
use super::score::Responses;
use super::{progress, prompt};
use crate::config::{Config, RewardMethod};
use crate::llm::{Generation, Llm, Sampling, generate};
use crate::options::{Dynamic, Gsm8k};
use crate::torch::{reward, sampling};
use crate::{Error, Result};

/// The responses of one step: B rows, the responses to one problem next to each other. Prompts are padded on the left
/// to P tokens, responses on the right to T tokens.
#[derive(Debug)]
pub struct Rollout {
    /// Prompt and response, `[B, P+T]` i64.
    pub tokens: Tensor,
    /// Which of `tokens` are real, `[B, P+T]` bool.
    pub attention_mask: Tensor,
    /// Which response tokens are real, `[B, T]` bool; the token that ended the turn is one of them.
    pub response_mask: Tensor,
    /// The label of each row's group, `[B]` i64: the problem's place in the step.
    pub group: Tensor,
    /// The number of responses to each problem.
    pub n: usize,
    /// The problem of each row.
    pub problems: Vec<Problem>,
    /// The responses as text, without special tokens.
    pub texts: Vec<String>,
    /// The number of response tokens of each row.
    pub lengths: Vec<usize>,
    /// Which rows ended their turn themselves.
    pub stopped: Vec<bool>,
    /// The prompt of each row, unpadded.
    pub prompts: Vec<Vec<i64>>,
    /// The response of each row, unpadded.
    pub answers: Vec<Vec<i64>>,
    /// The log-probability that each of its tokens was drawn with, at the sampling temperature.
    pub drawn_logp: Vec<Vec<f32>>,
    /// Rollouts that it took to find enough groups whose rewards differ; 1 where nobody asked for that.
    pub gen_batches: usize,
    /// Groups that were sampled and left out because their rewards were all equal.
    pub dropped_groups: usize,
    /// The mean reward of all that was sampled, those groups included; `None` where nothing is left out.
    pub sampled_reward: Option<f64>,
    /// How long sampling took.
    pub seconds: f64,
}

impl Rollout {
    /// What is scored and trained on.
    pub fn responses(&self) -> Responses {
        Responses {
            tokens: self.tokens.shallow_clone(),
            attention_mask: self.attention_mask.shallow_clone(),
            response_mask: self.response_mask.shallow_clone(),
            group: self.group.shallow_clone(),
        }
    }

    /// The responses' padded width T.
    pub fn response_length(&self) -> i64 {
        self.response_mask.size()[1]
    }

    /// The log-probabilities that the tokens were drawn with, `[B, T]` f32; 0 in masked slots.
    pub fn logp(&self) -> Tensor {
        let of_tokens = Tensor::from_slice(&self.drawn_logp.concat()).to_device(self.tokens.device());
        self.responses().spread(&of_tokens)
    }

    /// What each response is worth, `[B]` f32: 1 if its final answer is right, else 0.
    ///
    /// # Errors
    /// `input` for a problem whose answer holds no number.
    pub fn rewards(&self, options: &Gsm8k) -> Result<Tensor> {
        self.graded(&self.texts, options)
    }

    /// What the greedy response to each row's problem is worth, `[B]` f32.
    ///
    /// # Errors
    /// As [`rollout::respond`](respond).
    pub fn baselines(
        &self,
        llm: &Llm,
        max_new_tokens: usize,
        fused: bool,
        options: &Gsm8k,
    ) -> Result<Tensor> {
        let prompts = self.prompts.iter().step_by(self.n).cloned().collect::<Vec<_>>();
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None, max_new_tokens, seed: 0, fused };
        let bar = progress::bar("baselines", max_new_tokens);
        let generation = respond(llm, &prompts, &sampling, &bar)?;
        bar.finish_and_clear();
        let mut texts = Vec::with_capacity(self.texts.len());
        for tokens in &generation.tokens {
            texts.extend(vec![llm.tokenizer.decode(tokens)?; self.n]);
        }
        self.graded(&texts, options)
    }

    /// What such responses to the rows' problems are worth.
    fn graded(&self, texts: &[String], options: &Gsm8k) -> Result<Tensor> {
        let rewards = texts.iter().zip(&self.problems);
        let rewards = rewards
            .map(|(text, problem)| reward::gsm8k(text, &problem.answer, options))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::from_slice(&rewards).to_kind(Kind::Float).to_device(self.tokens.device()))
    }

    /// Response tokens sampled in a second.
    pub fn tokens_per_s(&self) -> f64 {
        self.lengths.iter().sum::<usize>() as f64 / self.seconds
    }

    /// Some rows of rollouts as one; whole groups of `n`, in their order.
    fn join(parts: &[(Self, Vec<bool>)], pad_token: i64) -> Self {
        let kept = || {
            parts
                .iter()
                .flat_map(|(part, keep)| (0..keep.len()).filter(|&row| keep[row]).map(move |row| (part, row)))
        };
        let prompts: Vec<Vec<i64>> = kept().map(|(part, row)| part.prompts[row].clone()).collect();
        let responses: Vec<Vec<i64>> = kept().map(|(part, row)| part.answers[row].clone()).collect();
        let (device, n) = parts.first().map_or((Device::Cpu, 1), |(part, _)| (part.tokens.device(), part.n));
        let padded = pad(&prompts, &responses, pad_token, device);
        Self {
            tokens: padded.tokens,
            attention_mask: padded.attention_mask,
            response_mask: padded.response_mask,
            group: groups(prompts.len(), n, device),
            n,
            problems: kept().map(|(part, row)| part.problems[row].clone()).collect(),
            texts: kept().map(|(part, row)| part.texts[row].clone()).collect(),
            lengths: responses.iter().map(Vec::len).collect(),
            stopped: kept().map(|(part, row)| part.stopped[row]).collect(),
            prompts,
            answers: responses,
            drawn_logp: kept().map(|(part, row)| part.drawn_logp[row].clone()).collect(),
            gen_batches: parts.len(),
            dropped_groups: 0,
            sampled_reward: None,
            seconds: parts.iter().map(|(part, _)| part.seconds).sum(),
        }
    }
}

/// `n` responses to each problem, with the model's weights as they are.
///
/// # Errors
/// As [`generate()`] and the tokenizer give them: above all, a prompt longer than the model's context.
pub fn sample(llm: &Llm, problems: &[&Problem], n: usize, sampling: &Sampling) -> Result<Rollout> {
    let started = Instant::now();
    let bar = progress::bar("rollout", sampling.max_new_tokens);
    let mut prompts = Vec::with_capacity(problems.len() * n);
    for problem in problems {
        prompts.extend(vec![prompt::tokens(&llm.tokenizer, problem)?; n]);
    }
    let generation = respond(llm, &prompts, sampling, &bar)?;
    bar.finish_and_clear();
    let texts = generation.tokens.iter().map(|tokens| llm.tokenizer.decode(tokens)).collect::<Result<_>>()?;
    let device = llm.model.device();
    let padded = pad(&prompts, &generation.tokens, llm.tokenizer.pad_token(), device);
    Ok(Rollout {
        tokens: padded.tokens,
        attention_mask: padded.attention_mask,
        response_mask: padded.response_mask,
        group: groups(prompts.len(), n, device),
        n,
        problems: problems.iter().flat_map(|&problem| vec![problem.clone(); n]).collect(),
        texts,
        lengths: generation.tokens.iter().map(Vec::len).collect(),
        stopped: generation.stopped,
        prompts,
        answers: generation.tokens,
        drawn_logp: generation.logp,
        gen_batches: 1,
        dropped_groups: 0,
        sampled_reward: None,
        seconds: started.elapsed().as_secs_f64(),
    })
}

/// The problem of each row, numbered.
fn groups(rows: usize, n: usize, device: Device) -> Tensor {
    let group: Vec<i64> = (0..rows).map(|row| (row / n) as i64).collect();
    Tensor::from_slice(&group).to_device(device)
}

/// How a step's rollout is made.
#[derive(Debug, Clone)]
pub struct RolloutOptions {
    /// Problems.
    pub problems: usize,
    /// Responses to each problem.
    pub n: usize,
    /// How tokens are drawn; the seed of a step is drawn from this one's.
    pub sampling: Sampling,
    /// DAPO: groups whose rewards are all equal make way for further problems; so many rollouts at most, 0 for as many
    /// as it takes.
    pub differing: Option<usize>,
    /// What a right answer is.
    pub grading: Gsm8k,
}

impl RolloutOptions {
    /// The configuration's rollouts.
    ///
    /// # Errors
    /// `option` for a size of 0 or a number that cannot be sampled with, by the key's full name.
    pub fn of(config: &Config, device: Device) -> Result<Self> {
        let (rollout, filter) = (&config.actor_rollout_ref.rollout, &config.algorithm.filter_groups);
        for (key, size) in [
            ("data.train_batch_size", config.data.train_batch_size),
            ("data.max_response_length", config.data.max_response_length),
            ("actor_rollout_ref.rollout.n", rollout.n),
        ] {
            if size == 0 {
                return Err(Error::option(key, "0 is too small; use at least 1"));
            }
        }
        let off =
            |key: &str, problem: String| Error::option(format!("actor_rollout_ref.rollout.{key}"), problem);
        if !(rollout.temperature > 0.0 && rollout.temperature.is_finite()) {
            let problem = format!("{} is not a finite number above 0", rollout.temperature);
            return Err(off("temperature", problem));
        }
        if !(rollout.top_p > 0.0 && rollout.top_p <= 1.0) {
            return Err(off("top_p", format!("{} is not above 0 and at most 1", rollout.top_p)));
        }
        Ok(Self {
            problems: config.data.train_batch_size,
            n: rollout.n,
            sampling: Sampling {
                temperature: rollout.temperature,
                top_p: rollout.top_p,
                top_k: top_k(rollout.top_k).map_err(|problem| off("top_k", problem))?,
                max_new_tokens: config.data.max_response_length,
                seed: config.data.seed,
                fused: config.actor_rollout_ref.model.uses_fused_kernels(device == Device::Cpu),
            },
            differing: filter.enable.then_some(filter.max_num_gen_batches),
            grading: grading(config),
        })
    }
}

/// How the configuration finds a final answer.
pub fn grading(config: &Config) -> Gsm8k {
    match config.reward.method {
        RewardMethod::Strict => Gsm8k::strict(),
        RewardMethod::Flexible => Gsm8k::flexible(),
    }
}

fn top_k(top_k: i64) -> std::result::Result<Option<usize>, String> {
    match usize::try_from(top_k) {
        _ if top_k == -1 => Ok(None),
        Ok(k) if k > 0 => Ok(Some(k)),
        _ => Err(format!("{top_k} is neither a number of tokens nor -1 for all")),
    }
}

/// The rollout of a step, from the problems that are next.
///
/// # Errors
/// As [`sample`]; `unsupported` if no group's rewards differ, however many were asked for.
pub fn collect(llm: &Llm, draws: &mut Draws, step: usize, options: &RolloutOptions) -> Result<Rollout> {
    let seed = super::seed_of(options.sampling.seed, step as u64);
    let next = |draws: &mut Draws, batch: usize| {
        // Every rollout draws from its own random streams.
        let sampling = Sampling { seed: seed.wrapping_add((batch as u64) << 32), ..options.sampling.clone() };
        sample(llm, &draws.next(options.problems), options.n, &sampling)
    };
    let Some(most) = options.differing else { return next(draws, 0) };
    let (mut parts, mut wanted, mut dropped, mut reward) = (Vec::new(), options.problems, 0, 0.0);
    while wanted > 0 && (most == 0 || parts.len() < most) {
        let part = next(draws, parts.len())?;
        let rewards = part.rewards(&options.grading)?;
        reward += rewards.mean(Kind::Double).double_value(&[]);
        let differing = differing(&part, &rewards)?;
        let taken: Vec<usize> = differing.iter().copied().take(wanted).collect();
        dropped += options.problems - differing.len();
        wanted -= taken.len();
        let keep = (0..part.texts.len()).map(|row| taken.contains(&(row / part.n))).collect();
        parts.push((part, keep));
    }
    if wanted == options.problems {
        let what = format!(
            "in {} rollouts no group of {} responses had differing rewards, so there is nothing to learn from; use \
             easier problems, more responses, or algorithm.filter_groups.enable=false",
            parts.len(),
            options.n
        );
        return Err(Error::Unsupported { what });
    }
    let joined = Rollout::join(&parts, llm.tokenizer.pad_token());
    Ok(Rollout { dropped_groups: dropped, sampled_reward: Some(reward / parts.len() as f64), ..joined })
}

/// The groups of a rollout whose rewards are not all equal.
fn differing(rollout: &Rollout, rewards: &Tensor) -> Result<Vec<usize>> {
    let out = sampling::dynamic(rewards, &rollout.group, &Dynamic::dapo())?;
    let keep: Vec<bool> = Vec::try_from(out.keep.ne(0.0)).unwrap_or_default();
    Ok(keep
        .iter()
        .step_by(rollout.n)
        .enumerate()
        .filter(|(_, keep)| **keep)
        .map(|(group, _)| group)
        .collect())
}

/// One response to each prompt; the bar goes on from where it stands, one unit a token of the longest response.
///
/// # Errors
/// As [`generate()`].
pub fn respond(
    llm: &Llm,
    prompts: &[Vec<i64>],
    sampling: &Sampling,
    bar: &ProgressBar,
) -> Result<Generation> {
    let (start, tokenizer) = (bar.position(), &llm.tokenizer);
    let mut progress = |step: usize, _rows_left: usize| bar.set_position(start + step as u64);
    let (stop_tokens, pad_token) = (tokenizer.stop_tokens(), tokenizer.pad_token());
    let generation = generate(&llm.model, prompts, stop_tokens, pad_token, sampling, &mut progress)?;
    bar.set_position(start + sampling.max_new_tokens as u64);
    Ok(generation)
}

/// A batch of prompts and responses as rectangles.
#[derive(Debug)]
pub struct Padded {
    /// `[B, P+T]` i64.
    pub tokens: Tensor,
    /// `[B, P+T]` bool.
    pub attention_mask: Tensor,
    /// `[B, T]` bool.
    pub response_mask: Tensor,
}

/// Prompts padded on the left, responses on the right. Masks follow the lengths, never the token ids: the padding
/// token often is the end-of-turn token, which must stay in the response's mask.
pub fn pad(prompts: &[Vec<i64>], responses: &[Vec<i64>], pad_token: i64, device: Device) -> Padded {
    let longest = |rows: &[Vec<i64>]| rows.iter().map(Vec::len).max().unwrap_or(0);
    let (left, right) = (longest(prompts), longest(responses));
    let (mut tokens, mut mask) = (Vec::new(), Vec::new());
    for (prompt, response) in prompts.iter().zip(responses) {
        let (before, after) = (left - prompt.len(), right - response.len());
        tokens.extend(vec![pad_token; before]);
        tokens.extend(prompt.iter().chain(response));
        tokens.extend(vec![pad_token; after]);
        mask.extend(vec![false; before]);
        mask.extend(vec![true; prompt.len() + response.len()]);
        mask.extend(vec![false; after]);
    }
    let shape = [prompts.len() as i64, (left + right) as i64];
    let attention_mask = Tensor::from_slice(&mask).view(shape).to_device(device);
    Padded {
        tokens: Tensor::from_slice(&tokens).to_kind(Kind::Int64).view(shape).to_device(device),
        response_mask: attention_mask.narrow(1, left as i64, right as i64),
        attention_mask,
    }
}
