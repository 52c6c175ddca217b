//! Laws of `rollout.*`.

use grpo_oracle::options::{
    K1Orientation, RejectionEstimator, RejectionLevel, RolloutIs, RolloutIsMode, RolloutRejection,
    RolloutWeights,
};
use grpo_oracle::reference::rollout;
use ndarray::{Array2, array};

use super::{Unit, hold};

type Tokens = Vec<(Unit, Unit, bool)>;

/// Rows of three tokens: the trainer's log-probabilities, the sampler's, the mask.
fn batch(tokens: &Tokens) -> (Array2<f64>, Array2<f64>, Array2<bool>) {
    let shape = (tokens.len() / 3, 3);
    let at = |(row, t): (usize, usize)| tokens[3 * row + t];
    let real = |of: fn((Unit, Unit, bool)) -> f64| Array2::from_shape_fn(shape, |place| 2.0 * of(at(place)));
    (real(|token| token.0.0), real(|token| token.1.0), Array2::from_shape_fn(shape, |place| at(place).2))
}

#[test]
fn tokens_stay_where_their_masked_weight_is_not_zero() {
    fn law(tokens: Tokens) -> bool {
        let (trainer, sampler, kept) = batch(&tokens);
        let weights = RolloutWeights {
            rollout_is_threshold: 3.0,
            rollout_is_threshold_lower: Some(0.75),
            ..RolloutWeights::icepop()
        };
        let weights = rollout::weights(&trainer, &sampler, &kept, &weights).expect("weights");
        let direct = RolloutRejection {
            rollout_rs_threshold: 3.0,
            rollout_rs_threshold_lower: Some(0.75),
            rs_k1_orientation: K1Orientation::Direct,
            ..RolloutRejection::verl()
        };
        let stays = rollout::rejection(&trainer, &sampler, &kept, &direct).expect("a mask");
        // The other orientation is that of the exchanged policies.
        let inverse = RolloutRejection { rs_k1_orientation: K1Orientation::Inverse, ..direct };
        let exchanged = rollout::rejection(&sampler, &trainer, &kept, &inverse).expect("a mask");
        stays == exchanged && stays.response_mask == weights.mapv(|weight| f64::from(u8::from(weight != 0.0)))
    }
    hold(law as fn(Tokens) -> bool);
}

#[test]
fn normalised_weights_have_the_mean_one() {
    fn law(tokens: Tokens) -> bool {
        let (trainer, sampler, kept) = batch(&tokens);
        let of = |rollout_is: RolloutIs| {
            let options = RolloutWeights { rollout_is, batch_normalize: true, ..RolloutWeights::verl() };
            rollout::weights(&trainer, &sampler, &kept, &options).expect("weights")
        };
        let mean = |weights: Vec<f64>| weights.iter().sum::<f64>() / weights.len() as f64;
        let of_tokens = of(RolloutIs::Token);
        let tokens =
            of_tokens.iter().zip(&kept).filter(|(_, keep)| **keep).map(|(&weight, _)| weight).collect();
        let of_sequences = of(RolloutIs::Sequence);
        let rows = of_sequences.rows().into_iter().zip(kept.rows());
        let sequences = rows.filter_map(|(weights, kept)| Some(weights[kept.iter().position(|&keep| keep)?]));
        let is_one = |mean: f64| mean.is_nan() || (mean - 1.0).abs() < 1e-13; // NaN where nothing is kept
        is_one(mean(tokens)) && is_one(mean(sequences.collect()))
    }
    hold(law as fn(Tokens) -> bool);
}

#[test]
fn truncated_weights_are_masked_ones_within_the_bounds() {
    fn law(tokens: Tokens, whole: bool) -> bool {
        let (trainer, sampler, kept) = batch(&tokens);
        let rollout_is = if whole { RolloutIs::Sequence } else { RolloutIs::Token };
        let of = |rollout_is_mode: RolloutIsMode| {
            let options = RolloutWeights { rollout_is, rollout_is_mode, ..RolloutWeights::icepop() };
            rollout::weights(&trainer, &sampler, &kept, &options).expect("weights")
        };
        let (truncated, masked) = (of(RolloutIsMode::Truncate), of(RolloutIsMode::Mask));
        truncated.iter().zip(&masked).zip(&kept).all(|((&truncated, &masked), &keep)| match (keep, masked) {
            (false, _) => truncated == 0.0 && masked == 0.0,
            (true, 0.0) => truncated == 0.5 || truncated == 5.0,
            (true, _) => truncated == masked,
        })
    }
    hold(law as fn(Tokens, bool) -> bool);
}

#[test]
fn a_sequence_stays_by_its_largest_divergence_where_all_its_tokens_do() {
    fn law(tokens: Tokens) -> bool {
        let (trainer, sampler, kept) = batch(&tokens);
        let of = |rollout_rs_level: RejectionLevel| {
            let options = RolloutRejection {
                rollout_rs_level,
                rollout_rs_estimator: RejectionEstimator::K3,
                rollout_rs_threshold: 0.5,
                ..RolloutRejection::verl()
            };
            rollout::rejection(&trainer, &sampler, &kept, &options).expect("a mask").response_mask
        };
        let (of_tokens, of_sequences) = (of(RejectionLevel::Token), of(RejectionLevel::SeqMax));
        let rows = of_tokens.rows().into_iter().zip(of_sequences.rows()).zip(kept.rows());
        rows.into_iter().all(|((tokens, sequence), kept)| {
            let all = tokens.iter().zip(kept).all(|(&stays, &keep)| !keep || stays == 1.0);
            sequence.iter().zip(kept).all(|(&stays, &keep)| (stays == 1.0) == (keep && all))
        })
    }
    hold(law as fn(Tokens) -> bool);
}

/// `evaluate` compares shapes before it asks; whoever calls a function by itself is told by the function.
#[test]
fn arrays_that_do_not_go_together_are_refused() {
    let (wide, narrow, mask) = (array![[0.0, 0.0]], array![[0.0]], array![[true, true]]);
    let refused = rollout::weights(&wide, &narrow, &mask, &RolloutWeights::verl());
    assert_eq!(refused.unwrap_err().code(), "shape");
}
