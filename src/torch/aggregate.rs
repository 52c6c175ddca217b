//! From a loss for every token to one number.

use tch::{Kind, Tensor};

use super::{at_least_f32, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{Aggregate, LossAggMode};

/// The loss of a batch from the losses of its tokens, without axes. See [`crate::reference::aggregate::loss`].
///
/// # Errors
/// `shape` if the shapes differ, `option` for a count that is not above 0, `input` if `response_mask` is not boolean.
pub fn loss(loss: &Tensor, response_mask: &Tensor, options: &Aggregate) -> Result<Tensor> {
    options.check()?;
    let axes = Axes::default().bind("loss", &["B", "T"], &loss.size())?;
    let width = axes.bind("response_mask", &["B", "T"], &response_mask.size())?.length("T") as f64;
    of_kind("response_mask", response_mask, Kind::Bool)?;

    let loss = select(&at_least_f32(loss), response_mask);
    let row_sums = loss.sum_dim_intlist(1, false, None);
    let row_tokens = response_mask.sum_dim_intlist(1, false, loss.kind());
    // Where nothing is kept every sum is 0, so that any denominator but 0 will do.
    let over_count = |sum: Tensor, given: Option<f64>, local: &dyn Fn() -> Tensor| match given {
        Some(count) => sum / count,
        None => sum / local().clamp_min(1.0),
    };
    let over_sequences =
        |sum: Tensor| over_count(sum, options.global_batch_size, &|| row_tokens.gt(0.0).sum(loss.kind()));
    let loss = match options.loss_agg_mode {
        LossAggMode::TokenMean => {
            over_count(row_sums.sum(None), options.batch_num_tokens, &|| row_tokens.sum(None))
        }
        LossAggMode::TokenSum => row_sums.sum(None),
        LossAggMode::SeqMeanTokenSum => over_sequences(row_sums.sum(None)),
        LossAggMode::SeqMeanTokenMean => over_sequences((row_sums / row_tokens.clamp_min(1.0)).sum(None)),
        LossAggMode::SeqMeanTokenSumNorm => {
            over_sequences(row_sums.sum(None)) / options.loss_scale_factor.unwrap_or(width.max(1.0))
        }
    };
    Ok(if options.dp_size == 1.0 { loss } else { loss * options.dp_size })
}
