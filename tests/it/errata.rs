//! The counter-examples of `spec/errata.md`, run against the reference.
#![expect(clippy::approx_constant, reason = "the digits that the page prints")]

use std::collections::BTreeSet;

use grpo_oracle::evaluate::{Evaluation, Question, evaluate};
use serde_json::{Value, json};

/// Every erratum with its counter-example, in the order of the page.
const ERRATA: &[(&str, fn())] = &[
    ("new-adv.std", new_adv_std),
    ("new-adv.kept-std", new_adv_kept_std),
    ("new-adv.zero-std", new_adv_zero_std),
    ("notes.std", notes_std),
    ("notes.singleton", notes_singleton),
    ("notes.eps", notes_eps),
    ("notes.agreeing-groups", notes_agreeing_groups),
    ("notes.scale", notes_scale),
    ("notes.large-values", notes_large_values),
    ("guide.population-std", guide_population_std),
    ("guide.std-set-to-one", guide_std_set_to_one),
    ("guide.advantage-std", guide_advantage_std),
    ("fix.no-std", fix_no_std),
    ("fix.equality", fix_equality),
    ("notes.negative-advantage", notes_negative_advantage),
    ("notes.decrease", notes_decrease),
    ("notes.expectation", notes_expectation),
    ("notes.flat-mean", notes_flat_mean),
    ("notes.resampled", notes_resampled),
    ("notes.flattened", notes_flattened),
    ("notes.off-policy", notes_off_policy),
    ("guide.log-ratio", guide_log_ratio),
    ("guide.unclipped", guide_unclipped),
    ("guide.clip-ratio", guide_clip_ratio),
    ("guide.falling-loss", guide_falling_loss),
    ("guide.scale-factor", guide_scale_factor),
    ("group.fallback", group_fallback),
    ("guide.kl-loss", guide_kl_loss),
    ("guide.kl-health", guide_kl_health),
    ("guide.kl-mandatory", guide_kl_mandatory),
    ("new-adv.best-three", new_adv_best_three),
    ("new-adv.sharper", new_adv_sharper),
    ("new-adv.sign", new_adv_sign),
    ("new-adv.share", new_adv_share),
    ("new-adv.processed", new_adv_processed),
    ("group.effectiveness", group_effectiveness),
    ("group.memory", group_memory),
    ("group.share", group_share),
    ("group.size-alone", group_size_alone),
    ("group.sparsity", group_sparsity),
    ("group.broadcast", group_broadcast),
    ("fix.resampling", fix_resampling),
    ("fix.distinct", fix_distinct),
    ("fix.cost", fix_cost),
    ("guide.top-p", guide_top_p),
];

#[test]
fn every_erratum_has_its_counter_example() {
    let page = include_str!("../../spec/errata.md");
    let ids: Vec<&str> = page.lines().filter_map(|line| line.strip_prefix("e[")?.strip_suffix(']')).collect();
    let unique: BTreeSet<&str> = ids.iter().copied().collect();
    assert_eq!(unique.len(), ids.len(), "an erratum's id stands twice in spec/errata.md");
    let run: Vec<&str> = ERRATA.iter().map(|&(id, _)| id).collect();
    assert_eq!(ids, run, "spec/errata.md (left) and tests/it/errata.rs (right) name different errata");
}

#[test]
fn the_counter_examples_hold() {
    for (id, counter_example) in ERRATA {
        println!("e[{id}]"); // shown where the example fails
        counter_example();
    }
}

fn new_adv_std() {
    let rewards = [0.1, 0.5, 0.9, 1.3, 1.7];
    let said = [-1.33, -0.67, 0.0, 0.67, 1.33];
    let sample = advantages(&rewards, json!({"std": "sample", "eps": 0.0}));
    let population = advantages(&rewards, json!({"std": "population", "eps": 0.0}));
    close(&sample, &[-1.2649, -0.6325, 0.0, 0.6325, 1.2649]);
    close(&population, &[-1.4142, -0.7071, 0.0, 0.7071, 1.4142]);
    // The deviations themselves, and what the rounded one gives.
    close(&[0.8 / sample[4], 0.8 / population[4]], &[0.6325, 0.5657]);
    close(&[0.8 / 0.6, 0.4 / 0.6], &[1.3333, 0.6667]);
    assert!((said[4] - sample[4]).abs() > 0.06 && (said[4] - population[4]).abs() > 0.06);
}

fn new_adv_kept_std() {
    let kept = [0.9, 1.3, 1.7];
    close(&advantages(&kept, json!({"std": "sample", "eps": 0.0})), &[-1.0, 0.0, 1.0]);
    close(&advantages(&kept, json!({"std": "population", "eps": 0.0})), &[-1.2247, 0.0, 1.2247]);
}

fn new_adv_zero_std() {
    let threshold = |eps: f64| advantages(&[0.0, 1e-6], json!({"eps_mode": "threshold", "eps": eps}));
    assert_eq!(threshold(1e-6), [0.0, 0.0]);
    close(&threshold(1e-8), &[-0.7071, 0.7071]);
}

fn notes_std() {
    let rewards = [0.9, 0.8, 0.7, 0.6, 0.5];
    close(&advantages(&rewards, json!({"std": "sample", "eps": 1e-8}))[..1], &[1.2649]);
    close(&advantages(&rewards, json!({"std": "population", "eps": 1e-8}))[..1], &[1.4142]);
}

fn notes_singleton() {
    assert!(naive_f32(&[0.9], 1e-8)[0].is_nan());
    assert_eq!(advantages(&[0.9], json!({"singleton": "raw"})), [0.9]);
    assert_eq!(advantages(&[0.9], json!({"singleton": "zero"})), [0.0]);
}

fn notes_eps() {
    assert!((f64::from(naive_f32(&[0.9; 7], 1e-8)[0]) + 0.80).abs() < 0.01);
    assert!((f64::from(naive_f32(&[0.9; 7], 1e-6)[0]) + 0.06).abs() < 0.01);
    assert_eq!(advantages(&[0.9; 7], json!({"eps": 1e-8})), [0.0; 7]);
}

fn notes_agreeing_groups() {
    assert_eq!(advantages(&[1.0; 8], json!({})), [0.0; 8]);
    let of_a_right_answer = |right: usize| {
        let rewards: Vec<f64> = (0..8).map(|i| f64::from(u8::from(i < right))).collect();
        advantages(&rewards, json!({}))[0]
    };
    close(&[1, 4, 7].map(of_a_right_answer), &[2.4749, 0.9354, 0.3536]);
}

fn notes_scale() {
    for scale in [1.0, 100.0] {
        let rewards = [scale, 0.0, 0.0, 0.0];
        close(&advantages(&rewards, json!({"eps": 0.0})), &[1.5, -0.5, -0.5, -0.5]);
        close(&advantages(&rewards, json!({"std": "none"}))[..1], &[0.75 * scale]);
    }
}

fn notes_large_values() {
    for reward in [1.0, 1e-9] {
        let rewards = [reward, 0.0, 0.0, 0.0];
        close(&advantages(&rewards, json!({"std": "sample", "eps": 0.0}))[..1], &[1.5]);
        close(&advantages(&rewards, json!({"std": "population", "eps": 0.0}))[..1], &[1.7321]);
    }
    assert!(advantages(&[1e-9, 0.0, 0.0, 0.0], json!({}))[0] < 0.001);
}

fn guide_population_std() {
    let rewards = [1.0, 0.0, 0.0, 0.0];
    close(&advantages(&rewards, json!({"std": "population", "eps": 0.0}))[..1], &[1.7321]);
    close(&advantages(&rewards, json!({}))[..1], &[1.5]);
    let constant: [f64; 3] = [1.0; 3];
    let deviation = constant.iter().map(|r| (r - 1.0).powi(2)).sum::<f64>().sqrt();
    assert!(((constant[0] - 1.0) / deviation).is_nan()); // 0/0, as the guide writes it
}

fn guide_std_set_to_one() {
    assert_eq!(advantages(&[0.9; 7], json!({})), [0.0; 7]);
    assert_eq!(advantages(&[0.9], json!({"singleton": "unit_std"})), [0.9 / (1.0 + 1e-6)]);
}

fn guide_advantage_std() {
    let pooled = |groups: &[[f64; 4]]| {
        let all: Vec<f64> = groups.iter().flat_map(|group| advantages(group, json!({}))).collect();
        (all.iter().map(|a| a * a).sum::<f64>() / all.len() as f64).sqrt() // their mean is 0
    };
    close(&[pooled(&[[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]])], &[0.8660]);
    close(&[pooled(&[[1.0, 0.0, 0.0, 0.0], [1.0; 4]])], &[0.6124]);
}

fn fix_no_std() {
    let rewards = [1.0, 0.0, 0.0, 0.0];
    close(&advantages(&rewards, json!({"std": "none"}))[..1], &[0.75]);
    close(&advantages(&rewards, json!({}))[..1], &[1.5]);
}

fn fix_equality() {
    let group = json!({"values": [0.85, 0.75, 0.80, 0.90], "mask": [1, 1, 1, 1]});
    let baseline = output(&ask("mask.mean", json!({}), group), "mean")[0];
    assert_ne!(baseline, 0.825);
    assert!((baseline - 0.825).abs() < 1e-15);
}

fn notes_negative_advantage() {
    let simplified = |ratio: f64| -f64::min(ratio, 0.8);
    let one_sided = |ratio: f64| f64::min(-ratio, -f64::max(ratio, 0.8)); // `grpo_clip_loss` of the notes
    let eq30 = |ratio: f64| f64::min(-ratio, -0.8);
    for (ratio, right, wrong) in [(0.5, -0.8, -0.5), (0.9, -0.9, -0.8), (1.0, -1.0, -0.8), (1.5, -1.5, -0.8)]
    {
        let (loss, gradient) = clip(ratio, -1.0, json!({}));
        close(&[-loss, one_sided(ratio), eq30(ratio)], &[right; 3]);
        close(&[simplified(ratio)], &[wrong]);
        // Where the right gradient flows, the simplification's does not, and the other way round.
        let slope = (simplified(ratio * 1.01) - simplified(ratio)) / 0.01;
        assert_eq!(gradient == 0.0, slope != 0.0, "at ratio {ratio}");
    }
}

fn notes_decrease() {
    let objectives = [0.9, 0.8, 0.5].map(|ratio| -clip(ratio, -1.0, json!({})).0);
    close(&objectives, &[-0.9, -0.8, -0.8]);
}

fn notes_expectation() {
    let (old, new, advantage) = ([0.5, 0.5], [0.8, 0.2], [1.0, -1.0]);
    let logs = |policy: [f64; 2]| json!([policy.map(f64::ln)]);
    let ratio =
        output(&ask("logprob.ratio", json!({}), json!({"logp": logs(new), "logp_old": logs(old)})), "ratio");
    let expected =
        |policy: [f64; 2]| policy[0] * ratio[0] * advantage[0] + policy[1] * ratio[1] * advantage[1];
    let value_of_new = new[0] * advantage[0] + new[1] * advantage[1];
    close(&[value_of_new, expected(old), expected(new)], &[0.6, 0.6, 1.2]);
}

fn notes_flat_mean() {
    let mask: Vec<Vec<u8>> = [4, 7].map(|kept| (0..7).map(|t| u8::from(t < kept)).collect()).to_vec();
    let weights = |mode: &str, mask: &[Vec<u8>]| {
        let zeros = [[0.0; 7]; 2];
        let inputs =
            json!({"logp": zeros, "logp_old": zeros, "advantages": [2.0, 2.0], "response_mask": mask});
        let answer = ask("objective.actor_loss", json!({"loss_agg_mode": mode}), inputs);
        let gradient = answer.gradients["logp"].reals().to_vec();
        [-gradient[0], -gradient[7], -gradient[6]] // a token of each sequence, a padded slot
    };
    close(&weights("seq-mean-token-mean", &mask), &[0.25, 0.1429, 0.0]);
    close(&weights("token-mean", &mask), &[0.1818, 0.1818, 0.0]);
    close(&weights("token-mean", &[vec![1; 7], vec![1; 7]]), &[0.1429, 0.1429, 0.1429]);
}

fn notes_resampled() {
    let ratio = |logp: f64, logp_old: f64| {
        let inputs = json!({"logp": [[logp]], "logp_old": [[logp_old]]});
        output(&ask("logprob.ratio", json!({}), inputs), "ratio")[0]
    };
    assert_eq!(ratio(-1.0, -1.0), 1.0); // the same token under the same policy
    assert_eq!(ratio(-1.0, -2.0), f64::exp(1.0));
}

fn notes_flattened() {
    let (responses, tokens) = (8, 3);
    let per_token = vec![vec![-1.0; responses * tokens]];
    let inputs = |advantages: Value| {
        json!({
            "logp": per_token, "logp_old": per_token, "advantages": advantages,
            "response_mask": [vec![1; responses * tokens]],
        })
    };
    let question = json!({"inputs": inputs(json!([vec![1.0; responses]]))});
    let question = Question::from_json("objective.clip", &question).expect("a question");
    assert_eq!(evaluate("objective.clip", &question).expect_err("8 against 24").code(), "shape");
    ask("objective.clip", json!({}), inputs(json!([vec![1.0; responses * tokens]])));
}

fn notes_off_policy() {
    let rewards = [1.0, 1.0];
    let gradient = |weights: &[f64]| {
        let logp = [[-1.0, -2.0]; 2];
        let inputs = json!({"logp": logp, "logp_old": logp, "advantages": weights});
        ask("objective.off_policy", json!({}), inputs).gradients["logp"].reals().to_vec()
    };
    assert_eq!(gradient(&rewards), [-1.0; 4]);
    assert_eq!(gradient(&advantages(&rewards, json!({}))), [0.0; 4]);
}

fn guide_log_ratio() {
    let wide_open = json!({"clip_ratio_high": 9.0});
    let log_ratio_form = |ratio: f64| (-ratio.ln(), -1.0); // value, gradient by logp
    let (value, gradient) = clip(1.0, 1.0, wide_open.clone());
    close(&[value, gradient], &[-1.0, -1.0]);
    assert_eq!(log_ratio_form(1.0), (0.0, -1.0)); // equal gradient, another value
    let (value, gradient) = clip(1.5, 1.0, wide_open);
    close(&[value, gradient], &[-1.5, -1.5]);
    close(&[log_ratio_form(1.5).0], &[-0.4055]);
    let (value, gradient) = clip(1.5, 1.0, json!({}));
    close(&[value, gradient], &[-1.2, 0.0]);
}

fn guide_unclipped() {
    let (advantage, ratio) = (1.0, 1.5);
    assert_eq!(-advantage * ratio, -1.5);
    close(&[clip(ratio, advantage, json!({})).0], &[-1.2]);
}

fn guide_clip_ratio() {
    let as_recommended = json!({"clip_ratio_low": 0.1, "clip_ratio_high": 0.1});
    close(&[clip(1.15, 1.0, json!({})).0, clip(1.15, 1.0, as_recommended).0], &[-1.15, -1.1]);
}

fn guide_falling_loss() {
    for rewards in [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 1.0, 0.0], [1.0; 4]] {
        let (logp, mask) = ([[-1.0, -2.0]; 4], [[1, 1]; 4]);
        let inputs = json!({
            "logp": logp, "logp_old": logp, "advantages": advantages(&rewards, json!({})), "response_mask": mask,
        });
        close(&output(&ask("objective.actor_loss", json!({}), inputs), "loss"), &[0.0]);
    }
}

fn guide_scale_factor() {
    let inputs = json!({
        "loss": [[1.0, 2.0, 3.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0, 4.0]],
        "response_mask": [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]],
    });
    let loss = |mode: &str| {
        let options = json!({"loss_agg_mode": mode, "loss_scale_factor": 5.0});
        output(&ask("aggregate.loss", options, inputs.clone()), "loss")[0]
    };
    close(&[loss("seq-mean-token-sum-norm"), loss("token-sum") / 5.0], &[2.6, 5.2]);
}

fn group_fallback() {
    let endpoints: Vec<f64> = (1..=16).map(|t| f64::from(u8::from(t % 4 == 0))).collect();
    let logp = [[-1.0; 16]];
    let loss = |mask: &[f64]| {
        let inputs =
            json!({"logp": logp, "logp_old": logp, "advantages": [endpoints], "response_mask": [mask]});
        output(&ask("objective.actor_loss", json!({}), inputs), "loss")[0]
    };
    assert_eq!((loss(&endpoints), loss(&[1.0; 16])), (-1.0, -0.25));
}

fn guide_kl_loss() {
    let (policy, reference) = (softmax([0.5, -0.3, 0.1]), softmax([-0.2, 0.4, 0.0]));
    // By logit j: E[dk/dlogp * dlogp/dz_j] = sum_a policy_a * dk/dlogp_a * (1[a = j] - policy_j)
    let expected_gradient = |kl_penalty: &str| {
        let logs = |p: [f64; 3]| json!([p.map(f64::ln)]);
        let inputs = json!({"logp": logs(policy), "logp_ref": logs(reference)});
        let answer = ask("kl.estimate", json!({"kl_penalty": kl_penalty}), inputs);
        let slope = answer.gradients["logp"].reals().to_vec();
        let mean: f64 = (0..3).map(|a| policy[a] * slope[a]).sum();
        [0, 1, 2].map(|j| policy[j] * (slope[j] - mean))
    };
    // By the definitions, differentiated on paper.
    let kl: f64 = (0..3).map(|a| policy[a] * (policy[a] / reference[a]).ln()).sum();
    let of_forward = [0, 1, 2].map(|j| policy[j] * ((policy[j] / reference[j]).ln() - kl));
    let of_reverse = [0, 1, 2].map(|j| policy[j] - reference[j]);
    let near = |left: [f64; 3], right: [f64; 3]| (0..3).all(|j| (left[j] - right[j]).abs() < 1e-15);
    assert!(near(expected_gradient("k1"), [0.0; 3]));
    assert!(near(expected_gradient("k2"), of_forward));
    assert!(near(expected_gradient("k3"), of_reverse));
    assert!(!near(expected_gradient("abs"), of_forward) && !near(expected_gradient("abs"), of_reverse));
    assert!(of_forward.iter().all(|slope| slope.abs() > 0.01));
}

fn guide_kl_health() {
    let kl = |kl_penalty: &str| {
        let inputs = json!({"logp": [[-6.0]], "logp_ref": [[-1.0]]});
        output(&ask("kl.estimate", json!({"kl_penalty": kl_penalty}), inputs), "kl")[0]
    };
    close(&[kl("k1"), kl("k3")], &[-5.0, 142.4132]);
}

fn guide_kl_mandatory() {
    let inputs = json!({"logp": [[-1.0]], "logp_old": [[-1.0]], "advantages": [1.0], "response_mask": [[1]]});
    let answer = ask("objective.actor_loss", json!({"kl_loss_coef": 0.0}), inputs);
    assert_eq!((output(&answer, "loss"), output(&answer, "kl_loss")), (vec![-1.0], vec![0.0]));
}

fn new_adv_best_three() {
    assert_eq!(filtered(&FIVE, 0.5, 0.7, true).1, [1.0, 0.0, 1.0, 0.0, 1.0]);
    assert_eq!(filtered(&FIVE, 0.0, 1.0, true).1, [0.0, 0.0, 1.0, 1.0, 1.0]);
}

fn new_adv_sharper() {
    close(&filtered(&FIVE, 0.5, 0.7, false).0, &[-1.2649, 0.0, 0.0, 0.0, 1.2649]);
    close(&filtered(&FIVE, 0.5, 0.7, true).0, &[-1.0, 0.0, 0.0, 0.0, 1.0]);
}

fn new_adv_sign() {
    close(&filtered(&FIVE, 0.0, 1.0, false).0, &[0.0, 0.0, 0.0, 0.6325, 1.2649]);
    close(&filtered(&FIVE, 0.0, 1.0, true).0, &[0.0, 0.0, -1.0, 0.0, 1.0]);
}

fn new_adv_share() {
    let kept = |right: usize, ratio: f64| {
        let rewards: Vec<f64> = (0..right + 1).map(|i| f64::from(u8::from(i < right))).collect();
        filtered(&rewards, 0.0, ratio, false).1.iter().sum::<f64>()
    };
    assert_eq!([kept(2, 0.7), kept(3, 0.7), kept(100, 0.29)], [1.0, 2.0, 28.0]);
}

fn new_adv_processed() {
    let std = |processed_excludes: &str| {
        let advantages = json!([-1.0, 0.0, 1.0]);
        let inputs = json!({"advantages": advantages, "advantages_original": advantages,
            "response_mask": [[1], [1], [1]], "kept": [1, 1, 1]});
        let answer = ask("metrics.advantages", json!({"processed_excludes": processed_excludes}), inputs);
        output(&answer, "processed_std")
    };
    close(&std("filtered"), &[1.0]);
    close(&std("zeros"), &[1.4142]);
}

fn group_effectiveness() {
    let answer = endpoints(&[[0.0; 16]], json!({"group_max_size": 4}));
    assert_eq!(
        (output(&answer, "compression_ratio"), output(&answer, "efficiency_gain")),
        (vec![0.75], vec![4.0])
    );
    close(&output(&answer, "algorithm_effectiveness"), &[0.7222]);
    close(&[(0.91 - 0.1) / 0.9], &[0.9]);
}

fn group_memory() {
    let compression = output(&endpoints(&[[0.0; 64]; 2], json!({})), "compression_ratio")[0];
    assert_eq!((compression, 0.8 * compression), (0.9375, 0.75));
}

fn group_share() {
    let share = |drift: f64| output(&endpoints(&[[drift; 64]; 2], json!({})), "total_endpoints")[0] / 128.0;
    assert_eq!((share(0.0), share(0.5)), (0.0625, 1.0));
}

fn group_size_alone() {
    let mut drifts = [[0.0; 64]; 2];
    assert_eq!(output(&endpoints(&drifts, json!({})), "total_endpoints"), [8.0]);
    drifts[0][5] = 0.5;
    assert_eq!(output(&endpoints(&drifts, json!({})), "total_endpoints"), [9.0]);
}

fn group_sparsity() {
    let inputs = json!({
        "rewards": [[0.0, 0.5]], "values": [[0.5, 0.5]], "logp": [[-1.0, -1.0]], "logp_old": [[-1.0, -1.0]],
        "response_mask": [[1, 1]],
    });
    let answer = ask("advantage.group_ppo", json!({}), inputs);
    assert_eq!(
        (output(&answer, "total_endpoints"), output(&answer, "advantages")),
        (vec![1.0], vec![0.0, 0.0])
    );
    let groups = [[1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]];
    let dense = groups.iter().flat_map(|group| advantages(group, json!({}))).filter(|a| *a != 0.0).count();
    assert_eq!(dense as f64 / 10.0, 0.4);
}

fn group_broadcast() {
    let mut drifts = [[0.0; 4]; 2];
    drifts[0][1] = 0.5;
    let answer = endpoints(&drifts, json!({}));
    assert_eq!(output(&answer, "endpoints"), [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]);
}

/// The rewards of the guide's example.
const FIVE: [f64; 5] = [0.1, 0.5, 0.9, 1.3, 1.7];

/// One group's advantages behind the filter, and which samples are kept.
fn filtered(rewards: &[f64], neg: f64, pos: f64, new: bool) -> (Vec<f64>, Vec<f64>) {
    let inputs = json!({"rewards": rewards, "group": vec![0; rewards.len()]});
    let options = json!({"keep_neg_ratio": neg, "keep_pos_ratio": pos, "compute_new_adv": new});
    let answer = ask("advantage.filter", options, inputs);
    (output(&answer, "advantages"), output(&answer, "kept"))
}

/// The endpoints of responses with these log-ratios, every token with a reward of 0.5 and a value of 0.
fn endpoints<const T: usize>(drifts: &[[f64; T]], options: Value) -> Evaluation {
    let rows = |entry: f64| vec![vec![entry; T]; drifts.len()];
    let logp: Vec<Vec<f64>> =
        drifts.iter().map(|row| row.iter().map(|drift| drift - 1.0).collect()).collect();
    let inputs = json!({
        "rewards": rows(0.5), "values": rows(0.0), "logp": logp, "logp_old": rows(-1.0), "response_mask": rows(1.0),
    });
    ask("advantage.group_ppo", options, inputs)
}

fn fix_resampling() {
    // Every sequence of 8 rewards of 0 or 1, each a group.
    let rewards: Vec<f64> = (0..256 * 8).map(|at| f64::from((at / 8) >> (at % 8) & 1)).collect();
    let group: Vec<i32> = (0..256 * 8).map(|at| at / 8).collect();
    let drawn = ask("sampling.resample", json!({}), json!({"rewards": rewards, "group": group}));
    let taken = output(&drawn, "taken");
    // Over all sequences: the expected policy gradient by the logit of p over p (1 - p), and the expected group mean.
    let expected = |p: f64, taken: &[f64]| {
        let mut sums = (0.0, 0.0);
        for (rewards, taken) in rewards.chunks(8).zip(taken.chunks(8)) {
            let probability: f64 = rewards.iter().map(|&r| if r == 1.0 { p } else { 1.0 - p }).product();
            let of_group: Vec<f64> =
                rewards.iter().zip(taken).filter(|&(_, &taken)| taken == 1.0).map(|(&r, _)| r).collect();
            let (n, sum) = (of_group.len() as f64, of_group.iter().sum::<f64>());
            let gradient: f64 = of_group.iter().map(|r| (r - sum / n) * (r - p)).sum();
            sums.0 += probability * gradient / n / (p * (1.0 - p));
            sums.1 += probability * sum / n;
        }
        sums
    };
    let fixed: Vec<f64> = (0..256 * 8).map(|at| f64::from(u8::from(at % 8 < 4))).collect();
    let probabilities = [0.1, 0.3, 0.5, 0.9];
    let close = |got: f64, printed: f64| assert!((got - printed).abs() < 6e-4, "{got} is not {printed}");
    for (p, printed) in probabilities.into_iter().zip([1.088, 0.877, 0.818, 1.088]) {
        close(expected(p, &fixed).0, 0.75);
        close(expected(p, &taken).0, printed);
    }
    close(expected(0.1, &fixed).1, 0.1);
    close(expected(0.1, &taken).1, 0.1365);
}

fn fix_distinct() {
    close(&[equal_draws([4.0, 0.0, 0.0], json!({}))], &[0.9312]);
}

fn fix_cost() {
    let repeated = ask("sampling.repeat", json!({"n": 4}), json!({"index": [1, 2, 3, 4, 5, 6, 7, 8]}));
    assert_eq!(output(&repeated, "repeated").len(), 8 + 3 * 8);
}

fn guide_top_p() {
    let logits = [0.9, 0.06, 0.04].map(f64::ln);
    close(&[equal_draws(logits, json!({})), equal_draws(logits, json!({"top_p": 0.95}))], &[0.8152, 0.8828]);
}

/// How likely two draws are to be equal.
fn equal_draws(logits: [f64; 3], options: Value) -> f64 {
    let answer = ask("sampling.distribution", options, json!({"logits": [logits]}));
    output(&answer, "probs").iter().map(|p| p * p).sum()
}

/// The reference's full answer.
fn ask(formula: &str, options: Value, inputs: Value) -> Evaluation {
    let question = json!({"options": options, "inputs": inputs});
    let question = Question::from_json(formula, &question).expect("a question");
    evaluate(formula, &question).expect("an answer")
}

fn output(answer: &Evaluation, name: &str) -> Vec<f64> {
    answer.outputs[name].reals().to_vec()
}

/// One group's advantages.
fn advantages(rewards: &[f64], options: Value) -> Vec<f64> {
    let inputs = json!({"rewards": rewards, "group": vec![0; rewards.len()]});
    output(&ask("advantage.group_norm", options, inputs), "advantages")
}

/// One token's clipped loss and its gradient by `logp`.
fn clip(ratio: f64, advantage: f64, options: Value) -> (f64, f64) {
    let inputs = json!({
        "logp": [[ratio.ln()]], "logp_old": [[0.0]], "advantages": [advantage], "response_mask": [[1]],
    });
    let answer = ask("objective.clip", options, inputs);
    (output(&answer, "loss")[0], answer.gradients["logp"].reals()[0])
}

/// `(r - r.mean()) / (r.std() + eps)` in single precision, as `002_cs336_notes.md` writes it.
fn naive_f32(rewards: &[f32], eps: f32) -> Vec<f32> {
    let n = rewards.len() as f32;
    let mean = rewards.iter().sum::<f32>() / n;
    let std = (rewards.iter().map(|r| (r - mean) * (r - mean)).sum::<f32>() / (n - 1.0)).sqrt();
    rewards.iter().map(|r| (r - mean) / (std + eps)).collect()
}

fn softmax(logits: [f64; 3]) -> [f64; 3] {
    let sum: f64 = logits.iter().map(|z| z.exp()).sum();
    logits.map(|z| z.exp() / sum)
}

/// Equal to the four digits that the page prints (and to what eps 1e-6 leaves of them).
#[track_caller]
fn close(got: &[f64], printed: &[f64]) {
    let close = got.len() == printed.len() && got.iter().zip(printed).all(|(a, b)| (a - b).abs() < 1e-4);
    assert!(close, "{got:?} is not {printed:?}");
}
