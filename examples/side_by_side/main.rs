//! This crate as contestants of the side-by-side measurement, asked over standard input like those of `worker.py`.
//!
//! `side_by_side fused` answers with the fast paths, `side_by_side torch` with the plain libtorch implementation;
//! `side_by_side save MODEL FOLDER` writes a model as a directory that transformers loads. `examples/side_by_side/run`
//! starts it.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use grpo_oracle::fused::head::{Head, ScoreGradients};
use grpo_oracle::fused::loss as fused;
use grpo_oracle::llm::{Llm, Sampling, generate};
use grpo_oracle::options::{ActorLoss, Clip, KlPenalty, LossOptions, Objective, Softmax};
use grpo_oracle::torch::{logprob, metrics};
use grpo_oracle::train::loss::{LossInputs, loss};
use grpo_oracle::{Error, Result};
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

#[derive(Deserialize)]
struct Request {
    r#do: Measure,
    folder: PathBuf,
    device: String,
    #[serde(default)]
    dtype: Option<String>,
    threads: i32,
    /// Calls follow each other for so long, one at least; the median of their times counts.
    least_s: f64,
    #[serde(default)]
    model: PathBuf,
    #[serde(default)]
    new_tokens: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Measure {
    Loss,
    Head,
    Rollout,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Answer {
    Done { seconds: f64, value: Option<f64>, norms: Vec<f64>, before: u64, peak: u64 },
    Failed { problem: String },
}

/// What a call computes: a loss, and gradients.
struct Computed {
    value: Option<f64>,
    gradients: Vec<Tensor>,
}

type Call = Box<dyn FnMut() -> Result<Computed>>;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["save", model, folder] => {
            Llm::load(model.as_ref(), Device::Cpu, Kind::Float)?.save(Path::new(folder))
        }
        ["fused"] => answer(true),
        ["torch"] => answer(false),
        _ => Err(Error::Unsupported { what: "say `fused`, `torch` or `save MODEL FOLDER`".to_owned() }),
    }
}

/// Answers every line of standard input.
fn answer(is_fused: bool) -> Result<()> {
    let mut prepared: HashMap<(Measure, PathBuf), Call> = HashMap::new();
    let unreadable =
        |error: &dyn std::fmt::Display| Error::Unsupported { what: format!("a request: {error}") };
    for line in std::io::stdin().lock().lines() {
        let line = line.map_err(|error| unreadable(&error))?;
        let request: Request = serde_json::from_str(&line).map_err(|error| unreadable(&error))?;
        tch::set_num_threads(request.threads);
        let answer = asked(&request, is_fused, &mut prepared)
            .unwrap_or_else(|error| Answer::Failed { problem: error.to_string() });
        let text = serde_json::to_string(&answer).map_err(|error| unreadable(&error))?;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{text}").and_then(|()| out.flush()).map_err(|error| unreadable(&error))?;
    }
    Ok(())
}

fn asked(
    request: &Request,
    is_fused: bool,
    prepared: &mut HashMap<(Measure, PathBuf), Call>,
) -> Result<Answer> {
    let device = if request.device == "cpu" { Device::Cpu } else { Device::Cuda(0) };
    let call = match prepared.entry((request.r#do, request.folder.clone())) {
        std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
        std::collections::hash_map::Entry::Vacant(entry) => {
            let inputs = Inputs { folder: request.folder.clone(), device, kind: kind(request) };
            entry.insert(match request.r#do {
                Measure::Loss => of_logp(&inputs, is_fused)?,
                Measure::Head if is_fused => fused_head(&inputs)?,
                Measure::Head => torch_head(&inputs)?,
                Measure::Rollout => rollout(&inputs, request)?,
            })
        }
    };
    let before = peak(device)?;
    let (mut times, begun) = (Vec::new(), Instant::now());
    let computed = loop {
        let start = Instant::now();
        let computed = call()?;
        if let Device::Cuda(index) = device {
            tch::Cuda::synchronize(index as i64);
        }
        times.push(start.elapsed().as_secs_f64());
        if begun.elapsed().as_secs_f64() >= request.least_s {
            break computed;
        }
    };
    let peak = peak(device)?;
    times.sort_by(f64::total_cmp);
    let seconds = times[times.len() / 2];
    let norms =
        computed.gradients.iter().map(|gradient| gradient.to_kind(Kind::Double).norm().double_value(&[]));
    Ok(Answer::Done { seconds, value: computed.value, norms: norms.collect(), before, peak })
}

fn kind(request: &Request) -> Kind {
    match request.dtype.as_deref() {
        Some("bf16") => Kind::BFloat16,
        _ => Kind::Float,
    }
}

/// The most memory that this process held so far, in bytes. On a device libtorch keeps what it once held, so that what is
/// in use there is the most, while nobody else uses the device.
fn peak(device: Device) -> Result<u64> {
    if device != Device::Cpu {
        let (free, total) = cudarc::driver::result::mem_get_info()
            .map_err(|error| Error::Unsupported { what: format!("the device's memory: {error}") })?;
        return Ok((total - free) as u64);
    }
    let status = std::fs::read_to_string("/proc/self/status")
        .map_err(|error| Error::file("/proc/self/status", error))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kilobytes
        .map(|kilobytes| 1024 * kilobytes)
        .ok_or_else(|| Error::file("/proc/self/status", "has no VmHWM; memory is measured on Linux alone"))
}

struct Inputs {
    folder: PathBuf,
    device: Device,
    kind: Kind,
}

impl Inputs {
    fn get(&self, name: &str) -> Result<Tensor> {
        let path = self.folder.join(format!("{name}.npy"));
        let tensor = Tensor::read_npy(&path).map_err(|error| Error::file(&path, error))?;
        Ok(tensor.to_device(self.device))
    }

    /// A tensor that a gradient is wanted by.
    fn leaf(&self, name: &str, kind: Kind) -> Result<Tensor> {
        Ok(self.get(name)?.to_kind(kind).set_requires_grad(true))
    }

    fn loss_inputs(&self, logp: Tensor) -> Result<LossInputs> {
        Ok(LossInputs {
            logp,
            logp_old: self.get("logp_old")?,
            logp_ref: Some(self.get("logp_ref")?),
            advantages: self.get("advantages")?,
            mask: self.get("mask")?,
            entropy: None,
        })
    }
}

/// The clipped objective with dual clip, and k3 in the loss, both by token mean.
fn options() -> LossOptions {
    let clip = Clip { clip_ratio_c: Some(3.0), ..Clip::dapo() };
    let terms = ActorLoss { clip, kl_loss_type: KlPenalty::K3, kl_loss_coef: 0.04, ..ActorLoss::grpo() };
    LossOptions { objective: Objective::Vanilla, terms }
}

/// The loss, its gradient and the metrics for log-probabilities that are given.
fn of_logp(inputs: &Inputs, is_fused: bool) -> Result<Call> {
    let options = options();
    let mut inputs = inputs.loss_inputs(inputs.leaf("logp", Kind::Float)?)?;
    Ok(Box::new(move || {
        if is_fused {
            let LossInputs { logp, logp_old, logp_ref, advantages, mask, .. } = &inputs;
            let out = fused::loss(logp, logp_old, logp_ref.as_ref(), advantages, mask, None, None, &options)?;
            return Ok(Computed { value: Some(out.numbers().loss), gradients: vec![out.grad_logp] });
        }
        inputs.logp.zero_grad();
        let value = torch_loss(&inputs, &options)?;
        Ok(Computed { value: Some(value), gradients: vec![inputs.logp.grad().copy()] })
    }))
}

/// The plain loss, back to the leaves, and the metrics that training reports.
fn torch_loss(inputs: &LossInputs, options: &LossOptions) -> Result<f64> {
    let out = loss(inputs, options)?;
    out.loss.backward();
    let LossInputs { logp, logp_old, advantages, mask, .. } = inputs;
    let told = metrics::policy(&logp.detach(), logp_old, advantages, mask, &options.clip())?;
    for figure in [told.clip_fraction, told.clip_fraction_lower, told.ppo_kl, told.ratio_mean] {
        figure.double_value(&[]);
    }
    Ok(out.loss.double_value(&[]))
}

fn torch_head(inputs: &Inputs) -> Result<Call> {
    let options = options();
    let (mut hidden, mut weight) = (inputs.leaf("hidden", inputs.kind)?, inputs.leaf("weight", inputs.kind)?);
    let targets = inputs.get("targets")?;
    let mut others = inputs.loss_inputs(Tensor::new())?;
    Ok(Box::new(move || {
        hidden.zero_grad();
        weight.zero_grad();
        let logits = hidden.matmul(&weight.tr());
        others.logp = logprob::token(&logits, &targets, &Softmax::at(1.0))?.logp;
        let value = torch_loss(&others, &options)?;
        others.logp = Tensor::new();
        Ok(Computed { value: Some(value), gradients: vec![hidden.grad(), weight.grad()] })
    }))
}

/// The gradients are made on the way forward, some tokens at a time.
fn fused_head(inputs: &Inputs) -> Result<Call> {
    let options = options();
    let (hidden, weight) =
        (inputs.get("hidden")?.to_kind(inputs.kind), inputs.get("weight")?.to_kind(inputs.kind));
    let targets = inputs.get("targets")?;
    let others = inputs.loss_inputs(Tensor::new())?;
    Ok(Box::new(move || {
        let LossInputs { logp_old, logp_ref, advantages, mask, .. } = &others;
        let of_tokens = |tensor: &Tensor| tensor.masked_select(mask);
        let of_rows = fused::weights(mask, &options.terms.aggregate)?.unsqueeze(1).expand_as(mask);
        let (logp_old, advantages, weights) =
            (of_tokens(logp_old), of_tokens(advantages), of_tokens(&of_rows));
        let logp_ref = logp_ref.as_ref().map(of_tokens);
        let states = hidden.index(&[Some(mask)]);

        let head = Head::new(&weight, &Softmax::at(1.0))?;
        let mut grad_weight = Tensor::zeros(weight.size(), (head.kind(), weight.device()));
        let mut sums = fused::TokenSums::none(weight.device());
        let out =
            head.with_gradients(&states, &of_tokens(&targets), Some(&mut grad_weight), |range, scores| {
                let own = |tensor: &Tensor| tensor.narrow(0, range.start, range.end - range.start);
                let logp_ref = logp_ref.as_ref().map(own);
                let tokens = fused::Tokens {
                    logp: &scores.logp,
                    logp_old: &own(&logp_old),
                    logp_ref: logp_ref.as_ref(),
                    advantages: &own(&advantages),
                    entropy: None,
                    weights: &own(&weights),
                };
                let swept = fused::sweep(&tokens, &options)?;
                sums.add(&swept.sums);
                Ok(ScoreGradients { logp: swept.grad_logp, entropy: None })
            })?;
        let grad_hidden = hidden.zeros_like().to_kind(out.grad_hidden.kind()).index_put(
            &[Some(mask)],
            &out.grad_hidden,
            false,
        );
        let value = Some(sums.numbers(&options).loss);
        Ok(Computed { value, gradients: vec![grad_hidden, grad_weight] })
    }))
}

/// So many new tokens for every prompt, whatever they are.
fn rollout(inputs: &Inputs, request: &Request) -> Result<Call> {
    let llm = Llm::load(&request.model, inputs.device, inputs.kind)?;
    let prompts: Vec<Vec<i64>> = Vec::<Vec<i64>>::try_from(inputs.get("prompts")?)
        .map_err(|error| Error::input("prompts", error.to_string()))?;
    let max_new_tokens = request.new_tokens;
    let sampling =
        Sampling { temperature: 1.0, top_p: 1.0, top_k: None, max_new_tokens, seed: 1, fused: true };
    Ok(Box::new(move || {
        let out = generate(&llm.model, &prompts, &[], llm.tokenizer.pad_token(), &sampling, &mut |_, _| ())?;
        match out.tokens.iter().all(|tokens| tokens.len() == max_new_tokens) {
            true => Ok(Computed { value: None, gradients: Vec::new() }),
            false => Err(Error::Unsupported { what: "a response came out short".to_owned() }),
        }
    }))
}
