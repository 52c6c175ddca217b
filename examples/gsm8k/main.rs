//! GRPO on GSM8K, from loading the model to the page of the run.
//!
//! `cargo run --release --features torch --example gsm8k` trains SmolLM2-135M-Instruct on problems that the crate
//! brings along; `--preset tiny` trains a model of a hundred thousand weights from nothing, in seconds; with
//! `GSM8K_DIR` set, or `data.train_files=gsm8k`, it is GSM8K itself. `--help` lists the rest, `--keys` all that decides a run.
//!
//! [`learn`] is the whole algorithm: rollout, rewards, advantages, update, again and again.

pub(crate) mod check;
pub(crate) mod options;
pub(crate) mod stop;

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use grpo_oracle::config::{self, Config, TargetModules};
use grpo_oracle::llm::{Llm, Lora, Model};
use grpo_oracle::options::Gsm8k;
use grpo_oracle::train::algorithm::{Advantages, Algorithm};
use grpo_oracle::train::checkpoint::{self, Learner};
use grpo_oracle::train::critic::Critic;
use grpo_oracle::train::data::{self, Draws, Problem};
use grpo_oracle::train::evaluate::{self, Examination};
use grpo_oracle::train::experience::Models;
use grpo_oracle::train::health::Watch;
use grpo_oracle::train::optim::{Course, Optimizer, adamw_of};
use grpo_oracle::train::report::{self, EvalLine, Run, StepLine};
use grpo_oracle::train::rollout::{self, RolloutOptions};
use grpo_oracle::train::step::{self, StepMetrics, StepOptions};
use grpo_oracle::train::{prompt, sft, tiny};
use grpo_oracle::{Error, Result};
use tch::Device;

use options::Options;
use stop::Stop;

fn main() -> ExitCode {
    let options = Options::parse();
    if options.keys {
        print!("{}", config::page());
        return ExitCode::SUCCESS;
    }
    std::panic::set_hook(Box::new(|_| {})); // what libtorch throws is told in words
    let trained = stop::in_words(|| {
        let config::Read { config, notes, .. } = options.read(std::env::var_os("GSM8K_DIR"))?;
        notes.iter().for_each(|note| println!("note   {note}"));
        let algorithm = Algorithm::resolve(&config)?;
        train(&config, algorithm, options.resume.as_deref(), &Stop::on_interrupt()?)
    });
    match trained {
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

/// A whole run, or what is left of the one in `resumed`: data, model, supervised start, and then [`learn`].
pub(crate) fn train(
    config: &Config,
    algorithm: Algorithm,
    resumed: Option<&Path>,
    stop: &Stop,
) -> Result<Run> {
    let device = options::device(config)?;
    let sampling = RolloutOptions::of(config, device)?;
    // An option that is off is told before the long work starts.
    StepOptions::of(config, device)?;
    Examination::of(config, device)?;
    let data = data::load(&config.data)?;
    println!("data   {}: {} to train on, {} held out", data.source, data.train.len(), data.test.len());
    algorithm.warnings().iter().for_each(|warning| println!("note   {warning}"));
    let mut llm = load(config, device)?;
    let longest = config.data.max_prompt_length;
    let problems = prompt::within(&llm.tokenizer, data.train, longest, config.data.filter_overlong_prompts)?;
    prompt::fit(&llm, &problems, sampling.sampling.max_new_tokens)?;
    prompt::fit(&llm, &data.test, sampling.sampling.max_new_tokens)?;
    let steps = steps(config, problems.len());
    println!(
        "run    {steps} steps of {} problems x {} responses of at most {} tokens",
        sampling.problems, sampling.n, sampling.sampling.max_new_tokens
    );

    // The models: the policy that learns, what it must not drift away from, and who judges its prospects.
    if let Some(lora) = lora(config) {
        llm.model.add_lora(&lora, config.data.seed)?;
    }
    llm.model.set_trainable(true);
    let mut run = match resumed {
        None => Run::create(config, &title(config), steps)?,
        Some(folder) => {
            let step = if config.trainer.val_only { 0 } else { checkpoint::newest_step(folder)? };
            Run::resume(folder, config, &title(config), steps, step)?
        }
    };
    println!("page   {}", run.folder().join("index.html").display());
    let learned = stop::in_words(|| {
        if resumed.is_none() && steps > 0 {
            sft::warm_start(&llm, config, &problems, &sampling, |said| println!("sft    {said}"))?;
        }
        learn(&llm, config, algorithm, &problems, &data.test, &mut run, resumed, stop)
    });
    let ended = run.end(learned.as_ref().err().map(ToString::to_string).as_deref());
    learned.and(ended)?;
    Ok(run)
}

/// The algorithm. A step samples several responses to each of some problems, rewards those whose answer is right, works out
/// how much better than the others each one was, and makes the better ones likelier.
#[allow(clippy::too_many_arguments, reason = "all that a run is made of, in the order in which it was made")]
fn learn(
    llm: &Llm,
    config: &Config,
    algorithm: Algorithm,
    problems: &[Problem],
    held_out: &[Problem],
    run: &mut Run,
    resumed: Option<&Path>,
    stop: &Stop,
) -> Result<()> {
    let steps = steps(config, problems.len());
    let device = llm.model.device();
    let (sampling, updating) = (RolloutOptions::of(config, device)?, StepOptions::of(config, device)?);
    let actor = &config.actor_rollout_ref.actor;
    let reference = algorithm.needs_reference().then(|| reference(&llm.model, config));
    let critic = match algorithm.needs_critic() {
        true => Some(Critic::new(&llm.model, config, updating.micro_batch, steps)?),
        false => None,
    };
    let parameters = llm.model.trainable().into_iter().map(|named| named.1);
    let optimizer = Optimizer::new(parameters, adamw_of(&actor.optim), updating.fused);
    let course = Course::of(&actor.optim, steps)?;
    let draws = Draws::new(problems.to_vec(), config.data.shuffle.then_some(config.data.seed));
    let mut learner = Learner { algorithm, optimizer, critic, draws };
    let saved_reference = reference.as_ref().filter(|_| has_start(config));
    let first = match resumed {
        Some(folder) if steps > 0 => learner.restore(&llm.model, saved_reference, folder)? + 1,
        _ => 1,
    };
    let save = |learner: &Learner, run: &Run, step: usize| {
        let keep = config.trainer.max_actor_ckpt_to_keep;
        learner.save(&llm.model, saved_reference, run.folder(), step, keep)
    };
    let is_new = resumed.is_none() || config.trainer.val_only;
    if is_new && (config.trainer.val_before_train || config.trainer.val_only) {
        evaluate(llm, held_out, config, 0, run)?;
    }
    if is_new && steps > 0 && has_start(config) && config.trainer.save_freq > 0 {
        save(&learner, run, 0)?;
    }
    let (mut checked, mut watch) = (false, Watch::default());

    for step in first..=steps {
        // Several responses to each problem, and which of them are right; what the models make of them.
        let rollout = rollout::collect(llm, &mut learner.draws, step, &sampling)?;
        let models = Models { policy: llm, reference: reference.as_ref(), critic: learner.critic.as_ref() };
        let mut seen = models.look_at(&rollout, &learner.algorithm, config, &updating)?;

        // How much better than expected each response was, token by token.
        let mut advantages = learner.algorithm.advantages(&rollout, &seen)?;
        tell(step, &advantages);

        // The critic learns what to expect, the policy to do better than that.
        let critic_metrics = learner
            .critic
            .as_mut()
            .map(|critic| critic.update(&rollout, &seen, &advantages, step))
            .transpose()?;
        learner.optimizer.options.lr = course.lr(step)?;
        let epochs = if step > config.trainer.critic_warmup { actor.ppo_epochs } else { 0 };
        let mut passes = Vec::new();
        for epoch in 0..epochs {
            if epoch > 0 && learner.algorithm.follows_the_policy() {
                seen.logp = Some(updating.logp(&llm.model, &rollout)?);
                advantages = learner.algorithm.advantages(&rollout, &seen)?;
                tell(step, &advantages);
            }
            let options = updating.reshuffled(step, epoch);
            let (metrics, record) =
                step::update(&llm.model, &mut learner.optimizer, &rollout, &seen, &advantages, &options)?;
            passes.push(metrics);
            // The first loss of every run is computed again by the reference.
            if let (false, Some(record)) = (checked, record) {
                println!("{}", check::against_reference(&record)?);
                checked = true;
            }
        }

        let flexible = rollout.rewards(&Gsm8k::flexible())?;
        let groups = report::groups(step, &llm.tokenizer, &rollout, &seen.rewards, &advantages.advantages)?;
        let update = StepMetrics::of_passes(&passes);
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
        let remarks = watch.look(&line, learner.algorithm.is_normalised())?;
        remarks.iter().for_each(|remark| println!("health {remark}"));
        run.step(line, groups, remarks)?;

        if step == steps || is_due(step, config.trainer.test_freq) {
            evaluate(llm, held_out, config, step, run)?;
        }
        // Last of all: a run that goes on from here has nothing of this step left to do.
        let is_cut_short = stop.is_asked() && step < steps;
        if step == steps || is_cut_short || is_due(step, config.trainer.save_freq) {
            save(&learner, run, step)?;
        }
        if is_cut_short {
            let folder = run.folder().display();
            let what = format!("interrupted after step {step} of {steps}; go on with --resume {folder}");
            return Err(Error::Unsupported { what });
        }
    }
    match config.trainer.val_only {
        true => Ok(()),
        false => llm.save(&run.folder().join("model")),
    }
}

/// What the algorithm has to say in words.
fn tell(step: usize, advantages: &Advantages) {
    advantages.remarks.iter().for_each(|remark| println!("note   step {step}: {remark}"));
}

fn is_due(step: usize, every: i64) -> bool {
    every > 0 && step as i64 % every == 0
}

/// Held-out problems, answered as `val_kwargs` says; printed and recorded.
fn evaluate(llm: &Llm, held_out: &[Problem], config: &Config, step: usize, run: &mut Run) -> Result<()> {
    let result = evaluate::evaluate(
        llm,
        held_out,
        &Examination::of(config, llm.model.device())?,
        Some(&run.answers(step)),
    )?;
    println!(
        "held out after {step} steps: {:.1} % of {} solved (standard error {:.1} %), {:.1} % by the last number, {:.1} s",
        100.0 * result.accuracy,
        result.problems,
        100.0 * result.standard_error(),
        100.0 * result.accuracy_flexible,
        result.seconds
    );
    for (k, chance) in result.pass_at.iter().skip(1) {
        println!("         pass@{k} {:.1} %", 100.0 * chance);
    }
    run.evaluation(EvalLine::of(step, &result))
}

fn load(config: &Config, device: Device) -> Result<Llm> {
    let path = &config.actor_rollout_ref.model.path;
    println!("model  {path} on {}", if device == Device::Cpu { "cpu" } else { "cuda" });
    match path.as_str() {
        tiny::PATH => {
            tch::set_num_threads(1); // to share out products this small costs more than they do
            tiny::llm(config.data.seed, device, options::kind(config))
        }
        path => Llm::load(path.as_ref(), device, options::kind(config)),
    }
}

/// The adapters that are trained in the place of the weights, if any are asked for.
fn lora(config: &Config) -> Option<Lora> {
    let model = &config.actor_rollout_ref.model;
    let target_modules = match &model.target_modules {
        TargetModules::Named(name) => vec![name.clone()],
        TargetModules::List(names) => names.clone(),
    };
    let lora = Lora { rank: model.lora_rank as i64, alpha: model.lora_alpha, target_modules };
    (model.lora_rank > 0).then_some(lora)
}

/// The policy as it is before the first step. Adapters that have learned nothing yet cost no copy.
fn reference(policy: &Model, config: &Config) -> Model {
    match policy.lora().is_some() && !has_start(config) {
        true => policy.base(),
        false => policy.frozen_copy(),
    }
}

/// Whether the policy has learned something before the first step.
fn has_start(config: &Config) -> bool {
    config.sft.total_epochs > 0 || config.sft.expert_iterations > 0
}

/// The number of steps that was asked for, or that goes through the problems often enough; 0 for an evaluation alone.
fn steps(config: &Config, problems: usize) -> usize {
    if config.trainer.val_only {
        return 0;
    }
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
        "held-out accuracy {first:.0} % -> {last:.0} %; curves and rollouts are in {}",
        run.folder().join("index.html").display()
    )
}
