//! Decoding: one more token a row at a time, from a cache of keys and values.
//!
//! Everything that changes from step to step is a tensor that stays where it is: the next tokens, their positions, the slot
//! of the cache, the count of steps, the numbers that tokens are drawn with and the tokens drawn. So a step needs
//! nothing of the host, the host may look at several steps' tokens at once, and on CUDA a step is recorded as a graph.

use std::collections::HashMap;

use tch::{Device, Kind, Tensor};

use super::generate::{Sampling, Told, told_of};
use super::graph::Graph;
use super::model::{Cache, Model, bias};
use super::sample::{Drawn, sample};
use crate::Result;

/// How often the host looks, and what is attended to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pace {
    /// Steps between two looks.
    pub(super) steps: usize,
    /// Attention goes over the filled slots of the cache, rounded up to a multiple of this.
    pub(super) slots: i64,
}

impl Pace {
    /// On the CPU nothing is won by looking late, and each slot more is work. On a device a look waits for all that was
    /// launched, and steps of one shape share a graph.
    pub(super) fn of(device: Device) -> Self {
        match device {
            Device::Cpu => Self { steps: 1, slots: 1 },
            _ => Self { steps: 16, slots: 128 },
        }
    }
}

/// Rows that are being written, of which some may be finished.
pub(super) struct Batch<'a> {
    model: &'a Model,
    sampling: &'a Sampling,
    pace: Pace,
    /// For each row, its prompt's index.
    rows: Vec<usize>,
    cache: Cache,
    state: State,
    is_started: bool,
    recording: Option<Recording>,
}

/// What a step reads and writes.
struct State {
    /// The last token's hidden state, `[rows, 1, H]`.
    hidden: Tensor,
    /// The token that was drawn from it, `[rows]`.
    next: Tensor,
    /// That token's position, `[rows, 1]`, and its slot of the cache, `[1]`.
    positions: Tensor,
    slot: Tensor,
    /// Which slots of the cache are filled, and hold no padding, `[rows, 1, 1, capacity]`, as a bias on attention scores.
    bias: Tensor,
    /// How many steps were taken since the host looked, `[1]`, what their tokens are drawn with, `[rows, steps]`, and what
    /// the host is told of them, `[3, rows, steps]`.
    turn: Tensor,
    uniforms: Tensor,
    told: Tensor,
}

/// Where the steps of one shape are on their way to a graph.
enum Recording {
    /// The next one runs as it is: kernels are loaded and libraries' memory taken when they first run.
    Cold,
    /// One has run, over so many slots.
    Warm(i64),
    Recorded(i64, Graph),
}

impl<'a> Batch<'a> {
    /// Reads every distinct prompt once. `is_recordable` says that the current stream is one of
    /// [`Stream`](super::graph::Stream).
    pub(super) fn start(
        model: &'a Model,
        prompts: &[Vec<i64>],
        pad_token: i64,
        sampling: &'a Sampling,
        pace: Pace,
        is_recordable: bool,
    ) -> Self {
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
        let (rows, device) = (prompts.len() as i64, model.device());
        let (tokens, mask) = left_padded(&distinct, pad_token, device);
        let width = tokens.size()[1];
        let capacity = up_to(width + sampling.max_new_tokens as i64, pace.slots);
        let (cache, hidden) = read(model, &tokens, &mask);

        let of_row = Tensor::from_slice(&of_row).to_device(device);
        let mask = mask.index_select(0, &of_row);
        let room = Tensor::zeros([rows, capacity - width], (Kind::Bool, device));
        let zeros = |shape: &[i64], kind: Kind| Tensor::zeros(shape, (kind, device));
        let state = State {
            hidden: hidden.index_select(0, &of_row),
            next: zeros(&[rows], Kind::Int64),
            positions: mask.sum_dim_intlist(1, true, Kind::Int64),
            slot: Tensor::full([1i64], width, (Kind::Int64, device)),
            bias: bias(&Tensor::cat(&[&mask, &room], 1), model.kind()).unsqueeze(1).unsqueeze(1),
            turn: zeros(&[1], Kind::Int64),
            uniforms: zeros(&[rows, pace.steps as i64], Kind::Float),
            told: zeros(&[3, rows, pace.steps as i64], Kind::Double),
        };
        Self {
            model,
            sampling,
            pace,
            rows: (0..prompts.len()).collect(),
            cache: cache.select(&of_row, capacity),
            state,
            is_started: false,
            recording: is_recordable.then_some(Recording::Cold),
        }
    }

    /// For each row, its prompt's index.
    pub(super) fn rows(&self) -> &[usize] {
        &self.rows
    }

    /// Lets finished rows go. Copying the cache costs about a step, so they leave an eighth of the batch at a time.
    pub(super) fn keep(&mut self, open: impl Fn(usize) -> bool) {
        let keep: Vec<usize> = (0..self.rows.len()).filter(|&index| open(self.rows[index])).collect();
        if keep.len() + self.rows.len().div_ceil(8) > self.rows.len() {
            return;
        }
        self.rows = keep.iter().map(|&index| self.rows[index]).collect();
        let keep: Vec<i64> = keep.into_iter().map(|index| index as i64).collect();
        let keep = Tensor::from_slice(&keep).to_device(self.model.device());
        self.cache.keep(&keep);
        let State { hidden, next, positions, bias, uniforms, told, .. } = &mut self.state;
        for of_rows in [hidden, next, positions, bias, uniforms] {
            *of_rows = of_rows.index_select(0, &keep);
        }
        *told = told.index_select(1, &keep);
        self.recording = self.recording.take().map(|_| Recording::Cold);
    }

    /// Takes some steps, with the numbers that tokens are drawn with, row by row, and waits for what was drawn.
    ///
    /// # Errors
    /// `unsupported` if a graph cannot be recorded or launched.
    pub(super) fn run(&mut self, uniforms: &[f32], steps: usize) -> Result<Told> {
        let steps = steps as i64;
        let uniforms = Tensor::from_slice(uniforms).view([self.rows.len() as i64, steps]);
        self.state.uniforms.narrow(1, 0, steps).copy_(&uniforms);
        let _ = self.state.turn.zero_();
        for _ in 0..steps {
            if self.is_started {
                self.advance()?;
            } else {
                self.state.draw(self.model, self.sampling);
                self.is_started = true;
            }
        }
        told_of(&self.state.told.narrow(2, 0, steps).to_device(Device::Cpu))
    }

    /// A step: feeds the last token, draws the next.
    fn advance(&mut self) -> Result<()> {
        let filled = self.cache.length + 1;
        let visible = up_to(filled, self.pace.slots);
        let step = || {
            self.state.feed(self.model, &self.cache, visible);
            self.state.draw(self.model, self.sampling);
        };
        match &self.recording {
            None => step(),
            Some(Recording::Recorded(slots, graph)) if *slots == visible => graph.replay()?,
            Some(Recording::Warm(slots)) if *slots == visible => {
                let graph = Graph::record(step)?;
                graph.replay()?;
                self.recording = Some(Recording::Recorded(visible, graph));
            }
            Some(_) => {
                step();
                self.recording = Some(Recording::Warm(visible));
            }
        }
        self.cache.length = filled;
        Ok(())
    }
}

/// Steps. tch wants what it writes to as its own, which a shallow clone is.
impl State {
    /// The next token of every row, from the last one's hidden state.
    fn draw(&self, model: &Model, sampling: &Sampling) {
        let logits = model.head(&self.hidden).squeeze_dim(1);
        let uniforms = self.uniforms.index_select(1, &self.turn).squeeze_dim(1);
        let (next, told) = tell(&logits, &uniforms, sampling);
        self.next.shallow_clone().copy_(&next);
        let _ = self.told.shallow_clone().index_copy_(2, &self.turn, &told.unsqueeze(2));
        let _ = self.turn.shallow_clone().g_add_scalar_(1);
    }

    /// The hidden state of the token that was drawn last, which takes its place in the cache; attention goes over
    /// `visible` slots.
    fn feed(&self, model: &Model, cache: &Cache, visible: i64) {
        let _ = self.bias.shallow_clone().index_fill_(3, &self.slot, 0.);
        let bias = self.bias.narrow(3, 0, visible);
        let hidden = model.decode(&self.next.unsqueeze(1), &self.positions, &bias, cache, &self.slot);
        self.hidden.shallow_clone().copy_(&hidden);
        for place in [&self.positions, &self.slot] {
            let _ = place.shallow_clone().g_add_scalar_(1);
        }
    }
}

/// The tokens `[rows]` that are drawn from logits `[rows, V]`, and what the host wants to know of them, `[3, rows]` f64:
/// the token, its log-probability, and its logit.
pub(super) fn tell(logits: &Tensor, uniforms: &Tensor, sampling: &Sampling) -> (Tensor, Tensor) {
    let Drawn { next, logp } = sample(logits, uniforms, sampling);
    let chosen = logits.gather(1, &next.unsqueeze(1), false).squeeze_dim(1);
    let told = Tensor::stack(&[&next, &logp, &chosen].map(|of_rows| of_rows.to_kind(Kind::Double)), 0);
    (next, told)
}

/// The next multiple.
fn up_to(count: i64, of: i64) -> i64 {
    (count + of - 1) / of * of
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
pub(super) fn left_padded(texts: &[&Vec<i64>], pad_token: i64, device: Device) -> (Tensor, Tensor) {
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
