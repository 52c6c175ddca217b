//! GRPO on GSM8K, from loading the model to the picture of the curves.
//!
//! `cargo run --release --features torch --example gsm8k` trains SmolLM2-135M-Instruct on problems that the crate
//! brings along; `--preset tiny` trains a model of a hundred thousand weights from nothing, in seconds; with
//! `GSM8K_DIR` set, or `--data`, it is GSM8K itself. `--help` lists the rest.
//!
//! [`train`] is the whole algorithm: rollout, rewards, advantages, update, again and again.

pub(crate) mod check;
pub(crate) mod options;

use std::process::ExitCode;

use clap::Parser;
use grpo_oracle::Result;
use grpo_oracle::llm::Llm;
use grpo_oracle::options::Gsm8k;
use grpo_oracle::train::algorithm::{Advantages, Algorithm};
use grpo_oracle::train::config::Config;
use grpo_oracle::train::critic::Critic;
use grpo_oracle::train::data::{self, Draws, Problem};
use grpo_oracle::train::experience::Models;
use grpo_oracle::train::optim::{AdamW, AdamWOptions, Course};
use grpo_oracle::train::report::{self, EvalLine, Run, StepLine};
use grpo_oracle::train::rollout::{self, RolloutOptions};
use grpo_oracle::train::step::{self, StepMetrics, StepOptions};
use grpo_oracle::train::{evaluate, prompt, sft, tiny};
use tch::{Device, Kind};

use options::Options;

fn main() -> ExitCode {
    let options = Options::parse();
    let config = options.config(std::env::var_os("GSM8K_DIR"));
    match config.and_then(|config| train(&config, Algorithm::resolve(&config)?)) {
        Ok(run) => {
            println!("{}", outcome(&run));
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A whole run. A step samples several responses to each of some problems, rewards those whose answer is right, works
/// out how much better than the others each one was, and makes the better ones likelier.
pub(crate) fn train(config: &Config, mut algorithm: Algorithm) -> Result<Run> {
    let device = options::device(config)?;
    options::check_wired(config)?;
    let (sampling, updating) = (RolloutOptions::of(config)?, StepOptions::of(config, device)?);
    let data = data::load(&config.data)?;
    println!("data   {}: {} to train on, {} held out", data.source, data.train.len(), data.test.len());
    algorithm.warnings().iter().for_each(|warning| println!("note   {warning}"));
    let llm = load(config, device)?;
    let longest = config.data.max_prompt_length;
    let problems = prompt::within(&llm.tokenizer, data.train, longest, config.data.filter_overlong_prompts)?;
    prompt::fit(&llm, &problems, sampling.sampling.max_new_tokens)?;
    prompt::fit(&llm, &data.test, sampling.sampling.max_new_tokens)?;
    let steps = steps(config, problems.len());
    println!(
        "run    {steps} steps of {} problems x {} responses of at most {} tokens",
        sampling.problems, sampling.n, sampling.sampling.max_new_tokens
    );
    let folder = config.trainer.default_local_dir.as_deref();
    let mut run = Run::create(folder, config.data.seed, &title(config), config)?;

    // The models: the policy that learns, what it must not drift away from, and who judges its prospects.
    llm.model.set_trainable(true);
    if !config.trainer.val_only {
        sft::warm_start(&llm, config, &problems, &sampling, |said| println!("sft    {said}"))?;
    }
    let reference = algorithm.needs_reference().then(|| llm.model.frozen_copy());
    let mut critic = match algorithm.needs_critic() {
        true => Some(Critic::new(&llm.model, config, updating.micro_batch, steps)?),
        false => None,
    };
    let actor = &config.actor_rollout_ref.actor;
    let parameters = llm.model.parameters().into_iter().map(|named| named.1);
    let mut optimizer = AdamW::new(parameters, AdamWOptions::of(&actor.optim));
    let course = Course::of(&actor.optim, steps)?;
    let mut draws = Draws::new(problems, config.data.shuffle.then_some(config.data.seed));
    if config.trainer.val_before_train {
        evaluate(&llm, &data.test, config, 0, &mut run)?;
    }
    let steps = if config.trainer.val_only { 0 } else { steps };
    let mut checked = false;

    for step in 1..=steps {
        // Several responses to each problem, and which of them are right; what the models make of them.
        let rollout = rollout::collect(&llm, &mut draws, step, &sampling)?;
        let models = Models { policy: &llm, reference: reference.as_ref(), critic: critic.as_ref() };
        let mut seen = models.look_at(&rollout, &algorithm, config, &updating)?;

        // How much better than expected each response was, token by token.
        let mut advantages = algorithm.advantages(&rollout, &seen)?;
        tell(step, &advantages);

        // The critic learns what to expect, the policy to do better than that.
        let critic_metrics =
            critic.as_mut().map(|critic| critic.update(&rollout, &seen, &advantages, step)).transpose()?;
        optimizer.options.lr = course.lr(step)?;
        let epochs = if step > config.trainer.critic_warmup { actor.ppo_epochs } else { 0 };
        let mut passes = Vec::new();
        for epoch in 0..epochs {
            if epoch > 0 && algorithm.follows_the_policy() {
                seen.logp = Some(updating.logp(&llm.model, &rollout)?);
                advantages = algorithm.advantages(&rollout, &seen)?;
                tell(step, &advantages);
            }
            let options = updating.reshuffled(step, epoch);
            let (metrics, record) =
                step::update(&llm.model, &mut optimizer, &rollout, &seen, &advantages, &options)?;
            passes.push(metrics);
            // The first loss of every run is computed again by the reference.
            if let (false, Some(record)) = (checked, record) {
                println!("{}", check::against_reference(&record)?);
                checked = true;
            }
        }

        let flexible = rollout.rewards(&Gsm8k::flexible())?;
        let update = StepMetrics::of_passes(&passes);
        let samples = report::samples(step, &rollout, &seen.rewards, &advantages.of_rows()?);
        let line = StepLine::of(
            step,
            &rollout,
            &seen.rewards,
            &flexible,
            advantages.figures,
            critic_metrics,
            update,
        );
        println!("{}", line.summary(steps));
        run.step(line, &samples)?;
        if step == steps || is_due(step, config.trainer.test_freq) {
            evaluate(&llm, &data.test, config, step, &mut run)?;
        }
    }
    Ok(run)
}

/// What the algorithm has to say in words.
fn tell(step: usize, advantages: &Advantages) {
    advantages.remarks.iter().for_each(|remark| println!("note   step {step}: {remark}"));
}

fn is_due(step: usize, every: i64) -> bool {
    every > 0 && step as i64 % every == 0
}

/// Greedy accuracy on held-out problems, printed and recorded.
fn evaluate(llm: &Llm, held_out: &[Problem], config: &Config, step: usize, run: &mut Run) -> Result<()> {
    let batch = config.data.train_batch_size * config.actor_rollout_ref.rollout.n;
    let grading = rollout::grading(config);
    let result = evaluate::greedy(llm, held_out, config.data.max_response_length, batch, &grading)?;
    let (share, seconds) = (100.0 * result.accuracy(), result.seconds);
    println!(
        "held out after {step} steps: {} of {} solved ({share:.0} %, {seconds:.1} s)",
        result.correct, result.problems
    );
    run.evaluation(EvalLine::of(step, &result))
}

fn load(config: &Config, device: Device) -> Result<Llm> {
    let path = &config.actor_rollout_ref.model.path;
    println!("model  {path} on {}", if device == Device::Cpu { "cpu" } else { "cuda" });
    match path.as_str() {
        tiny::PATH => {
            tch::set_num_threads(1); // to share out products this small costs more than they do
            tiny::llm(config.data.seed, device, Kind::Float)
        }
        path => Llm::load(path.as_ref(), device, Kind::Float),
    }
}

/// The number of steps that was asked for, or that goes through the problems often enough.
fn steps(config: &Config, problems: usize) -> usize {
    let of_epochs = config.trainer.total_epochs * (problems / config.data.train_batch_size).max(1);
    config.trainer.total_training_steps.unwrap_or(of_epochs)
}

fn title(config: &Config) -> String {
    format!(
        "{}: {}, {}",
        config.trainer.project_name, config.actor_rollout_ref.model.path, config.data.train_files
    )
}

fn outcome(run: &Run) -> String {
    let share = |line: Option<&EvalLine>| line.map_or(0.0, |line| 100.0 * line.eval_accuracy);
    let (first, last) = (share(run.evaluations().first()), share(run.evaluations().last()));
    format!(
        "held-out accuracy {first:.0} % -> {last:.0} %; the curves are in {}",
        run.folder().join("curves.svg").display()
    )
}
