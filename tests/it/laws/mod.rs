//! Laws of the formulas, on random input: what must hold whatever the numbers are.

mod advantage;
pub(crate) mod aggregate;
mod filter;
mod gae;
mod group_ppo;
pub(crate) mod kl;
mod logprob;
mod mask;
mod metrics;
mod objective;
mod optim;
mod reward;
mod rollout;
mod sampling;
mod value;

use grpo_oracle::evaluate::{Question, evaluate, read};
use grpo_oracle::options::{ActorLoss, Aggregate, Clip, GroupNorm, GroupStd, Singleton, Softmax};
use grpo_oracle::reference::{self, Bounded, Dual, Real};
use ndarray::{Array1, Array2, Array3, array};
use quickcheck::{Arbitrary, Gen, QuickCheck, Testable};
use serde_json::json;

/// Half of the last place of single precision.
const F32: f64 = 1.0 / (1 << 24) as f64;

/// A number in [-1, 1].
#[derive(Debug, Clone, Copy)]
struct Unit(f64);

impl Arbitrary for Unit {
    fn arbitrary(g: &mut Gen) -> Self {
        Self(-f64::from(i32::arbitrary(g)) / f64::from(i32::MIN))
    }

    fn shrink(&self) -> Box<dyn Iterator<Item = Self>> {
        let size = self.0.abs();
        Box::new([0.0, self.0 / 2.0].into_iter().filter(move |x| x.abs() < size).map(Self))
    }
}

fn hold(law: impl Testable) {
    QuickCheck::new().tests(300).quickcheck(law);
}

#[test]
fn eq_29_is_eq_30() {
    fn law(log_ratio: Unit, advantage: Unit, low: Unit, high: Unit) -> bool {
        let (log_ratio, advantage, low, high) = (2.0 * log_ratio.0, advantage.0, low.0.abs(), high.0.abs());
        let g = if advantage >= 0.0 { (1.0 + high) * advantage } else { (1.0 - low) * advantage };
        let options = Clip { clip_ratio_low: low, clip_ratio_high: high, ..Clip::eq29() };
        clip(log_ratio, advantage, &options) == -f64::min(log_ratio.exp() * advantage, g)
    }
    hold(law as fn(Unit, Unit, Unit, Unit) -> bool);
}

#[test]
fn the_clipped_loss_has_no_step() {
    fn law(advantage: Unit, low: Unit, high: Unit, dual: bool) -> bool {
        let (low, high) = (0.9 * low.0.abs(), high.0.abs());
        let clip_ratio_c = dual.then_some(3.0);
        let options =
            Clip { clip_ratio_low: low, clip_ratio_high: high, clip_ratio_c, log_ratio_clamp: None };
        [1.0 - low, 1.0 + high, 3.0].iter().all(|edge| {
            let beside = |step: f64| clip(edge.ln() + step, advantage.0, &options);
            let slope = edge * advantage.0.abs(); // the steepest that the loss is, by logp
            (beside(1e-9) - beside(-1e-9)).abs() <= 2.1e-9 * slope + 1e-14
        })
    }
    hold(law as fn(Unit, Unit, Unit, bool) -> bool);
}

#[test]
fn dual_clip_only_lowers_and_only_for_a_negative_advantage() {
    fn law(log_ratio: Unit, advantage: Unit) -> bool {
        let (log_ratio, advantage) = (4.0 * log_ratio.0, advantage.0);
        let (single, dual) = (Clip::eq29(), Clip { clip_ratio_c: Some(3.0), ..Clip::eq29() });
        let (single, dual) = (clip(log_ratio, advantage, &single), clip(log_ratio, advantage, &dual));
        if advantage < 0.0 { dual == f64::min(single, -3.0 * advantage) } else { dual == single }
    }
    hold(law as fn(Unit, Unit) -> bool);
}

#[test]
fn normalised_advantages_sum_to_zero_and_ignore_shift_and_scale() {
    fn law(rewards: Vec<i8>, shift: i8, scale: u8, population: bool) -> bool {
        if rewards.len() < 2 {
            return true;
        }
        let std = if population { GroupStd::Population } else { GroupStd::Sample };
        let options = GroupNorm { std, eps: 0.0, singleton: Singleton::Error, ..GroupNorm::eq28() };
        let scale = (f64::from(scale) + 1.0) / 16.0;
        let normalised = |rewards: Vec<f64>| {
            let group = Array1::zeros(rewards.len());
            reference::advantage::group_norm(&Array1::from(rewards), &group, &options).expect("advantages")
        };
        let plain = normalised(rewards.iter().map(|&r| f64::from(r)).collect());
        let moved = normalised(rewards.iter().map(|&r| f64::from(r) * scale + f64::from(shift)).collect());
        plain.sum().abs() < 1e-11 && plain.iter().zip(&moved).all(|(a, b)| (a - b).abs() < 1e-11)
    }
    hold(law as fn(Vec<i8>, i8, u8, bool) -> bool);
}

#[test]
fn no_gradient_comes_out_of_a_constant() {
    let (zero, infinite) = (Dual::variable(0.0, 0.0), Dual::variable(f64::INFINITY, 0.0));
    for constant in
        [zero / zero, zero.ln(), zero.sqrt(), infinite * zero, infinite / infinite, infinite - infinite]
    {
        assert_eq!(constant.tangent, 0.0, "{constant:?}");
    }
}

#[test]
fn a_product_of_rounded_zeros_is_not_exact() {
    let third = Bounded::exact(1.0) / Bounded::exact(3.0);
    let rounded = third - third;
    assert_eq!(rounded.value, 0.0);
    assert!((rounded * rounded).error > 0.0);
    assert_eq!((rounded * Bounded::exact(0.0)).error, 0.0);
}

/// Which of two numbers is smaller is in doubt only within reach of their errors, which then both count.
#[test]
fn the_smaller_of_two_numbers_in_reach_of_each_other_is_in_doubt() {
    let third = Bounded::exact(1.0) / Bounded::exact(3.0); // an error of a third of a unit
    let unsure = |value: f64| Bounded { value, error: 1.0, margin: 0.5 };
    let unit = 1.0 / 256.0; // of the coarsest format
    for (other, margin) in
        [(third.value, 0.5), (third.value + 1.3 * unit, 0.5), (third.value + 1.4 * unit, f64::INFINITY)]
    {
        let smaller = third.min(unsure(other));
        assert_eq!((smaller.value, smaller.margin), (third.value, margin), "{other}");
    }
    // The larger one may be the smaller one in truth, by as much as its error reaches below.
    assert_eq!(third.min(unsure(third.value + 0.25 * unit)).error, 0.75);
    assert_eq!(third.min(unsure(third.value + 1.4 * unit)).error, third.error);
}

#[test]
fn nothing_is_certain_of_what_comes_out_of_an_infinity() {
    let (one, infinite) = (Bounded::exact(1.0), Bounded::exact(f64::INFINITY));
    for lost in [one / infinite, infinite - infinite, infinite / infinite, infinite * Bounded::exact(0.0)] {
        assert_eq!(lost.margin, 0.0, "{lost:?}");
    }
    for kept in [one + infinite, infinite + one, infinite * one, infinite / one] {
        assert_eq!((kept.value, kept.margin), (f64::INFINITY, f64::INFINITY), "{kept:?}");
    }
}

/// A reading may be read again: the derivative of the derivative.
#[test]
fn second_derivatives_come_by_nesting() {
    let second = |x: f64| {
        let x = Dual::variable(Dual::variable(x, 1.0), Dual::constant(1.0));
        let tangent = (Dual::constant(3.0) * x * x).tangent;
        (tangent.value, tangent.tangent)
    };
    assert_eq!((second(0.0), second(1.0)), ((0.0, 6.0), (6.0, 6.0)));
    let constant = Dual::variable(Dual::variable(f64::INFINITY, 0.0), Dual::constant(0.0));
    assert_eq!((constant * constant).tangent, Dual::constant(0.0));
}

#[test]
fn empty_arrays_without_end_are_refused() {
    for shape in [json!([1_u64 << 40, 0]), json!([1_u64 << 40, 1_u64 << 40, 0])] {
        let inputs =
            json!({ "values": { "shape": shape, "data": [] }, "mask": { "shape": shape, "data": [] } });
        let question =
            Question::from_json("mask.sum", &json!({ "options": { "axis": 1 }, "inputs": inputs }));
        assert_eq!(question.unwrap_err().code(), "input");
    }
}

#[test]
fn dual_arithmetic_agrees_with_differences() {
    fn f<R: Real>(x: R) -> R {
        let two = R::constant(2.0);
        let root = (x * x + two).sqrt();
        (root / (two + x.exp())).ln() - (x - two).abs() / root + R::sum([x * root, -x])
    }
    fn law(x: Unit) -> bool {
        let difference = (f(x.0 + 1e-5) - f(x.0 - 1e-5)) / 2e-5;
        (f(Dual::variable(x.0, 1.0)).tangent - difference).abs() < 1e-8
    }
    hold(law as fn(Unit) -> bool);
}

#[test]
fn exact_gradients_of_the_actor_loss_agree_with_differences() {
    fn law(tokens: Vec<(Unit, Unit, Unit, bool)>) -> bool {
        // Within the clip bounds, where the loss is smooth.
        let logp: Vec<f64> = tokens.iter().map(|token| -1.0 + 0.15 * token.0.0).collect();
        let options =
            ActorLoss { kl_loss_coef: 0.5, aggregate: Aggregate::dr_grpo(4.0), ..ActorLoss::grpo() };
        let loss = |logp: Vec<Dual<f64>>| {
            let row =
                |entries: Vec<Dual<f64>>| Array2::from_shape_vec((1, entries.len()), entries).expect("a row");
            let old = row(tokens.iter().map(|_| Dual::constant(-1.0)).collect());
            let reference = row(tokens.iter().map(|token| Dual::constant(-1.0 + token.1.0)).collect());
            let advantages = row(tokens.iter().map(|token| Dual::constant(token.2.0)).collect());
            let mask = Array2::from_shape_fn((1, tokens.len()), |(_, t)| tokens[t].3);
            reference::objective::actor_loss(
                &row(logp),
                &old,
                Some(&reference),
                &advantages,
                &mask,
                None,
                None,
                &options,
            )
            .expect("a loss")
            .loss
        };
        (0..logp.len()).all(|entry| {
            let seeded = |step: f64, tangent: f64| {
                let at = |(t, &x): (usize, &f64)| {
                    let here = f64::from(u8::from(t == entry));
                    Dual::variable(x + here * step, here * tangent)
                };
                loss(logp.iter().enumerate().map(at).collect())
            };
            let difference = (seeded(1e-5, 0.0).value - seeded(-1e-5, 0.0).value) / 2e-5;
            (seeded(0.0, 1.0).tangent - difference).abs() < 1e-8
        })
    }
    hold(law as fn(Vec<(Unit, Unit, Unit, bool)>) -> bool);
}

#[test]
fn exact_gradients_of_the_log_probability_and_entropy_agree_with_differences() {
    fn law(logits: (Unit, Unit, Unit, Unit), drawn: usize) -> bool {
        let logits = [logits.0.0, logits.1.0, logits.2.0, logits.3.0].map(|z| 3.0 * z);
        (0..4).all(|entry| {
            let at = |step: f64, tangent: f64| {
                let logits = Array3::from_shape_fn((1, 1, 4), |(_, _, v)| {
                    let here = f64::from(u8::from(v == entry));
                    Dual::variable(logits[v] + here * step, here * tangent)
                });
                let tokens = array![[(drawn % 4) as i64]];
                let token = reference::logprob::token(&logits, &tokens, &Softmax::at(0.7))
                    .expect("log-probabilities");
                (token.logp[[0, 0]], token.entropy[[0, 0]])
            };
            let (up, down, exact) = (at(1e-5, 0.0), at(-1e-5, 0.0), at(0.0, 1.0));
            let agree = |up: f64, down: f64, exact: f64| ((up - down) / 2e-5 - exact).abs() < 1e-8;
            agree(up.0.value, down.0.value, exact.0.tangent)
                && agree(up.1.value, down.1.value, exact.1.tangent)
        })
    }
    hold(law as fn((Unit, Unit, Unit, Unit), usize) -> bool);
}

#[test]
fn honest_single_precision_stays_within_the_bound() {
    fn law(rewards: Vec<i8>, base: u8, fineness: u8) -> bool {
        let rewards = near(base, fineness, &rewards);
        rewards.len() < 2 || excess(&rewards, &honest_f32(&rewards)) <= 1.0
    }
    hold(law as fn(Vec<i8>, u8, u8) -> bool);
}

#[test]
fn a_one_pass_variance_falls_outside_the_bound() {
    let rewards = near(230, 20, &[3, -2, 9, 5, -7, 0, 1, -4]); // around 0.9, within 1e-5 of each other
    assert!(excess(&rewards, &honest_f32(&rewards)) <= 1.0);
    assert!(excess(&rewards, &one_pass_f32(&rewards)) > 1.0);
    // The same shortcut is fine where the rewards are far apart, so the bound forbids nothing that is harmless.
    let rewards = near(0, 0, &[1, 0, 0, 1, 1, 0, 0, 0]);
    assert!(excess(&rewards, &one_pass_f32(&rewards)) <= 1.0);
}

#[test]
fn a_number_that_single_precision_cannot_hold_has_a_bound_that_says_so() {
    // exp(-100) is a subnormal single, with four digits left; its logarithm is off by 3e-4 and more.
    let tiny = Bounded::exact(-100.0).exp();
    let (value, single) = (tiny.ln(), (-100.0_f32).exp().ln());
    let error = (f64::from(single) - value.value).abs();
    assert!(error > 1e-6 && error <= 4.0 * F32 * value.error, "{error:e}, bound {:e}", value.error);
    // In double precision nothing is lost, and the bound is not far from what it would be.
    assert!(Bounded::exact(-80.0).exp().error < 3.0 * (-80.0_f64).exp());
}

#[test]
fn the_published_bounds_hold() {
    let of = |rewards: &[f64]| bounds(rewards).into_iter().fold(0.0, f64::max);
    let (apart, together) = (of(&[0.9, 1.3, 1.7]), of(&near(230, 20, &[3, -2, 9, 5])));
    assert!((10.0..40.0).contains(&apart), "{apart}"); // spec/README.md: 25 units
    assert!((1e5..1e6).contains(&together), "{together}"); // several hundred thousand
}

/// One token's clipped loss.
fn clip(log_ratio: f64, advantage: f64, options: &Clip) -> f64 {
    let loss = reference::objective::clip(
        &array![[log_ratio]],
        &array![[0.0]],
        &array![[advantage]],
        &array![[true]],
        options,
    );
    loss.expect("a loss")[[0, 0]]
}

/// Rewards around `base / 256` in steps of a power of two, all of which single precision represents.
fn near(base: u8, fineness: u8, steps: &[i8]) -> Vec<f64> {
    let step = f64::from(2.0_f32.powi(-i32::from(fineness % 21)));
    steps.iter().map(|&s| f64::from(base) / 256.0 + f64::from(s) * step).collect()
}

fn one_group(rewards: &[f64]) -> Question {
    let inputs = json!({"rewards": rewards, "group": vec![0; rewards.len()]});
    Question::from_json("advantage.group_norm", &json!({"inputs": inputs})).expect("a question")
}

fn bounds(rewards: &[f64]) -> Vec<f64> {
    let answer = evaluate("advantage.group_norm", &one_group(rewards)).expect("an answer");
    answer.bounds["advantages"].reals().to_vec()
}

/// The largest error of a single-precision answer over its tolerance; above 1 the answer fails.
fn excess(rewards: &[f64], answer: &[f32]) -> f64 {
    let exact = evaluate("advantage.group_norm", &one_group(rewards)).expect("an answer");
    let (values, bounds) = (exact.outputs["advantages"].reals(), exact.bounds["advantages"].reals());
    let over = |((&got, value), bound): ((&f32, &f64), &f64)| {
        let (error, tolerance) = ((f64::from(got) - value).abs(), 4.0 * F32 * bound);
        if error == 0.0 {
            0.0
        } else if error.is_nan() {
            f64::INFINITY
        } else {
            error / tolerance
        }
    };
    answer.iter().zip(values).zip(bounds).map(over).fold(0.0, f64::max)
}

fn honest_f32(rewards: &[f64]) -> Vec<f32> {
    let outputs = read::<f32>("advantage.group_norm", &one_group(rewards), |value| value as f32);
    outputs.expect("an answer")[0].1.iter().copied().collect()
}

/// Eq. 28 with the variance as mean of squares minus square of the mean.
fn one_pass_f32(rewards: &[f64]) -> Vec<f32> {
    let rewards: Vec<f32> = rewards.iter().map(|&reward| reward as f32).collect();
    let n = rewards.len() as f32;
    let (sum, squares) = rewards.iter().fold((0.0, 0.0), |(sum, squares), r| (sum + r, squares + r * r));
    let std = ((squares - sum * sum / n) / (n - 1.0)).max(0.0).sqrt();
    rewards.iter().map(|r| (r - sum / n) / (std + 1e-6)).collect()
}
