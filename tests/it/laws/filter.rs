//! Laws of sample filtering.
#![expect(clippy::approx_constant, reason = "the digits that the published code gave")]

use grpo_oracle::options::{Aggregate, Filter, LossAggMode};
use grpo_oracle::reference::filter::{FilterOutput, filter};
use grpo_oracle::reference::{Bounded, aggregate};
use ndarray::{Array1, Array2};

use super::{Unit, hold};

fn options(keep_neg_ratio: f64, keep_pos_ratio: f64, compute_new_adv: bool) -> Filter {
    Filter { keep_neg_ratio, keep_pos_ratio, compute_new_adv, ..Filter::published() }
}

fn of(rewards: &[f64], options: &Filter) -> FilterOutput<f64> {
    filter(&Array1::from(rewards.to_vec()), &Array1::zeros(rewards.len()), options).expect("advantages")
}

/// What the published code gave, in single precision, to the digits that were printed.
#[test]
fn the_published_numbers_are_met() {
    type Golden = (&'static [f64], (f64, f64, bool), &'static [f64], &'static [f64]);
    const WORKED: &[f64] = &[0.1, 0.5, 0.9, 1.3, 1.7];
    const HALF: &[f64] = &[0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
    let table: [Golden; 10] = [
        (WORKED, (0.5, 0.7, false), &[-1.2649, 0.0, 0.0, 0.0, 1.2649], &[1.0, 0.0, 1.0, 0.0, 1.0]),
        (WORKED, (0.5, 0.7, true), &[-1.0, 0.0, 0.0, 0.0, 1.0], &[1.0, 0.0, 1.0, 0.0, 1.0]),
        (WORKED, (0.0, 1.0, false), &[0.0, 0.0, 0.0, 0.6325, 1.2649], &[0.0, 0.0, 1.0, 1.0, 1.0]),
        (WORKED, (0.0, 1.0, true), &[0.0, 0.0, -1.0, 0.0, 1.0], &[0.0, 0.0, 1.0, 1.0, 1.0]),
        (WORKED, (1.0, 0.5, true), &[-1.0247, -0.4392, 0.1464, 0.0, 1.3175], &[1.0, 1.0, 1.0, 0.0, 1.0]),
        (WORKED, (0.3, 1.0, true), &[-1.3175, 0.0, -0.1464, 0.4392, 1.0247], &[1.0, 0.0, 1.0, 1.0, 1.0]),
        (HALF, (0.5, 0.5, true), &[-0.7071, 0.0, 0.0, 0.7071, 0.0, 0.0], &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]),
        (&[0.0, 0.0, 1.0, 1.0], (0.0, 0.5, true), &[0.0, 0.0, 0.8660, 0.0], &[0.0, 0.0, 1.0, 0.0]),
        (&[0.0, 0.0, 0.0, 1.0], (0.5, 1.0, true), &[-0.7071, 0.0, 0.0, 0.7071], &[1.0, 0.0, 0.0, 1.0]),
        (&[0.0, 0.0, 0.0, 1.0], (0.5, 1.0, false), &[-0.5, 0.0, 0.0, 1.5], &[1.0, 0.0, 0.0, 1.0]),
    ];
    for (rewards, (neg, pos, new), advantages, kept) in table {
        let output = of(rewards, &options(neg, pos, new));
        assert_eq!(output.kept.to_vec(), kept, "{rewards:?} {neg} {pos} {new}");
        let printed = |x: f64| (x * 1e4).round() / 1e4 + 0.0;
        let digits: Vec<f64> = output.advantages.iter().map(|&a| printed(a)).collect();
        assert_eq!(digits, advantages, "{rewards:?} {neg} {pos} {new}");
    }
}

/// The product is cut off as double precision has it.
#[test]
fn the_number_kept_is_cut_off() {
    for (count, ratio, expected) in
        [(2, 0.7, 1.0), (3, 0.7, 2.0), (100, 0.29, 28.0), (50, 0.58, 28.0), (3, 0.01, 1.0)]
    {
        for sign in [1.0, -1.0] {
            let mut rewards: Vec<f64> = (1..=count).map(|i| sign * f64::from(i)).collect();
            rewards.push(-1e6 * sign);
            let (neg, pos) = if sign > 0.0 { (0.0, ratio) } else { (ratio, 0.0) };
            let kept = of(&rewards, &options(neg, pos, false)).kept;
            assert_eq!(kept.sum(), expected, "{count} * {ratio}");
            // The best of the positive ones, the worst of the negative ones: those furthest out.
            assert_eq!(kept[count as usize - 1], 1.0);
        }
    }
}

#[test]
fn advantages_computed_anew_have_mean_0_and_deviation_1() {
    fn law(rewards: Vec<i8>, neg: Unit, pos: Unit) -> bool {
        let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
        if rewards.len() < 2 {
            return true;
        }
        let output = of(&rewards, &options(neg.0.abs(), pos.0.abs(), true));
        let kept: Vec<usize> = (0..rewards.len()).filter(|&i| output.kept[i] == 1.0).collect();
        let filtered = (0..rewards.len()).filter(|i| !kept.contains(i));
        let is_constant = kept.iter().all(|&i| rewards[i] == rewards[kept[0]]);
        let squares: f64 = kept.iter().map(|&i| output.advantages[i].powi(2)).sum();
        let normal = (squares - kept.len() as f64 + 1.0).abs() < 1e-9;
        let sum: f64 = kept.iter().map(|&i| output.advantages[i]).sum();
        filtered.map(|i| output.advantages[i]).all(|a| a == 0.0)
            && (kept.len() < 2 || (sum.abs() < 1e-9 && if is_constant { squares == 0.0 } else { normal }))
    }
    hold(law as fn(Vec<i8>, Unit, Unit) -> bool);
}

#[test]
fn no_kept_sample_is_nearer_to_the_mean_than_a_filtered_one_of_its_sign() {
    fn law(rewards: Vec<i8>, neg: Unit, pos: Unit) -> bool {
        let rewards: Vec<f64> = rewards.into_iter().map(f64::from).collect();
        if rewards.len() < 2 {
            return true;
        }
        let output = of(&rewards, &options(neg.0.abs(), pos.0.abs(), false));
        let original = &output.advantages_original;
        (0..rewards.len()).all(|i| {
            (0..rewards.len()).all(|j| {
                let kept_over =
                    output.kept[i] == 1.0 && output.kept[j] == 0.0 && original[i] * original[j] > 0.0;
                !kept_over || (original[i].abs() >= original[j].abs() && (rewards[i] != rewards[j] || i < j))
            })
        })
    }
    hold(law as fn(Vec<i8>, Unit, Unit) -> bool);
}

/// A filtered sample's row is empty, and what is left is the loss of the others.
#[test]
fn filtered_samples_leave_every_aggregate() {
    fn law(losses: Vec<(Unit, Unit, i8)>, neg: Unit, pos: Unit) -> bool {
        if losses.len() < 2 {
            return true;
        }
        let rewards: Vec<f64> = losses.iter().map(|loss| f64::from(loss.2)).collect();
        let kept = of(&rewards, &options(neg.0.abs(), pos.0.abs(), true)).kept;
        let loss_of = |rows: &[usize]| {
            let at = |row: usize| losses[rows[row]];
            let loss = Array2::from_shape_fn((rows.len(), 2), |(row, t)| [at(row).0.0, at(row).1.0][t]);
            let mask = Array2::from_shape_fn((rows.len(), 2), |(row, t)| {
                kept[rows[row]] == 1.0 && (t == 0 || rows[row].is_multiple_of(2))
            });
            use LossAggMode::{SeqMeanTokenMean, SeqMeanTokenSum, SeqMeanTokenSumNorm, TokenMean, TokenSum};
            [TokenMean, TokenSum, SeqMeanTokenSum, SeqMeanTokenMean, SeqMeanTokenSumNorm]
                .map(|mode| aggregate::loss(&loss, &mask, &Aggregate::local(mode)).expect("a loss"))
        };
        let all: Vec<usize> = (0..losses.len()).collect();
        let left: Vec<usize> = all.iter().copied().filter(|&row| kept[row] == 1.0).collect();
        let (with, without) = (loss_of(&all), loss_of(&left));
        with.iter().zip(without).all(|(a, b)| a.is_finite() && (a - b).abs() < 1e-12)
    }
    hold(law as fn(Vec<(Unit, Unit, i8)>, Unit, Unit) -> bool);
}

/// Whether a sample is the mean is certain where sums are exact in single precision, whatever their order, and not where
/// rounding could have moved one.
#[test]
fn a_sum_that_single_precision_holds_leaves_no_doubt() {
    let some = options(0.5, 0.5, false);
    let margin = |rewards: &[f64], options: &Filter| {
        let rewards: Array1<Bounded> = rewards.iter().map(|&reward| Bounded::exact(reward)).collect();
        let output = filter(&rewards, &Array1::zeros(rewards.len()), options);
        output.expect("advantages").kept[0].margin
    };
    for scale in [1.0, -1.0, 0.125, 1024.0] {
        let scaled = |rewards: [f64; 3]| rewards.map(|reward| reward * scale);
        assert!(margin(&scaled([1.0, 2.0, 3.0]), &some) > 0.01, "{scale}");
        assert!(margin(&scaled([-1.0, 0.0, 1.0]), &some) > 0.01, "{scale}");
        // Three times the largest is just below 2^24, and just above, where an odd sum is lost.
        assert!(margin(&scaled([0.0, 2_796_201.0, 5_592_402.0]), &some) > 0.01, "{scale}");
        assert_eq!(margin(&scaled([0.0, 2_796_203.0, 5_592_406.0]), &some), 0.0, "{scale}");
    }
    assert_eq!(margin(&[0.1, 0.5, 0.9, 1.3, 1.7], &some), 0.0);
    assert!(margin(&[0.1, 0.5, 0.9, 1.3, 1.7], &options(1.0, 1.0, false)) > 0.01); // nothing is decided by it
}
