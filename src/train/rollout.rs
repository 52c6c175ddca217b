//! Sampling: several responses to each problem of a step, in one batch, and the tensors that the update reads.

use std::time::Instant;

use indicatif::ProgressBar;
use tch::{Device, Kind, Tensor};

use super::data::Problem;
use super::{progress, prompt};
use crate::Result;
use crate::llm::{Generation, Llm, Sampling, generate};
use crate::options::Gsm8k;
use crate::torch::reward;

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
    /// How long sampling took.
    pub seconds: f64,
}

impl Rollout {
    /// The responses' padded width T.
    pub fn response_length(&self) -> i64 {
        self.response_mask.size()[1]
    }

    /// What each response is worth, `[B]` f32: 1 if its final answer is right, else 0.
    ///
    /// # Errors
    /// `input` for a problem whose answer holds no number.
    pub fn rewards(&self, options: &Gsm8k) -> Result<Tensor> {
        let rewards = self.texts.iter().zip(&self.problems);
        let rewards = rewards
            .map(|(text, problem)| reward::gsm8k(text, &problem.answer, options))
            .collect::<Result<Vec<_>>>()?;
        Ok(Tensor::from_slice(&rewards).to_kind(Kind::Float).to_device(self.tokens.device()))
    }

    /// Response tokens sampled in a second.
    pub fn tokens_per_s(&self) -> f64 {
        self.lengths.iter().sum::<usize>() as f64 / self.seconds
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
    let group: Vec<i64> = (0..prompts.len()).map(|row| (row / n) as i64).collect();
    let texts = generation.tokens.iter().map(|tokens| llm.tokenizer.decode(tokens)).collect::<Result<_>>()?;
    let device = llm.model.device();
    let padded = pad(&prompts, &generation.tokens, llm.tokenizer.pad_token(), device);
    Ok(Rollout {
        tokens: padded.tokens,
        attention_mask: padded.attention_mask,
        response_mask: padded.response_mask,
        group: Tensor::from_slice(&group).to_device(device),
        n,
        problems: problems.iter().flat_map(|&problem| vec![problem.clone(); n]).collect(),
        texts,
        lengths: generation.tokens.iter().map(Vec::len).collect(),
        stopped: generation.stopped,
        seconds: started.elapsed().as_secs_f64(),
    })
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
