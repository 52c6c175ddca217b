//! From a loss for every token to one number.

use tch::{Kind, Tensor};

use super::{at_least_f32, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Aggregate, LossAggMode, MicroBatchScaling, MicroBatches};

/// The loss of a batch from the losses of its tokens, without axes. See [`crate::reference::aggregate::loss`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a count that is not above 0, `input` if `response_mask` is not boolean.
pub fn loss(loss: &Tensor, response_mask: &Tensor, options: &Aggregate) -> Result<Tensor> {
    options.check()?;
    let axes = Axes::default().bind("loss", &["B", "T"], &loss.size())?;
    let width = axes.bind("response_mask", &["B", "T"], &response_mask.size())?.length("T") as f64;
    of_kind("response_mask", response_mask, Kind::Bool)?;

    let rows = Rows::of(loss, response_mask);
    let sum = |of_rows: &Tensor| of_rows.sum(None);
    Ok(rows.aggregated(sum, sum, width, options))
}

/// What [`micro_batches`] gives.
#[derive(Debug)]
pub struct MicroBatchesOutput {
    /// What the accumulated gradient is the gradient of, without axes.
    pub loss: Tensor,
    /// What each micro-batch adds to it, `[M]`, in the order of the labels' first appearance.
    pub parts: Tensor,
}

/// The loss of a batch whose gradient is accumulated over micro-batches.
/// See [`crate::reference::aggregate::micro_batches`].
///
/// How many parts there are has to be read off the labels, since it is the length of an output: this waits for the
/// labels' device, once. They may stand on the CPU, whatever the device of the rest, and then nothing waits.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a count that is not above 0, `input` if `response_mask` is not boolean or
/// `micro_batch` not of 64-bit integers.
pub fn micro_batches(
    loss: &Tensor,
    response_mask: &Tensor,
    micro_batch: &Tensor,
    options: &MicroBatches,
) -> Result<MicroBatchesOutput> {
    options.check()?;
    let axes = Axes::default()
        .bind("loss", &["B", "T"], &loss.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?
        .bind("micro_batch", &["B"], &micro_batch.size())?;
    let (batch, width) = (axes.length("B") as f64, axes.length("T") as f64);
    of_kind("response_mask", response_mask, Kind::Bool)?;
    of_kind("micro_batch", micro_batch, Kind::Int64)?;
    let (part, count) = parts_by_appearance(micro_batch);
    let part = part.to_device_(loss.device(), Kind::Int64, true, false);
    let rows = Rows::of(loss, response_mask);
    let by_part = |of_rows: &Tensor| {
        let none = of_rows.new_zeros([count], (of_rows.kind(), of_rows.device()));
        none.index_add(0, &part, of_rows)
    };
    let own = || rows.aggregated(by_part, by_part, width, &options.aggregate);
    let parts = match options.micro_batch_scaling {
        MicroBatchScaling::Whole => {
            rows.aggregated(by_part, |of_rows| of_rows.sum(None), width, &options.aggregate)
        }
        MicroBatchScaling::Equal => own() / count as f64,
        MicroBatchScaling::Sequences => own() * by_part(&rows.tokens.ones_like()) / batch,
    };
    Ok(MicroBatchesOutput { loss: parts.sum(None), parts })
}

/// Each sequence's part, numbered from 0 in the order of the labels' first appearance, and how many parts there are.
fn parts_by_appearance(labels: &Tensor) -> (Tensor, i64) {
    let length = labels.numel() as i64;
    if length == 0 {
        return (labels.shallow_clone(), 0);
    }
    let place = Tensor::arange(length, (Kind::Int64, labels.device()));
    // Sorted stably, a label's first appearance comes first, and the latest start of a run is the run's own.
    let (sorted, order) = labels.sort_stable(true, 0, false);
    let starts = sorted.narrow(0, 1, length - 1).ne_tensor(&sorted.narrow(0, 0, length - 1));
    let starts = Tensor::cat(&[starts.new_ones([1], (Kind::Bool, labels.device())), starts], 0);
    let (start, _) = place.masked_fill(&starts.logical_not(), 0).cummax(0);
    let first = place.zeros_like().scatter(0, &order, &order.index_select(0, &start));
    let number = first.eq_tensor(&place).cumsum(0, Kind::Int64) - 1;
    (number.index_select(0, &first), number.int64_value(&[length - 1]) + 1)
}

/// The kept tokens of every sequence: the sum of their losses, and their number.
struct Rows {
    sums: Tensor,
    tokens: Tensor,
}

impl Rows {
    fn of(loss: &Tensor, response_mask: &Tensor) -> Self {
        let loss = select(&at_least_f32(loss), response_mask);
        Self {
            sums: loss.sum_dim_intlist(1, false, None),
            tokens: response_mask.sum_dim_intlist(1, false, loss.kind()),
        }
    }

    /// The aggregate of the sequences that `add` adds up, over the counts of those that `count` does, unless the
    /// options give them.
    fn aggregated(
        &self,
        add: impl Fn(&Tensor) -> Tensor,
        count: impl Fn(&Tensor) -> Tensor,
        width: f64,
        options: &Aggregate,
    ) -> Tensor {
        // Where nothing is kept every sum is 0, so that any denominator but 0 will do.
        let over = |sum: Tensor, given: Option<f64>, counted: &dyn Fn() -> Tensor| match given {
            Some(count) => sum / count,
            None => sum / count(&counted()).clamp_min(1.0),
        };
        let tokens = || self.tokens.shallow_clone();
        let sequences = || self.tokens.gt(0.0).to_kind(self.tokens.kind());
        let over_sequences = |sum: Tensor| over(sum, options.global_batch_size, &sequences);
        let loss = match options.loss_agg_mode {
            LossAggMode::TokenMean => over(add(&self.sums), options.batch_num_tokens, &tokens),
            LossAggMode::TokenSum => add(&self.sums),
            LossAggMode::SeqMeanTokenSum => over_sequences(add(&self.sums)),
            LossAggMode::SeqMeanTokenMean => over_sequences(add(&(&self.sums / self.tokens.clamp_min(1.0)))),
            LossAggMode::SeqMeanTokenSumNorm => {
                over_sequences(add(&self.sums)) / options.loss_scale_factor.unwrap_or(width.max(1.0))
            }
        };
        if options.dp_size == 1.0 { loss } else { loss * options.dp_size }
    }
}
