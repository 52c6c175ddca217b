//! The kernels of the head and of the optimiser, compiled for the CPU and run there thread by thread through the same
//! functions that launch them on a device, against the fast paths of the CPU and the formulas over libtorch.
#![allow(unsafe_code)]

use std::collections::BTreeMap;
use std::ffi::{CStr, c_char, c_void};
use std::path::Path;
use std::process::Command;
use std::sync::{Mutex, OnceLock};

use grpo_oracle::Result;
use grpo_oracle::fused::cuda::head::{self, Chunk};
use grpo_oracle::fused::cuda::optim::{self, adamw, clip_grad_norm};
use grpo_oracle::fused::cuda::{Launch, Program};
use grpo_oracle::fused::head::{Head, Output, ScoreGradients, Scores};
use grpo_oracle::fused::optim::Parameter;
use grpo_oracle::options::{AdamW, ClipGradNorm, Softmax};
use grpo_oracle::torch;
use grpo_oracle::train::optim::Optimizer;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use tch::{Device, Kind, Tensor, no_grad};

use crate::head::noise;

/// The CPU as a device: each program is compiled once, as C++.
struct Host {
    programs: BTreeMap<String, Library>,
}

type LaunchOnHost = unsafe extern "C" fn(*const c_char, u32, u32, *const *const c_void) -> i32;

impl Host {
    /// There is one, and it runs one block at a time.
    fn the() -> std::sync::MutexGuard<'static, Self> {
        static HOST: OnceLock<Mutex<Host>> = OnceLock::new();
        let host = HOST.get_or_init(|| {
            let programs = [head::program(), optim::program(Kind::Float), optim::program(Kind::Double)];
            let programs =
                programs.iter().map(|program| (format!("{program:?}"), Self::compiled(program))).collect();
            Mutex::new(Self { programs })
        });
        host.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn compiled(program: &Program) -> Library {
        let text = program.source.text();
        let names = text.split("__global__ void ").skip(1).map(|rest| rest.split('(').next().unwrap());
        let cases: String = names
            .map(|name| {
                format!(
                    "if (!strcmp(name, {name:?})) return launch_on_host({name}, blocks, threads, arguments), 0;\n"
                )
            })
            .collect();
        let header = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/cuda_host.h");
        let source = format!(
            "#include {header:?}\n{text}\nextern \"C\" int launch(const char *name, unsigned blocks, unsigned threads, \
             void **arguments) {{\n{cases}return 1;\n}}\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let (file, library) = (folder.path().join("kernels.cpp"), folder.path().join("kernels.so"));
        std::fs::write(&file, source).unwrap();
        let mut compiler = Command::new("c++");
        compiler.args(["-std=c++17", "-O1", "-w", "-fno-strict-aliasing", "-shared", "-fPIC", "-pthread"]);
        let built = compiler.args(&program.definitions).arg("-o").arg(&library).arg(&file).status();
        assert!(built.unwrap().success(), "{program:?} is no C++");
        // SAFETY: a library of plain functions, which does nothing when it is opened.
        unsafe { Library::open(Some(library), RTLD_NOW | RTLD_LOCAL).unwrap() }
    }
}

/// So many threads a block, whatever is asked for: more would only take longer.
const THREADS: u32 = 64;

impl Launch for Host {
    fn device(&self) -> Device {
        Device::Cpu
    }

    unsafe fn launch(
        &self,
        program: &Program,
        kernel: &CStr,
        blocks: i64,
        threads: u32,
        arguments: &[*const c_void],
    ) -> Result<()> {
        assert!(threads.is_multiple_of(32) && threads <= 1024 && blocks > 0);
        // SAFETY: the function that `compiled` has put there; the arguments are as the caller promises.
        let code = unsafe {
            let launch = self.programs[&format!("{program:?}")].get::<LaunchOnHost>(b"launch\0").unwrap();
            launch(kernel.as_ptr(), blocks as u32, THREADS, arguments.as_ptr())
        };
        assert_eq!(code, 0, "there is no kernel {kernel:?}");
        Ok(())
    }
}

// ---- head ----

struct Case {
    weight: Tensor,
    hidden: Tensor,
    targets: Tensor,
    gradients: ScoreGradients,
    options: Softmax,
}

impl Case {
    fn of(seed: u64, [tokens, width, vocabulary]: [i64; 3], temperature: f64, entropy: bool) -> Self {
        let kind = Kind::Float;
        let targets = ((noise(seed, &[tokens], 0.5, kind) + 0.5) * vocabulary as f64).floor();
        Self {
            weight: noise(seed + 1, &[vocabulary, width], 2.0, kind),
            hidden: noise(seed + 2, &[tokens, width], 3.0, kind),
            targets: targets.clamp(0.0, vocabulary as f64 - 1.0).to_kind(Kind::Int64),
            gradients: ScoreGradients {
                logp: noise(seed + 3, &[tokens], 1.0, kind),
                entropy: entropy.then(|| noise(seed + 4, &[tokens], 0.5, kind)),
            },
            options: Softmax::at(temperature),
        }
    }

    fn gradients(&self) -> ScoreGradients {
        let ScoreGradients { logp, entropy } = &self.gradients;
        ScoreGradients { logp: logp.shallow_clone(), entropy: entropy.as_ref().map(Tensor::shallow_clone) }
    }

    /// By the fast path of the CPU, in f64.
    fn expected(&self) -> (Output, Tensor) {
        let [weight, hidden] = [&self.weight, &self.hidden].map(|tensor| tensor.to_kind(Kind::Double));
        let head = Head::new(&weight, &self.options).unwrap();
        let mut grad_weight = weight.zeros_like();
        let into = Some(&mut grad_weight);
        let output = head.with_gradients(&hidden, &self.targets, into, |_, _| Ok(self.gradients()));
        (output.unwrap(), grad_weight)
    }

    /// By the kernels.
    fn by_kernels(&self, host: &Host) -> (Output, Tensor) {
        let head = Head::new(&self.weight, &self.options).unwrap();
        let chunk = self.forward(host, &head);
        let (mut grad_weight, grad_hidden) = (self.weight.zeros_like(), self.hidden.zeros_like());
        let column = self.columns();
        no_grad(|| chunk.backward(host, &head, &column, &grad_hidden, Some(&mut grad_weight))).unwrap();
        (Output { scores: chunk.into_scores(), grad_hidden }, grad_weight)
    }

    fn columns(&self) -> ScoreGradients {
        let ScoreGradients { logp, entropy } = self.gradients();
        ScoreGradients { logp: logp.unsqueeze(1), entropy: entropy.map(|entropy| entropy.unsqueeze(1)) }
    }

    fn forward(&self, host: &Host, head: &Head) -> Chunk {
        let sizes = [self.hidden.size()[0], self.weight.size()[0]];
        let logits = Tensor::empty(sizes, (Kind::Float, Device::Cpu));
        Chunk::forward(host, head, &self.hidden, &self.targets, logits).unwrap()
    }
}

fn near(what: &str, got: &Tensor, expected: &Tensor, relative: f64) {
    assert_eq!(got.size(), expected.size(), "{what}");
    let (got, expected) = (got.to_kind(Kind::Double), expected.to_kind(Kind::Double));
    if got.numel() == 0 {
        return;
    }
    // The same infinities are no difference.
    let difference = (&got - &expected).masked_fill(&got.eq_tensor(&expected), 0.0);
    let worst = difference.abs().max().double_value(&[]);
    let size = expected.abs().masked_fill(&expected.isinf(), 0.0).max().double_value(&[]).max(1.0);
    assert!(worst <= relative * size, "{what}: off by {worst:e} where the largest is {size:e}");
}

fn agree((got, by_weight): &(Output, Tensor), (expected, expected_weight): &(Output, Tensor)) {
    near("logp", &got.scores.logp, &expected.scores.logp, 2e-6);
    near("entropy", &got.scores.entropy, &expected.scores.entropy, 4e-6);
    near("grad_hidden", &got.grad_hidden, &expected.grad_hidden, 4e-6);
    near("grad_weight", by_weight, expected_weight, 4e-6);
}

#[test]
fn the_heads_kernels_give_what_the_cpu_gives() {
    let host = Host::the();
    // Vocabularies around the kernel's step and around what a block takes at a time.
    for (index, vocabulary) in [1, 2, 7, 8, 9, 31, 511, 512, 513, 1100, 1536].into_iter().enumerate() {
        for (temperature, entropy) in [(1.0, false), (0.6, true), (1.7, index % 2 == 0)] {
            let case = Case::of(index as u64, [3, 5, vocabulary], temperature, entropy);
            agree(&case.by_kernels(&host), &case.expected());
        }
    }
}

#[test]
fn the_heads_kernels_hold_large_logits() {
    let host = Host::the();
    let mut case = Case::of(21, [4, 6, 700], 1.0, true);
    case.hidden *= 40.0;
    let expected = case.expected();
    let got = case.by_kernels(&host);
    // Logits of hundreds, whose own rounding is 3e-5.
    near("logp", &got.0.scores.logp, &expected.0.scores.logp, 1e-6);
    near("entropy", &got.0.scores.entropy, &expected.0.scores.entropy, 3e-4);
    near("grad_hidden", &got.0.grad_hidden, &expected.0.grad_hidden, 3e-4);
}

#[test]
fn logits_that_are_ruled_out_or_very_low_add_nothing() {
    let host = Host::the();
    // A weight of one column is the logits, where the hidden state is 1.
    for low in [f64::NEG_INFINITY, -1.7e38] {
        let mut case = Case::of(22, [2, 1, 530], 0.5, true);
        case.hidden = case.hidden.ones_like();
        let index = Tensor::arange(530, (Kind::Int64, Device::Cpu));
        // All that the first threads see, and two of three of what the others do.
        let place = index.remainder(3).lt(2).logical_or(&index.lt(16)).unsqueeze(1);
        case.weight = case.weight.masked_fill(&place, low * 0.5);
        case.targets = Tensor::from_slice(&[20i64, 0]); // the second is ruled out
        let head = Head::new(&case.weight, &case.options).unwrap();
        let chunk = case.forward(&host, &head);
        let plain = case.weight.to_kind(Kind::Double).squeeze_dim(1) / 0.5;
        let logp = plain.log_softmax(-1, Kind::Double);
        let p = logp.exp();
        let entropy = -(&p * logp.clamp_min(-1e4)).sum(Kind::Double);
        near("logp", &chunk.scores().logp, &logp.index_select(0, &case.targets), 2e-6);
        near("entropy", &chunk.scores().entropy, &Tensor::stack(&[&entropy, &entropy], 0), 4e-6);
        let by_logits = chunk.gradient(&*host, &case.columns(), Kind::Float).unwrap();
        let one = |place: i64| p.zeros_like().index_fill(0, &Tensor::from_slice(&[place]), 1.0);
        let row = |index: i64, target: i64| {
            let of = |gradient: &Tensor| gradient.double_value(&[index]);
            let by_entropy =
                &p * (logp.clamp_min(-1e4) + &entropy) * of(case.gradients.entropy.as_ref().unwrap());
            ((one(target) - &p) * of(&case.gradients.logp) - by_entropy) / 0.5
        };
        near("gradient", &by_logits, &Tensor::stack(&[row(0, 20), row(1, 0)], 0), 4e-6);
    }
}

#[test]
fn idle_tokens_add_nothing_and_rubbish_spoils_its_own_row_alone() {
    let host = Host::the();
    for (rubbish, entropy) in [(f64::NAN, true), (f64::INFINITY, false), (f64::NEG_INFINITY, true)] {
        let mut case = Case::of(23, [5, 4, 530], 0.8, entropy);
        let idle = Tensor::from_slice(&[false, true, false, false, true]);
        case.gradients.logp = case.gradients.logp.masked_fill(&idle, 0.0);
        case.gradients.entropy = case.gradients.entropy.map(|entropy| entropy.masked_fill(&idle, 0.0));
        let clean = case.expected();
        case.hidden = case.hidden.masked_fill(&idle.unsqueeze(1), rubbish);
        let (got, by_weight) = case.by_kernels(&host);
        near("grad_hidden", &got.grad_hidden, &clean.0.grad_hidden, 4e-6);
        near("grad_weight", &by_weight, &clean.1, 4e-6);
        let busy = idle.logical_not();
        let of = |scores: &Scores| scores.logp.masked_select(&busy);
        near("logp", &of(&got.scores), &of(&clean.0.scores), 2e-6);
        assert!(got.scores.logp.masked_select(&idle).isnan().all().int64_value(&[]) != 0);
    }
}

#[test]
fn the_gradient_in_bf16_is_the_others_rounded_in_the_same_memory() {
    let host = Host::the();
    for vocabulary in [1, 7, 8, 520, 1031] {
        let case = Case::of(24, [3, 4, vocabulary], 0.7, true);
        let head = Head::new(&case.weight, &case.options).unwrap();
        let [single, coarse] = [Kind::Float, Kind::BFloat16].map(|kind| {
            let gradient = case.forward(&host, &head).gradient(&*host, &case.columns(), kind).unwrap();
            assert_eq!((gradient.kind(), gradient.size()), (kind, vec![3, vocabulary]));
            gradient
        });
        assert_eq!(coarse.contiguous(), single.to_kind(Kind::BFloat16), "{vocabulary}");
    }
}

#[test]
fn a_target_outside_the_vocabulary_is_nan() {
    let host = Host::the();
    let mut case = Case::of(25, [3, 4, 9], 1.0, false);
    case.targets = Tensor::from_slice(&[-1i64, 9, 0]);
    let head = Head::new(&case.weight, &case.options).unwrap();
    let chunk = case.forward(&host, &head);
    let is_nan: Vec<bool> = chunk.scores().logp.isnan().try_into().unwrap();
    assert_eq!(is_nan, [true, true, false]);
}

#[test]
fn tensors_that_do_not_fit_are_refused_before_a_launch() {
    let host = Host::the();
    let case = Case::of(26, [3, 4, 9], 1.0, false);
    let head = Head::new(&case.weight, &case.options).unwrap();
    let chunk = case.forward(&host, &head);
    for logp in [case.gradients.logp.narrow(0, 0, 2), case.gradients.logp.to_kind(Kind::Double)] {
        let gradients = ScoreGradients { logp, entropy: None };
        let error = chunk.gradient(&*host, &gradients, Kind::Float).unwrap_err();
        assert_eq!(error.code(), "unsupported");
    }
    let long = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let short = long.narrow(0, 0, 3);
    let own = || long.copy();
    let (param, grad, m, v) = (own(), own(), own(), own());
    let whole = Parameter { param: &param, grad: &grad, m: &m, v: &v, coarse: None };
    assert!(adamw(&*host, &[whole], 1.0, &AdamW::torch()).is_ok());
    assert_eq!(adamw(&*host, &[whole, whole], 1.0, &AdamW::torch()).unwrap_err().code(), "unsupported");
    for wrong in [
        Parameter { m: &short, ..whole },
        Parameter { v: &m, ..whole },
        Parameter { grad: &param.narrow(0, 0, 4), ..whole },
        Parameter { coarse: Some(&long), ..whole },
        Parameter { grad: &long.to_kind(Kind::Half), ..whole },
    ] {
        assert_eq!(adamw(&*host, &[wrong], 1.0, &AdamW::torch()).unwrap_err().code(), "unsupported");
    }
}

// ---- optimiser ----

/// Parameters of every size beside a block's piece, and their gradients.
fn drawn(seed: u64, kind: Kind) -> Vec<Tensor> {
    let sizes = [1, 31, 0, 64, 65, 32768, 32769, 70000];
    sizes.iter().zip(seed..).map(|(&size, seed)| noise(seed, &[size], 1.0, kind)).collect()
}

#[test]
fn adamw_of_many_parameters_is_that_of_each() {
    let host = Host::the();
    let options = AdamW { lr: 0.05, beta1: 0.8, beta2: 0.95, eps: 1e-6, weight_decay: 0.1 };
    for (kind, of_grads, relative) in [
        (Kind::Float, Kind::Float, 5e-7),
        (Kind::Float, Kind::BFloat16, 5e-7),
        (Kind::Double, Kind::Double, 1e-15),
    ] {
        let (params, m) = (drawn(1, kind), drawn(11, kind));
        let v: Vec<Tensor> = drawn(21, kind).iter().map(Tensor::square).collect();
        let grads = drawn(31, of_grads);
        let coarse: Vec<Tensor> = params.iter().map(|param| param.to_kind(Kind::BFloat16)).collect();
        for step in 1..=3 {
            let before: Vec<[Tensor; 3]> = (0..params.len())
                .map(|index| [&params[index], &m[index], &v[index]].map(Tensor::copy))
                .collect();
            let rows: Vec<Parameter> = (0..params.len())
                .map(|index| Parameter {
                    param: &params[index],
                    grad: &grads[index],
                    m: &m[index],
                    v: &v[index],
                    coarse: (index % 2 == 0).then_some(&coarse[index]),
                })
                .collect();
            adamw(&*host, &rows, f64::from(step), &options).unwrap();
            for (index, [param, of_m, of_v]) in before.iter().enumerate() {
                let number = Tensor::from(f64::from(step));
                let expected =
                    torch::optim::adamw(param, &grads[index], of_m, of_v, &number, &options).unwrap();
                near("param", &params[index], &expected.param, relative);
                near("m", &m[index], &expected.m, relative);
                near("v", &v[index], &expected.v, relative);
                if index % 2 == 0 {
                    assert_eq!(coarse[index], params[index].to_kind(Kind::BFloat16));
                }
            }
        }
    }
}

#[test]
fn the_clip_of_many_gradients_is_that_of_one_vector() {
    let host = Host::the();
    for (kind, relative) in [(Kind::Float, 2e-7), (Kind::Double, 1e-14)] {
        for (max_norm, eps) in [(0.7, 1e-6), (1e9, 1e-6), (3.0, 0.5)] {
            let grads = drawn(5, kind);
            let options = ClipGradNorm { max_norm, eps };
            let whole = Tensor::cat(&grads, 0).to_kind(Kind::Double);
            let expected = torch::optim::clip_grad_norm(&whole, &options).unwrap();
            let norm = clip_grad_norm(&*host, &grads.iter().collect::<Vec<_>>(), &options).unwrap();
            near("norm", &norm, &expected.norm, 1e-14);
            near("grad", &Tensor::cat(&grads, 0), &expected.grad, relative);
        }
    }
}

#[test]
fn the_clip_rounds_coarse_gradients_once_and_leaves_nan_alone() {
    let host = Host::the();
    let start = drawn(6, Kind::BFloat16);
    let grads: Vec<Tensor> = start.iter().map(Tensor::copy).collect();
    let norm = clip_grad_norm(&*host, &grads.iter().collect::<Vec<_>>(), &ClipGradNorm::torch(0.7)).unwrap();
    let factor = 0.7 / (norm.double_value(&[]) + 1e-6);
    for (grad, start) in grads.iter().zip(&start) {
        assert_eq!(*grad, (start.to_kind(Kind::Float) * factor).to_kind(Kind::BFloat16));
    }
    let spoiled = Tensor::from_slice(&[1.0_f32, f32::NAN, 2.0]);
    let norm = clip_grad_norm(&*host, &[&spoiled], &ClipGradNorm::torch(0.1)).unwrap();
    assert!(norm.double_value(&[]).is_nan());
    assert_eq!((spoiled.double_value(&[0]), spoiled.double_value(&[2])), (1.0, 2.0));
}

// ---- where there is a device ----

/// The device, or a word that there is none.
fn device() -> Option<Device> {
    if tch::Cuda::is_available() {
        return Some(Device::Cuda(0));
    }
    println!("there is no CUDA device: the kernels were not run on one");
    None
}

#[test]
fn a_device_gives_the_heads_scores_and_gradients() {
    let Some(device) = device() else { return };
    for (kind, relative) in [(Kind::Float, 1e-5), (Kind::BFloat16, 1e-2), (Kind::Half, 1e-5)] {
        for vocabulary in [9, 513, 5003] {
            let mut case = Case::of(31, [70, 16, vocabulary], 0.8, true);
            // Numbers that the weight's kind holds.
            for tensor in [&mut case.weight, &mut case.hidden] {
                *tensor = tensor.to_kind(kind).to_kind(Kind::Float);
            }
            let idle = Tensor::arange(70, (Kind::Int64, Device::Cpu)).remainder(5).eq(0);
            case.gradients.logp = case.gradients.logp.masked_fill(&idle, 0.0);
            case.gradients.entropy = case.gradients.entropy.map(|entropy| entropy.masked_fill(&idle, 0.0));
            let (expected, by_weight) = case.expected();
            case.hidden = case.hidden.masked_fill(&idle.unsqueeze(1), f64::NAN);
            let [weight, hidden] =
                [&case.weight, &case.hidden].map(|tensor| tensor.to_kind(kind).to_device(device));
            let there = |tensor: &Tensor| tensor.to_device(device);
            let head = Head::new(&weight, &case.options).unwrap().with_tokens(32);
            let mut grad_weight = Tensor::zeros(weight.size(), (Kind::Float, device));
            let ScoreGradients { logp, entropy } = case.gradients();
            let gradients = ScoreGradients { logp: there(&logp), entropy: entropy.as_ref().map(there) };
            let targets = there(&case.targets);
            let scores = head.scores(&hidden, &targets).unwrap();
            let by_hidden = head.gradients(&hidden, &targets, Some(&mut grad_weight), &gradients).unwrap();
            let here = |tensor: &Tensor| tensor.to_device(Device::Cpu);
            let busy = idle.logical_not();
            let of = |tensor: &Tensor| here(tensor).masked_select(&busy);
            near("logp", &of(&scores.logp), &of(&expected.scores.logp), 1e-5);
            near("entropy", &of(&scores.entropy), &of(&expected.scores.entropy), 1e-5);
            near("grad_hidden", &here(&by_hidden), &expected.grad_hidden, relative);
            near("grad_weight", &here(&grad_weight), &by_weight, relative);
        }
    }
}

#[test]
fn a_device_steps_and_clips_like_the_cpu() {
    let Some(device) = device() else { return };
    let options = AdamW { lr: 0.05, ..AdamW::torch() };
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half, Kind::Double] {
        let [mut here, mut there] = [Device::Cpu, device].map(|on| {
            let own = |tensor: &Tensor| tensor.to_device(on).set_requires_grad(true);
            drawn(7, kind).iter().map(own).collect::<Vec<_>>()
        });
        let mut steps =
            [&here, &there].map(|all| Optimizer::new(all.iter().map(Tensor::shallow_clone), options, true));
        for step in 1..=5 {
            for all in [&mut here, &mut there] {
                for param in all {
                    param.zero_grad();
                    // Of the same numbers on both, whatever the rounding so far.
                    (param.ones_like() * 0.5 * f64::from(step) * &*param).sum(Kind::Float).backward();
                }
            }
            let norms = steps.each_ref().map(|optimizer| optimizer.clip_grad_norm(5.0).unwrap());
            assert!((norms[0] - norms[1]).abs() < 1e-4 * norms[0], "{kind:?}: {norms:?}");
            steps.iter_mut().for_each(|optimizer| optimizer.step().unwrap());
            let relative = if matches!(kind, Kind::Float | Kind::Double) { 1e-5 } else { 1e-2 };
            for (here, there) in here.iter().zip(&there) {
                near("param", &there.to_device(Device::Cpu), here, relative);
            }
        }
    }
}
