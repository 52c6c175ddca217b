//! Greedy accuracy on held-out problems.

use std::time::Instant;

use super::data::Problem;
use super::{progress, prompt, rollout};
use crate::Result;
use crate::llm::{Llm, Sampling};
use crate::options::Gsm8k;
use crate::torch::reward;

/// How many problems were solved.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Evaluation {
    /// Problems whose final answer is right.
    pub correct: usize,
    /// Problems asked.
    pub problems: usize,
    /// The mean number of response tokens.
    pub length_mean: f64,
    /// How long it took.
    pub seconds: f64,
}

impl Evaluation {
    /// The share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.problems as f64
    }
}

/// The most likely answer to each problem, `batch` problems at a time, judged as `grading` says.
///
/// # Errors
/// As [`rollout::respond`].
pub fn greedy(
    llm: &Llm,
    problems: &[Problem],
    max_new_tokens: usize,
    batch: usize,
    grading: &Gsm8k,
) -> Result<Evaluation> {
    let started = Instant::now();
    let sampling = Sampling { temperature: 0.0, top_p: 1.0, top_k: None, max_new_tokens, seed: 0 };
    let batches = problems.chunks(batch.max(1));
    let bar = progress::bar("evaluation", batches.len() * max_new_tokens);
    let (mut correct, mut tokens) = (0, 0);
    for part in batches {
        let prompts =
            part.iter().map(|problem| prompt::tokens(&llm.tokenizer, problem)).collect::<Result<Vec<_>>>()?;
        let generation = rollout::respond(llm, &prompts, &sampling, &bar)?;
        for (response, problem) in generation.tokens.iter().zip(part) {
            let text = llm.tokenizer.decode(response)?;
            tokens += response.len();
            correct += usize::from(reward::gsm8k(&text, &problem.answer, grading)? > 0.0);
        }
    }
    bar.finish_and_clear();
    Ok(Evaluation {
        correct,
        problems: problems.len(),
        length_mean: tokens as f64 / problems.len() as f64,
        seconds: started.elapsed().as_secs_f64(),
    })
}
