//! The named conventions: their pages can be read, agree with the constructors of the same source, and give the numbers
//! that the source itself gave (`tests/python/record_conventions.py`) or prints.

use std::collections::BTreeSet;

use grpo_oracle::Result;
use grpo_oracle::convention::Convention;
use grpo_oracle::evaluate::{Evaluation, Question, evaluate};
use grpo_oracle::formula::Formula;
use grpo_oracle::options::{
    AdamW, AdvantageMetrics, Aggregate, Cispo, Clip, Dynamic, Filter, Gae, Gmpo, Gpg, GroupNorm, GroupPpo,
    Gsm8k, Gspo, HealthRules, KlController, KlEstimate, KlInReward, Lora, LossAggMode, MaskedVariance,
    MicroBatches, Opo, Overlong, PassAtKAdvantage, Ratio, ReinforcePlusPlus, ReinforcePlusPlusBaseline,
    Resample, Rloo, RolloutRejection, RolloutWeights, Sapo, SequenceRatio, ValueClip, Whiten,
};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// What packages gave when they were run, by convention.
const RECORDED: [(&str, &str); 4] = [
    ("openrlhf-0.11", include_str!("conventions/openrlhf-0.11.json")),
    ("trl-1.16", include_str!("conventions/trl-1.16.json")),
    ("verl-0.7.0", include_str!("conventions/verl-0.7.0.json")),
    ("verl-0.9.1", include_str!("conventions/verl-0.9.1.json")),
];

#[test]
fn every_page_can_be_read_and_resolved() {
    for convention in Convention::all().unwrap() {
        assert!(!convention.formulas.is_empty(), "{} names no formula", convention.name);
        for (id, given) in &convention.formulas {
            let row = Formula::<f64>::find(id).unwrap_or_else(|error| panic!("{}: {error}", convention.name));
            let options =
                convention.options(id).unwrap_or_else(|error| panic!("{}, {id}: {error}", convention.name));
            let defaults = row.resolve(&Map::new()).unwrap();
            for (name, value) in given.as_object().unwrap() {
                assert_ne!(*value, defaults[name], "{}, {id}: {name} is the default anyway", convention.name);
                let as_ours =
                    |value: &Value| (value.is_f64(), value.is_i64(), value.is_boolean(), value.is_string());
                let samples = [&options[name], &defaults[name]].map(as_ours);
                let unset = options[name].is_null() || defaults[name].is_null();
                assert!(
                    unset || samples[0] == samples[1],
                    "{}, {id}: {name} is of another type",
                    convention.name
                );
            }
        }
    }
}

#[test]
fn every_page_says_when_it_was_read_and_what_it_leaves_unsaid() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/spec/conventions");
    let mut pages = BTreeSet::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        if name == "README" {
            continue;
        }
        let page = std::fs::read_to_string(&path).unwrap();
        assert!(page.contains("November 2026"), "{name} does not say when it was read");
        assert!(page.contains("\n## What the options do not say\n"), "{name} leaves nothing unsaid");
        assert_eq!(page.matches("```json").count(), 1, "{name} has another number of blocks than one");
        pages.insert(name);
    }
    let known: BTreeSet<String> =
        Convention::all().unwrap().iter().map(|page| page.name.to_owned()).collect();
    assert_eq!(pages, known, "the files and the list of src/convention.rs");
}

/// What each package gave, the formula gives under its convention.
#[test]
fn recorded_numbers_are_ours() {
    let mut all = Vec::new();
    for (name, recording) in recordings() {
        let version = name.rsplit_once('-').unwrap().1;
        assert_eq!(recording["convention"], name);
        assert!(recording["version"].as_str().unwrap().starts_with(version), "{name} is of another version");
        let convention = Convention::find(name).unwrap();
        for call in recording["calls"].as_array().unwrap() {
            let about =
                format!("{name}, {}, {}", call["function"].as_str().unwrap(), call["name"].as_str().unwrap());
            let options = convention.options(call["formula"].as_str().unwrap());
            let found = options.and_then(|options| disagreements(options, call));
            let found = found.unwrap_or_else(|error| panic!("{about}: {error}"));
            all.extend(found.iter().map(|difference| format!("{about}: {difference}")));
        }
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

/// Options of recorded pages that no recorded number depends on.
const UNTOLD: &[&str] = &[
    // NaN there, which is not recorded, or refused
    "openrlhf-0.11: mask.mean, empty",
    "openrlhf-0.11: advantage.group_norm, singleton",
    "openrlhf-0.11: advantage.rloo, singleton",
    // what it clamps the clamp of the output clamps first
    "verl-0.7.0: objective.actor_loss, kl_input_clamp",
    "verl-0.7.0: kl.estimate, input_clamp",
    "verl-0.9.1: objective.actor_loss, kl_input_clamp",
    "verl-0.9.1: kl.estimate, input_clamp",
];

/// Every option that a page sets is needed: with the specification's default in its place a recorded number is wrong.
#[test]
fn every_option_of_a_recorded_page_tells() {
    let mut untold = Vec::new();
    for (name, recording) in recordings() {
        let convention = Convention::find(name).unwrap();
        for (id, given) in &convention.formulas {
            let defaults = Formula::<f64>::find(id).unwrap().resolve(&Map::new()).unwrap();
            let calls = recording["calls"].as_array().unwrap().iter();
            let calls: Vec<&Value> = calls.filter(|call| call["formula"] == *id.as_str()).collect();
            for option in given.as_object().unwrap().keys().filter(|_| !UNRECORDED.contains(&id.as_str())) {
                let mut without = convention.options(id).unwrap();
                without.insert(option.clone(), defaults[option].clone());
                let tells =
                    |call: &&Value| disagreements(without.clone(), call).is_ok_and(|found| !found.is_empty());
                if !calls.iter().any(tells) {
                    untold.push(format!("{name}: {id}, {option}"));
                }
            }
        }
    }
    assert_eq!(untold, UNTOLD);
}

fn recordings() -> impl Iterator<Item = (&'static str, Value)> {
    RECORDED.iter().map(|(name, text)| (*name, serde_json::from_str(text).unwrap()))
}

/// The formulas of a recorded convention that no call was recorded for.
const UNRECORDED: &[&str] = &[
    // no function of their own: part of another recorded one, of a trainer's loop or of another package
    "advantage.td_error",
    "aggregate.micro_batches",
    "logprob.ratio",
    "logprob.sequence_ratio",
    "mask.variance", // of OpenRLHF, part of its masked_normalize
    "optim.adamw",
    "optim.clip_grad_norm",
    "optim.lora",
    "optim.schedule",
    "sampling.dynamic",
    "sampling.repeat",
];

#[test]
fn what_a_package_computes_was_recorded() {
    let mut missing = Vec::new();
    for (name, recording) in recordings() {
        let calls = recording["calls"].as_array().unwrap();
        let recorded: BTreeSet<&str> = calls.iter().map(|call| call["formula"].as_str().unwrap()).collect();
        for id in Convention::find(name).unwrap().formulas.keys() {
            if !recorded.contains(id.as_str()) && !UNRECORDED.contains(&id.as_str()) {
                missing.push(format!("{name}: {id}"));
            }
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
}

/// Where the formula under these options, and those of the call over them, differs from what was recorded.
fn disagreements(mut options: Map<String, Value>, call: &Value) -> Result<Vec<String>> {
    let id = call["formula"].as_str().unwrap();
    options.extend(call["options"].as_object().unwrap().clone());
    let question = Question::from_json(id, &json!({ "options": options, "inputs": call["inputs"] }))?;
    let answer = evaluate(id, &question)?;
    let tolerance = call["tolerance"].as_f64().unwrap();
    let mut found = Vec::new();
    for (output, recorded) in call["outputs"].as_object().unwrap() {
        let ours = read_output(&question, &answer, output);
        if !agree(&ours, &numbers(recorded), tolerance) {
            found.push(format!("{output} is {recorded} there and {ours:?} here"));
        }
    }
    let gradients = call.get("gradients").and_then(Value::as_object);
    for (input, recorded) in gradients.into_iter().flatten() {
        let ours = answer.gradients[input].reals();
        if !agree(ours, &numbers(recorded), tolerance) {
            found.push(format!("the gradient by {input} is {recorded} there and {ours:?} here"));
        }
    }
    Ok(found)
}

/// An output by name, `sum:` of it, or `seq-mean:` its mean over the sequences of their token means.
fn read_output(question: &Question, answer: &Evaluation, name: &str) -> Vec<f64> {
    match name.split_once(':') {
        Some(("sum", output)) => vec![answer.outputs[output].reals().iter().sum()],
        Some(("seq-mean", output)) => {
            let losses = json!({ "loss": answer.outputs[output].to_json(), "response_mask": question.inputs["response_mask"].to_json() });
            let mode = json!({ "loss_agg_mode": "seq-mean-token-mean" });
            let question = json!({ "options": mode, "inputs": losses });
            let question = Question::from_json("aggregate.loss", &question).unwrap();
            evaluate("aggregate.loss", &question).unwrap().outputs["loss"].reals().to_vec()
        }
        _ => answer.outputs[name].reals().to_vec(),
    }
}

/// All numbers of nested lists, in order.
fn numbers(json: &Value) -> Vec<f64> {
    match json {
        Value::Array(entries) => entries.iter().flat_map(numbers).collect(),
        _ => vec![json.as_f64().unwrap()],
    }
}

fn agree(ours: &[f64], theirs: &[f64], tolerance: f64) -> bool {
    let largest = theirs.iter().fold(0.0_f64, |largest, entry| largest.max(entry.abs()));
    let near = |(ours, theirs): (&f64, &f64)| (ours - theirs).abs() <= tolerance * largest.max(1.0);
    ours.len() == theirs.len() && ours.iter().zip(theirs).all(near)
}

/// The constructors that are named after a source, beside the convention and the formula that they belong to. Where a
/// constructor is only a part of the convention, what is missing is put into it here.
fn constructors() -> Vec<(&'static str, &'static str, Value)> {
    let eq29 = Aggregate::eq29();
    let sum_norm = Aggregate::local(LossAggMode::SeqMeanTokenSumNorm);
    vec![
        row("verl-0.9.1", "advantage.group_norm", GroupNorm::verl()),
        row("verl-0.7.0", "advantage.group_norm", GroupNorm::verl()),
        row("easyr1-brian", "advantage.group_norm", GroupNorm::easyr1_brian()),
        row("trl-1.16", "advantage.group_norm", GroupNorm::trl()),
        row("openrlhf-0.11", "advantage.group_norm", GroupNorm::openrlhf()),
        row("nemo-rl", "advantage.group_norm", GroupNorm::nemo()),
        row("open-instruct", "advantage.group_norm", GroupNorm::open_instruct()),
        row("deepseek-math", "advantage.group_norm", GroupNorm::deepseek_math()),
        row("dr-grpo", "advantage.group_norm", GroupNorm::dr_grpo()),
        row("cs336", "advantage.group_norm", GroupNorm::eq28()),
        row("verl-0.9.1", "advantage.rloo", Rloo::verl()),
        row("trl-1.16", "advantage.rloo", Rloo::trl()),
        row("verl-0.9.1", "advantage.reinforce_plus_plus", ReinforcePlusPlus::verl()),
        row("verl-0.7.0", "advantage.reinforce_plus_plus", ReinforcePlusPlus::verl_0_8()),
        row("verl-0.9.1", "advantage.reinforce_plus_plus_baseline", ReinforcePlusPlusBaseline::verl()),
        row("openrlhf-0.11", "advantage.reinforce_plus_plus_baseline", ReinforcePlusPlusBaseline::openrlhf()),
        row("verl-0.9.1", "advantage.opo", Opo::verl()),
        row("verl-0.9.1", "advantage.gpg", Gpg::verl()),
        row("verl-0.9.1", "advantage.pass_at_k", PassAtKAdvantage::verl()),
        row("verl-0.9.1", "advantage.gae", Gae::verl()),
        row("openrlhf-0.11", "advantage.gae", Gae::openrlhf()),
        row("doc-compute-new-adv", "advantage.filter", Filter::guide()),
        row("easyr1-brian", "advantage.filter", Filter::published()),
        row("doc-group-ppo", "advantage.group_ppo", GroupPpo::algorithm2()),
        row("group-ppo-published", "advantage.group_ppo", GroupPpo::published()),
        row("verl-0.9.1", "logprob.ratio", Ratio::verl()),
        row("gspo", "logprob.sequence_ratio", SequenceRatio::gspo()),
        row("verl-0.9.1", "rollout.weights", RolloutWeights::verl()),
        row("trl-1.16", "rollout.weights", RolloutWeights::trl()),
        row("verl-0.9.1", "rollout.rejection", RolloutRejection::verl()),
        row("cs336", "objective.clip", Clip::eq29()),
        row("dapo", "objective.clip", Clip::dapo()),
        row("verl-0.9.1", "objective.clip", Clip::verl()),
        row("gspo", "objective.gspo", Gspo::paper()),
        row(
            "verl-0.9.1",
            "objective.gspo",
            Gspo { clip_ratio_low: 0.2, clip_ratio_high: 0.2, ..Gspo::verl() },
        ),
        row("cispo", "objective.cispo", Cispo::minimax()),
        row("verl-0.9.1", "objective.cispo", Cispo::verl()),
        row("trl-1.16", "objective.cispo", Cispo { clip_ratio_high: 0.2, ..Cispo::trl() }),
        row("gmpo", "objective.gmpo", Gmpo::paper()),
        row("sapo", "objective.sapo", Sapo::paper()),
        row("verl-0.9.1", "objective.sapo", Sapo::verl()),
        row("deepseek-math", "kl.estimate", KlEstimate::k3()),
        row("verl-0.9.1", "kl.estimate", KlEstimate::verl()),
        row("verl-0.9.1", "kl.in_reward", KlInReward::verl()),
        row("verl-0.9.1", "kl.controller", KlController::verl()),
        row("deepseek-math", "aggregate.loss", eq29),
        row("dapo", "aggregate.loss", Aggregate::dapo()),
        row("dr-grpo", "aggregate.loss", sum_norm),
        row("verl-0.7.0", "aggregate.micro_batches", MicroBatches::verl_0_7()),
        row("verl-0.9.1", "value.clipped", ValueClip::verl()),
        row("verl-0.9.1", "reward.gsm8k", Gsm8k::verl_strict()),
        row("dapo", "reward.overlong", Overlong::dapo()),
        row("verl-0.9.1", "reward.overlong", Overlong::verl()),
        row("openrlhf-0.11", "reward.overlong", Overlong::openrlhf(1.0)),
        row("dapo", "sampling.dynamic", Dynamic::dapo()),
        row("openrlhf-0.11", "sampling.dynamic", Dynamic::openrlhf()),
        row("doc-grpo-dapo-fix", "sampling.resample", Resample::fix()),
        row("cs336", "optim.adamw", AdamW::cs336(1e-3)),
        row("doc-grpo-trainer-guide", "optim.lora", Lora::guide()),
        row("verl-0.9.1", "mask.variance", MaskedVariance::verl()),
        row("openrlhf-0.11", "mask.variance", MaskedVariance::openrlhf()),
        row("verl-0.9.1", "mask.whiten", Whiten::verl()),
        row("openrlhf-0.11", "mask.whiten", Whiten::openrlhf()),
        row("doc-compute-new-adv", "metrics.advantages", AdvantageMetrics::document()),
        row("easyr1-brian", "metrics.advantages", AdvantageMetrics::easyr1_brian()),
        row("doc-grpo-trainer-guide", "metrics.health", HealthRules::guide()),
    ]
}

fn row(
    convention: &'static str,
    formula: &'static str,
    options: impl Serialize,
) -> (&'static str, &'static str, Value) {
    (convention, formula, serde_json::to_value(options).unwrap())
}

#[test]
fn constructors_agree_with_the_pages() {
    for (name, formula, constructed) in constructors() {
        let page = Convention::find(name).unwrap().options(formula).unwrap();
        assert_eq!(Value::Object(page), constructed, "{name}, {formula}");
    }
}

/// The published filter, run on its guide's rewards.
#[test]
fn easyr1_brian_on_its_own_examples() {
    let five = [0.1, 0.5, 0.9, 1.3, 1.7];
    let filtered = |rewards: &[f64], negative: f64, positive: f64, new: bool| {
        let run = json!({ "keep_neg_ratio": negative, "keep_pos_ratio": positive, "compute_new_adv": new });
        ask(
            "easyr1-brian",
            "advantage.filter",
            &run,
            json!({ "rewards": rewards, "group": vec![0; rewards.len()] }),
        )
    };
    let expect = |answer: &Evaluation, advantages: &[f64], kept: &[f64]| {
        assert!(
            agree(answer.outputs["advantages"].reals(), advantages, 6e-5),
            "{:?}",
            answer.outputs["advantages"]
        );
        assert_eq!(answer.outputs["kept"].reals(), kept);
    };
    expect(&filtered(&five, 0.5, 0.7, false), &[-1.2649, 0.0, 0.0, 0.0, 1.2649], &[1.0, 0.0, 1.0, 0.0, 1.0]);
    expect(&filtered(&five, 0.5, 0.7, true), &[-1.0, 0.0, 0.0, 0.0, 1.0], &[1.0, 0.0, 1.0, 0.0, 1.0]);
    expect(&filtered(&five, 0.0, 1.0, false), &[0.0, 0.0, 0.0, 0.6325, 1.2649], &[0.0, 0.0, 1.0, 1.0, 1.0]);
    expect(&filtered(&five, 0.0, 1.0, true), &[0.0, 0.0, -1.0, 0.0, 1.0], &[0.0, 0.0, 1.0, 1.0, 1.0]);
    expect(
        &filtered(&five, 1.0, 0.5, true),
        &[-1.0247, -0.4392, 0.1464, 0.0, 1.3175],
        &[1.0, 1.0, 1.0, 0.0, 1.0],
    );
    expect(
        &filtered(&five, 0.3, 1.0, true),
        &[-1.3175, 0.0, -0.1464, 0.4392, 1.0247],
        &[1.0, 0.0, 1.0, 1.0, 1.0],
    );
    let binary = [0.0, 0.0, 0.0, 1.0, 1.0, 1.0];
    let half = 0.5_f64.sqrt();
    let expected = [-half, 0.0, 0.0, half, 0.0, 0.0];
    expect(&filtered(&binary, 0.5, 0.5, true), &expected, &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
    expect(&filtered(&[0.0, 0.0, 1.0, 1.0], 0.0, 0.5, true), &[0.0, 0.0, 0.8660, 0.0], &[0.0, 0.0, 1.0, 0.0]);
    let lone = [0.0, 0.0, 0.0, 1.0];
    expect(&filtered(&lone, 0.5, 1.0, true), &[-half, 0.0, 0.0, half], &[1.0, 0.0, 0.0, 1.0]);
    expect(&filtered(&lone, 0.5, 1.0, false), &[-0.5, 0.0, 0.0, 1.5], &[1.0, 0.0, 0.0, 1.0]);
    for (count, ratio, kept) in [(2, 0.7, 1.0), (3, 0.7, 2.0), (100, 0.29, 28.0), (50, 0.58, 28.0)] {
        let rewards: Vec<f64> = (0..2 * count).map(|i| if i < count { 1.0 } else { 0.0 }).collect();
        let answer = filtered(&rewards, 0.0, ratio, false);
        assert_eq!(answer.outputs["kept"].reals().iter().sum::<f64>(), kept, "{count} at {ratio}");
    }
}

/// The published endpoint search: on policy one endpoint, under a uniform drift every token, and an advantage that is
/// the rewards so far less the value.
#[test]
fn group_ppo_as_it_was_published() {
    let endpoints = |drift: f64, last_reward: f64| {
        let mut rewards = vec![0.0; 8];
        rewards[7] = last_reward;
        let inputs = json!({
            "rewards": [rewards],
            "values": [vec![0.5; 8]],
            "logp": [vec![-1.0 + drift; 8]],
            "logp_old": [vec![-1.0; 8]],
            "response_mask": [vec![1; 8]],
        });
        ask("group-ppo-published", "advantage.group_ppo", &json!({}), inputs)
    };
    let on_policy = endpoints(0.0, 1.0);
    assert_eq!(on_policy.outputs["endpoints"].reals(), [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(on_policy.outputs["advantages"].reals()[7], 0.5);
    let drifting = endpoints(0.0625, 0.0);
    assert_eq!(drifting.outputs["endpoints"].reals(), [1.0; 8]);
    assert_eq!(drifting.outputs["advantages"].reals(), [-0.5; 8]);
}

fn ask(convention: &str, formula: &str, run: &Value, inputs: Value) -> Evaluation {
    let mut options = Convention::find(convention).unwrap().options(formula).unwrap();
    options.extend(run.as_object().unwrap().clone());
    let question = Question::from_json(formula, &json!({ "options": options, "inputs": inputs })).unwrap();
    evaluate(formula, &question).unwrap()
}
