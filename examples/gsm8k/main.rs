//! GRPO on GSM8K, from loading the model to the picture of the curves.
//!
//! `cargo run --release --features torch --example gsm8k` trains SmolLM2-135M-Instruct on problems that the crate
//! brings along; with `GSM8K_DIR` set, or `--data`, on GSM8K itself. `--help` lists the rest.

mod check;
pub(crate) mod options;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use grpo_oracle::Result;
use grpo_oracle::llm::{Llm, Sampling};
use grpo_oracle::options::Gsm8k;
use grpo_oracle::torch::advantage;
use grpo_oracle::train::data::{self, Problem};
use grpo_oracle::train::optim::AdamW;
use grpo_oracle::train::report::{self, EvalLine, Run, StepLine};
use grpo_oracle::train::{evaluate, progress, prompt, rollout, step};
use tch::{Device, Kind};

use options::{Config, Options};

fn main() -> ExitCode {
    match run(&Options::parse(), std::env::var_os("GSM8K_DIR")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

pub(crate) fn run(options: &Options, gsm8k_dir: Option<OsString>) -> Result<()> {
    let data = options.dataset(gsm8k_dir)?;
    println!("data   {}: {} to train on, {} held out", data.source, data.train.len(), data.test.len());
    let device = options.device()?;
    let config = options.resolve(&data, device)?;
    println!("{}", plan(&config, device));

    let loading = progress::spinner(format!("loading {}", config.model.display()));
    let llm = Llm::load(&config.model, device, Kind::Float)?;
    loading.finish_and_clear();
    let held_out = &data.test[..config.eval_problems];
    prompt::fit(&llm, &data.train, config.max_new_tokens)?;
    prompt::fit(&llm, held_out, config.max_new_tokens)?;

    let reference = (config.update.loss.kl_loss_coef != 0.0).then(|| llm.model.frozen_copy());
    llm.model.set_trainable(true);
    let mut optimizer = AdamW::new(llm.model.parameters().into_iter().map(|named| named.1), config.adamw);
    let mut run = Run::create(options.out.as_deref(), config.seed, &title(&config), &config)?;
    evaluate(&llm, held_out, &config, 0, &mut run)?;

    for step in 1..=config.steps {
        let problems = data::draw(&data.train, step - 1, config.prompts, config.seed);
        let rollout = rollout::sample(&llm, &problems, config.samples, &sampling(&config, step))?;
        let rewards = rollout.rewards(&Gsm8k::strict())?;
        let advantages = advantage::group_norm(&rewards, &rollout.group, &config.advantage)?;
        let (update, record) = step::update(
            &llm.model,
            reference.as_ref(),
            &mut optimizer,
            &rollout,
            &advantages,
            &config.update,
        )?;

        if step == 1 {
            println!("{}", check::against_reference(&record)?);
        }
        let line = StepLine::of(step, &rollout, &rewards, &rollout.rewards(&Gsm8k::flexible())?, update);
        println!("{}", line.summary(config.steps));
        run.step(line, &report::samples(step, &rollout, &rewards, &advantages))?;
        if step % config.eval_every == 0 || step == config.steps {
            evaluate(&llm, held_out, &config, step, &mut run)?;
        }
    }
    println!("{}", outcome(&run));
    Ok(())
}

/// Greedy accuracy on held-out problems, printed and recorded.
fn evaluate(llm: &Llm, held_out: &[Problem], config: &Config, step: usize, run: &mut Run) -> Result<()> {
    let batch = config.prompts * config.samples;
    let result = evaluate::greedy(llm, held_out, config.max_new_tokens, batch)?;
    let (share, seconds) = (100.0 * result.accuracy(), result.seconds);
    println!(
        "held out after {step} steps: {} of {} solved ({share:.0} %, {seconds:.1} s)",
        result.correct, result.problems
    );
    run.evaluation(EvalLine::of(step, &result))
}

/// Every step draws from its own random streams.
fn sampling(config: &Config, step: usize) -> Sampling {
    Sampling {
        temperature: config.temperature,
        top_p: config.top_p,
        max_new_tokens: config.max_new_tokens,
        seed: config.seed.wrapping_mul(1_000_003).wrapping_add(step as u64),
    }
}

/// What is about to happen.
fn plan(config: &Config, device: Device) -> String {
    let Config { steps, prompts, samples, max_new_tokens, .. } = config;
    let size = format!(
        "{steps} steps of {prompts} problems x {samples} responses of at most {max_new_tokens} tokens"
    );
    let kind = match device {
        Device::Cpu => "; the default on a CPU is a short run, about five minutes on two cores (see --steps)",
        _ => "",
    };
    format!("model  {} on {}\nrun    {size}{kind}", config.model.display(), config.device)
}

fn title(config: &Config) -> String {
    let model = config.model.file_stem().unwrap_or_default().to_string_lossy();
    format!("GRPO: {model}, {}", config.data)
}

fn outcome(run: &Run) -> String {
    let share = |line: Option<&EvalLine>| line.map_or(0.0, |line| 100.0 * line.eval_accuracy);
    let (first, last) = (share(run.evaluations().first()), share(run.evaluations().last()));
    format!(
        "held-out accuracy {first:.0} % -> {last:.0} %; the curves are in {}",
        run.folder().join("curves.svg").display()
    )
}
