//! Laws of aggregation, and of a batch that is split into micro-batches.

use grpo_oracle::options::{Aggregate, LossAggMode, MicroBatchScaling, MicroBatches};
use grpo_oracle::reference::aggregate;
use ndarray::{Array1, Array2};

use super::{Unit, hold};

/// Every mode there is.
pub(crate) const MODES: [LossAggMode; 5] = [
    LossAggMode::TokenMean,
    LossAggMode::TokenSum,
    LossAggMode::SeqMeanTokenSum,
    LossAggMode::SeqMeanTokenMean,
    LossAggMode::SeqMeanTokenSumNorm,
];

#[test]
fn token_mean_is_sequence_mean_for_equal_lengths() {
    fn law(losses: Vec<Unit>, length: u8, padding: u8) -> bool {
        let (length, padding) = (usize::from(length % 5) + 1, usize::from(padding % 3));
        let rows = losses.len() / length;
        let loss = Array2::from_shape_fn((rows, length + padding), |(row, t)| {
            if t < length { losses[row * length + t].0 } else { f64::NAN }
        });
        let mask = Array2::from_shape_fn(loss.raw_dim(), |(_, t)| t < length);
        let aggregated = |mode| aggregate::loss(&loss, &mask, &Aggregate::local(mode)).expect("an aggregate");
        let (tokens, sequences) =
            (aggregated(LossAggMode::TokenMean), aggregated(LossAggMode::SeqMeanTokenMean));
        (tokens - sequences).abs() < 1e-13
    }
    hold(law as fn(Vec<Unit>, u8, u8) -> bool);
}

#[test]
fn the_parts_of_a_batch_sum_to_the_whole() {
    fn law(losses: Vec<(Unit, bool)>, cut: usize) -> bool {
        let (rows, width) = (losses.len() / 3, 3);
        let of_rows = |from: usize, to: usize, mode: LossAggMode, counts: (f64, f64)| {
            let at = |(row, t): (usize, usize)| losses[(from + row) * width + t];
            let loss = Array2::from_shape_fn((to - from, width), |place| at(place).0.0);
            let mask = Array2::from_shape_fn((to - from, width), |place| at(place).1);
            let options = Aggregate {
                batch_num_tokens: Some(counts.0),
                global_batch_size: Some(counts.1),
                loss_scale_factor: Some(7.0),
                ..Aggregate::local(mode)
            };
            aggregate::loss(&loss, &mask, &options).expect("an aggregate")
        };
        let cut = if rows == 0 { 0 } else { cut % rows };
        use LossAggMode::{SeqMeanTokenMean, SeqMeanTokenSum, SeqMeanTokenSumNorm, TokenMean, TokenSum};
        [TokenMean, TokenSum, SeqMeanTokenSum, SeqMeanTokenMean, SeqMeanTokenSumNorm].into_iter().all(
            |mode| {
                let counts = (11.0, 5.0);
                let parts = of_rows(0, cut, mode, counts) + of_rows(cut, rows, mode, counts);
                (parts - of_rows(0, rows, mode, counts)).abs() < 1e-12
            },
        )
    }
    hold(law as fn(Vec<(Unit, bool)>, usize) -> bool);
}

#[test]
fn however_a_batch_is_split_the_parts_sum_to_the_whole() {
    fn law(losses: Vec<(Unit, bool, u8)>) -> bool {
        let rows = losses.len() / 3;
        let at = |(row, t): (usize, usize)| losses[3 * row + t];
        let loss = Array2::from_shape_fn((rows, 3), |place| at(place).0.0);
        let mask = Array2::from_shape_fn((rows, 3), |place| at(place).1);
        let labels = Array1::from_shape_fn(rows, |row| i64::from(at((row, 0)).2 % 4));
        MODES.into_iter().all(|mode| {
            let aggregate = Aggregate::local(mode);
            let options = MicroBatches { aggregate, ..MicroBatches::dapo() };
            let whole = aggregate::loss(&loss, &mask, &aggregate).expect("an aggregate");
            let split = aggregate::micro_batches(&loss, &mask, &labels, &options).expect("parts");
            (split.loss - whole).abs() < 1e-12 && (split.parts.sum() - whole).abs() < 1e-12
        })
    }
    hold(law as fn(Vec<(Unit, bool, u8)>) -> bool);
}

/// Where every part has as many sequences and tokens as the next, the means' mean is the mean.
#[test]
fn all_scalings_agree_on_equal_parts() {
    fn law(losses: Vec<Unit>, parts: u8) -> bool {
        let (parts, width) = (usize::from(parts % 3) + 1, 2);
        let rows = losses.len() / (parts * width) * parts;
        let loss = Array2::from_shape_fn((rows, width), |(row, t)| losses[width * row + t].0);
        let mask = Array2::from_elem((rows, width), true);
        let labels = Array1::from_shape_fn(rows, |row| (row % parts) as i64);
        let means = [LossAggMode::TokenMean, LossAggMode::SeqMeanTokenSum, LossAggMode::SeqMeanTokenMean];
        means.into_iter().all(|mode| {
            let split = |micro_batch_scaling| {
                let options = MicroBatches { aggregate: Aggregate::local(mode), micro_batch_scaling };
                aggregate::micro_batches(&loss, &mask, &labels, &options).expect("parts").loss
            };
            let whole = split(MicroBatchScaling::Whole);
            (split(MicroBatchScaling::Equal) - whole).abs() < 1e-13
                && (split(MicroBatchScaling::Sequences) - whole).abs() < 1e-13
        })
    }
    hold(law as fn(Vec<Unit>, u8) -> bool);
}

/// One token of loss 1 and nine of loss 0.
#[test]
fn the_published_example_holds() {
    let loss = Array2::from_shape_fn((2, 9), |(row, t)| f64::from(u8::from(row == 0 && t == 0)));
    let mask = Array2::from_shape_fn((2, 9), |(row, t)| row == 1 || t == 0);
    let labels = Array1::from_vec(vec![0, 1]);
    let of = |options| aggregate::micro_batches(&loss, &mask, &labels, &options).expect("parts").loss;
    assert_eq!((of(MicroBatches::dapo()), of(MicroBatches::verl_0_7())), (0.1, 0.5));
}

/// The same configuration in verl 0.7.0 and from 0.7.1 on.
#[test]
fn the_sum_norm_of_older_versions_is_a_batch_of_one() {
    let loss = ndarray::array![[1.0, 2.0, 3.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0, 4.0]];
    let mask = Array2::from_shape_fn((2, 5), |(row, t)| row == 1 || t < 3);
    let new = Aggregate::dr_grpo(5.0);
    let old = Aggregate { global_batch_size: Some(1.0), ..new };
    let of = |options| aggregate::loss(&loss, &mask, &options).expect("an aggregate");
    assert_eq!((of(new), of(old)), (2.6, 5.2));
}
