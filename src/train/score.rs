//! Log-probabilities of sampled responses. The responses to one problem share one pass over their prompt.

use tch::{Kind, Tensor, no_grad};

use crate::Result;
use crate::llm::{Checkpointed, Model};
use crate::options::Softmax;
use crate::torch::logprob;

/// Some rows of a rollout: b prompts padded on the left to P tokens, b responses padded on the right to T tokens.
#[derive(Debug)]
pub struct Responses {
    /// `[b, P+T]` i64.
    pub tokens: Tensor,
    /// `[b, P+T]` bool.
    pub attention_mask: Tensor,
    /// `[b, T]` bool.
    pub response_mask: Tensor,
    /// `[b]` i64; neighbouring rows with the same label have the same prompt.
    pub group: Tensor,
}

/// What a model gives each response token, `[b, T]`; 0 in masked slots.
#[derive(Debug)]
pub struct Scores {
    /// The token's log-probability.
    pub logp: Tensor,
    /// The entropy, in nats, of the distribution that it was drawn from.
    pub entropy: Tensor,
}

impl Scores {
    pub(super) fn shallow_clone(&self) -> Self {
        Self { logp: self.logp.shallow_clone(), entropy: self.entropy.shallow_clone() }
    }
}

/// Scores that a loss is computed from, and the way back from it.
#[derive(Debug)]
pub struct Scored<'a> {
    /// The scores.
    pub scores: Scores,
    checkpointed: Option<Checkpointed<'a>>,
}

impl Scored<'_> {
    /// Adds the loss's gradient to the parameters'.
    ///
    /// # Errors
    /// `input` if the loss was not computed from the scores.
    pub fn backward(self, loss: &Tensor) -> Result<()> {
        loss.backward();
        self.checkpointed.map_or(Ok(()), Checkpointed::backward)
    }
}

impl Responses {
    /// Scores the responses under a model. The vocabulary head, the widest layer, is applied only where a response
    /// token stands.
    ///
    /// # Errors
    /// As [`logprob::token`].
    pub fn score(&self, model: &Model, temperature: f64) -> Result<Scores> {
        self.scores(model, &self.states(model), temperature)
    }

    /// The same for a loss; with `checkpointing` the layers are computed once more on the way back, which saves memory.
    ///
    /// # Errors
    /// As [`logprob::token`].
    pub fn scored<'a>(&self, model: &'a Model, temperature: f64, checkpointing: bool) -> Result<Scored<'a>> {
        let (states, checkpointed) = self.states_and_way_back(model, checkpointing);
        Ok(Scored { scores: self.scores(model, &states, temperature)?, checkpointed })
    }

    /// [`Responses::states`], and what is to be called after their own `backward`.
    pub(super) fn states_and_way_back<'a>(
        &self,
        model: &'a Model,
        checkpointing: bool,
    ) -> (Tensor, Option<Checkpointed<'a>>) {
        if !checkpointing {
            return (self.states(model), None);
        }
        let packed = self.packed();
        let checkpointed = model.checkpointed_at(&packed.tokens, &packed.positions, &packed.visible);
        (packed.states(checkpointed.hidden()), Some(checkpointed))
    }

    /// The response tokens, `[N]`, in the order of [`Responses::states`].
    pub(super) fn targets(&self) -> Tensor {
        self.gather(&self.halves(&self.tokens).1)
    }

    fn scores(&self, model: &Model, states: &Tensor, temperature: f64) -> Result<Scores> {
        let scores = logprob::token(
            &model.head(states).unsqueeze(0),
            &self.targets().unsqueeze(0),
            &Softmax::at(temperature),
        )?;
        let spread = |of_tokens: &Tensor| self.spread(&of_tokens.squeeze_dim(0));
        Ok(Scores { logp: spread(&scores.logp), entropy: spread(&scores.entropy) })
    }

    /// The hidden state before each response token, the one that predicts it, `[N, H]`: token by token, row by row.
    pub fn states(&self, model: &Model) -> Tensor {
        let packed = self.packed();
        packed.states(&model.hidden_at(&packed.tokens, &packed.positions, &packed.visible))
    }

    /// Numbers of the response tokens, `[N]`, in their places, `[b, T]`; 0 in masked slots.
    pub fn spread(&self, of_tokens: &Tensor) -> Tensor {
        // Packing keeps the order of the rows, so the list of kept tokens is the same as here.
        let zeros = self.response_mask.zeros_like().to_kind(of_tokens.kind());
        zeros.masked_scatter(&self.response_mask, of_tokens)
    }

    /// What stands in the response tokens' places, `[b, T]`, as a list, `[N]`: what [`Responses::spread`] undoes.
    pub fn gather(&self, of_places: &Tensor) -> Tensor {
        of_places.index(&[Some(&self.response_mask)])
    }

    /// Some rows, cut to the longest prompt and the longest response among them.
    pub fn rows(&self, rows: &Tensor) -> Self {
        let own = |tensor: &Tensor| tensor.index_select(0, rows);
        let (attention_mask, response_mask) = (own(&self.attention_mask), own(&self.response_mask));
        let left = attention_mask.size()[1] - response_mask.size()[1];
        let longest = |mask: &Tensor| mask.sum_dim_intlist(1i64, false, Kind::Int64).max().int64_value(&[]);
        let (prompt, response) = (longest(&attention_mask.narrow(1, 0, left)), longest(&response_mask));
        let cut = |tensor: &Tensor| tensor.narrow(1, left - prompt, prompt + response);
        Self {
            tokens: cut(&own(&self.tokens)),
            attention_mask: cut(&attention_mask),
            response_mask: response_mask.narrow(1, 0, response),
            group: own(&self.group),
        }
    }

    /// The width T of the responses.
    pub fn width(&self) -> i64 {
        self.response_mask.size()[1]
    }

    /// One row a group: its prompt, then its responses one behind the other.
    fn packed(&self) -> Packed {
        let (device, (prompts, responses)) = (self.tokens.device(), self.halves(&self.tokens));
        let (left, right) = (prompts.size()[1], responses.size()[1]);
        let runs = runs(&self.group);
        let (groups, most) = (runs.len() as i64, runs.iter().map(|run| run.1).max().unwrap_or(0));

        // Row of each of a group's places; groups with fewer responses repeat one and mask it out.
        let places: Vec<i64> = runs
            .iter()
            .flat_map(|&(first, count)| (0..most).map(move |k| first + k.min(count - 1)))
            .collect();
        let used: Vec<bool> = runs.iter().flat_map(|&(_, count)| (0..most).map(move |k| k < count)).collect();
        let first: Vec<i64> = runs.iter().map(|run| run.0).collect();
        let [places, first] = [places, first].map(|rows| Tensor::from_slice(&rows).to_device(device));
        let used = Tensor::from_slice(&used).to_device(device).unsqueeze(1);
        let side_by_side = |rows: Tensor| rows.view([groups, most * right]);

        let prompt_mask = self.halves(&self.attention_mask).0.index_select(0, &first);
        let response_mask = side_by_side(self.response_mask.index_select(0, &places).logical_and(&used));
        let tokens = Tensor::cat(
            &[prompts.index_select(0, &first), side_by_side(responses.index_select(0, &places))],
            1,
        );

        // A response goes on from its prompt's length, whichever place it has in the row.
        let whole_numbers = (Kind::Int64, device);
        let within = (prompt_mask.cumsum(1, Kind::Int64) - 1).clamp_min(0);
        let onwards = prompt_mask.sum_dim_intlist(1i64, true, Kind::Int64)
            + Tensor::arange(right, whole_numbers).repeat([most]);
        let positions = Tensor::cat(&[within, onwards], 1);

        // Everyone sees the prompt and the earlier tokens of their own response. Padding sees itself.
        let width = left + most * right;
        let place = Tensor::arange(width, whole_numbers);
        let block = (&place - left).divide_scalar_mode(right.max(1), "floor").clamp_min(-1);
        let own = block.unsqueeze(1).eq_tensor(&block).logical_or(&block.lt(0));
        let earlier = place.unsqueeze(1).ge_tensor(&place);
        let real = Tensor::cat(&[prompt_mask, response_mask.shallow_clone()], 1).unsqueeze(1);
        let itself = Tensor::eye(width, (Kind::Bool, device));
        let visible = real.logical_and(&own.logical_and(&earlier)).logical_or(&itself);

        // The state before a token predicts it: before a response's first token, the prompt's last.
        let slots = Tensor::arange(most * right, whole_numbers);
        let opens = slots.remainder(right.max(1)).eq(0);
        let before = (slots + (left - 1)).masked_fill(&opens, left - 1);
        Packed { tokens, positions, visible, before, response_mask }
    }

    /// All rows scored without gradients, `size` of them at a time and by the fused head if asked for; the
    /// log-probabilities, `[b, T]`.
    ///
    /// # Errors
    /// As [`Responses::score`].
    pub fn frozen_logp(&self, model: &Model, temperature: f64, size: usize, fused: bool) -> Result<Tensor> {
        self.piece_by_piece(size, |piece| match fused {
            true => Ok(piece.before_head(model, temperature, false).scores()?.logp),
            false => Ok(piece.score(model, temperature)?.logp),
        })
    }

    /// Something of each token, `[b, T]`, computed without gradients from `size` rows at a time.
    ///
    /// # Errors
    /// As `of_piece`.
    pub fn piece_by_piece(
        &self,
        size: usize,
        mut of_piece: impl FnMut(&Self) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let order = self.by_length();
        let tensor = |rows: &[i64]| Tensor::from_slice(rows).to_device(self.tokens.device());
        let pieces = order.chunks(size.max(1)).map(|rows| {
            let piece = self.rows(&tensor(rows));
            let values = no_grad(|| of_piece(&piece))?;
            Ok(values.constant_pad_nd([0, self.width() - piece.width()]))
        });
        let in_order = Tensor::cat(&pieces.collect::<Result<Vec<_>>>()?, 0);
        Ok(in_order.index_select(0, &tensor(&order).argsort(0, false)))
    }

    /// The rows in an order in which those of like length stand together and rows of one group stay neighbours: the
    /// groups by their longest response, and within each its rows. Pieces of it have little padding.
    pub fn by_length(&self) -> Vec<i64> {
        let lengths = self.response_mask.sum_dim_intlist(1i64, false, Kind::Int64);
        let lengths: Vec<i64> = Vec::try_from(lengths).unwrap_or_default();
        let length = |row: i64| lengths.get(row as usize).copied().unwrap_or_default();
        let of_run = |(first, count): (i64, i64)| {
            let mut rows: Vec<i64> = (first..first + count).collect();
            rows.sort_by_key(|&row| length(row));
            rows
        };
        let mut groups: Vec<Vec<i64>> = runs(&self.group).into_iter().map(of_run).collect();
        groups.sort_by_key(|rows| rows.last().map_or(0, |&row| length(row)));
        groups.concat()
    }

    fn halves(&self, tensor: &Tensor) -> (Tensor, Tensor) {
        let right = self.response_mask.size()[1];
        let left = tensor.size()[1] - right;
        (tensor.narrow(1, 0, left), tensor.narrow(1, left, right))
    }
}

/// G groups of at most m responses: width W = P + m T.
struct Packed {
    /// `[G, W]`.
    tokens: Tensor,
    /// `[G, W]`.
    positions: Tensor,
    /// `[G, W, W]`: who looks (row) at whom (column).
    visible: Tensor,
    /// [m T]: where the state stands that predicts each response token.
    before: Tensor,
    /// [G, m T].
    response_mask: Tensor,
}

impl Packed {
    fn states(&self, hidden: &Tensor) -> Tensor {
        hidden.index_select(1, &self.before).index(&[Some(&self.response_mask)])
    }
}

/// First row and number of rows of each run of equal labels.
fn runs(group: &Tensor) -> Vec<(i64, i64)> {
    // All labels at once: on a device each by itself would be waited for.
    let labels: Vec<i64> = Vec::try_from(group.to_kind(Kind::Int64)).unwrap_or_default();
    let mut next = 0;
    let of_run = |run: &[i64]| {
        let first = next;
        next += run.len() as i64;
        (first, run.len() as i64)
    };
    labels.chunk_by(i64::eq).map(of_run).collect()
}
