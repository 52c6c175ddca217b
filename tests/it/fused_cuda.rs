//! The kernels without a GPU: every program is compiled to machine code, and the loss's source, compiled for the CPU, is
//! held to the pass that the oracle holds to the reference. That they run on a device is held where there is one. The
//! kernels of the head and of the optimiser are in `fused_kernels`.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use grpo_oracle::fused::cuda::loss::{Variant, plan, row_weights};
use grpo_oracle::fused::cuda::{self, Program};
use grpo_oracle::fused::loss::{loss, weights};
use grpo_oracle::options::{ActorLoss, Aggregate, LossAggMode, LossOptions, Objective};
use grpo_oracle::train::loss::LossInputs;
use tch::{Device, Kind, Tensor};

use crate::fused::{Batch, Stream, agree, fused, objectives, terms, values};

#[test]
fn every_program_becomes_machine_code_for_ampere_and_hopper() {
    if let Err(problem) = cuda::check_compiler() {
        println!("not compiled: {problem}");
        return;
    }
    assert_eq!(Variant::all().len(), 60);
    let all = Program::all();
    let half = |programs: &[Program]| {
        for program in programs {
            let code = program.compile("sm_90").unwrap();
            assert_eq!(&code[..4], b"\x7fELF", "{program:?}");
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| half(&all[..32]));
        half(&all[32..]);
    });
    // The loss's variants are one source; the last of them stands for all.
    for program in &all[59..] {
        assert_eq!(&program.compile("sm_80").unwrap()[..4], b"\x7fELF", "{program:?}");
    }
    let problem = all[0].compile("sm_1").unwrap_err();
    assert_eq!(problem.code(), "unsupported");
    println!("{} programs compiled", all.len());
}

/// What the kernel makes of a batch when the CPU runs it.
struct Answer {
    grad_logp: Vec<f64>,
    grad_entropy: Vec<f64>,
    sums: Vec<f64>,
}

/// Builds the program that runs every variant, and puts all the jobs to it.
fn answers(jobs: &[Vec<u8>], counts: &[usize]) -> Vec<Answer> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (kernel, host) = (root.join("src/fused/kernels/loss.cu"), root.join("tests/it/fused_host.cpp"));
    let mut source = format!("#include {host:?}\n");
    let mut cases = String::new();
    for (index, variant) in Variant::all().iter().enumerate() {
        let definitions = variant.program().definitions;
        let names: Vec<(&str, &str)> =
            definitions.iter().map(|definition| definition[2..].split_once('=').unwrap()).collect();
        names.iter().for_each(|(name, value)| writeln!(source, "#define {name} {value}").unwrap());
        writeln!(source, "namespace v{index} {{\n#include {kernel:?}\n#include {host:?}\n}}").unwrap();
        names.iter().for_each(|(name, _)| writeln!(source, "#undef {name}").unwrap());
        writeln!(cases, "case {index}: v{index}::run(job); break;").unwrap();
    }
    write!(
        source,
        "static bool read(void *to, size_t size) {{ return fread(to, 1, size, stdin) == size; }}\n\
         static void read(std::vector<double> &to) {{\n\
             long long size;\n\
             if (!read(&size, sizeof size)) exit(3);\n\
             to.resize(size);\n\
             if (size && !read(to.data(), size * sizeof(double))) exit(3);\n\
         }}\n\
         static void tell(const std::vector<double> &from) {{ fwrite(from.data(), sizeof(double), from.size(), stdout); }}\n\
         int main() {{\n\
             Job job;\n\
             while (read(&job, 6 * sizeof(long long))) {{\n\
                 read(job.plan), read(job.logp), read(job.logp_old), read(job.logp_ref), read(job.advantages);\n\
                 read(job.entropy), read(job.mask), read(job.row_weights), read(job.sequence_weight);\n\
                 switch (job.variant) {{ {cases} }}\n\
                 tell(job.grad_logp), tell(job.grad_entropy), tell(job.sums);\n\
             }}\n\
         }}\n"
    )
    .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (program, file) = (folder.path().join("host"), folder.path().join("host.cpp"));
    std::fs::write(&file, source).unwrap();
    let built = Command::new("c++").arg("-std=c++17").arg("-w").arg("-o").arg(&program).arg(&file).status();
    assert!(built.unwrap().success(), "the kernel is no C++");

    let mut child = Command::new(&program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut input, bytes) = (child.stdin.take().unwrap(), jobs.concat());
    let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
    let mut output = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    let mut numbers = output.chunks_exact(8).map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()));
    let mut take = |count: usize| numbers.by_ref().take(count).collect::<Vec<_>>();
    counts
        .iter()
        .map(|&count| Answer { grad_logp: take(count), grad_entropy: take(count), sums: take(10) })
        .collect()
}

fn job(inputs: &LossInputs, options: &LossOptions, kind: Kind) -> Vec<u8> {
    let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = inputs;
    let variant = Variant::all().iter().position(|variant| *variant == Variant::of(options, kind)).unwrap();
    let aggregate = &options.terms.aggregate;
    let sequences = mask.any_dim(1, false).sum(Kind::Double).clamp_min(1.0).double_value(&[]);
    let of_sequence = aggregate.dp_size / aggregate.global_batch_size.unwrap_or(sequences);
    let has_entropy = i64::from(options.terms.entropy_coeff != 0.0);
    let header = [variant as i64, logp.numel() as i64, logp.size()[1], 1, 1, has_entropy];
    let mut bytes: Vec<u8> = header.iter().flat_map(|number| number.to_le_bytes()).collect();
    let columns = [
        plan(options),
        values(logp),
        values(logp_old),
        values(logp_ref.as_ref().unwrap()),
        values(advantages),
        values(entropy.as_ref().unwrap()),
        values(mask),
        values(&weights(mask, aggregate).unwrap()),
        vec![of_sequence],
    ];
    for column in columns {
        bytes.extend((column.len() as i64).to_le_bytes());
        bytes.extend(column.iter().flat_map(|number| number.to_le_bytes()));
    }
    bytes
}

#[test]
fn the_kernels_arithmetic_is_that_of_the_pass_on_the_cpu() {
    let mut stream = Stream(13);
    let mut asked = Vec::new();
    for objective in objectives() {
        for (index, terms) in terms().into_iter().enumerate() {
            let options = LossOptions { objective, terms };
            let kind = if index % 2 == 0 { Kind::Float } else { Kind::Double };
            let shape = [3, 1 + (index % 13) as i64];
            asked.push((Batch::drawn(&mut stream, shape, kind).poisoned().inputs, options, kind));
        }
    }
    let jobs: Vec<Vec<u8>> =
        asked.iter().map(|(inputs, options, kind)| job(inputs, options, *kind)).collect();
    let counts: Vec<usize> = asked.iter().map(|(inputs, ..)| inputs.logp.numel()).collect();
    for ((inputs, options, kind), answer) in asked.iter().zip(answers(&jobs, &counts)) {
        let expected = fused(inputs, None, options);
        let numbers = expected.numbers();
        let what = |of: &str| format!("{of}, {kind:?}, {options:?}");
        let gradient = values(&expected.grad_logp);
        let size = gradient.iter().fold(1e-3, |most: f64, value| most.max(value.abs()));
        agree(&what("grad_logp"), size, *kind, &answer.grad_logp, &gradient);
        if let Some(of_entropy) = &expected.grad_entropy {
            agree(&what("grad_entropy"), 1e-3, *kind, &answer.grad_entropy, &values(of_entropy));
        }
        let figures = numbers.metrics;
        let mean = |place: usize| answer.sums[place] / figures.tokens.max(1.0);
        let got = [answer.sums[0], answer.sums[1], mean(3), mean(4), -mean(5), mean(6), answer.sums[9]];
        let expected = [
            numbers.policy_loss,
            numbers.kl_loss,
            figures.clip_fraction,
            figures.clip_fraction_lower,
            figures.ppo_kl,
            figures.ratio_mean,
            figures.tokens,
        ];
        agree(&what("sums"), numbers.policy_loss.abs().max(1.0), *kind, &got, &expected);
        let plain = [answer.sums[7], answer.sums[8]];
        agree(&what("plain sums"), 30.0, *kind, &plain, &[figures.kl_sum, figures.entropy_sum]);
    }
}

#[test]
fn the_weights_are_the_same_wherever_they_are_computed() {
    // On a device they come from libtorch, on the CPU from a loop; here libtorch computes on the CPU.
    for mode in [LossAggMode::TokenMean, LossAggMode::SeqMeanTokenMean, LossAggMode::SeqMeanTokenSumNorm] {
        let aggregate = Aggregate { dp_size: 2.0, ..Aggregate::local(mode) };
        let mask = Batch::drawn(&mut Stream(5), [4, 6], Kind::Float).inputs.mask;
        let on_host = values(&weights(&mask, &aggregate).unwrap());
        agree("weights", 0.0, Kind::Double, &values(&row_weights(&mask, &aggregate)), &on_host);
    }
}

/// Without a driver there is one sentence, and no panic.
#[test]
fn what_is_missing_is_said() {
    if let Err(problem) = cuda::check() {
        assert_eq!(problem.code(), "unsupported");
        assert!(problem.to_string().starts_with("the fast paths cannot run on CUDA: "), "{problem}");
    }
}

/// Where there is a device: the kernels themselves.
#[test]
fn a_device_gives_what_the_cpu_gives() {
    if !tch::Cuda::is_available() {
        println!("there is no CUDA device: the kernels were not run");
        return;
    }
    let device = Device::Cuda(0);
    let mut stream = Stream(17);
    let mut all = Vec::new();
    for objective in objectives() {
        all.extend(terms().into_iter().step_by(3).map(|terms| LossOptions { objective, terms }));
    }
    let many = ActorLoss { kl_loss_coef: 0.1, ..ActorLoss::grpo() };
    all.push(LossOptions { objective: Objective::Vanilla, terms: many });
    for (index, options) in all.iter().enumerate() {
        let kind = if index % 2 == 0 { Kind::Float } else { Kind::Double };
        // The last one has more tokens than all threads together.
        let shape = if index + 1 == all.len() { [256, 2049] } else { [5, 1 + (index % 900) as i64] };
        let inputs = Batch::drawn(&mut stream, shape, kind).poisoned().inputs;
        let there = |tensor: &Tensor| tensor.to_device(device);
        let expected = fused(&inputs, None, options);
        let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = &inputs;
        let (logp_ref, entropy) = (logp_ref.as_ref().map(there), entropy.as_ref().map(there));
        let got = loss(
            &there(logp),
            &there(logp_old),
            logp_ref.as_ref(),
            &there(advantages),
            &there(mask),
            None,
            entropy.as_ref(),
            options,
        )
        .unwrap();
        let gradient = values(&expected.grad_logp);
        let size = gradient.iter().fold(1e-6, |most: f64, value| most.max(value.abs()));
        agree("grad_logp", size, kind, &values(&got.grad_logp.to_device(Device::Cpu)), &gradient);
        let (got, expected) = (got.numbers(), expected.numbers());
        agree("loss", expected.policy_loss.abs().max(1.0), kind, &[got.loss], &[expected.loss]);
        let figures = |numbers: grpo_oracle::fused::loss::Numbers| {
            let of = numbers.metrics;
            [of.clip_fraction, of.clip_fraction_lower, of.ppo_kl, of.ratio_mean, of.tokens]
        };
        agree("figures", 1.0, kind, &figures(got), &figures(expected));
    }
}
