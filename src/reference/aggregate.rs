//! From a loss for every token to one number.

use ndarray::{Array1, ArrayRef1, ArrayRef2};

use super::Real;
use super::advantage::groups;
use super::mask::kept;
use crate::Result;
use crate::axes::Axes;
use crate::options::{Aggregate, LossAggMode, MicroBatchScaling, MicroBatches};

/// The loss of a batch from the losses of its tokens.
///
/// With s_i the sum over the kept tokens of sequence i, n_i their number, N the tokens, S the sequences with a kept
/// token and L a constant length:
///
/// ```text
/// token-mean               sum_i s_i / N                   DAPO
/// token-sum                sum_i s_i
/// seq-mean-token-sum       (1/S) sum_i s_i
/// seq-mean-token-mean      (1/S) sum_i s_i / n_i           Eq. 29
/// seq-mean-token-sum-norm  (1/S) sum_i s_i / L             Dr. GRPO
/// ```
///
/// Each is multiplied by `dp_size`. Clauses `aggregate.loss` and below; verl 0.9.1 `agg_loss`.
///
/// * `loss`: `[B, T]`; gradient flows to the kept tokens, exactly 0 elsewhere
/// * `response_mask`: `[B, T]`, true keeps
///
/// A sequence with no kept token adds nothing and is not counted in S, unless `global_batch_size` counts it. With
/// no kept token at all the loss is exactly 0.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a count that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Aggregate, reference::aggregate};
/// use ndarray::array;
/// let loss = array![[1.0, 2.0, 3.0], [9.0, 0.0, 0.0]];
/// let mask = array![[true, true, true], [true, false, false]];
/// assert_eq!(aggregate::loss(&loss, &mask, &Aggregate::dapo())?, 15.0 / 4.0);
/// assert_eq!(aggregate::loss(&loss, &mask, &Aggregate::eq29())?, (2.0 + 9.0) / 2.0);
/// assert_eq!(aggregate::loss(&loss, &mask, &Aggregate::dr_grpo(10.0))?, (6.0 + 9.0) / 2.0 / 10.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn loss<R: Real>(loss: &ArrayRef2<R>, response_mask: &ArrayRef2<bool>, options: &Aggregate) -> Result<R> {
    options.check()?;
    let axes = Axes::default().bind("loss", &["B", "T"], loss.shape())?;
    let width = axes.bind("response_mask", &["B", "T"], response_mask.shape())?.length("T") as f64;

    let rows = kept_rows(loss, response_mask);
    Ok(aggregated(&rows, &rows, width, options))
}

/// What [`micro_batches`] gives: the loss and the parts that it is the sum of.
#[derive(Debug, Clone, PartialEq)]
pub struct MicroBatchesOutput<R> {
    /// What the accumulated gradient is the gradient of.
    pub loss: R,
    /// What each micro-batch adds to it, in the order of the labels' first appearance.
    pub parts: Array1<R>,
}

/// The loss of a batch whose gradient is accumulated over micro-batches.
///
/// With agg the aggregate of [`loss`], m one of M parts, b_m of its B sequences:
///
/// ```text
/// whole      part_m = agg(m) with the counts of the whole batch
/// equal      part_m = agg(m) / M
/// sequences  part_m = agg(m) b_m / B
/// loss       = sum_m part_m
/// ```
///
/// Clauses `aggregate.micro-batches` and below. verl 0.9.1 and TRL `dapo` are "whole"; verl up to 0.7 "equal", or
/// "sequences" with dynamic batches.
///
/// * `loss`: `[B, T]`; gradient flows to the kept tokens, exactly 0 elsewhere
/// * `response_mask`: `[B, T]`, true keeps
/// * `micro_batch`: `[B]`, any labels; equal labels form a micro-batch, wherever they stand
///
/// A part without a kept token is 0 and counts in M; a sequence without one counts in b and B. No sequences give the
/// loss 0 and no parts.
///
/// # Errors
/// `shape` if the shapes differ, `option` for a count that is not above 0.
///
/// # Example
/// ```
/// use grpo_oracle::{options::MicroBatches, reference::aggregate};
/// use ndarray::array;
/// let loss = array![[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]];
/// let mask = array![[true, false, false], [true, true, true]];
/// let whole = aggregate::micro_batches(&loss, &mask, &array![7, 5], &MicroBatches::dapo())?;
/// assert_eq!((whole.loss, whole.parts), (0.25, array![0.25, 0.0])); // the mean of 1, 0, 0, 0
/// let equal = aggregate::micro_batches(&loss, &mask, &array![7, 5], &MicroBatches::verl_0_7())?;
/// assert_eq!((equal.loss, equal.parts), (0.5, array![0.5, 0.0])); // the mean of the means 1 and 0
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn micro_batches<R: Real>(
    loss: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    micro_batch: &ArrayRef1<i64>,
    options: &MicroBatches,
) -> Result<MicroBatchesOutput<R>> {
    options.check()?;
    let axes = Axes::default()
        .bind("loss", &["B", "T"], loss.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?
        .bind("micro_batch", &["B"], micro_batch.shape())?;
    let width = axes.length("T") as f64;

    let batch = kept_rows(loss, response_mask);
    let members = groups(micro_batch);
    let count = R::constant(members.len() as f64);
    let parts = members.iter().map(|(_, members)| {
        let part: Vec<Vec<R>> = members.iter().map(|&member| batch[member].clone()).collect();
        let own = || aggregated(&part, &part, width, &options.aggregate);
        match options.micro_batch_scaling {
            MicroBatchScaling::Whole => aggregated(&part, &batch, width, &options.aggregate),
            MicroBatchScaling::Equal => own() / count,
            MicroBatchScaling::Sequences => {
                own() * R::constant(part.len() as f64) / R::constant(batch.len() as f64)
            }
        }
    });
    let parts: Array1<R> = parts.collect();
    Ok(MicroBatchesOutput { loss: R::sum(parts.iter().copied()), parts })
}

/// The kept tokens' losses of every sequence.
fn kept_rows<R: Real>(loss: &ArrayRef2<R>, response_mask: &ArrayRef2<bool>) -> Vec<Vec<R>> {
    let rows = loss.rows().into_iter().zip(response_mask.rows());
    rows.map(|(loss, mask)| kept(&loss, &mask).collect()).collect()
}

/// The aggregate of a part of a batch, whose counts are those of the `whole` unless the options give them.
fn aggregated<R: Real>(part: &[Vec<R>], whole: &[Vec<R>], width: f64, options: &Aggregate) -> R {
    let rows: Vec<&Vec<R>> = part.iter().filter(|row| !row.is_empty()).collect();
    if rows.is_empty() {
        return R::constant(0.0);
    }
    let (tokens, sequences) =
        (whole.iter().map(Vec::len).sum::<usize>(), whole.iter().filter(|row| !row.is_empty()).count());
    let tokens = R::constant(options.batch_num_tokens.unwrap_or(tokens as f64));
    let sequences = R::constant(options.global_batch_size.unwrap_or(sequences as f64));
    let length = R::constant(options.loss_scale_factor.unwrap_or(width));
    let sum_of = |row: &[R]| R::sum(row.iter().copied());
    let total = R::sum(rows.iter().flat_map(|row| row.iter().copied()));
    let loss = match options.loss_agg_mode {
        LossAggMode::TokenMean => total / tokens,
        LossAggMode::TokenSum => total,
        LossAggMode::SeqMeanTokenSum => total / sequences,
        LossAggMode::SeqMeanTokenMean => {
            R::sum(rows.iter().map(|row| sum_of(row) / R::constant(row.len() as f64))) / sequences
        }
        LossAggMode::SeqMeanTokenSumNorm => total / sequences / length,
    };
    loss * R::constant(options.dp_size)
}
