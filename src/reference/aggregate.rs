//! From a loss for every token to one number.

use ndarray::ArrayRef2;

use super::Real;
use super::mask::kept;
use crate::Result;
use crate::axes::Axes;
use crate::options::{Aggregate, LossAggMode};

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

    let rows: Vec<Vec<R>> = loss
        .rows()
        .into_iter()
        .zip(response_mask.rows())
        .map(|(loss, mask)| kept(&loss, &mask).collect())
        .collect();
    let rows: Vec<Vec<R>> = rows.into_iter().filter(|row| !row.is_empty()).collect();
    if rows.is_empty() {
        return Ok(R::constant(0.0));
    }
    let tokens = options.batch_num_tokens.unwrap_or(rows.iter().map(Vec::len).sum::<usize>() as f64);
    let sequences = R::constant(options.global_batch_size.unwrap_or(rows.len() as f64));
    let length = R::constant(options.loss_scale_factor.unwrap_or(width));
    let total = R::sum(rows.iter().flatten().copied());
    let sum_of_means =
        || R::sum(rows.iter().map(|row| R::sum(row.iter().copied()) / R::constant(row.len() as f64)));
    let loss = match options.loss_agg_mode {
        LossAggMode::TokenMean => total / R::constant(tokens),
        LossAggMode::TokenSum => total,
        LossAggMode::SeqMeanTokenSum => total / sequences,
        LossAggMode::SeqMeanTokenMean => sum_of_means() / sequences,
        LossAggMode::SeqMeanTokenSumNorm => total / sequences / length,
    };
    Ok(loss * R::constant(options.dp_size))
}
