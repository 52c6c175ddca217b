//! Supervised training: the model learns worked solutions, or its own right responses, by heart.

use std::collections::BTreeSet;
use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::data::{Draws, Problem};
use super::optim::{Course, Optimizer, adamw_of};
use super::rollout::{self, Padded, Rollout, RolloutOptions};
use super::score::Responses;
use super::step::diverged;
use super::{progress, prompt};
use crate::config::{Config, Sft};
use crate::llm::{Llm, Message, Role, Tokenizer};
use crate::options::{Aggregate, Gsm8k};
use crate::torch::{aggregate, objective};
use crate::{Error, Result};

/// What a configuration asks for before the first rollout, and says what came of it: worked solutions, then the
/// model's own right responses.
///
/// # Errors
/// As [`solutions`], [`own_right_ones`] and [`train`].
pub fn warm_start(
    llm: &Llm,
    config: &Config,
    problems: &[Problem],
    sampling: &RolloutOptions,
    say: impl Fn(&str),
) -> Result<()> {
    let (options, seed) = (&config.sft, config.data.seed);
    let max_grad_norm = config.actor_rollout_ref.actor.grad_clip;
    let model = &config.actor_rollout_ref.model;
    let (checkpointing, on_cpu) = (model.enable_gradient_checkpointing, llm.model.device() == Device::Cpu);
    let fused = model.uses_fused_kernels(on_cpu);
    if options.total_epochs > 0 {
        let longest = config.data.max_prompt_length + config.data.max_response_length;
        let examples = solutions(&llm.tokenizer, problems, longest)?;
        let metrics = train(llm, &examples, options, max_grad_norm, checkpointing, fused, seed)?;
        say(&format!("{} worked solutions: {}", examples.len(), metrics.summary()));
    }
    let mut draws = Draws::new(problems.to_vec(), Some(seed));
    let at_least_once = Sft { total_epochs: options.total_epochs.max(1), ..options.clone() };
    for round in 1..=options.expert_iterations {
        let asked = options.expert_batch_size.unwrap_or(problems.len());
        let examples = own_right_ones(llm, &mut draws, asked, round, sampling)?;
        let metrics = train(llm, &examples, &at_least_once, max_grad_norm, checkpointing, fused, seed)?;
        let found = format!("round {round}: {} right responses to {asked} problems", examples.len());
        say(&format!("{found}: {}", metrics.summary()));
    }
    Ok(())
}

/// A conversation up to the answer, and the answer with the token that ends it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Example {
    /// The tokens of the prompt; none of them is in the loss.
    pub prompt: Vec<i64>,
    /// The tokens of the response.
    pub response: Vec<i64>,
}

impl Example {
    fn length(&self) -> usize {
        self.prompt.len() + self.response.len()
    }
}

/// What supervised training did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct SftMetrics {
    /// Optimiser steps made.
    pub steps: usize,
    /// The mean loss of a response token in the first step.
    pub first_loss: f64,
    /// The mean loss of a response token in the last step.
    pub last_loss: f64,
    /// How long it took.
    pub seconds: f64,
}

/// The problems' worked solutions in the model's chat format; those longer than `max_length` tokens are left out.
///
/// # Errors
/// As the tokenizer gives them; `input` if the model's chat format never ends an answer.
pub fn solutions(tokenizer: &Tokenizer, problems: &[Problem], max_length: usize) -> Result<Vec<Example>> {
    let mut examples = Vec::with_capacity(problems.len());
    for problem in problems {
        let prompt = prompt::tokens(tokenizer, problem)?;
        let mut messages = prompt::messages(&problem.question);
        messages.push(Message::new(Role::Assistant, problem.answer.as_str()));
        let mut response = tokenizer.chat(&messages)?.split_off(prompt.len());
        // What the template writes behind the answer's end belongs to the next turn.
        let end = response.iter().position(|token| tokenizer.stop_tokens().contains(token));
        response.truncate(end.map(|end| end + 1).ok_or_else(|| {
            Error::input("chat_template", "ends an answer with no token that would stop the model")
        })?);
        examples.push(Example { prompt, response });
    }
    examples.retain(|example| example.length() <= max_length);
    Ok(examples)
}

/// The right ones of a rollout's responses that ended by themselves, each once.
///
/// # Errors
/// As [`Rollout::rewards`].
pub fn right_ones(rollout: &Rollout, grading: &Gsm8k) -> Result<Vec<Example>> {
    let rewards: Vec<f32> = Vec::try_from(rollout.rewards(grading)?).unwrap_or_default();
    let right = (0..rewards.len()).filter(|&row| rewards[row] > 0.0 && rollout.stopped[row]);
    let distinct: BTreeSet<Example> = right
        .map(|row| Example { prompt: rollout.prompts[row].clone(), response: rollout.answers[row].clone() })
        .collect();
    Ok(distinct.into_iter().collect())
}

/// Trains on the examples, `options.total_epochs` times each or until `options.total_training_steps`. Every response
/// token of a step weighs the same, whatever the micro-batches. `fused` is whether the optimiser's steps are one pass.
///
/// # Errors
/// `option` for a size of 0, `input` if there is no example, and what the formulas reject.
pub fn train(
    llm: &Llm,
    examples: &[Example],
    options: &Sft,
    max_grad_norm: f64,
    gradient_checkpointing: bool,
    fused: bool,
    seed: u64,
) -> Result<SftMetrics> {
    check(examples, options)?;
    let started = Instant::now();
    let per_epoch = examples.len().div_ceil(options.train_batch_size);
    let all = options.total_epochs * per_epoch;
    let steps = options.total_training_steps.map_or(all, |limit| limit.min(all));
    let course = Course::of(&options.optim, steps)?;
    let parameters = llm.model.trainable().into_iter().map(|named| named.1);
    let mut optimizer = Optimizer::new(parameters, adamw_of(&options.optim), fused);
    let bar = progress::bar("supervised", steps);
    let mut metrics = SftMetrics { steps, ..SftMetrics::default() };
    let mut order: Vec<usize> = Vec::new();
    for step in 0..steps {
        if order.is_empty() {
            order = (0..examples.len()).collect();
            order.shuffle(&mut ChaCha8Rng::seed_from_u64(seed.wrapping_add((step / per_epoch) as u64)));
        }
        let batch: Vec<&Example> =
            order.drain(..options.train_batch_size.min(order.len())).map(|place| &examples[place]).collect();
        optimizer.options.lr = course.lr(step + 1)?;
        optimizer.zero_grad();
        let loss =
            accumulate_gradients(llm, batch, options.micro_batch_size_per_gpu, gradient_checkpointing)?;
        let norm = optimizer.clip_grad_norm(max_grad_norm)?;
        if !norm.is_finite() {
            return Err(diverged(norm));
        }
        optimizer.step()?;
        bar.inc(1);
        if step == 0 {
            metrics.first_loss = loss;
        }
        metrics.last_loss = loss;
    }
    bar.finish_and_clear();
    Ok(SftMetrics { seconds: started.elapsed().as_secs_f64(), ..metrics })
}

/// Forward and backward through one step's examples, those of like length together so that little is padding; gives
/// the loss.
fn accumulate_gradients(
    llm: &Llm,
    mut batch: Vec<&Example>,
    micro_batch: usize,
    gradient_checkpointing: bool,
) -> Result<f64> {
    batch.sort_by_key(|example| example.length());
    let tokens: usize = batch.iter().map(|example| example.response.len()).sum();
    let token_mean = Aggregate { batch_num_tokens: Some(tokens as f64), ..Aggregate::dapo() };
    let mut sum = 0.0;
    for part in batch.chunks(micro_batch) {
        let responses = responses(llm, part);
        let scored = responses.scored(&llm.model, 1.0, gradient_checkpointing)?;
        let logp = &scored.scores.logp;
        // Its own cross-entropy is a policy gradient with the advantage 1 at every token.
        let losses = objective::policy_gradient(logp, &logp.ones_like())?;
        let loss = aggregate::loss(&losses, &responses.response_mask, &token_mean)?;
        scored.backward(&loss)?;
        sum += loss.double_value(&[]);
    }
    Ok(sum)
}

/// A row for each example; no two see each other.
fn responses(llm: &Llm, examples: &[&Example]) -> Responses {
    let device = llm.model.device();
    let prompts: Vec<Vec<i64>> = examples.iter().map(|example| example.prompt.clone()).collect();
    let answers: Vec<Vec<i64>> = examples.iter().map(|example| example.response.clone()).collect();
    let Padded { tokens, attention_mask, response_mask } =
        rollout::pad(&prompts, &answers, llm.tokenizer.pad_token(), device);
    let group = Tensor::arange(examples.len() as i64, (Kind::Int64, device));
    Responses { tokens, attention_mask, response_mask, group }
}

fn check(examples: &[Example], options: &Sft) -> Result<()> {
    for (name, size) in [
        ("sft.train_batch_size", options.train_batch_size),
        ("sft.micro_batch_size_per_gpu", options.micro_batch_size_per_gpu),
    ] {
        if size == 0 {
            return Err(Error::option(name, "0 is too small; use at least 1"));
        }
    }
    match examples.is_empty() {
        true => {
            Err(Error::input("examples", "there is nothing to learn: no solution fits the length limits"))
        }
        false => Ok(()),
    }
}

/// One round of expert iteration's problems: `asked` of them, each answered `options.n` times, and the right responses.
///
/// # Errors
/// As [`rollout::sample`]; `unsupported` if no response is right.
pub fn own_right_ones(
    llm: &Llm,
    draws: &mut Draws,
    asked: usize,
    round: usize,
    options: &RolloutOptions,
) -> Result<Vec<Example>> {
    let options = RolloutOptions { differing: None, ..options.clone() };
    let mut right = BTreeSet::new();
    let mut left = asked;
    while left > 0 {
        let problems = options.problems.min(left);
        let options = RolloutOptions { problems, ..options.clone() };
        // Streams apart from those of the steps that come later.
        let rollout = rollout::collect(llm, draws, (round << 32) + left, &options)?;
        right.extend(right_ones(&rollout, &options.grading)?);
        left -= problems;
    }
    match right.is_empty() {
        true => Err(Error::Unsupported {
            what: format!(
                "expert iteration found no right response to {asked} problems; train on solutions first"
            ),
        }),
        false => Ok(right.into_iter().collect()),
    }
}

impl SftMetrics {
    /// What there is to say in one line.
    pub fn summary(&self) -> String {
        let Self { steps, first_loss, last_loss, seconds } = self;
        format!("{steps} steps, loss {first_loss:.3} -> {last_loss:.3}, {seconds:.1} s")
    }
}
