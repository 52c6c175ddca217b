//! Laws of `objective.*`.

use grpo_oracle::options::{Cispo, Clip, Dispatch, Gmpo, Gspo, ImportanceLevel, Ratio, Sapo};
use grpo_oracle::reference::{Dual, objective};
use ndarray::array;
use serde_json::json;

use super::logprob::ask;
use super::{Unit, hold};

#[test]
fn the_clipped_loss_without_bounds_is_the_off_policy_loss() {
    fn law(log_ratio: Unit, advantage: Unit) -> bool {
        let (new, old, advantages) = (array![[log_ratio.0]], array![[0.0]], array![[advantage.0]]);
        let open = Clip { clip_ratio_low: 1.0, clip_ratio_high: 1e9, ..Clip::eq29() };
        let clip = objective::clip(&new, &old, &advantages, &array![[true]], &open).expect("a loss");
        clip == objective::off_policy(&new, &old, &advantages, &Ratio::unclamped()).expect("a loss")
    }
    hold(law as fn(Unit, Unit) -> bool);
}

/// `evaluate` compares shapes before it asks; whoever calls a function by itself is told by the function.
#[test]
fn arrays_that_do_not_go_together_are_refused_by_the_functions_too() {
    let (wide, narrow) = (array![[0.0, 0.0]], array![[0.0]]);
    let refused = objective::clip(&wide, &narrow, &wide, &array![[true, true]], &Clip::eq29());
    assert_eq!(refused.unwrap_err().code(), "shape");
}

#[test]
fn on_policy_all_losses_of_a_token_pull_alike() {
    // The gradient by logp is -A; only the values differ.
    fn law(logp: Unit, advantage: Unit) -> bool {
        let (new, old) = (array![[Dual::variable(logp.0, 1.0)]], array![[Dual::variable(logp.0, 0.0)]]);
        let (a, kept) = (Dual::variable(advantage.0, 0.0), array![[true]]);
        let advantages = array![[a]];
        let losses = [
            objective::policy_gradient(&new, &advantages).expect("a loss")[[0, 0]],
            objective::off_policy(&new, &old, &advantages, &Ratio::unclamped()).expect("a loss")[[0, 0]],
            objective::clip(&new, &old, &advantages, &kept, &Clip::verl()).expect("a loss")[[0, 0]],
            objective::gspo(&new, &old, &advantages, &kept, &Gspo::paper()).expect("a loss").loss[[0, 0]],
            objective::gspo(&new, &old, &advantages, &kept, &Gspo::verl()).expect("a loss").loss[[0, 0]],
            objective::cispo(&new, &old, &advantages, &kept, &Cispo::verl()).expect("a loss")[[0, 0]],
            objective::gmpo(&new, &old, &array![a], &kept, &Gmpo::paper()).expect("a loss")[0],
            objective::sapo(&new, &old, &advantages, &kept, &Sapo::paper()).expect("a loss")[[0, 0]],
        ];
        losses.iter().all(|loss| (loss.tangent + advantage.0).abs() < 1e-15)
    }
    hold(law as fn(Unit, Unit) -> bool);
}

#[test]
fn the_dispatcher_is_the_losses_that_it_names() {
    fn law(logp: (Unit, Unit), reward: Unit, baseline: Unit) -> bool {
        let (logp, old) = (array![[logp.0.0, logp.1.0]], array![[0.0, 0.0]]);
        let (rewards, baselines) = (array![reward.0], array![baseline.0]);
        let advantages = array![[reward.0 - baseline.0, reward.0 - baseline.0]];
        let named = |options: Dispatch| {
            objective::dispatch(&logp, Some(&old), Some(&rewards), Some(&advantages), &options)
                .expect("a loss")
                .loss
        };
        let with_baseline = objective::reinforce_with_baseline(&logp, &rewards, &baselines).expect("a loss");
        let without = objective::reinforce_with_baseline(&logp, &rewards, &array![0.0]).expect("a loss");
        let kept = array![[true, true]];
        let clip = objective::clip(&logp, &old, &advantages, &kept, &Clip::eq29()).expect("a loss");
        named(Dispatch::reinforce_with_baseline()) == with_baseline
            && named(Dispatch::no_baseline()) == without
            && named(Dispatch::grpo_clip()) == clip
    }
    hold(law as fn((Unit, Unit), Unit, Unit) -> bool);
}

#[test]
fn gspo_of_one_token_is_the_clipped_loss() {
    fn law(log_ratio: Unit, advantage: Unit) -> bool {
        let (new, old) = (array![[log_ratio.0]], array![[0.0]]);
        let (advantages, kept) = (array![[advantage.0]], array![[true]]);
        let bounds = Clip { clip_ratio_low: 3e-4, clip_ratio_high: 4e-4, ..Clip::eq29() };
        let clip = objective::clip(&new, &old, &advantages, &kept, &bounds).expect("a loss");
        [ImportanceLevel::Sequence, ImportanceLevel::SequenceToken, ImportanceLevel::SequenceSum].iter().all(
            |&importance_sampling_level| {
                let options = Gspo { importance_sampling_level, ..Gspo::paper() };
                objective::gspo(&new, &old, &advantages, &kept, &options).expect("a loss").loss == clip
            },
        )
    }
    hold(law as fn(Unit, Unit) -> bool);
}

#[test]
fn gspo_and_gspo_token_differ_only_where_advantages_do() {
    fn law(logp: [i8; 3], advantages: [i8; 3]) -> bool {
        let of = |numbers: [i8; 3]| numbers.map(|number| f64::from(number) / 64.0);
        let (zeros, ones) = ([[0.0; 3]], [[1; 3]]);
        let gradient = |level: &str, advantages: [f64; 3]| {
            let options =
                json!({"importance_sampling_level": level, "clip_ratio_low": 1.0, "clip_ratio_high": 100.0});
            let inputs = json!({
                "logp": [of(logp)], "logp_old": zeros, "advantages": [advantages], "response_mask": ones,
            });
            ask("objective.gspo", options, inputs).gradients["logp"].reals().to_vec()
        };
        let near = |left: &[f64], right: &[f64]| left.iter().zip(right).all(|(l, r)| (l - r).abs() < 1e-12);
        let uniform = [of(advantages)[0]; 3];
        let (whole, token) = (gradient("sequence", uniform), gradient("sequence_token", uniform));
        // With unlike advantages the sequence's gradient is the mean of the tokens' own, at every token.
        let (mixed, own) = (gradient("sequence", of(advantages)), gradient("sequence_token", of(advantages)));
        let mean = own.iter().sum::<f64>() / 3.0;
        near(&whole, &token) && near(&mixed, &[mean; 3])
    }
    fn arrays(logp: (i8, i8, i8), advantages: (i8, i8, i8)) -> bool {
        law([logp.0, logp.1, logp.2], [advantages.0, advantages.1, advantages.2])
    }
    hold(arrays as fn((i8, i8, i8), (i8, i8, i8)) -> bool);
}

#[test]
fn the_readings_of_the_cispo_bound_are_far_apart() {
    let loss = |options: Cispo| {
        let (new, old) = (array![[-1.0]], array![[-2.0]]); // ratio e
        objective::cispo(&new, &old, &array![[1.0]], &array![[true]], &options).expect("a loss")[[0, 0]]
    };
    let at = |cispo: Cispo| Cispo { clip_ratio_high: 0.28, ..cispo };
    assert_eq!((loss(at(Cispo::minimax())), loss(at(Cispo::trl()))), (1.28, 0.28));
}

#[test]
fn gmpo_is_the_published_form_by_signs() {
    fn law(log_ratios: Vec<Unit>, advantage: Unit) -> bool {
        let (low, high, sign) = (0.2, 0.28, advantage.0.signum());
        let clipped = |d: f64| sign * f64::min(sign * d, sign * d.clamp(-low, high));
        let mean = log_ratios.iter().map(|d| clipped(d.0)).sum::<f64>() / log_ratios.len() as f64;
        let width = log_ratios.len();
        let new = ndarray::Array2::from_shape_fn((1, width), |(_, t)| log_ratios[t].0);
        let (old, kept) = (new.mapv(|_| 0.0), new.mapv(|_| true));
        let options = Gmpo { clip_ratio_low: low, clip_ratio_high: high };
        let loss = objective::gmpo(&new, &old, &array![advantage.0], &kept, &options).expect("a loss")[0];
        width == 0 || advantage.0 == 0.0 || (loss + advantage.0 * mean.exp()).abs() < 1e-13
    }
    hold(law as fn(Vec<Unit>, Unit) -> bool);
    let bound = |advantage: f64, log_ratio: f64| {
        let options = Gmpo { clip_ratio_low: 0.2, clip_ratio_high: 0.28 };
        let (new, kept) = (array![[log_ratio]], array![[true]]);
        objective::gmpo(&new, &array![[0.0]], &array![advantage], &kept, &options).expect("a loss")[0]
    };
    assert!((bound(1.0, 5.0) + 1.3231).abs() < 1e-4 && (bound(-1.0, -5.0) - 0.8187).abs() < 1e-4);
}

#[test]
fn the_soft_gate_is_bounded_and_its_gradient_is_its_slope() {
    fn law(log_ratio: Unit, advantage: Unit) -> bool {
        let loss = |log_ratio: Dual<f64>| {
            let (new, old) = (array![[log_ratio]], array![[Dual::variable(0.0, 0.0)]]);
            let advantages = array![[Dual::variable(advantage.0, 0.0)]];
            objective::sapo(&new, &old, &advantages, &array![[true]], &Sapo::paper()).expect("a loss")[[0, 0]]
        };
        let d = 5.0 * log_ratio.0;
        let at = |step: f64| loss(Dual::variable(d + step, 0.0)).value;
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        let bound = 4.0 * advantage.0.abs();
        at(0.0).abs() <= bound && (loss(Dual::variable(d, 1.0)).tangent - slope).abs() < 1e-7
    }
    hold(law as fn(Unit, Unit) -> bool);
}

#[test]
fn weighted_by_the_ratio_the_kl_term_has_the_divergences_gradient() {
    let softmax = |logits: [f64; 3]| {
        let sum: f64 = logits.iter().map(|z| z.exp()).sum();
        logits.map(|z| z.exp() / sum)
    };
    let (policy, old, reference) =
        (softmax([0.5, -0.3, 0.1]), softmax([0.0, 0.2, -0.4]), softmax([-0.2, 0.4, 0.0]));
    let kl: f64 = (0..3).map(|a| policy[a] * (policy[a] / reference[a]).ln()).sum();
    let exact = [0, 1, 2].map(|j| policy[j] * ((policy[j] / reference[j]).ln() - kl));
    // Each action is a token drawn from the old policy; the gradient goes on from logp to the logits.
    let expected = |kl_loss_type: &str, kl_ratio_weight: bool| {
        let token = |action: usize| {
            let inputs = json!({
                "logp": [[policy[action].ln()]], "logp_old": [[old[action].ln()]],
                "logp_ref": [[reference[action].ln()]], "advantages": [0.0], "response_mask": [[1]],
            });
            let options = json!({"kl_loss_type": kl_loss_type, "kl_ratio_weight": kl_ratio_weight, "kl_loss_coef": 1.0});
            let answer = ask("objective.actor_loss", options, inputs);
            (answer.outputs["kl_loss"].reals()[0], answer.gradients["logp"].reals()[0])
        };
        let tokens = [0, 1, 2].map(token);
        let total: f64 = (0..3).map(|a| old[a] * tokens[a].1).sum();
        let value: f64 = (0..3).map(|a| old[a] * tokens[a].0).sum();
        (value, [0, 1, 2].map(|j| old[j] * tokens[j].1 - policy[j] * total))
    };
    for estimator in ["k1", "k3"] {
        let (value, gradient) = expected(estimator, true);
        assert!((value - kl).abs() < 1e-14, "{estimator}: {value} is not {kl}");
        assert!((0..3).all(|j| (gradient[j] - exact[j]).abs() < 1e-14), "{estimator}: {gradient:?}");
        let (_, unweighted) = expected(estimator, false);
        assert!((0..3).any(|j| (unweighted[j] - exact[j]).abs() > 0.01), "{estimator}: {unweighted:?}");
    }
}
