//! Laws of the metrics.

use grpo_oracle::options::{AdvantageMetrics, HealthRules, MaskedVariance, PassAtK};
use grpo_oracle::reference::{mask, metrics};
use ndarray::{Array1, Array2, array};

use super::{Unit, hold};

/// The share of all k-subsets of n samples that hold one of the first c.
fn by_enumeration(n: u32, c: u32, k: u32) -> f64 {
    let subsets = (0_u32..1 << n).filter(|subset| subset.count_ones() == k);
    let (mut passing, mut all) = (0.0, 0.0);
    for subset in subsets {
        all += 1.0;
        passing += f64::from(u8::from(subset & ((1 << c) - 1) != 0));
    }
    passing / all
}

#[test]
fn pass_at_k_is_the_share_of_subsets_with_a_correct_sample() {
    for n in 1..=9 {
        for (c, k) in (0..=n).flat_map(|c| (1..=n).map(move |k| (c, k))) {
            let (samples, correct) = (array![i64::from(n)], array![i64::from(c)]);
            let pass: Array1<f64> =
                metrics::pass_at_k(&samples, &correct, &PassAtK::chen(u64::from(k))).expect("an estimate");
            let exact = by_enumeration(n, c, k);
            assert!((pass[0] - exact).abs() < 1e-14, "{c} of {n}, k = {k}: {} and {exact}", pass[0]);
            let is_certain = exact == 0.0 || exact == 1.0;
            assert!(!is_certain || pass[0] == exact, "{c} of {n}, k = {k}: {}", pass[0]);
        }
    }
}

#[test]
fn the_rewards_lie_around_their_mean() {
    fn law(rewards: Vec<Unit>) -> bool {
        let rewards: Array1<f64> = rewards.iter().map(|reward| reward.0).collect();
        let all = Array1::from_elem(rewards.len(), true).into_dyn();
        let statistics = metrics::rewards(&rewards).expect("statistics");
        let variance =
            mask::variance(&rewards.clone().into_dyn(), &all, &MaskedVariance::verl()).unwrap_or(0.0);
        rewards.iter().all(|&reward| statistics.min <= reward && reward <= statistics.max)
            && (rewards.is_empty() || rewards.iter().any(|&reward| reward == statistics.max))
            && (rewards.is_empty() || rewards.iter().any(|&reward| reward == statistics.min))
            && (statistics.mean * rewards.len() as f64 - rewards.sum()).abs() < 1e-12
            && (statistics.std * statistics.std - variance).abs() < 1e-12
    }
    hold(law as fn(Vec<Unit>) -> bool);
}

/// Where no kept advantage is 0 and every filtered one is, both conventions say the same.
#[test]
fn the_conventions_of_the_processed_advantages_agree_without_kept_zeros() {
    fn law(samples: Vec<(Unit, bool)>) -> bool {
        let samples: Vec<_> = samples.into_iter().filter(|&(advantage, _)| advantage.0 != 0.0).collect();
        let rows = samples.len();
        let original = Array2::from_shape_fn((rows, 2), |(row, _)| samples[row].0.0);
        let trained =
            Array2::from_shape_fn((rows, 2), |(row, _)| if samples[row].1 { samples[row].0.0 } else { 0.0 });
        let mask = Array2::from_shape_fn((rows, 2), |(row, t)| t == 0 || row % 2 == 0);
        let kept: Array1<bool> = samples.iter().map(|&(_, keep)| keep).collect();
        let of = |options| {
            metrics::advantages(&trained, &original, &mask, Some(&kept), &options).expect("statistics")
        };
        of(AdvantageMetrics::document()) == of(AdvantageMetrics::easyr1_brian())
    }
    hold(law as fn(Vec<(Unit, bool)>) -> bool);
}

/// The guide's own two training curves.
#[test]
fn the_guides_curves_are_told_apart() {
    let is_healthy = |kl: f64| {
        metrics::health(kl, 0.1, 1.0, 0.0, 0.866, &HealthRules::guide()).expect("flags").healthy == 1.0
    };
    assert!([0.003, 0.008, 0.015, 0.020].into_iter().all(is_healthy));
    assert_eq!([0.003, 0.150, 0.250].map(is_healthy), [true, false, false]);
}
