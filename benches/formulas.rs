//! What each formula costs: the reference and libtorch on every device, value alone, and the fast path, with its gradient,
//! by the number of tokens. `target/criterion/report/index.html` has the curves.
//!
//! `cargo bench` measures the reference; `cargo bench --features torch` libtorch and the fast paths too. A name picks one
//! formula: `cargo bench --features torch -- objective.clip`.
#![allow(missing_docs, reason = "criterion's macros write functions")]
#![expect(clippy::unwrap_used, reason = "a bench fails by panicking")]

use std::collections::BTreeMap;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use grpo_oracle::evaluate::Question;
use grpo_oracle::formula::{Formula, Input, Role};
use grpo_oracle::value::{Array, Data};

/// Sequences and tokens of each, from a thousand tokens to a million; a vocabulary of 64 keeps logits as small as the rest.
const SIZES: [(usize, usize); 4] = [(8, 128), (32, 256), (64, 1024), (512, 2048)];
const VOCABULARY: usize = 64;

fn formulas(criterion: &mut Criterion) {
    for formula in Formula::<f64>::all() {
        let mut group = criterion.benchmark_group(formula.id);
        group.sample_size(10);
        for (rows, columns) in SIZES {
            let question = question(formula, rows, columns);
            let tokens = rows * columns;
            group.throughput(Throughput::Elements(tokens as u64));
            let args = question.args(formula, |value| value).unwrap();
            group.bench_function(BenchmarkId::new("reference-f64", tokens), |bencher| {
                bencher.iter(|| (formula.reference)(&args).unwrap());
            });
            #[cfg(feature = "torch")]
            torch(&mut group, formula, &question, tokens);
        }
    }
}

#[cfg(feature = "torch")]
fn torch(
    group: &mut criterion::BenchmarkGroup<'_, criterion::measurement::WallTime>,
    formula: &Formula<f64>,
    question: &Question,
    tokens: usize,
) {
    if let Some(fused) = formula.fused {
        let args = question.torch_args(formula, tch::Device::Cpu, tch::Kind::Float);
        group.bench_function(BenchmarkId::new("fused-f32", tokens), |bencher| {
            bencher.iter(|| fused(&args).unwrap());
        });
    }
    let Some(torch) = formula.torch else { return };
    let cuda = (0..tch::Cuda::device_count() as usize).map(tch::Device::Cuda);
    for device in std::iter::once(tch::Device::Cpu).chain(cuda) {
        let args = question.torch_args(formula, device, tch::Kind::Float);
        group.bench_function(BenchmarkId::new(format!("{device:?}-f32"), tokens), |bencher| {
            bencher.iter_custom(|iterations| {
                let start = std::time::Instant::now();
                for _ in 0..iterations {
                    std::hint::black_box(torch(&args).unwrap());
                }
                // The device works on after the calls return; its work belongs to the time.
                if let tch::Device::Cuda(index) = device {
                    tch::Cuda::synchronize(index as i64);
                }
                start.elapsed()
            });
        });
    }
}

/// A question of this size with the default options.
fn question(formula: &Formula<f64>, rows: usize, columns: usize) -> Question {
    let sizes =
        BTreeMap::from([("B", rows), ("T", columns), ("V", VOCABULARY), ("I", 64), ("O", 64), ("R", 8)]);
    let inputs = formula.inputs.iter().map(|input| (input.name.to_owned(), array(input, &sizes))).collect();
    Question { options: (formula.defaults)(), inputs }
}

fn array(input: &Input, sizes: &BTreeMap<&str, usize>) -> Array {
    let shape = input.shape_with(|axis| sizes[axis]);
    let count: usize = shape.iter().product();
    // A spread of values in [0, 1) without a random generator: multiples of the golden ratio.
    let spread = |index: usize| (index as f64 * 0.618_033_988_749_894_9).fract();
    let reals = |value: fn(f64) -> f64| Data::Real((0..count).map(|index| value(spread(index))).collect());
    let data = match input.role {
        Role::Number | Role::Advantage => reals(|x| 2.0 * x - 1.0),
        Role::Reward => reals(f64::round),
        Role::Count => reals(|x| 1.0 + (64.0 * x).floor()),
        Role::Size => reals(|x| x),
        Role::Samples => Data::Integer(vec![16; count]),
        Role::Correct => Data::Integer((0..count).map(|index| (index % 17) as i64).collect()),
        Role::Logp => reals(|x| -4.0 * x),
        Role::LogpOther => reals(|x| -4.0 * x + 0.125),
        Role::Logit => reals(|x| 16.0 * x - 8.0),
        Role::Mask => Data::Mask((0..count).map(|index| spread(index) < 0.75).collect()),
        Role::Token => Data::Integer((0..count).map(|index| (index % VOCABULARY) as i64).collect()),
        Role::Group => Data::Integer((0..count).map(|index| (index / 8) as i64).collect()),
        Role::Response => Data::Text(vec!["She makes 9 * 2 = 18 dollars.\n#### 18".to_owned()]),
        Role::Answer => Data::Text(vec!["#### 18".to_owned()]),
    };
    Array { shape, data }
}

criterion_group!(benches, formulas);
criterion_main!(benches);
