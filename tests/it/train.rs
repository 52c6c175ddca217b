//! The trainer on a random Llama of two layers: what is exact about an update, what is read, what is written.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use clap::Parser;
use grpo_oracle::Result;
use grpo_oracle::config;
use grpo_oracle::llm::{Llm, Sampling};
use grpo_oracle::options::{
    ActorLoss, AdamW, Aggregate, Cispo, Gmpo, Gsm8k, Gspo, ImportanceLevel, LossAggMode, LossOptions,
    Objective, Sapo,
};
use grpo_oracle::problem;
use grpo_oracle::torch::reward;
use grpo_oracle::train::algorithm::{Advantages, Algorithm, Figures};
use grpo_oracle::train::builtin::{self, Level};
use grpo_oracle::train::data::{self, Draws, Problem};
use grpo_oracle::train::evaluate::{Examination, evaluate};
use grpo_oracle::train::experience::{Models, Seen};
use grpo_oracle::train::hub::{self, Hub};
use grpo_oracle::train::optim::{Optimizer, clip_grad_norm};
use grpo_oracle::train::report::Run;
use grpo_oracle::train::rollout::{self, Rollout};
use grpo_oracle::train::score::Responses;
use grpo_oracle::train::step::{self, LossRecord, StepMetrics, StepOptions};
use parquet::data_type::{ByteArray, ByteArrayType};
use parquet::file::writer::SerializedFileWriter;
use parquet::schema::parser::parse_message_type;
use serde_json::{Value, json};
use tch::nn::OptimizerConfig;
use tch::{Device, Kind, Tensor, nn, no_grad};
use tempfile::TempDir;
use tokenizers::models::bpe::BPE;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

#[allow(dead_code)] // its `main` has no caller here
#[path = "../../examples/gsm8k/main.rs"]
pub(crate) mod gsm8k;

use crate::laws::aggregate::MODES;
use gsm8k::options::Options;
use gsm8k::stop::Stop;

// ---- the update ----

/// Every objective, each with a KL and an entropy term beside it.
pub(crate) fn objectives() -> Vec<Objective> {
    vec![
        Objective::Vanilla,
        Objective::Gpg,
        Objective::Gspo(Gspo { clip_ratio_low: 0.01, clip_ratio_high: 0.01, ..Gspo::verl() }),
        Objective::Gspo(Gspo { importance_sampling_level: ImportanceLevel::Sequence, ..Gspo::verl() }),
        Objective::Cispo(Cispo::verl()),
        Objective::GeoMean(Gmpo::paper()),
        Objective::Sapo(Sapo::verl()),
    ]
}

#[test]
fn gradients_of_micro_batches_sum_to_those_of_the_whole_batch_fused_or_not() {
    let (policy, reference) = (tiny(1, Kind::Double), tiny(2, Kind::Double));
    let (rollout, advantages) = ragged();
    let seen = off_policy(&policy, &reference, &rollout);
    for (objective, mode) in objectives().into_iter().flat_map(|o| MODES.map(|mode| (o, mode))) {
        let name = format!("{objective:?}, {mode:?}");
        let gradients = |micro_batch: usize, fused: bool| {
            let terms = ActorLoss { kl_loss_coef: 0.3, entropy_coeff: 0.1, ..loss(mode) };
            let options =
                StepOptions { micro_batch, fused, ..step_options(LossOptions { objective, terms }) };
            let mut optimizer = still(&policy);
            let (metrics, record) =
                step::update(&policy.model, &mut optimizer, &rollout, &seen, &advantages, &options).unwrap();
            assert_eq!(record.unwrap().inputs.logp.size()[0], micro_batch.min(6) as i64);
            (metrics, all_gradients(&policy))
        };
        let (whole, gradient) = gradients(6, false);
        let largest = gradient.abs().max().double_value(&[]);
        assert!(largest > 1e-3, "{name}: there is no gradient to compare");
        for (micro_batch, fused) in [(1, false), (4, false), (100, false), (6, true), (4, true)] {
            let name = format!("{name}{}", if fused { ", fused" } else { "" });
            let (parts, sum) = gradients(micro_batch, fused);
            let difference = (&sum - &gradient).abs().max().double_value(&[]);
            // The rotary embedding rounds to f32 whatever the model's kind.
            assert!(
                difference < 1e-6 * largest,
                "{name}, {micro_batch} a micro-batch: gradients differ by {difference:e}"
            );
            for (figure, a, b) in [
                ("loss", parts.loss, whole.loss),
                ("policy_loss", parts.policy_loss, whole.policy_loss),
                ("clip_fraction", parts.clip_fraction, whole.clip_fraction),
                ("ppo_kl", parts.ppo_kl, whole.ppo_kl),
                ("kl", parts.kl.unwrap(), whole.kl.unwrap()),
                ("entropy", parts.entropy, whole.entropy),
                ("ratio_mean", parts.ratio_mean, whole.ratio_mean),
                ("grad_norm", parts.grad_norm, whole.grad_norm),
            ] {
                assert!(
                    (a - b).abs() < 1e-6 * b.abs().max(1.0),
                    "{name}, {micro_batch} a micro-batch: {figure} is {a}, not {b}"
                );
            }
        }
    }
}

#[test]
fn every_objective_is_the_references() {
    let (policy, reference) = (tiny(1, Kind::Double), tiny(2, Kind::Double));
    let (rollout, advantages) = ragged();
    let seen = off_policy(&policy, &reference, &rollout);
    for (objective, mode) in objectives().into_iter().flat_map(|o| MODES.map(|mode| (o, mode))) {
        let terms = ActorLoss { kl_loss_coef: 0.3, entropy_coeff: 0.1, ..loss(mode) };
        let options = StepOptions { micro_batch: 4, ..step_options(LossOptions { objective, terms }) };
        let (_, record) =
            step::update(&policy.model, &mut still(&policy), &rollout, &seen, &advantages, &options).unwrap();
        let mut record = record.unwrap();
        let said = gsm8k::check::against_reference(&record).unwrap();
        assert!(said.contains("gradient agrees at all 20 tokens"), "{said}");
        // What is compared can differ.
        record.loss += 1e-9;
        let problem = gsm8k::check::against_reference(&record).unwrap_err().to_string();
        assert!(problem.contains("disagree"), "{objective:?}, {mode:?}: {problem}");
    }
}

#[test]
fn responses_without_a_signal_are_skipped_and_missed_by_nothing() {
    let policy = tiny(1, Kind::Double);
    let (rollout, mut advantages) = ragged();
    // Nothing is to be learnt from the first problem's responses.
    let dead = Tensor::from_slice(&[0.0, 0.0, 0.0, 1.0, 1.0, 1.0]).unsqueeze(1);
    advantages.advantages = &advantages.advantages * dead;
    let seen = Seen::rewards(Tensor::zeros([6], (Kind::Double, Device::Cpu)));
    let run = |entropy_coeff: f64, mini_batch: usize| {
        let terms = ActorLoss { entropy_coeff, ..loss(LossAggMode::TokenMean) };
        let vanilla = LossOptions { objective: Objective::Vanilla, terms };
        let options = StepOptions { mini_batch, ..step_options(vanilla) };
        let (metrics, record) =
            step::update(&policy.model, &mut still(&policy), &rollout, &seen, &advantages, &options).unwrap();
        (metrics, record.unwrap(), all_gradients(&policy))
    };
    // An entropy term that weighs nothing, and yet is one.
    let (all, _, whole) = run(1e-300, 2);
    let (metrics, record, gradient) = run(0.0, 2);
    assert_eq!((all.skipped, metrics.skipped, record.inputs.logp.size()[0]), (0, 3, 3));
    assert_eq!(record.options.terms.aggregate.batch_num_tokens, Some(20.0));
    let difference = (&whole - &gradient).abs().max().double_value(&[]);
    assert!(difference < 1e-6 * gradient.abs().max().double_value(&[]), "{difference:e}");
    // Each problem a step of its own: the first has nothing to compute, and is an optimiser step all the same.
    let (metrics, ..) = run(0.0, 1);
    assert_eq!((metrics.updates, metrics.skipped), (2, 3));
}

#[test]
fn without_advantages_and_kl_nothing_moves() {
    let policy = tiny(1, Kind::Float);
    let (rollout, advantages) = ragged();
    let before = all_parameters(&policy);
    let mut optimizer = optimizer(&policy, 1e-2);
    let options = step_options(vanilla(LossAggMode::TokenMean));
    let seen = Seen::rewards(Tensor::zeros([6], (Kind::Float, Device::Cpu)));
    let zero = Advantages { advantages: advantages.advantages.zeros_like(), ..ragged().1 };
    let (metrics, record) =
        step::update(&policy.model, &mut optimizer, &rollout, &seen, &zero, &options).unwrap();
    assert_eq!((metrics.grad_norm, metrics.skipped, record.is_none()), (0.0, 6, true));
    assert_eq!(all_parameters(&policy), before);
    // The same step with advantages does move.
    step::update(&policy.model, &mut optimizer, &rollout, &seen, &advantages, &options).unwrap();
    assert_ne!(all_parameters(&policy), before);
}

#[test]
fn later_updates_of_a_step_are_off_policy() {
    let run = |passes: usize, mini_batch: usize| {
        let policy = tiny(1, Kind::Double);
        let (rollout, advantages) = ragged();
        let mut seen = Seen::rewards(Tensor::zeros([6], (Kind::Double, Device::Cpu)));
        let several = passes > 1 || mini_batch < 2;
        seen.logp_old =
            several.then(|| rollout.responses().frozen_logp(&policy.model, 1.0, 4, false).unwrap());
        let mut optimizer = optimizer(&policy, 1e-2);
        let options =
            StepOptions { mini_batch, micro_batch: 2, ..step_options(vanilla(LossAggMode::TokenMean)) };
        let done: Vec<(StepMetrics, Option<LossRecord>)> = (0..passes)
            .map(|_| {
                step::update(&policy.model, &mut optimizer, &rollout, &seen, &advantages, &options).unwrap()
            })
            .collect();
        let metrics: Vec<StepMetrics> = done.iter().map(|pass| pass.0).collect();
        (StepMetrics::of_passes(&metrics), done.into_iter().next().unwrap().1.unwrap())
    };
    let (single, record) = run(1, 2);
    assert_eq!((single.updates, single.ratio_mean, single.clip_fraction), (1, 1.0, 0.0));
    assert_eq!(record.inputs.logp, record.inputs.logp_old);

    let (several, record) = run(2, 1);
    assert_eq!(several.updates, 4);
    // The first micro-batch is still on-policy; its old log-probabilities came from a pass of their own.
    let difference = (&record.inputs.logp - &record.inputs.logp_old).abs().max().double_value(&[]);
    assert!(difference < 1e-12);
    assert!((several.ratio_mean - 1.0).abs() > 1e-6, "the ratio stayed at {}", several.ratio_mean);
    assert!(several.ppo_kl != 0.0);
}

#[test]
fn each_pass_goes_through_the_problems_in_an_order_of_its_own() {
    // With a step for each problem, where it ends up depends on which of the two came first.
    let ends = |shuffle: Option<u64>| {
        let policy = tiny(1, Kind::Float);
        let (rollout, advantages) = ragged();
        let mut seen = Seen::rewards(Tensor::zeros([6], (Kind::Float, Device::Cpu)));
        seen.logp_old = Some(rollout.responses().frozen_logp(&policy.model, 1.0, 6, true).unwrap());
        let options = StepOptions { mini_batch: 1, shuffle, ..step_options(vanilla(LossAggMode::TokenMean)) };
        let mut optimizer = optimizer(&policy, 1e-2);
        step::update(&policy.model, &mut optimizer, &rollout, &seen, &advantages, &options).unwrap();
        all_parameters(&policy)
    };
    let plain = ends(None);
    let shuffled: Vec<Tensor> = (0..8).map(|seed| ends(Some(seed))).collect();
    assert!(shuffled.contains(&plain) && shuffled.iter().any(|end| *end != plain));
    assert_eq!(ends(Some(3)), shuffled[3]);
    let options = StepOptions { shuffle: Some(1), ..step_options(vanilla(LossAggMode::TokenMean)) };
    assert_ne!(options.reshuffled(1, 0).shuffle, options.reshuffled(1, 1).shuffle);
    assert_ne!(options.reshuffled(1, 0).shuffle, options.reshuffled(2, 0).shuffle);
}

#[test]
fn an_impossible_update_is_refused() {
    let policy = tiny(1, Kind::Float);
    let (rollout, advantages) = ragged();
    let seen = Seen::rewards(Tensor::zeros([6], (Kind::Float, Device::Cpu)));
    let refused = |options: &StepOptions| {
        step::update(&policy.model, &mut still(&policy), &rollout, &seen, &advantages, options).unwrap_err()
    };
    let plain = step_options(vanilla(LossAggMode::TokenMean));
    assert_eq!(refused(&StepOptions { micro_batch: 0, ..plain }).code(), "option");
    let terms = ActorLoss { kl_loss_coef: 0.1, ..plain.loss.terms };
    let kl = LossOptions { terms, ..plain.loss };
    assert_eq!(refused(&StepOptions { loss: kl, ..plain }).code(), "input");
}

// ---- the rollout ----

#[test]
fn the_response_mask_keeps_the_stop_token_and_leaves_padding_out() {
    // The padding token is the stop token, as in many chat models: only the lengths can tell them apart.
    let stop = 7;
    let padded =
        rollout::pad(&[vec![1, 2, 3], vec![4]], &[vec![5, stop], vec![6, 6, 6, stop]], stop, Device::Cpu);
    let rows = |tensor: &Tensor| Vec::<Vec<i64>>::try_from(tensor.to_kind(Kind::Int64)).unwrap();
    assert_eq!(rows(&padded.tokens), [[1, 2, 3, 5, 7, 7, 7], [7, 7, 4, 6, 6, 6, 7]]);
    assert_eq!(rows(&padded.attention_mask), [[1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]);
    assert_eq!(rows(&padded.response_mask), [[1, 1, 0, 0], [1, 1, 1, 1]]);
}

#[test]
fn a_rollout_fits_together() {
    let llm = tiny(3, Kind::Float);
    let problems = builtin::problems(Level::Easy, 0).train;
    let sampling =
        Sampling { temperature: 1.0, top_p: 1.0, top_k: None, max_new_tokens: 120, seed: 5, fused: true };
    let rollout = rollout::sample(&llm, &[&problems[0], &problems[1]], 8, &sampling).unwrap();
    assert_eq!(Vec::<i64>::try_from(&rollout.group).unwrap(), [[0; 8], [1; 8]].concat());
    assert!(rollout.stopped.contains(&true), "no response ended by itself; the test needs one");
    assert_eq!(rollout.rewards(&Gsm8k::strict()).unwrap().size(), [16]);

    let prompt_length = rollout.tokens.size()[1] - rollout.response_length();
    let stop = llm.tokenizer.stop_tokens();
    for (row, (&length, &stopped)) in rollout.lengths.iter().zip(&rollout.stopped).enumerate() {
        let row = row as i64;
        assert_eq!(rollout.response_mask.get(row).sum(Kind::Int64).int64_value(&[]), length as i64);
        let last = rollout.tokens.int64_value(&[row, prompt_length + length as i64 - 1]);
        assert_eq!(stop.contains(&last), stopped, "the last kept token is the stop token, if there was one");
    }
    let text = llm.tokenizer.decode(&Vec::<i64>::try_from(rollout.tokens.get(0)).unwrap()).unwrap();
    assert!(text.contains(&problems[0].question));
}

#[test]
fn tokens_are_drawn_with_what_training_computes_and_may_do_without_it() {
    let llm = tiny(3, Kind::Float);
    let problems = builtin::problems(Level::Easy, 0).train;
    // What the nucleus leaves out counts: the policy has no nucleus.
    let sampling =
        Sampling { temperature: 0.7, top_p: 0.8, top_k: Some(50), max_new_tokens: 12, seed: 5, fused: true };
    let rollout = rollout::sample(&llm, &[&problems[0], &problems[1]], 4, &sampling).unwrap();
    let drawn = rollout.logp();
    let off = |temperature: f64| {
        let computed = rollout.responses().frozen_logp(&llm.model, temperature, 3, true).unwrap();
        (&drawn - computed).abs().max().double_value(&[])
    };
    assert!(off(0.7) < 1e-4, "{}", off(0.7));
    assert!(off(1.0) > 1e-2, "{}", off(1.0));

    let mut config = config::Config::default();
    config.algorithm.rollout_correction.bypass_mode = true;
    config.actor_rollout_ref.rollout.temperature = 0.7;
    let updating = StepOptions::of(&config, Device::Cpu).unwrap();
    let algorithm = Algorithm::resolve(&config).unwrap();
    let models = Models { policy: &llm, reference: None, critic: None };
    let seen = models.look_at(&rollout, &algorithm, &config, &updating).unwrap();
    assert!(seen.logp_old.unwrap().equal(&drawn));
}

#[test]
fn scores_are_those_of_each_response_on_its_own() {
    let llm = tiny(1, Kind::Double);
    // Two groups of three; three and one of different sizes; every row with a prompt of its own.
    for group in [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 2], [0, 1, 2, 3, 4, 5]] {
        let responses = ragged_responses(&group);
        let Responses { tokens, attention_mask, response_mask, .. } = &responses;
        let scores = responses.score(&llm.model, 0.7).unwrap();
        for row in 0..6 {
            let real = tokens.get(row).masked_select(&attention_mask.get(row)).unsqueeze(0);
            let all = real.ones_like().to_kind(Kind::Bool);
            let logp = (llm.model.head(&llm.model.hidden(&real, &all)) / 0.7).log_softmax(-1, Kind::Double);
            let entropy = -(logp.exp() * &logp).sum_dim_intlist(-1i64, false, Kind::Double);
            let length = response_mask.get(row).sum(Kind::Int64).int64_value(&[]);
            for t in 0..length {
                let place = real.size()[1] - length + t;
                for (name, alone, scored) in [
                    ("logp", logp.double_value(&[0, place - 1, real.int64_value(&[0, place])]), &scores.logp),
                    ("entropy", entropy.double_value(&[0, place - 1]), &scores.entropy),
                ] {
                    let scored = scored.double_value(&[row, t]);
                    let place = format!("groups {group:?}, row {row}, token {t}");
                    assert!((alone - scored).abs() < 1e-12, "{place}: {name} is {scored}, not {alone}");
                }
            }
        }
    }
}

#[test]
fn what_stands_in_padding_reaches_no_score() {
    let llm = tiny(1, Kind::Double);
    let responses = ragged_responses(&[0, 0, 0, 1, 1, 1]);
    let plain = responses.score(&llm.model, 1.0).unwrap();
    let tokens =
        responses.tokens.where_self(&responses.attention_mask, &(responses.tokens.zeros_like() + 99));
    assert_ne!(tokens, responses.tokens);
    let outside = plain.logp.masked_select(&responses.response_mask.logical_not());
    assert_eq!(outside.abs().max().double_value(&[]), 0.0);
    let rubbish = Responses { tokens, ..responses }.score(&llm.model, 1.0).unwrap();
    assert_eq!((plain.logp, plain.entropy), (rubbish.logp, rubbish.entropy));
}

#[test]
fn rows_of_like_length_stand_together_and_groups_too() {
    let lengths = |lengths: &[i64]| {
        let places = Tensor::arange(6, (Kind::Int64, Device::Cpu));
        places.unsqueeze(0).lt_tensor(&Tensor::from_slice(lengths).unsqueeze(1))
    };
    let of = |group: &[i64], response_mask: Tensor| {
        let count = group.len() as i64;
        let prompts = Tensor::ones([count, 2], (Kind::Bool, Device::Cpu));
        let attention_mask = Tensor::cat(&[prompts, response_mask.shallow_clone()], 1);
        let prompt = Tensor::from_slice(&[7i64, 9]).expand([count, 2], true);
        let answers = Tensor::arange(6 * count, (Kind::Int64, Device::Cpu)).view([count, 6]);
        let tokens = Tensor::cat(&[prompt, answers], 1);
        Responses { tokens, attention_mask, response_mask, group: Tensor::from_slice(group) }
    };
    let responses = of(&[0, 0, 1, 1, 2], lengths(&[5, 1, 2, 2, 0]));
    assert_eq!(responses.by_length(), [4, 2, 3, 1, 0]);

    let llm = tiny(1, Kind::Float);
    let whole = responses.score(&llm.model, 1.0).unwrap().logp;
    for (size, fused) in [(1, true), (2, true), (2, false), (9, true)] {
        let pieces = responses.frozen_logp(&llm.model, 1.0, size, fused).unwrap();
        assert!((&whole - pieces).abs().max().double_value(&[]) < 1e-5, "{size} at a time, fused: {fused}");
    }
}

// ---- the optimiser ----

#[test]
fn adamw_and_the_gradient_clip_are_pytorchs() {
    [true, false].into_iter().for_each(steps_like_pytorch);
}

fn steps_like_pytorch(fused: bool) {
    let options = AdamW { lr: 0.05, beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.1 };
    let store = nn::VarStore::new(Device::Cpu);
    tch::manual_seed(1);
    let (a, b) = (store.root().randn_standard("a", &[3, 4]), store.root().randn_standard("b", &[5]));
    let config = nn::AdamW { beta1: 0.8, beta2: 0.95, wd: 0.1, eps: 1e-6, amsgrad: false };
    let mut theirs = config.build(&store, 0.05).unwrap();
    let own = |tensor: &Tensor| tensor.detach().copy().set_requires_grad(true);
    let mut parameters = [own(&a), own(&b)];
    let mut ours = Optimizer::new(parameters.iter().map(Tensor::shallow_clone), options, fused);
    for step in 1..=20 {
        let loss = |a: &Tensor, b: &Tensor| {
            (a.sin() * step as f64).sum(Kind::Float) + b.pow_tensor_scalar(4).sum(None)
        };
        theirs.zero_grad();
        loss(&a, &b).backward();
        theirs.clip_grad_norm(0.7);
        theirs.step();
        ours.zero_grad();
        loss(&parameters[0], &parameters[1]).backward();
        assert!(ours.clip_grad_norm(0.7).unwrap() > 0.7, "the clip has nothing to do");
        ours.step().unwrap();
        for (theirs, ours) in [&a, &b].into_iter().zip(&parameters) {
            let difference = (theirs - ours).abs().max().double_value(&[]);
            assert!(difference < 1e-6, "step {step}: {difference:e}");
        }
    }
    let norm = clip_grad_norm(parameters.iter(), 100.0);
    let squares: f64 =
        parameters.iter_mut().map(|p| p.grad().square().sum(Kind::Double).double_value(&[])).sum();
    assert!((norm - squares.sqrt()).abs() < 1e-6 && (norm - 0.7).abs() < 1e-4);
}

// ---- problems ----

#[test]
fn a_broken_line_is_named() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("train.jsonl");
    let good = r##"{"question": "What is 1 + 1?", "answer": "1 + 1 = 2\n#### 2"}"##;
    for (third, problem) in [
        (r#"{"question": "What is"#, "line 3: not an object with `question` and `answer`"),
        (r#"{"question": "What?"}"#, "missing field `answer`"),
        (r#"{"question": "What?", "answer": "two"}"#, "line 3: the answer has no line `#### N`"),
    ] {
        fs::write(&path, format!("{good}\n\n{third}\n{good}\n")).unwrap();
        let message = problem::jsonl(&path).unwrap_err().to_string();
        assert!(message.contains("train.jsonl: line 3") && message.contains(problem), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
    fs::write(&path, b"\xff\xfe\n").unwrap();
    assert!(problem::jsonl(&path).unwrap_err().to_string().contains("line 1"));
    fs::write(&path, "\n").unwrap();
    assert!(problem::jsonl(&path).unwrap_err().to_string().contains("the file holds no problems"));

    fs::write(&path, format!("{good}\n{good}\n")).unwrap();
    assert_eq!(problem::jsonl(&path).unwrap()[1].answer, "1 + 1 = 2\n#### 2");
    let message = data::folder(folder.path()).unwrap_err().to_string();
    assert!(message.contains("test.jsonl: there is no such file"), "{message}");
}

#[test]
fn built_in_problems_are_right_distinct_and_held_out() {
    for level in [Level::Tiny, Level::Easy, Level::Medium, Level::Hard] {
        let problems = builtin::problems(level, 3);
        for Problem { question, answer } in problems.train.iter().chain(&problems.test) {
            assert_eq!(reward::gsm8k(answer, answer, &Gsm8k::strict()).unwrap(), 1.0, "{question}: {answer}");
            // Every calculation that the worked answer marks comes out.
            for mark in answer.split("<<").skip(1) {
                let (left, right) = mark.split_once(">>").unwrap().0.split_once('=').unwrap();
                assert_eq!(calculated(left), right.parse::<i64>().unwrap(), "{question}: {answer}");
            }
        }
        let distinct: std::collections::HashSet<_> =
            problems.train.iter().chain(&problems.test).map(|problem| &problem.question).collect();
        assert_eq!(distinct.len(), problems.train.len() + problems.test.len(), "{level:?}");
        assert!(problems.test.len() >= 12, "{level:?}");
        assert_eq!(problems.train, builtin::problems(level, 3).train);
        assert_ne!(problems.train, builtin::problems(level, 4).train);
    }
    let easy = builtin::problems(Level::Easy, 3);
    assert_eq!(easy.train.len() + easy.test.len(), 100);
    let sorted = |problem: &Problem| {
        let mut digits: Vec<char> = problem.question.chars().filter(char::is_ascii_digit).collect();
        digits.sort_unstable();
        digits
    };
    for held_out in &easy.test {
        assert!(
            easy.train.iter().all(|problem| sorted(problem) != sorted(held_out)),
            "{}",
            held_out.question
        );
    }
}

/// A product or quotient of two numbers, or a sum or difference of any of them.
fn calculated(expression: &str) -> i64 {
    for (operator, apply) in [
        ('+', (|a, b| a + b) as fn(i64, i64) -> i64),
        ('-', |a, b| a - b),
        ('*', |a, b| a * b),
        ('/', |a, b| if a % b == 0 { a / b } else { i64::MIN }),
    ] {
        if let Some((left, right)) = expression.rsplit_once(operator) {
            return apply(calculated(left), calculated(right));
        }
    }
    expression.parse().unwrap()
}

#[test]
fn every_problem_comes_once_before_any_comes_again() {
    let problems = builtin::problems(Level::Easy, 0).train;
    let draw = |count: usize, seed: Option<u64>| -> Vec<Problem> {
        let mut draws = Draws::new(problems.clone(), seed);
        (0..count).flat_map(|_| draws.next(4).into_iter().cloned().collect::<Vec<_>>()).collect()
    };
    let drawn = draw(problems.len(), Some(9));
    for epoch in drawn.chunks(problems.len()) {
        let distinct: std::collections::HashSet<_> = epoch.iter().map(|problem| &problem.question).collect();
        assert_eq!(distinct.len(), problems.len());
    }
    assert_ne!(drawn[..problems.len()], drawn[problems.len()..2 * problems.len()]);
    assert_ne!(drawn[..4], draw(1, Some(10)));
    assert_eq!(draw(2, None), problems[..8]);
}

#[test]
fn verls_preparation_of_gsm8k_is_read() {
    let problems = builtin::problems(Level::Easy, 0).test;
    let schema = "message schema { required group extra_info {
        required binary question (UTF8); required binary answer (UTF8); } }";
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("train.parquet");
    fs::write(&file, parquet_of(schema, &problems)).unwrap();
    let name = file.display().to_string();
    let config = config::Data { train_files: name.clone(), val_files: Some(name), ..config::Data::default() };
    let data = data::load(&config).unwrap();
    assert_eq!((&data.train, &data.test), (&problems, &problems));
}

#[test]
fn gsm8k_comes_from_the_hub_once() {
    let problems: Vec<Problem> = (0..5)
        .map(|n| Problem { question: format!("What is {n} + 1?"), answer: format!("It is\n#### {}", n + 1) })
        .collect();
    let address = serve(parquet(&problems));
    let cache = TempDir::new().unwrap();
    let hub = Hub { endpoint: Some(address), cache: Some(cache.path().to_owned()), ..Hub::default() };
    let data = hub::gsm8k(&hub).unwrap();
    assert_eq!((&data.train, &data.test), (&problems, &problems));
    assert!(data.source.contains("openai/gsm8k"));
    // The second time the files are there, and nobody needs to be reached.
    let offline = Hub { endpoint: Some(unreachable()), ..hub };
    assert_eq!(hub::gsm8k(&offline).unwrap().train, problems);
}

#[test]
fn without_a_network_the_hub_is_one_clear_sentence() {
    let cache = TempDir::new().unwrap();
    let hub = Hub { endpoint: Some(unreachable()), cache: Some(cache.path().to_owned()), ..Hub::default() };
    let message = hub::gsm8k(&hub).unwrap_err().to_string();
    assert!(
        message.starts_with("openai/gsm8k could not be fetched") && message.contains("data.train_files"),
        "{message}"
    );
    assert!(!message.contains('\n'), "{message}");
}

// ---- the example ----

#[test]
fn a_short_run_leaves_a_whole_record() {
    let folder = TempDir::new().unwrap();
    let (model, out) = (folder.path().join("model"), folder.path().join("run"));
    write_model(&model, 4);
    let line = format!(
        "actor_rollout_ref.model.path={} trainer.default_local_dir={} trainer.total_training_steps=2 \
         data.train_batch_size=2 actor_rollout_ref.rollout.n=3 data.max_response_length=6 data.val_max_samples=3 \
         actor_rollout_ref.actor.optim.lr=1e-3 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
         trainer.device=cpu",
        model.display(),
        out.display()
    );
    let run = || example(&line);
    run().unwrap();

    let metrics = jsonl(&out.join("metrics.jsonl"));
    let steps: Vec<&Value> = metrics.iter().filter(|line| line["event"] == "step").collect();
    assert_eq!(steps.iter().map(|line| line["step"].as_i64().unwrap()).collect::<Vec<_>>(), [1, 2]);
    for field in [
        "reward_mean",
        "accuracy",
        "groups_differing",
        "loss",
        "policy_loss",
        "kl",
        "clip_fraction",
        "ratio_mean",
        "grad_norm",
        "response_length_mean",
        "response_length_median",
        "response_length_p95",
        "response_length_max",
        "entropy",
        "rollout_tokens_per_s",
        "train_tokens_per_s",
        "seconds",
    ] {
        assert!(steps.iter().all(|line| line[field].is_number()), "{field}");
    }
    assert_eq!(metrics.iter().filter(|line| line["eval_accuracy"].is_number()).count(), 2);
    let rollouts = jsonl(&out.join("rollouts.jsonl"));
    assert_eq!(rollouts.len(), 4, "two problems a step");
    let responses = |line: &Value| line["responses"].as_array().unwrap().len();
    assert!(rollouts.iter().all(|line| line["prompt"].is_string() && responses(line) == 3));
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.contains("finished") && page.contains("made likelier"));
    let answers = jsonl(&out.join("evaluations/step-000002.jsonl"));
    assert_eq!(answers.len(), 3);
    Llm::load(&out.join("model"), Device::Cpu, Kind::Float).unwrap();
    let config: Value = serde_json::from_str(&fs::read_to_string(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["trainer"]["total_training_steps"], json!(2));
    assert_eq!(config["actor_rollout_ref"]["actor"]["ppo_micro_batch_size_per_gpu"], json!(4));
    let picture = fs::read_to_string(out.join("curves.svg")).unwrap();
    assert!(picture.starts_with("<svg") && picture.trim_end().ends_with("</svg>"));
    assert!(picture.contains("<polyline") && picture.contains("held-out"));
    let mut names: Vec<String> =
        fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    let whole = [
        "checkpoints",
        "config.json",
        "curves.svg",
        "evaluations",
        "index.html",
        "metrics.jsonl",
        "model",
        "rollouts.jsonl",
        "tensorboard",
    ];
    assert_eq!(names, whole);

    let message = run().err().unwrap().to_string();
    assert!(
        message.contains("trainer.default_local_dir"),
        "a folder with a run in it is not written to: {message}"
    );
}

#[test]
fn bad_input_leaves_no_run_folder() {
    let folder = TempDir::new().unwrap();
    let model = folder.path().join("model");
    write_model(&model, 4);
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("train.jsonl"), "{\n").unwrap();
    let out = folder.path().join("run");
    let (of, data) = (format!("actor_rollout_ref.model.path={}", model.display()), data.display());
    for (arguments, problem) in [
        ("actor_rollout_ref.model.path=nowhere.gguf".to_owned(), "./setup"),
        (format!("{of} data.train_files={data}"), "train.jsonl: line 1"),
        (format!("{of} data.train_files={data}/nowhere data.val_files=x"), "there is no such file"),
        (format!("{of} data.max_response_length=5000"), "context"),
        (format!("{of} actor_rollout_ref.rollout.n=0"), "`actor_rollout_ref.rollout.n`"),
        (format!("{of} actor_rollout_ref.rollout.top_p=1.5"), "`actor_rollout_ref.rollout.top_p`"),
        (format!("{of} actor_rollout_ref.actor.clip_ratio_low=2"), "`clip_ratio_low`"),
        (format!("{of} trainer.device=cuda:99"), "`trainer.device`"),
        (format!("{of} actor_rollout_ref.model.lora_rank=-1"), "`actor_rollout_ref.model.lora_rank`"),
        (format!("{of} actor_rollout_ref.rollout.val_kwargs.n=0"), "val_kwargs.n"),
    ] {
        let line = format!("trainer.default_local_dir={} {arguments}", out.display());
        let message = example(&line).err().unwrap().to_string();
        assert!(message.contains(problem), "{arguments}: {message}");
        assert!(!message.contains('\n') && !out.exists(), "{arguments}: {message}");
    }
    for wrong in ["--stepz 3", "--preset", "--resume here --preset tiny"] {
        let line = format!("gsm8k {wrong}");
        let error = Options::try_parse_from(line.split(' ')).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{wrong}");
    }
}

#[test]
fn the_data_asked_for_wins_over_the_environment() {
    let folder = TempDir::new().unwrap();
    for file in ["train.jsonl", "test.jsonl"] {
        fs::write(folder.path().join(file), "{\"question\": \"Q\", \"answer\": \"#### 1\"}\n").unwrap();
    }
    let source = |arguments: &str, environment: Option<&Path>| {
        let options = Options::try_parse_from(arguments.split(' ')).unwrap();
        let read = options.read(environment.map(|path| path.as_os_str().to_owned())).unwrap();
        data::load(&read.config.data).unwrap().source
    };
    assert!(source("gsm8k", None).starts_with("built-in easy"));
    assert!(source("gsm8k", Some(folder.path())).starts_with("GSM8K from"));
    assert!(
        source("gsm8k data.train_files=builtin:medium", Some(folder.path())).starts_with("built-in medium")
    );
    assert!(source("gsm8k --preset tiny", Some(folder.path())).starts_with("built-in tiny"));
    let given = format!("gsm8k data.train_files={}", folder.path().display());
    assert!(source(&given, Some(Path::new("x"))).starts_with("GSM8K"));
}

#[test]
fn a_run_that_was_cut_short_goes_on_as_if_it_had_not_been() {
    let folder = TempDir::new().unwrap();
    for change in [
        "algorithm.adv_estimator=group_ppo actor_rollout_ref.actor.ppo_epochs=2",
        "actor_rollout_ref.actor.use_kl_loss=True algorithm.use_kl_in_reward=True algorithm.kl_ctrl.type=adaptive \
         actor_rollout_ref.model.lora_rank=4 actor_rollout_ref.actor.ppo_mini_batch_size=4 \
         actor_rollout_ref.actor.shuffle=True",
    ] {
        let of = |name: &str| folder.path().join(name);
        let line = |name: &str| {
            let out = of(name).display().to_string();
            format!(
                "--preset tiny sft.total_training_steps=3 data.val_max_samples=2 trainer.device=cpu \
                 trainer.total_training_steps=6 trainer.save_freq=2 trainer.default_local_dir={out} {change}"
            )
        };
        example(&line("whole")).unwrap();
        example(&line("cut")).unwrap();
        // As if it had been killed in the fifth step: its checkpoint is not whole, its records go further.
        let checkpoints = of("cut").join("checkpoints");
        fs::rename(checkpoints.join("step-000006"), checkpoints.join("step-000006.new")).unwrap();
        fs::remove_dir_all(of("cut").join("model")).unwrap();
        let options = Options { resume: Some(of("cut")), ..Options::default() };
        train(&options).unwrap();
        let state =
            |name: &str| fs::read(of(name).join("checkpoints/step-000006/tensors.safetensors")).unwrap();
        assert!(state("whole") == state("cut"), "{change}");
        let weights = |name: &str| -> BTreeMap<String, Tensor> {
            let file = of(name).join("model/model.safetensors");
            Tensor::read_safetensors(file).unwrap().into_iter().collect()
        };
        assert!(weights("whole") == weights("cut"), "{change}");
        let metrics = |name: &str| -> Vec<Value> {
            let mut lines = jsonl(&of(name).join("metrics.jsonl"));
            for line in lines.iter_mut().map(|line| line.as_object_mut().unwrap()) {
                line.retain(|key, _| !key.contains("seconds") && !key.ends_with("per_s"));
            }
            lines
        };
        assert_eq!(metrics("whole"), metrics("cut"), "{change}");
        fs::remove_dir_all(of("whole")).unwrap();
        fs::remove_dir_all(of("cut")).unwrap();
    }
}

#[test]
fn a_run_that_diverges_says_so_and_leaves_a_usable_folder() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let line = format!(
        "--preset tiny sft.total_training_steps=1 trainer.total_training_steps=9 trainer.save_freq=1 trainer.max_actor_ckpt_to_keep=null \
         trainer.device=cpu actor_rollout_ref.actor.optim.lr=1e30 trainer.default_local_dir={}",
        out.display()
    );
    let message = example(&line).err().unwrap().to_string();
    assert!(message.contains("diverged") && !message.contains('\n'), "{message}");
    let page = fs::read_to_string(out.join("index.html")).unwrap();
    assert!(page.contains("stopped:") && !page.contains("http-equiv"), "{message}");
    assert!(!jsonl(&out.join("metrics.jsonl")).is_empty());
    assert!(out.join("checkpoints/step-000000/tensors.safetensors").is_file());
}

#[test]
fn an_evaluation_that_was_cut_short_goes_on() {
    let llm = tiny(5, Kind::Float);
    let problems = builtin::problems(Level::Easy, 0).test;
    let sampling =
        Sampling { temperature: 0.0, top_p: 1.0, top_k: None, max_new_tokens: 3, seed: 0, fused: true };
    let examination = Examination { sampling, n: 1, batch: 4 };
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("answers.jsonl");
    let asked = |file: &Path| evaluate(&llm, &problems, &examination, Some(file)).unwrap();
    let whole = asked(&file);
    let text = fs::read_to_string(&file).unwrap();
    assert_eq!(text.lines().count(), problems.len());
    fs::write(&file, &text[..text.len() / 2]).unwrap();
    let again = asked(&file);
    assert_eq!(fs::read_to_string(&file).unwrap(), text);
    assert_eq!((again.accuracy, again.length_mean), (whole.accuracy, whole.length_mean));
    assert_eq!(again.pass_at, [(1, whole.accuracy)]);

    let others: Vec<Problem> = problems.iter().rev().cloned().collect();
    let message = evaluate(&llm, &others, &examination, Some(&file)).unwrap_err().to_string();
    assert!(message.contains("another evaluation"), "{message}");
}

#[test]
fn an_interrupted_run_says_how_to_go_on() {
    let folder = TempDir::new().unwrap();
    let out = folder.path().join("run");
    let line = format!(
        "gsm8k --preset tiny sft.total_training_steps=1 trainer.total_training_steps=80 trainer.device=cpu \
         trainer.default_local_dir={}",
        out.display()
    );
    let options = Options::try_parse_from(line.split(' ')).unwrap();
    let stop = Stop::default();
    stop.ask();
    let config = options.read(None).unwrap().config;
    let run = gsm8k::train(&config, Algorithm::resolve(&config).unwrap(), None, &stop);
    let message = run.err().unwrap().to_string();
    assert!(message.contains("interrupted after step 1 of 80; go on with --resume"), "{message}");
    assert!(fs::read_to_string(out.join("index.html")).unwrap().contains("stopped: interrupted"));
    assert!(out.join("checkpoints/step-000001/tensors.safetensors").is_file());
}

// ---- helpers ----

/// A run of the example with these arguments.
fn example(arguments: &str) -> Result<Run> {
    let line = format!("gsm8k {arguments}");
    train(&Options::try_parse_from(line.split_whitespace()).unwrap())
}

fn train(options: &Options) -> Result<Run> {
    let config = options.read(None)?.config;
    let algorithm = Algorithm::resolve(&config)?;
    gsm8k::train(&config, algorithm, options.resume.as_deref(), &Stop::default())
}

/// A random Llama of two layers with a byte-level tokenizer.
pub(crate) fn tiny(seed: i64, kind: Kind) -> Llm {
    let folder = TempDir::new().unwrap();
    write_model(folder.path(), seed);
    let llm = Llm::load(folder.path(), Device::Cpu, kind).unwrap();
    llm.model.set_trainable(true);
    llm
}

const CHAT: &str = "{% for message in messages %}<|start|>{{ message.role }}\n{{ message.content }}<|end|>\n\
                    {% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}";

fn write_model(folder: &Path, seed: i64) {
    fs::create_dir_all(folder).unwrap();
    let mut alphabet: Vec<char> = ByteLevel::alphabet().into_iter().collect();
    alphabet.sort_unstable();
    let vocabulary: Vec<(String, u32)> =
        alphabet.iter().zip(0..).map(|(c, id)| (c.to_string(), id)).collect();
    let bpe = BPE::builder()
        .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), vec![]);
    let mut tokenizer = tokenizers::Tokenizer::new(bpe.build().unwrap());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special = ["<|start|>", "<|end|>"].map(|token| tokenizers::AddedToken::from(token, true));
    tokenizer.add_special_tokens(special).unwrap();
    tokenizer.save(folder.join("tokenizer.json"), false).unwrap();
    let settings = json!({"eos_token": "<|end|>", "pad_token": "<|end|>", "chat_template": CHAT});
    fs::write(folder.join("tokenizer_config.json"), settings.to_string()).unwrap();

    let (vocab, hidden, inner) = (258, 32, 48);
    let config = json!({
        "architectures": ["LlamaForCausalLM"], "vocab_size": vocab, "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": true,
    });
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocab, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    for layer in 0..2 {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![hidden, hidden]),
            ("self_attn.k_proj", vec![hidden / 2, hidden]),
            ("self_attn.v_proj", vec![hidden / 2, hidden]),
            ("self_attn.o_proj", vec![hidden, hidden]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let random = |index: usize, shape: &[i64]| {
        let count: i64 = shape.iter().product();
        // A plain congruential generator: libtorch's is shared by tests that run at the same time.
        let mut state =
            (seed as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(index as u64 * 7919);
        let values: Vec<f32> = (0..count)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 24) as f32 - 0.5
            })
            .collect();
        let scale = if shape.len() == 1 { 0.2 } else { 0.4 };
        Tensor::from_slice(&values).view(shape) * scale + if shape.len() == 1 { 1.0 } else { 0.0 }
    };
    let tensors: Vec<(String, Tensor)> =
        tensors.into_iter().enumerate().map(|(index, (name, shape))| (name, random(index, &shape))).collect();
    Tensor::write_safetensors(&tensors, folder.join("model.safetensors")).unwrap();
}

/// Six responses in two groups, every length its own, and advantages.
pub(crate) fn ragged() -> (Rollout, Advantages) {
    let tokens =
        |length: usize, salt: usize| (0..length).map(|i| ((i * 31 + salt * 17) % 250) as i64).collect();
    let prompts: Vec<Vec<i64>> =
        [3, 3, 3, 6, 6, 6].iter().enumerate().map(|(i, &n)| tokens(n, i / 3)).collect();
    let responses: Vec<Vec<i64>> =
        [2, 5, 1, 3, 5, 4].iter().enumerate().map(|(i, &n)| tokens(n, i + 5)).collect();
    let padded = rollout::pad(&prompts, &responses, 257, Device::Cpu);
    let problem = Problem { question: String::new(), answer: "#### 1".to_owned() };
    let rollout = Rollout {
        tokens: padded.tokens,
        attention_mask: padded.attention_mask,
        response_mask: padded.response_mask,
        group: Tensor::from_slice(&[0i64, 0, 0, 1, 1, 1]),
        n: 3,
        problems: vec![problem; 6],
        texts: vec![String::new(); 6],
        lengths: responses.iter().map(Vec::len).collect(),
        stopped: vec![true; 6],
        drawn_logp: responses.iter().map(|response| vec![-1.0; response.len()]).collect(),
        prompts,
        answers: responses,
        gen_batches: 1,
        dropped_groups: 0,
        sampled_reward: None,
        seconds: 1.0,
    };
    let of_rows = Tensor::from_slice(&[1.0f64, -0.5, -0.5, 0.25, -1.25, 1.0]).unsqueeze(1);
    let loss_mask = rollout.response_mask.shallow_clone();
    let advantages = Advantages {
        advantages: of_rows.expand_as(&loss_mask).masked_fill(&loss_mask.logical_not(), 0.0),
        returns: None,
        loss_mask,
        figures: Figures::default(),
        remarks: vec![],
    };
    (rollout, advantages)
}

/// The log-probabilities of responses that a policy near this one sampled, and of a reference policy.
fn off_policy(policy: &Llm, reference: &Llm, rollout: &Rollout) -> Seen {
    let logp = |llm: &Llm| rollout.responses().frozen_logp(&llm.model, 1.0, 4, true).unwrap();
    let now = logp(policy);
    let off = Tensor::arange(now.numel() as i64, (Kind::Double, Device::Cpu)).sin().view_as(&now) * 0.3;
    let mut seen = Seen::rewards(Tensor::zeros([6], (Kind::Double, Device::Cpu)));
    seen.logp_old = Some((now + off).masked_fill(&rollout.response_mask.logical_not(), 0.0));
    seen.logp_ref = Some(logp(reference));
    seen
}

pub(crate) fn ragged_responses(group: &[i64]) -> Responses {
    let (Rollout { tokens, attention_mask, response_mask, .. }, _) = ragged();
    Responses { tokens, attention_mask, response_mask, group: Tensor::from_slice(group) }
}

fn loss(loss_agg_mode: LossAggMode) -> ActorLoss {
    ActorLoss { aggregate: Aggregate::local(loss_agg_mode), ..ActorLoss::grpo() }
}

/// An objective with a KL and an entropy term beside it.
pub(crate) fn step_loss(objective: Objective, mode: LossAggMode) -> LossOptions {
    LossOptions { objective, terms: ActorLoss { kl_loss_coef: 0.3, entropy_coeff: 0.1, ..loss(mode) } }
}

fn vanilla(mode: LossAggMode) -> LossOptions {
    LossOptions { objective: Objective::Vanilla, terms: loss(mode) }
}

/// One update from the whole batch at once, gradients unclipped.
fn step_options(loss: LossOptions) -> StepOptions {
    StepOptions {
        loss,
        mini_batch: 2,
        micro_batch: 6,
        shuffle: None,
        temperature: 1.0,
        max_grad_norm: 1e9,
        gradient_checkpointing: false,
        fused: true,
    }
}

fn optimizer(llm: &Llm, lr: f64) -> Optimizer {
    let options = AdamW { lr, weight_decay: 0.0, ..AdamW::torch() };
    Optimizer::new(llm.model.parameters().into_iter().map(|named| named.1), options, true)
}

/// Moves nothing, so that gradients can be compared.
fn still(llm: &Llm) -> Optimizer {
    optimizer(llm, 0.0)
}

pub(crate) fn all_gradients(llm: &Llm) -> Tensor {
    let gradients: Vec<Tensor> =
        llm.model.parameters().iter().map(|named| named.1.grad().flatten(0, -1)).collect();
    Tensor::cat(&gradients, 0).copy()
}

pub(crate) fn all_parameters(llm: &Llm) -> Tensor {
    let parameters: Vec<Tensor> = llm.model.parameters().iter().map(|named| named.1.flatten(0, -1)).collect();
    no_grad(|| Tensor::cat(&parameters, 0).copy())
}

fn jsonl(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// A Parquet file with the hub's two columns.
fn parquet(problems: &[Problem]) -> Vec<u8> {
    parquet_of("message schema { required binary question (UTF8); required binary answer (UTF8); }", problems)
}

/// The same under another schema with a question and an answer.
fn parquet_of(schema: &str, problems: &[Problem]) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let mut file = Vec::new();
    let mut writer = SerializedFileWriter::new(&mut file, schema, Default::default()).unwrap();
    let mut rows = writer.next_row_group().unwrap();
    for text in [|problem: &Problem| problem.question.clone(), |problem: &Problem| problem.answer.clone()] {
        let values: Vec<ByteArray> =
            problems.iter().map(|problem| ByteArray::from(text(problem).into_bytes())).collect();
        let mut column = rows.next_column().unwrap().unwrap();
        column.typed::<ByteArrayType>().write_batch(&values, None, None).unwrap();
        column.close().unwrap();
    }
    rows.close().unwrap();
    writer.close().unwrap();
    file
}

/// A server that has `file` at both of GSM8K's places, with the headers that the hub sends. Gives its address.
fn serve(file: Vec<u8>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for connection in listener.incoming() {
            answer(connection.unwrap(), &file);
        }
    });
    address
}

fn answer(mut connection: TcpStream, file: &[u8]) {
    let lines: Vec<String> = BufReader::new(connection.try_clone().unwrap())
        .lines()
        .map(|line| line.unwrap())
        .take_while(|line| !line.is_empty())
        .collect();
    let known = ["train", "test"].iter().any(|split| {
        lines[0].starts_with(&format!(
            "GET /datasets/openai/gsm8k/resolve/main/main/{split}-00000-of-00001.parquet "
        ))
    });
    if !known {
        write!(connection, "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            .unwrap();
        return;
    }
    let range = lines
        .iter()
        .find_map(|line| line.to_lowercase().strip_prefix("range: bytes=").map(str::to_owned))
        .unwrap();
    let (first, last) = range.split_once('-').unwrap();
    let (first, last) = (first.parse().unwrap(), last.parse().unwrap_or(file.len() - 1));
    let part: &[u8] = &file[first..=last];
    write!(
        connection,
        "HTTP/1.1 206 Partial Content\r\nx-repo-commit: 0123abcd\r\netag: \"{}\"\r\ncontent-range: bytes \
         {first}-{last}/{}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        if lines[0].contains("train") { "aa" } else { "bb" },
        file.len(),
        part.len()
    )
    .unwrap();
    connection.write_all(part).unwrap();
}

/// An address where nobody listens.
fn unreachable() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
