//! Batched sampling with a cache of keys and values.

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::Tensor;

use super::decode::{Batch, Pace, left_padded, tell};
use super::graph::Stream;
use super::model::Model;
use crate::{Error, Result};

/// How tokens are drawn.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the most likely token.
    pub temperature: f64,
    /// Draws from the fewest most likely tokens whose probabilities reach this sum, in (0, 1]; tokens as likely
    /// as the last of them are in too.
    pub top_p: f64,
    /// Draws from so many most likely tokens, before `top_p` is looked at; `None` for all. Tokens as likely as the
    /// last of them are in too.
    pub top_k: Option<usize>,
    /// The most tokens of a response.
    pub max_new_tokens: usize,
    /// Row `i` of a batch draws from stream `i` of this seed, whatever stands in the other rows.
    pub seed: u64,
    /// Whether the model is laid out anew for the while ([`Model::for_rollouts`]): the same within rounding, and faster.
    pub fused: bool,
}

/// The responses to a batch of prompts, in the prompts' order.
#[derive(Debug, Clone, PartialEq)]
pub struct Generation {
    /// The response's tokens for each prompt, the stop token included when it was produced.
    pub tokens: Vec<Vec<i64>>,
    /// The log-probability of each of these tokens under softmax(logits / temperature), whatever `top_p` and `top_k` left
    /// out; 0 at temperature 0.
    pub logp: Vec<Vec<f32>>,
    /// Whether the response ended by a stop token and not by the length limit.
    pub stopped: Vec<bool>,
}

/// Samples one response to each prompt, all in one batch: equal prompts are read once, finished rows leave.
///
/// `progress(step, rows_left)` is called after every token, with the number of tokens so far (from 1) and the
/// number of responses that go on. No gradients are computed, and adapters are merged into the weights for the while.
///
/// # Errors
/// An option is out of its domain, a prompt is empty, has a token outside the vocabulary, or leaves no room for
/// `max_new_tokens` in the model's context; the model's logits are not finite.
pub fn generate(
    model: &Model,
    prompts: &[Vec<i64>],
    stop_tokens: &[i64],
    pad_token: i64,
    sampling: &Sampling,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Generation> {
    generate_at(Pace::of(model.device()), model, prompts, stop_tokens, pad_token, sampling, progress)
}

fn generate_at(
    pace: Pace,
    model: &Model,
    prompts: &[Vec<i64>],
    stop_tokens: &[i64],
    pad_token: i64,
    sampling: &Sampling,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Generation> {
    check(model, prompts, pad_token, sampling)?;
    let mut responses = Responses::new(prompts.len(), stop_tokens, sampling);
    if prompts.is_empty() || sampling.max_new_tokens == 0 {
        return Ok(responses.generation);
    }
    let _no_grad = tch::no_grad_guard();
    let own = match sampling.fused {
        true => Some(model.for_rollouts()?),
        false => model.lora().map(|_| model.merged()),
    };
    let model = own.as_ref().unwrap_or(model);
    // Everything is launched where it can be recorded, and the batch is gone before the stream is left.
    let stream = if sampling.fused { Stream::enter(model.device()) } else { None };
    let mut batch = Batch::start(model, prompts, pad_token, sampling, pace, stream.is_some());
    let mut step = 0;
    while step < sampling.max_new_tokens && responses.left() > 0 {
        batch.keep(|row| responses.open[row]);
        let steps = pace.steps.min(sampling.max_new_tokens - step);
        let uniforms = responses.uniforms(batch.rows(), steps);
        let told = batch.run(&uniforms, steps)?;
        for of_step in 0..steps {
            responses.take(batch.rows(), &told, of_step)?;
            step += 1;
            progress(step, responses.left());
            if responses.left() == 0 {
                break;
            }
        }
    }
    Ok(responses.generation)
}

/// As [`generate`], but each token from a pass over the whole text: slow, and what the cache is checked against.
///
/// # Errors
/// As those of [`generate`].
pub fn generate_uncached(
    model: &Model,
    prompts: &[Vec<i64>],
    stop_tokens: &[i64],
    pad_token: i64,
    sampling: &Sampling,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Generation> {
    check(model, prompts, pad_token, sampling)?;
    let mut responses = Responses::new(prompts.len(), stop_tokens, sampling);
    let _no_grad = tch::no_grad_guard();
    let merged = model.lora().map(|_| model.merged());
    let model = merged.as_ref().unwrap_or(model);
    for step in 1..=sampling.max_new_tokens {
        let rows: Vec<usize> = (0..prompts.len()).filter(|&row| responses.open[row]).collect();
        if rows.is_empty() {
            break;
        }
        let texts: Vec<Vec<i64>> =
            rows.iter().map(|&row| [&prompts[row][..], &responses.generation.tokens[row]].concat()).collect();
        let (tokens, mask) = left_padded(&texts.iter().collect::<Vec<_>>(), pad_token, model.device());
        let hidden = model.hidden(&tokens, &mask);
        let uniforms = Tensor::from_slice(&responses.uniforms(&rows, 1)).to_device(model.device());
        let (_, told) = tell(&model.head(&hidden.select(1, -1)), &uniforms, sampling);
        responses.take(&rows, &told_of(&told.unsqueeze(2))?, 0)?;
        progress(step, responses.left());
    }
    Ok(responses.generation)
}

fn check(model: &Model, prompts: &[Vec<i64>], pad_token: i64, sampling: &Sampling) -> Result<()> {
    let &Sampling { temperature, top_p, max_new_tokens, .. } = sampling;
    if !(temperature.is_finite() && temperature >= 0.) {
        return Err(Error::option(
            "temperature",
            format!("is {temperature}; it must be a number, 0 or more"),
        ));
    }
    if !(top_p > 0. && top_p <= 1.) {
        return Err(Error::option("top_p", format!("is {top_p}; it must be above 0 and at most 1")));
    }
    if sampling.top_k == Some(0) {
        return Err(Error::option("top_k", "is 0; it must be at least 1, or absent for all tokens"));
    }
    let (vocabulary, context) = (model.config().vocab_size, model.config().max_position_embeddings);
    let valid = 0..vocabulary;
    if !valid.contains(&pad_token) {
        return Err(Error::option(
            "pad_token",
            format!("is {pad_token}; it must be at least 0 and below {vocabulary}"),
        ));
    }
    for (row, prompt) in prompts.iter().enumerate() {
        if prompt.is_empty() {
            return Err(Error::input(
                format!("prompts[{row}]"),
                "is empty; a prompt needs one token at least",
            ));
        }
        if let Some(index) = prompt.iter().position(|token| !valid.contains(token)) {
            let (argument, got) = (format!("prompts[{row}]"), prompt[index]);
            return Err(Error::Index { argument, index, got, limit: vocabulary as usize });
        }
        if prompt.len().saturating_add(max_new_tokens) > context as usize {
            let length = prompt.len();
            let problem = format!(
                "has {length} tokens, and with max_new_tokens {max_new_tokens} it exceeds the model's context of {context}; shorten either"
            );
            return Err(Error::input(format!("prompts[{row}]"), problem));
        }
    }
    Ok(())
}

/// The responses so far, and what draws them.
struct Responses<'a> {
    generation: Generation,
    open: Vec<bool>,
    streams: Vec<ChaCha8Rng>,
    stop_tokens: &'a [i64],
    sampling: &'a Sampling,
}

impl<'a> Responses<'a> {
    fn new(count: usize, stop_tokens: &'a [i64], sampling: &'a Sampling) -> Self {
        let stream = |row: usize| {
            let mut stream = ChaCha8Rng::seed_from_u64(sampling.seed);
            stream.set_stream(row as u64);
            stream
        };
        Self {
            generation: Generation {
                tokens: vec![Vec::new(); count],
                logp: vec![Vec::new(); count],
                stopped: vec![false; count],
            },
            open: vec![true; count],
            streams: (0..count).map(stream).collect(),
            stop_tokens,
            sampling,
        }
    }

    fn left(&self) -> usize {
        self.open.iter().filter(|&&open| open).count()
    }

    /// The numbers that these rows' next tokens are drawn with, row by row.
    fn uniforms(&mut self, rows: &[usize], steps: usize) -> Vec<f32> {
        let mut uniforms = Vec::with_capacity(rows.len() * steps);
        for &row in rows {
            uniforms.extend((0..steps).map(|_| self.streams[row].random::<f32>()));
        }
        uniforms
    }

    /// Takes what these rows drew in a step, as far as they are not finished.
    fn take(&mut self, rows: &[usize], told: &Told, step: usize) -> Result<()> {
        for (index, &row) in rows.iter().enumerate() {
            let [id, logp, chosen] = [0, 1, 2].map(|figure| told[figure][index][step]);
            if !chosen.is_finite() {
                return Err(Error::input(
                    "logits",
                    "are not finite; the model's weights are broken or have diverged",
                ));
            }
            if !self.open[row] {
                continue;
            }
            let id = id as i64;
            self.generation.tokens[row].push(id);
            self.generation.logp[row].push(logp as f32);
            self.generation.stopped[row] = self.stop_tokens.contains(&id);
            self.open[row] = !self.generation.stopped[row]
                && self.generation.tokens[row].len() < self.sampling.max_new_tokens;
        }
        Ok(())
    }
}

/// What the host wants of the device: each row's token, its log-probability, and its logit, step by step.
pub(super) type Told = Vec<Vec<Vec<f64>>>;

/// It, from a tensor `[3, rows, steps]`; waits for the device.
pub(super) fn told_of(told: &Tensor) -> Result<Told> {
    Vec::try_from(told).map_err(|error| Error::input("logits", format!("cannot be read ({error})")))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::{Device, Kind};

    use super::*;
    use crate::llm::Llm;

    /// The pace of a device, where several steps are taken before the host looks and more of the cache is attended to than
    /// is filled, gives what the CPU's gives.
    #[test]
    fn the_pace_changes_nothing() {
        let llm = Llm::load("models/SmolLM2-135M-Instruct.Q4_1.gguf".as_ref(), Device::Cpu, Kind::Float);
        let Ok(llm) = llm else { return eprintln!("skipped: ./setup fetches the model") };
        let prompts = [vec![5, 6, 7], vec![9], vec![5, 6, 7], vec![11, 12], vec![2; 9]];
        for fused in [false, true] {
            let sampling =
                Sampling { temperature: 1.5, top_p: 1., top_k: None, max_new_tokens: 21, seed: 3, fused };
            // Tokens that are likely enough for rows to finish at different times.
            let stop: Vec<i64> = (0..2000).collect();
            let run =
                |pace| generate_at(pace, &llm.model, &prompts, &stop, 0, &sampling, &mut |_, _| ()).unwrap();
            let plain = run(Pace { steps: 1, slots: 1 });
            assert!(plain.stopped.iter().any(|&stopped| stopped));
            for pace in
                [Pace { steps: 4, slots: 1 }, Pace { steps: 1, slots: 8 }, Pace { steps: 5, slots: 16 }]
            {
                let paced = run(pace);
                assert_eq!((paced.tokens, paced.stopped), (plain.tokens.clone(), plain.stopped.clone()));
                for (a, b) in paced.logp.concat().iter().zip(plain.logp.concat()) {
                    assert!((a - b).abs() < 1e-4, "{a} {b}");
                }
            }
        }
    }
}
