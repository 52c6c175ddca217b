//! Laws of `kl.*`.

use grpo_oracle::options::{KlController, KlEstimate, KlInReward, KlPenalty};
use grpo_oracle::reference::{Bounded, Dual, Real, kl};
use ndarray::{Array2, Array3, array};

/// Every estimator.
pub(crate) const PENALTIES: [KlPenalty; 8] = [
    KlPenalty::K1,
    KlPenalty::Abs,
    KlPenalty::K2,
    KlPenalty::K3,
    KlPenalty::K1Plus,
    KlPenalty::AbsPlus,
    KlPenalty::K2Plus,
    KlPenalty::K3Plus,
];

use super::{Unit, hold};

fn full(logits: [f64; 3], logits_ref: [f64; 3]) -> f64 {
    let of = |logits: [f64; 3]| Array3::from_shape_fn((1, 1, 3), |(_, _, v)| logits[v]);
    kl::full(&of(logits), &of(logits_ref)).expect("a divergence")[[0, 0]]
}

fn logits(of: (Unit, Unit, Unit)) -> [f64; 3] {
    [of.0.0, of.1.0, of.2.0].map(|z| 3.0 * z)
}

fn log_softmax(logits: [f64; 3]) -> [f64; 3] {
    let sum: f64 = logits.iter().map(|z| z.exp()).sum();
    logits.map(|z| z - sum.ln())
}

#[test]
fn k3_is_never_negative_beyond_its_rounding() {
    fn law(d: Unit, tiny: bool) -> bool {
        let d = d.0 * if tiny { 1e-7 } else { 8.0 };
        let of = |d: f64| array![[Bounded::exact(d)]];
        let kl = kl::estimate(&of(d), &of(0.0), &KlEstimate::k3()).expect("an estimate")[[0, 0]];
        kl.value >= -4.0 * f64::EPSILON / 2.0 * kl.error && (d.abs() < 1e-3 || kl.value > 0.0)
    }
    hold(law as fn(Unit, bool) -> bool);
}

#[test]
fn every_estimate_is_zero_where_the_policies_agree() {
    use KlPenalty::{Abs, AbsPlus, K1, K1Plus, K2, K2Plus, K3, K3Plus};
    for kl_penalty in [K1, Abs, K2, K3, K1Plus, AbsPlus, K2Plus, K3Plus] {
        let options = KlEstimate { kl_penalty, ..KlEstimate::k3() };
        let kl = kl::estimate(&array![[-1.7_f64]], &array![[-1.7]], &options).expect("an estimate");
        assert_eq!(kl, array![[0.0]], "{kl_penalty:?}");
    }
}

#[test]
fn the_full_divergence_is_what_k1_and_k3_expect() {
    fn law(policy: (Unit, Unit, Unit), reference: (Unit, Unit, Unit)) -> bool {
        let (policy, reference) = (logits(policy), logits(reference));
        let (log_p, log_q) = (log_softmax(policy), log_softmax(reference));
        let expected = |kl_penalty: KlPenalty| -> f64 {
            let options = KlEstimate { kl_penalty, ..KlEstimate::k3() };
            let row = |row: [f64; 3]| Array2::from_shape_fn((1, 3), |(_, v)| row[v]);
            let kl = kl::estimate(&row(log_p), &row(log_q), &options).expect("estimates");
            (0..3).map(|v| log_p[v].exp() * kl[[0, v]]).sum()
        };
        let full = full(policy, reference);
        [KlPenalty::K1, KlPenalty::K3].iter().all(|&k| (expected(k) - full).abs() < 1e-12)
    }
    hold(law as fn((Unit, Unit, Unit), (Unit, Unit, Unit)) -> bool);
}

#[test]
fn the_full_divergence_is_never_negative_and_ignores_shifts() {
    fn law(policy: (Unit, Unit, Unit), reference: (Unit, Unit, Unit), shift: Unit) -> bool {
        let (policy, reference) = (logits(policy), logits(reference));
        let shifted = full(policy.map(|z| z + 8.0 * shift.0), reference);
        let plain = full(policy, reference);
        plain > -1e-15 && (plain - shifted).abs() < 1e-13 && full(policy, policy).abs() < 1e-15
    }
    hold(law as fn((Unit, Unit, Unit), (Unit, Unit, Unit), Unit) -> bool);
}

#[test]
fn exact_gradients_of_the_full_divergence_agree_with_differences() {
    fn law(policy: (Unit, Unit, Unit), reference: (Unit, Unit, Unit)) -> bool {
        let (policy, reference) = (logits(policy), logits(reference));
        (0..3).all(|entry| {
            let seeded = Array3::from_shape_fn((1, 1, 3), |(_, _, v)| {
                Dual::variable(policy[v], f64::from(u8::from(v == entry)))
            });
            let fixed = Array3::from_shape_fn((1, 1, 3), |(_, _, v)| Dual::constant(reference[v]));
            let exact = kl::full(&seeded, &fixed).expect("a divergence")[[0, 0]].tangent;
            let stepped = |step: f64| {
                let mut moved = policy;
                moved[entry] += step;
                full(moved, reference)
            };
            ((stepped(1e-5) - stepped(-1e-5)) / 2e-5 - exact).abs() < 1e-8
        })
    }
    hold(law as fn((Unit, Unit, Unit), (Unit, Unit, Unit)) -> bool);
}

/// What is taken from the scores is the coefficient times the mean that is reported, on a full row.
#[test]
fn the_penalty_adds_up() {
    fn law(tokens: Vec<(Unit, Unit, Unit)>, kl_coef: Unit) -> bool {
        if tokens.is_empty() {
            return true;
        }
        let row = |of: fn(&(Unit, Unit, Unit)) -> f64| {
            Array2::from_shape_fn((1, tokens.len()), |(_, t)| of(&tokens[t]))
        };
        let (scores, logp, logp_ref) = (row(|t| t.0.0), row(|t| t.1.0 - 1.0), row(|t| t.2.0 - 1.0));
        let mask = Array2::from_elem((1, tokens.len()), true);
        let options = KlInReward { kl_coef: kl_coef.0, ..KlInReward::verl() };
        let penalised = kl::in_reward(&scores, &logp, &logp_ref, &mask, &options).expect("rewards");
        let penalty = kl_coef.0 * penalised.current_kl * tokens.len() as f64;
        (scores.sum() - penalised.rewards.sum() - penalty).abs() < 1e-12
    }
    hold(law as fn(Vec<(Unit, Unit, Unit)>, Unit) -> bool);
}

#[test]
fn the_controller_pulls_towards_the_target_and_no_faster_than_a_fifth() {
    fn law(kl: Unit) -> bool {
        let options = KlController { horizon: 4.0, ..KlController::adaptive(4.0) };
        let (kl, target) = (kl.0.abs(), options.target_kl);
        let next: f64 = kl::controller(1.0, Some(kl), &options).expect("a coefficient");
        (next - 1.0) * (kl - target) >= 0.0 && (next - 1.0).abs() <= 0.2 + 1e-15
    }
    hold(law as fn(Unit) -> bool);
}

#[test]
fn the_enumerated_divergence_is_the_published_one() {
    // Three actions; the estimators' expectations are E k1 = E k3 = KL.
    let kl = full([0.5, -0.3, 0.1], [-0.2, 0.4, 0.0]);
    let by_hand: f64 = {
        let (p, q) = (log_softmax([0.5, -0.3, 0.1]), log_softmax([-0.2, 0.4, 0.0]));
        (0..3).map(|v| p[v].exp() * (p[v] - q[v])).sum()
    };
    assert!((kl - by_hand).abs() < 1e-15);
    let refused = kl::full(&array![[[0.0, 0.0]]], &array![[[0.0, f64::NEG_INFINITY]]]);
    assert_eq!(refused.expect_err("an infinite divergence").code(), "input");
}
