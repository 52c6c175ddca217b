//! Batched sampling with a cache of keys and values.

use std::collections::HashMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::model::{Cache, Model, bias};
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
    let mut batch = Batch::start(model, prompts, pad_token, sampling.max_new_tokens);
    for step in 1..=sampling.max_new_tokens {
        let logits = model.head(&batch.hidden).squeeze_dim(1);
        let next = responses.draw(&logits, &batch.rows)?;
        progress(step, responses.left());
        if responses.left() == 0 || step == sampling.max_new_tokens {
            break;
        }
        batch.step(model, &next, |row| responses.open[row]);
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
        let _ = responses.draw(&model.head(&hidden.select(1, -1)), &rows)?;
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

/// The rows of the cache, of which some may be finished.
struct Batch {
    /// For each row of the cache, its prompt's index.
    rows: Vec<usize>,
    cache: Option<Cache>,
    /// Which slots of the cache hold no padding, `[rows, capacity]`, as a bias on attention scores.
    bias: Tensor,
    /// The position of the next token, `[rows, 1]`.
    positions: Tensor,
    /// The last token's hidden state, `[rows, 1, H]`.
    hidden: Tensor,
    capacity: i64,
    filled: i64,
}

impl Batch {
    /// Reads every distinct prompt once.
    fn start(model: &Model, prompts: &[Vec<i64>], pad_token: i64, max_new_tokens: usize) -> Self {
        let mut seen = HashMap::new();
        let mut distinct = Vec::new();
        let of_row: Vec<i64> = prompts
            .iter()
            .map(|prompt| {
                *seen.entry(prompt).or_insert_with(|| {
                    distinct.push(prompt);
                    distinct.len() as i64 - 1
                })
            })
            .collect();
        let (tokens, mask) = left_padded(&distinct, pad_token, model.device());
        let filled = tokens.size()[1];
        let capacity = filled + max_new_tokens as i64;
        let (cache, hidden) = read(model, &tokens, &mask);

        let of_row = Tensor::from_slice(&of_row).to_device(model.device());
        let mask = mask.index_select(0, &of_row);
        let room = Tensor::ones([prompts.len() as i64, max_new_tokens as i64], (Kind::Bool, model.device()));
        Self {
            rows: (0..prompts.len()).collect(),
            cache: Some(cache.select(&of_row, capacity)),
            positions: mask.sum_dim_intlist(1, true, Kind::Int64),
            bias: bias(&Tensor::cat(&[&mask, &room], 1), model.kind()),
            hidden: hidden.index_select(0, &of_row),
            capacity,
            filled,
        }
    }

    /// Feeds one more token a row. Copying the cache costs about a step, so finished rows leave an eighth of the
    /// batch at a time.
    fn step(&mut self, model: &Model, next: &Tensor, open: impl Fn(usize) -> bool) {
        let Some(mut cache) = self.cache.take() else { return };
        let mut next = next.shallow_clone();
        let keep: Vec<usize> = (0..self.rows.len()).filter(|&index| open(self.rows[index])).collect();
        if keep.len() + self.rows.len().div_ceil(8) <= self.rows.len() {
            self.rows = keep.iter().map(|&index| self.rows[index]).collect();
            let keep: Vec<i64> = keep.into_iter().map(|index| index as i64).collect();
            let keep = Tensor::from_slice(&keep).to_device(model.device());
            cache = cache.select(&keep, self.capacity);
            self.bias = self.bias.index_select(0, &keep);
            self.positions = self.positions.index_select(0, &keep);
            next = next.index_select(0, &keep);
        }
        self.filled += 1;
        let bias = self.bias.narrow(1, 0, self.filled).unsqueeze(1).unsqueeze(1);
        self.hidden = model.decode(&next.unsqueeze(1), &self.positions, &bias, &mut cache);
        self.positions = &self.positions + 1;
        self.cache = Some(cache);
    }
}

/// Tokens of prompts that go through the layers together: what is worked out for more is in no cache any more.
const READ_AT_ONCE: i64 = 1024;

/// Reads prompts `[R, S]` some rows at a time: their keys and values, and each one's last hidden state `[R, 1, H]`.
fn read(model: &Model, tokens: &Tensor, mask: &Tensor) -> (Cache, Tensor) {
    let (rows, width) = (tokens.size()[0], tokens.size()[1]);
    let at_once = (READ_AT_ONCE / width).max(1);
    let mut cache = Cache::new(model, rows, width);
    let mut hidden = Vec::new();
    for first in (0..rows).step_by(at_once as usize) {
        let own = |of_rows: &Tensor| of_rows.narrow(0, first, at_once.min(rows - first));
        let states = cache.fill(own, |cache| model.prefill(&own(tokens), &own(mask), cache));
        hidden.push(states.narrow(1, width - 1, 1).contiguous());
    }
    (cache, Tensor::cat(&hidden, 0))
}

/// Rows of equal length, filled up on the left, and the mask that is false there.
fn left_padded(texts: &[&Vec<i64>], pad_token: i64, device: Device) -> (Tensor, Tensor) {
    let width = texts.iter().map(|text| text.len()).max().unwrap_or_default();
    let padding = |text: &[i64]| width - text.len();
    let tokens: Vec<i64> = texts
        .iter()
        .flat_map(|text| std::iter::repeat_n(pad_token, padding(text)).chain(text.iter().copied()))
        .collect();
    let mask: Vec<bool> =
        texts.iter().flat_map(|text| (0..width).map(|slot| slot >= padding(text))).collect();
    let rows = |flat: Tensor| flat.view([texts.len() as i64, width as i64]).to_device(device);
    (rows(Tensor::from_slice(&tokens)), rows(Tensor::from_slice(&mask)))
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

    /// Draws the next token of these rows from their logits `[rows, V]` and keeps those of unfinished rows.
    fn draw(&mut self, logits: &Tensor, rows: &[usize]) -> Result<Tensor> {
        let uniforms: Vec<f32> = rows.iter().map(|&row| self.streams[row].random()).collect();
        let uniforms = Tensor::from_slice(&uniforms).to_device(logits.device());
        let Drawn { next, logp } = sample(logits, &uniforms, self.sampling);
        // All that the host wants of the device, at once: each row's token, its log-probability, and its logit.
        let chosen = logits.gather(1, &next.unsqueeze(1), false).squeeze_dim(1);
        let told = Tensor::stack(&[&next, &logp, &chosen].map(|of_rows| of_rows.to_kind(Kind::Double)), 0);
        let unreadable =
            |why: &dyn std::fmt::Display| Error::input("logits", format!("cannot be read ({why})"));
        let told: Vec<Vec<f64>> = Vec::try_from(told).map_err(|error| unreadable(&error))?;
        let [ids, logp, chosen] = &told[..] else { return Err(unreadable(&"not three numbers a row")) };
        if !chosen.iter().all(|logit| logit.is_finite()) {
            return Err(Error::input(
                "logits",
                "are not finite; the model's weights are broken or have diverged",
            ));
        }
        for ((&row, &id), &logp) in rows.iter().zip(ids).zip(logp) {
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
        Ok(next)
    }
}

/// A token for each row, and its log-probability.
struct Drawn {
    next: Tensor,
    logp: Tensor,
}

/// One token for each row of logits `[rows, V]`: the one where the cumulative probability passes the row's
/// uniform number. The order of summation is the vocabulary's, so no row depends on another one's ties.
fn sample(logits: &Tensor, uniforms: &Tensor, sampling: &Sampling) -> Drawn {
    if sampling.temperature == 0. {
        let next = logits.argmax(-1, false);
        return Drawn { logp: uniforms.zeros_like(), next };
    }
    let logits = match sampling.temperature {
        1. => logits.shallow_clone(),
        temperature => logits.to_kind(Kind::Float) / temperature,
    };
    let all = logits.softmax(-1, Kind::Float);
    let likeliest = match sampling.top_k {
        Some(k) if (k as i64) < all.size()[1] => likeliest(&all, k as i64),
        _ => all.shallow_clone(),
    };
    let kept = if sampling.top_p < 1. { nucleus(&likeliest, sampling.top_p) } else { likeliest };
    let cumulative = kept.cumsum(-1, Kind::Float);
    let vocabulary = kept.size()[1];
    let target = uniforms.unsqueeze(1) * cumulative.narrow(1, vocabulary - 1, 1);
    let next = target.searchsorted(&cumulative, false, true, "right", None::<Tensor>);
    let next = next.clamp_max(vocabulary - 1); // past the end only if the logits are not finite
    let logp = all.gather(1, &next, false).log().squeeze_dim(1);
    Drawn { next: next.squeeze_dim(1), logp }
}

/// Sets all but the `k` most likely tokens to 0 and scales the rest to the sum 1.
fn likeliest(probabilities: &Tensor, k: i64) -> Tensor {
    let last = probabilities.topk(k, -1, true, true).0.narrow(1, k - 1, 1);
    let kept = probabilities.masked_fill(&probabilities.lt_tensor(&last), 0.);
    &kept / kept.sum_dim_intlist(-1, true, Kind::Float)
}

/// Sets all but the most likely tokens to 0: a token stays while those more likely than it sum to less than
/// `top_p`. Sorting the whole vocabulary costs more than the model's step, so the likeliest thousand are tried first.
fn nucleus(probabilities: &Tensor, top_p: f64) -> Tensor {
    let vocabulary = probabilities.size()[1];
    let tried = vocabulary.min(1024);
    let (mut sorted, _) = probabilities.topk(tried, -1, true, true);
    let reached = sorted.sum_dim_intlist(-1, false, Kind::Float).ge(top_p).all();
    if tried < vocabulary && reached.int64_value(&[]) == 0 {
        (sorted, _) = probabilities.sort(-1, true);
    }
    let before = sorted.cumsum(-1, Kind::Float) - &sorted;
    let last = sorted.masked_fill(&before.ge(top_p), f64::INFINITY).amin(-1, true);
    probabilities.masked_fill(&probabilities.lt_tensor(&last), 0.)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const EVEN: i64 = 10_000;

    /// How often each token comes for `EVEN` uniform numbers spread evenly over [0, 1).
    fn counts(logits: &[f32], temperature: f64, top_p: f64) -> Vec<i64> {
        counts_of(
            logits,
            &Sampling { temperature, top_p, top_k: None, max_new_tokens: 1, seed: 0, fused: false },
        )
    }

    fn counts_of(logits: &[f32], sampling: &Sampling) -> Vec<i64> {
        let uniforms = (Tensor::arange(EVEN, (Kind::Float, Device::Cpu)) + 0.5) / EVEN;
        let rows = Tensor::from_slice(logits).unsqueeze(0).expand([EVEN, -1], false);
        let drawn = sample(&rows, &uniforms, sampling).next;
        Vec::try_from(drawn.bincount(None::<Tensor>, logits.len() as i64)).unwrap()
    }

    fn near(counts: &[i64], probabilities: &[f64]) {
        for (&count, p) in counts.iter().zip(probabilities) {
            assert!((count as f64 - p * EVEN as f64).abs() <= 2., "{counts:?}");
        }
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let p: [f64; 5] = [0.1, 0.4, 0., 0.2, 0.3];
        let logits = p.map(|p| p.ln() as f32 + 3.);
        near(&counts(&logits, 1., 1.), &p);
        let squares = p.map(|p| p * p / 0.3);
        near(&counts(&logits, 0.5, 1.), &squares);
        near(&counts(&logits, 0., 1.), &[0., 1., 0., 0., 0.]);
    }

    #[test]
    fn the_nucleus_is_the_fewest_tokens_that_reach_top_p() {
        let p: [f64; 5] = [0.1, 0.4, 0., 0.2, 0.3];
        let logits = p.map(|p| p.ln() as f32);
        near(&counts(&logits, 1., 0.95), &p);
        near(&counts(&logits, 1., 0.85), &[0., 4. / 9., 0., 2. / 9., 3. / 9.]);
        near(&counts(&logits, 1., 0.65), &[0., 4. / 7., 0., 0., 3. / 7.]);
        near(&counts(&logits, 1., 0.01), &[0., 1., 0., 0., 0.]);
        // Tokens as likely as the last one that is needed are all in.
        near(&counts(&[0.; 4], 1., 0.3), &[0.25; 4]);
    }

    #[test]
    fn top_k_keeps_the_likeliest_and_top_p_looks_at_what_is_left() {
        let p: [f64; 5] = [0.1, 0.4, 0., 0.2, 0.3];
        let logits = p.map(|p| p.ln() as f32);
        let counts = |top_k: usize, top_p: f64| {
            counts_of(
                &logits,
                &Sampling {
                    temperature: 1.,
                    top_p,
                    top_k: Some(top_k),
                    max_new_tokens: 1,
                    seed: 0,
                    fused: false,
                },
            )
        };
        near(&counts(1, 1.), &[0., 1., 0., 0., 0.]);
        near(&counts(3, 1.), &[0., 4. / 9., 0., 2. / 9., 3. / 9.]);
        near(&counts(9, 1.), &p);
        // Of 4/9, 3/9, 2/9 the first two reach 0.7; of the whole distribution they would not reach 0.75.
        near(&counts(3, 0.7), &[0., 4. / 7., 0., 0., 3. / 7.]);
        near(&counts(3, 0.75), &[0., 4. / 7., 0., 0., 3. / 7.]);
    }

    #[test]
    fn a_flat_nucleus_is_wider_than_the_likeliest_thousand() {
        let logits: Vec<f32> = (0..3000).map(|i| if i % 3 == 0 { -1e-3 } else { 0. }).collect();
        let drawn = counts(&logits, 1., 0.66);
        assert!(drawn.iter().enumerate().all(|(i, &count)| (count == 0) == (i % 3 == 0)), "{drawn:?}");
    }
}
