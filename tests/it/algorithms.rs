//! The algorithms of a run: each estimator's advantages are the reference's, contradictions are refused, what is carried
//! over moves, and the critic and supervised training do what they say.

use grpo_oracle::config::{AdvEstimator, Config, Optim, Scheduler, Sft, preset};
use grpo_oracle::llm::Llm;
use grpo_oracle::options::{
    Filter, Gae, Gpg, GroupNorm, GroupPpo, GroupStd, Gsm8k, KlController, KlControllerType, KlEstimate,
    KlInReward, KlPenalty, Opo, Overlong, ReinforcePlusPlus, ReinforcePlusPlusBaseline, Rloo, TdError,
};
use grpo_oracle::reference;
use grpo_oracle::train::algorithm::{Advantages, Algorithm, Spoilt};
use grpo_oracle::train::builtin::{self, Level};
use grpo_oracle::train::critic::Critic;
use grpo_oracle::train::data::Draws;
use grpo_oracle::train::experience::Seen;
use grpo_oracle::train::optim::Course;
use grpo_oracle::train::rollout::{self, Rollout, RolloutOptions};
use grpo_oracle::train::sft::{self, Example};
use grpo_oracle::train::tiny;
use ndarray::{Array1, Array2, Axis};
use tch::{Device, Kind, Tensor};

use crate::train::{all_gradients, all_parameters, ragged};

// ---- advantages ----

/// The same numbers on both sides: six responses in two groups, lengths 2, 5, 1, 3, 5, 4.
struct Case {
    rollout: Rollout,
    seen: Seen,
    rewards: Array1<f64>,
    /// The rewards at the last tokens.
    token_rewards: Array2<f64>,
    group: Array1<i64>,
    mask: Array2<bool>,
    lengths: Array1<f64>,
}

fn case() -> Case {
    let (rollout, _) = ragged();
    let rewards = [1.0, 0.0, 0.25, 0.0, 1.0, 1.0];
    let mask = array(&rollout.response_mask).mapv(|kept| kept != 0.0);
    let lengths = mask.map_axis(Axis(1), |row| row.iter().filter(|&&kept| kept).count() as f64);
    let mut token_rewards = Array2::zeros(mask.raw_dim());
    for (row, &reward) in rewards.iter().enumerate() {
        token_rewards[[row, lengths[row] as usize - 1]] = reward;
    }
    let wave = |phase: f64, size: f64| {
        let numbers = Tensor::arange(30, (Kind::Double, Device::Cpu));
        ((numbers * 1.7 + phase).sin() * size)
            .view([6, 5])
            .where_self(&rollout.response_mask, &Tensor::zeros([6, 5], (Kind::Double, Device::Cpu)))
    };
    let seen = Seen {
        rewards: Tensor::from_slice(&rewards),
        baselines: Some(Tensor::from_slice(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0])),
        logp_old: Some(wave(0.0, 0.4) - 1.0),
        logp: Some(wave(0.0, 0.4) - 1.0 + wave(2.0, 0.05)),
        logp_ref: Some(wave(1.0, 0.4) - 1.1),
        values: Some(wave(3.0, 0.5)),
    };
    let group = Array1::from(vec![0, 0, 0, 1, 1, 1]);
    Case { rollout, seen, rewards: Array1::from(rewards.to_vec()), token_rewards, group, mask, lengths }
}

impl Case {
    fn every_token(&self, of_rows: &Array1<f64>) -> Array2<f64> {
        let mut tokens = Array2::zeros(self.mask.raw_dim());
        for ((row, t), &kept) in self.mask.indexed_iter() {
            tokens[[row, t]] = if kept { of_rows[row] } else { 0.0 };
        }
        tokens
    }

    fn values(&self) -> Array2<f64> {
        array(self.seen.values.as_ref().unwrap())
    }
}

type Expected = fn(&Case) -> Array2<f64>;

#[test]
fn every_estimator_is_the_references() {
    let rows: [(&str, AdvEstimator, Expected); 9] = [
        ("grpo", AdvEstimator::Grpo, |c| {
            let options = GroupNorm::verl();
            c.every_token(&reference::advantage::group_norm(&c.rewards, &c.group, &options).unwrap())
        }),
        ("rloo", AdvEstimator::Rloo, |c| {
            c.every_token(&reference::advantage::rloo(&c.rewards, &c.group, &Rloo::verl()).unwrap())
        }),
        ("reinforce_plus_plus", AdvEstimator::ReinforcePlusPlus, |c| {
            let options = ReinforcePlusPlus { gamma: 0.9, ..ReinforcePlusPlus::verl() };
            reference::advantage::reinforce_plus_plus(&c.token_rewards, &c.mask, &options).unwrap().advantages
        }),
        ("baseline", AdvEstimator::ReinforcePlusPlusBaseline, |c| {
            let options = ReinforcePlusPlusBaseline::verl();
            let of = reference::advantage::reinforce_plus_plus_baseline;
            of(&c.rewards, &c.group, &c.mask, &options).unwrap()
        }),
        ("remax", AdvEstimator::Remax, |c| {
            let baselines = Array1::from(vec![0.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
            reference::advantage::remax(&c.token_rewards, &baselines, &c.mask).unwrap().advantages
        }),
        ("opo", AdvEstimator::Opo, |c| {
            let of = reference::advantage::opo(&c.rewards, &c.group, &c.lengths, &Opo::verl()).unwrap();
            c.every_token(&of)
        }),
        ("gpg", AdvEstimator::Gpg, |c| {
            c.every_token(&reference::advantage::gpg(&c.rewards, &c.group, &Gpg::verl()).unwrap())
        }),
        ("gae", AdvEstimator::Gae, |c| {
            let td_error = TdError { gamma: 0.9, ..TdError::verl() };
            let options = Gae { td_error, lam: 0.8, ..Gae::verl() };
            reference::gae::gae(&c.token_rewards, &c.values(), &c.mask, &options).unwrap().advantages
        }),
        ("group_ppo", AdvEstimator::GroupPpo, |c| group_ppo(c).advantages),
    ];
    for (name, estimator, expected) in rows {
        let case = case();
        let mut config = Config::default();
        config.algorithm.adv_estimator = estimator;
        (config.algorithm.gamma, config.algorithm.lam) = (0.9, 0.8);
        let got = Algorithm::resolve(&config).unwrap().advantages(&case.rollout, &case.seen).unwrap();
        near(name, &got.advantages, &expected(&case));
        assert!(array(&got.advantages).iter().any(|&a| a != 0.0), "{name}: nothing to compare");
        if estimator != AdvEstimator::GroupPpo {
            assert_eq!(got.loss_mask, case.rollout.response_mask, "{name}");
        }
    }
}

fn group_ppo(c: &Case) -> reference::group_ppo::GroupPpoOutput<f64> {
    let options = GroupPpo {
        endpoint_return: grpo_oracle::options::EndpointReturn::Gae,
        gamma: 0.9,
        lam: 0.8,
        ..GroupPpo::algorithm2()
    };
    let [logp, logp_old] = [&c.seen.logp, &c.seen.logp_old].map(|logp| array(logp.as_ref().unwrap()));
    reference::group_ppo::group_ppo(&c.token_rewards, &c.values(), &logp, &logp_old, &c.mask, &options)
        .unwrap()
}

#[test]
fn dr_grpo_divides_by_nothing() {
    let case = case();
    let mut config = Config::default();
    config.algorithm.norm_adv_by_std_in_grpo = false;
    let got = Algorithm::resolve(&config).unwrap().advantages(&case.rollout, &case.seen).unwrap();
    let options = GroupNorm { std: GroupStd::None, ..GroupNorm::verl() };
    let right = reference::advantage::group_norm(&case.rewards, &case.group, &options).unwrap();
    near("dr_grpo", &got.advantages, &case.every_token(&right));
}

#[test]
fn filtered_responses_leave_the_loss_and_its_denominators() {
    let case = case();
    let mut config = Config::default();
    (config.algorithm.keep_pos_ratio, config.algorithm.keep_neg_ratio) = (0.5, 0.5);
    config.algorithm.compute_new_adv = true;
    let got = Algorithm::resolve(&config).unwrap().advantages(&case.rollout, &case.seen).unwrap();
    let options =
        Filter { keep_pos_ratio: 0.5, keep_neg_ratio: 0.5, compute_new_adv: true, ..Filter::guide() };
    let right = reference::filter::filter(&case.rewards, &case.group, &options).unwrap();
    near("filter", &got.advantages, &case.every_token(&right.advantages));
    let kept = right.kept.mapv(|kept| kept != 0.0);
    assert!(kept.iter().any(|&kept| !kept), "nothing was filtered");
    let mask = array(&got.loss_mask);
    for ((row, t), &in_response) in case.mask.indexed_iter() {
        assert_eq!(mask[[row, t]] != 0.0, in_response && kept[row], "row {row}, token {t}");
    }
    assert_eq!(got.figures.kept, Some(kept.iter().filter(|&&kept| kept).count() as f64 / 6.0));
    let tokens = (0..6).filter(|&row| kept[row]).map(|row| case.lengths[row]).sum::<f64>();
    let options = grpo_oracle::config::loss_options(&config).unwrap();
    let counted = grpo_oracle::train::loss::with_counts(&options, &got.loss_mask, 5).terms.aggregate;
    assert_eq!(counted.batch_num_tokens, Some(tokens));
    assert_eq!(counted.global_batch_size, Some(kept.iter().filter(|&&kept| kept).count() as f64));
}

#[test]
fn the_kl_is_charged_and_its_coefficient_carried_over() {
    let mut case = case();
    let moved = case.seen.logp.take();
    let mut config = Config::default();
    config.algorithm.use_kl_in_reward = true;
    config.algorithm.kl_ctrl.kind = KlControllerType::Adaptive;
    config.algorithm.kl_ctrl.kl_coef = 0.2;
    config.algorithm.kl_ctrl.target_kl = 0.01;
    config.algorithm.kl_ctrl.horizon = 50.0;
    let mut algorithm = Algorithm::resolve(&config).unwrap();
    assert!(algorithm.needs_reference() && algorithm.needs_logp_old());
    let [logp, logp_ref] =
        [&case.seen.logp_old, &case.seen.logp_ref].map(|logp| array(logp.as_ref().unwrap()));
    let estimate = KlEstimate { kl_penalty: KlPenalty::K1, input_clamp: None, output_clamp: None };
    let mut kl_coef = 0.2;
    for step in 0..2 {
        let got = algorithm.advantages(&case.rollout, &case.seen).unwrap();
        let options = KlInReward { kl_coef, estimate };
        let charged =
            reference::kl::in_reward(&case.token_rewards, &logp, &logp_ref, &case.mask, &options).unwrap();
        let outcome = charged.rewards.sum_axis(Axis(1));
        let right = reference::advantage::group_norm(&outcome, &case.group, &GroupNorm::verl()).unwrap();
        near(&format!("step {step}"), &got.advantages, &case.every_token(&right));
        assert!((got.figures.kl_coef.unwrap() - kl_coef).abs() < 1e-7);
        // A second pass over the same rollout, by a policy that has moved, is charged as the first.
        case.seen.logp = moved.as_ref().map(Tensor::shallow_clone);
        let again = algorithm.advantages(&case.rollout, &case.seen).unwrap();
        assert_eq!(again.figures.kl_coef, got.figures.kl_coef);
        case.seen.logp = None;
        let controller = KlController { target_kl: 0.01, horizon: 50.0, ..KlController::adaptive(6.0) };
        let next = reference::kl::controller(kl_coef, Some(charged.current_kl), &controller).unwrap();
        assert!((next - kl_coef).abs() > 1e-3, "the coefficient stays");
        kl_coef = next;
    }
}

#[test]
fn long_responses_lose_by_the_buffer() {
    let case = case();
    let mut config = Config::default();
    config.data.max_response_length = 5;
    config.reward.overlong_buffer.enable = true;
    config.reward.overlong_buffer.len = 2;
    config.reward.overlong_buffer.penalty_factor = 0.5;
    config.algorithm.norm_adv_by_std_in_grpo = false;
    let got = Algorithm::resolve(&config).unwrap().advantages(&case.rollout, &case.seen).unwrap();
    let options = Overlong { max_response_length: 5.0, buffer: 2.0, penalty_factor: 0.5, ..Overlong::verl() };
    let penalty = reference::reward::overlong(&case.lengths, &options).unwrap();
    assert_eq!(penalty.to_vec(), [0.0, -0.5, 0.0, 0.0, -0.5, -0.25]);
    let options = GroupNorm { std: GroupStd::None, ..GroupNorm::verl() };
    let scores = &case.rewards + &penalty;
    let right = reference::advantage::group_norm(&scores, &case.group, &options).unwrap();
    near("overlong", &got.advantages, &case.every_token(&right));
    assert!((got.figures.overlong_penalty.unwrap() - penalty.mean().unwrap()).abs() < 1e-12);
}

#[test]
fn group_ppo_says_which_path_it_takes_and_carries_its_threshold() {
    let case = case();
    let advantages = |sparse_below: f64| {
        let mut config = Config::default();
        config.algorithm.adv_estimator = AdvEstimator::GroupPpo;
        (config.algorithm.gamma, config.algorithm.lam) = (0.9, 0.8);
        config.algorithm.group_params.sparse_below = sparse_below;
        let mut algorithm = Algorithm::resolve(&config).unwrap();
        [0, 1].map(|_| algorithm.advantages(&case.rollout, &case.seen).unwrap())
    };
    let right = group_ppo(&case);
    for (sparse_below, sparse) in [(1.1, true), (0.0, false)] {
        let [first, second] = advantages(sparse_below);
        near("advantages", &first.advantages, &right.advantages);
        near("returns", first.returns.as_ref().unwrap(), &right.returns);
        let mask = array(&first.loss_mask);
        for ((row, t), &kept) in case.mask.indexed_iter() {
            let wanted = kept && (!sparse || right.endpoints[[row, t]] != 0.0);
            assert_eq!(mask[[row, t]] != 0.0, wanted, "row {row}, token {t}");
        }
        assert_eq!(first.figures.sparse, Some(f64::from(u8::from(sparse))));
        assert_eq!(first.figures.total_endpoints, Some(right.metrics.total_endpoints));
        assert!((first.figures.compression_ratio.unwrap() - right.metrics.compression_ratio).abs() < 1e-12);
        // It is said once, and again only when it changes.
        assert_eq!((first.remarks.len(), second.remarks.len()), (1, 0));
        assert!(first.remarks[0].contains(if sparse { "only endpoints" } else { "all tokens" }));
        assert_eq!(first.figures.group_threshold, Some(1.0));
        assert!((second.figures.group_threshold.unwrap() - right.threshold).abs() < 1e-12);
        assert_ne!(right.threshold, 1.0);
    }
}

#[test]
fn a_spoilt_algorithm_is_wrong_in_just_that_way() {
    let case = case();
    let advantages = |how: Option<Spoilt>| -> Advantages {
        let algorithm = Algorithm::resolve(&Config::default()).unwrap();
        let mut algorithm = match how {
            Some(how) => algorithm.spoilt(how),
            None => algorithm,
        };
        algorithm.advantages(&case.rollout, &case.seen).unwrap()
    };
    let right = advantages(None);
    let flipped = advantages(Some(Spoilt::FlippedAdvantages));
    assert_eq!((flipped.advantages, flipped.loss_mask), (-&right.advantages, right.loss_mask));
    let mask = array(&advantages(Some(Spoilt::ShiftedMask)).loss_mask);
    assert_eq!(mask.row(0).to_vec(), [0.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(mask.row(1).to_vec(), [0.0, 1.0, 1.0, 1.0, 1.0]);
}

#[test]
fn what_contradicts_itself_is_refused_or_remarked() {
    let resolve = |change: fn(&mut Config)| {
        let mut config = Config::default();
        change(&mut config);
        Algorithm::resolve(&config)
    };
    let refused = |change: fn(&mut Config), key: &str| {
        let message = resolve(change).unwrap_err().to_string();
        assert!(message.contains(key) && !message.contains('\n'), "{message}");
    };
    refused(
        |config| {
            config.algorithm.adv_estimator = AdvEstimator::Rloo;
            config.algorithm.compute_new_adv = true;
        },
        "algorithm.compute_new_adv",
    );
    refused(
        |config| {
            config.algorithm.adv_estimator = AdvEstimator::Gae;
            config.algorithm.keep_neg_ratio = 0.5;
        },
        "keep_neg_ratio",
    );
    refused(
        |config| {
            config.algorithm.keep_pos_ratio = 0.5;
            config.algorithm.norm_adv_by_std_in_grpo = false;
        },
        "norm_adv_by_std_in_grpo",
    );
    refused(|config| config.algorithm.keep_pos_ratio = 1.5, "keep_pos_ratio");
    refused(|config| config.actor_rollout_ref.rollout.n = 1, "actor_rollout_ref.rollout.n");
    refused(
        |config| {
            config.algorithm.adv_estimator = AdvEstimator::Gae;
            config.algorithm.lam = 1.5;
        },
        "lam",
    );
    assert_eq!(resolve(|_| {}).unwrap().warnings(), &[] as &[String]);
    for (change, word) in [
        ((|config| config.algorithm.compute_new_adv = true) as fn(&mut Config), "compute_new_adv"),
        (
            |config| {
                config.actor_rollout_ref.actor.use_kl_loss = true;
                config.actor_rollout_ref.actor.kl_loss_coef = 0.0;
            },
            "kl_loss_coef",
        ),
        (
            |config| {
                config.actor_rollout_ref.actor.use_kl_loss = true;
                config.algorithm.use_kl_in_reward = true;
            },
            "twice",
        ),
    ] {
        let warned = resolve(change).unwrap();
        assert!(
            warned.warnings().len() == 1 && warned.warnings()[0].contains(word),
            "{:?}",
            warned.warnings()
        );
    }
    for name in preset::NAMES {
        assert_eq!(Algorithm::resolve(&preset::preset(name).unwrap()).unwrap().warnings(), &[] as &[String]);
    }
}

// ---- the rollout ----

#[test]
fn dynamic_sampling_keeps_only_groups_that_differ() {
    let (llm, problems) = half_trained();
    let mut config = preset::tiny();
    (config.data.train_batch_size, config.actor_rollout_ref.rollout.n) = (4, 2);
    let options = |most: Option<usize>| RolloutOptions {
        differing: most,
        ..RolloutOptions::of(&config, Device::Cpu).unwrap()
    };
    let collect = |most: Option<usize>| {
        let mut draws = Draws::new(problems.clone(), Some(0));
        (rollout::collect(&llm, &mut draws, 1, &options(most)), draws.position)
    };
    let (rollout, position) = collect(Some(0));
    let rollout = rollout.unwrap();
    let rewards = array(&rollout.rewards(&Gsm8k::strict()).unwrap().view([4, 2]));
    for group in rewards.rows() {
        assert!(group.iter().any(|&r| r != group[0]), "a group's rewards are equal: {rewards}");
    }
    assert!(rollout.gen_batches > 1 && rollout.dropped_groups > 0, "nothing had to be dropped");
    assert_eq!(position, 4 * rollout.gen_batches);
    // The rows belong together.
    for row in 0..8 {
        let own = &rollout.answers[row];
        assert_eq!(rollout.texts[row], llm.tokenizer.decode(own).unwrap());
        assert_eq!(rollout.lengths[row], own.len());
        let mask = rollout.response_mask.get(row as i64);
        let width = rollout.tokens.size()[1] - rollout.response_length();
        let tokens = rollout.tokens.get(row as i64).narrow(0, width, rollout.response_length());
        assert_eq!(&Vec::<i64>::try_from(tokens.masked_select(&mask)).unwrap(), own);
        assert_eq!(rollout.problems[row], rollout.problems[row / 2 * 2]);
    }
    // Without it everything is kept.
    let (plain, position) = collect(None);
    let plain = plain.unwrap();
    assert_eq!((plain.gen_batches, plain.dropped_groups, plain.texts.len(), position), (1, 0, 8, 4));
    // A limit may leave fewer groups.
    let (limited, _) = collect(Some(1));
    assert!(limited.unwrap().texts.len() < 8);
}

#[test]
fn without_a_difference_there_is_one_clear_sentence() {
    let llm = tiny::llm(1, Device::Cpu, Kind::Float).unwrap();
    let mut config = preset::tiny();
    config.algorithm.filter_groups.enable = true;
    config.algorithm.filter_groups.max_num_gen_batches = 2;
    let mut draws = Draws::new(builtin::problems(Level::Tiny, 0).train, Some(0));
    let problem = rollout::collect(&llm, &mut draws, 1, &RolloutOptions::of(&config, Device::Cpu).unwrap())
        .unwrap_err();
    assert!(problem.to_string().contains("in 2 rollouts no group of 8"), "{problem}");
}

// ---- the critic ----

#[test]
fn the_critic_learns_what_to_expect() {
    let (llm, _) = half_trained();
    let (rollout, mut advantages) = ragged();
    let rollout = Rollout { tokens: rollout.tokens.remainder(90), ..rollout };
    let mut config = preset::tiny();
    config.critic.cliprange_value = None;
    config.critic.optim.lr = 4e-3;
    let mut critic = Critic::new(&llm.model, &config, 4, 100).unwrap();
    let before = all_parameters(&llm);
    let values = critic.values(&rollout.responses()).unwrap();
    assert_eq!((values.size(), values.abs().max().double_value(&[])), (vec![6, 5], 0.0));
    let returns = Tensor::from_slice(&[1.0f32, 0.0, 0.5, 0.0, 1.0, -1.0]).unsqueeze(1).expand([6, 5], false);
    advantages.returns = Some(returns.masked_fill(&rollout.response_mask.logical_not(), 0.0));
    let mut seen = Seen::rewards(Tensor::zeros([6], (Kind::Float, Device::Cpu)));
    let mut losses = vec![];
    for step in 1..=40 {
        seen.values = Some(critic.values(&rollout.responses()).unwrap());
        losses.push(critic.update(&rollout, &seen, &advantages, step).unwrap().value_loss);
    }
    // Half the squared error over the lengths 2, 5, 1, 3, 5, 4.
    assert!((losses[0] - 0.5 * (2.0 + 0.25 + 5.0 + 4.0) / 20.0).abs() < 1e-6, "{}", losses[0]);
    // Before its first token nobody can tell a response from the others to the same problem: what is left is the spread
    // of the returns 1, 0, 0.5 and 0, 1, -1 there.
    let unknowable = 0.5 * (0.5 + 2.0) / 20.0;
    assert!((losses[39] - unknowable).abs() < 0.1 * unknowable, "{losses:?}");
    assert_eq!(all_parameters(&llm), before, "the policy is another model");
}

// ---- supervised training ----

#[test]
fn a_solution_ends_as_the_chat_format_ends_it() {
    let llm = tiny::llm(1, Device::Cpu, Kind::Float).unwrap();
    let problems = builtin::problems(Level::Tiny, 0).train;
    let examples = sft::solutions(&llm.tokenizer, &problems, 64).unwrap();
    assert_eq!(examples.len(), problems.len());
    for (Example { prompt, response }, problem) in examples.iter().zip(&problems) {
        assert_eq!(llm.tokenizer.decode(prompt).unwrap(), format!("{}=", problem.question));
        assert_eq!(llm.tokenizer.decode(response).unwrap(), problem.answer);
        assert_eq!(response.last(), llm.tokenizer.stop_tokens().first());
        // The result, the mark, the result, the end.
        assert_eq!(response.len(), 4);
    }
    let longest = examples[0].prompt.len() + 3;
    assert_eq!(sft::solutions(&llm.tokenizer, &problems, longest).unwrap().len(), 0);
}

#[test]
fn supervised_gradients_do_not_depend_on_the_micro_batches_or_the_company() {
    let llm = tiny::llm(1, Device::Cpu, Kind::Double).unwrap();
    llm.model.set_trainable(true);
    let examples: Vec<Example> = ["a", "bcd", "ef", "ghijk"]
        .iter()
        .enumerate()
        .map(|(index, text)| Example {
            prompt: llm.tokenizer.encode(&"12345="[index..]).unwrap(),
            response: llm.tokenizer.encode(text).unwrap(),
        })
        .collect();
    let gradient = |micro_batch_size_per_gpu: usize| {
        let options = Sft {
            total_epochs: 1,
            train_batch_size: 4,
            micro_batch_size_per_gpu,
            optim: Optim { lr: 0.0, ..Optim::default() },
            ..Sft::default()
        };
        let loss = sft::train(&llm, &examples, &options, 1e9, false, true, 0).unwrap().last_loss;
        (loss, all_gradients(&llm))
    };
    let (loss, whole) = gradient(4);
    let largest = whole.abs().max().double_value(&[]);
    for micro_batch in [1, 3] {
        let (part, sum) = gradient(micro_batch);
        assert!((part - loss).abs() < 1e-6, "{part} is not {loss}");
        assert!((&sum - &whole).abs().max().double_value(&[]) < 1e-6 * largest);
    }
    // By hand: the mean of -log p over the 11 response tokens, each text on its own.
    let mut sum = 0.0;
    for Example { prompt, response } in &examples {
        let tokens = Tensor::from_slice(&[&prompt[..], response].concat()).unsqueeze(0);
        let all = tokens.ones_like().to_kind(Kind::Bool);
        let logp = llm.model.head(&llm.model.hidden(&tokens, &all)).log_softmax(-1, Kind::Double);
        for (t, &token) in response.iter().enumerate() {
            sum -= logp.double_value(&[0, (prompt.len() + t) as i64 - 1, token]);
        }
    }
    assert!((sum / 11.0 - loss).abs() < 1e-6, "{} is not {loss}", sum / 11.0);
}

#[test]
fn expert_iteration_learns_from_its_own_right_responses() {
    let (llm, problems) = half_trained();
    let options = RolloutOptions::of(&preset::tiny(), Device::Cpu).unwrap();
    let mut draws = Draws::new(problems.clone(), Some(0));
    let own = sft::own_right_ones(&llm, &mut draws, 20, 1, &options).unwrap();
    assert!(own.len() > 3, "{}", own.len());
    for Example { prompt, response } in &own {
        let question = llm.tokenizer.decode(prompt).unwrap();
        let problem = problems.iter().find(|problem| format!("{}=", problem.question) == question).unwrap();
        let text = llm.tokenizer.decode(response).unwrap();
        assert_eq!(reference::reward::gsm8k(&text, &problem.answer, &Gsm8k::strict()).unwrap(), 1.0);
    }
    let distinct: std::collections::BTreeSet<&Example> = own.iter().collect();
    assert_eq!(distinct.len(), own.len(), "each response once");
}

// ---- the optimiser's course ----

#[test]
fn the_learning_rate_warms_up_and_falls() {
    let optim = |lr_scheduler_type| Optim {
        lr: 2.0,
        lr_warmup_steps_ratio: 0.2,
        lr_scheduler_type,
        min_lr_ratio: 0.1,
        ..Optim::default()
    };
    let rates = |optim: &Optim| -> Vec<f64> {
        let course = Course::of(optim, 10).unwrap();
        (1..=10).map(|step| course.lr(step).unwrap()).collect()
    };
    let linear = rates(&optim(Scheduler::Linear));
    assert_eq!((linear[0], linear[1], linear[2]), (0.0, 1.0, 2.0));
    assert!((linear[9] - 2.0 * (0.1 + 0.9 / 8.0)).abs() < 1e-6, "{linear:?}");
    assert!(rates(&optim(Scheduler::Constant))[2..].iter().all(|&lr| lr == 2.0));
    let steps = Optim { lr_warmup_steps: Some(4), ..optim(Scheduler::Constant) };
    assert_eq!(rates(&steps)[..5], [0.0, 0.5, 1.0, 1.5, 2.0]);
    let never = Optim { lr_warmup_steps: Some(-1), lr_warmup_steps_ratio: 0.0, ..optim(Scheduler::Constant) };
    assert!(rates(&never).iter().all(|&lr| lr == 2.0));
}

// ---- helpers ----

/// The tiny model after so short a supervised start that it is right now and then.
fn half_trained() -> (Llm, Vec<grpo_oracle::train::data::Problem>) {
    let config = preset::tiny();
    let llm = tiny::llm(0, Device::Cpu, Kind::Float).unwrap();
    llm.model.set_trainable(true);
    let problems = builtin::problems(Level::Tiny, 0).train;
    let examples = sft::solutions(&llm.tokenizer, &problems, 32).unwrap();
    sft::train(&llm, &examples, &config.sft, 1.0, false, true, 0).unwrap();
    (llm, problems)
}

fn near(name: &str, got: &Tensor, right: &Array2<f64>) {
    let got = array(got);
    assert_eq!(got.dim(), right.dim(), "{name}");
    for ((place, &got), &right) in got.indexed_iter().zip(right) {
        assert!(
            (got - right).abs() < 1e-6 * right.abs().max(1.0),
            "{name} at {place:?}: {got} is not {right}"
        );
    }
}

fn array(tensor: &Tensor) -> Array2<f64> {
    let (rows, columns) = tensor.size2().unwrap();
    let flat: Vec<f64> = Vec::try_from(tensor.to_kind(Kind::Double).reshape([-1])).unwrap();
    Array2::from_shape_vec((rows as usize, columns as usize), flat).unwrap()
}
