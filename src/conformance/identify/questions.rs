//! What a subject is asked: the inputs of the golden cases, and generated ones of several sizes and spreads.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::Setting;
use crate::conformance::Dtype;
use crate::evaluate::{Question, evaluate_outputs};
use crate::fixture::Fixture;
use crate::formula::{ANY, Formula, Input, Needed, Role};
use crate::value::{Array, Data, Kind, Named};

/// A question without options, and where it comes from.
#[derive(Debug, Clone)]
pub(super) struct Asking {
    pub(super) name: String,
    pub(super) question: Question,
}

/// How many families of generated questions there are: near and far ratios, small and large rewards.
const SPREADS: u64 = 5;

/// The inputs of the golden cases, each once, that a base setting has an answer to; what other settings would read
/// beside them is added.
pub(super) fn golden(
    formula: &Formula<f64>,
    fixtures: &[Fixture],
    bases: &[Setting],
    dtype: Dtype,
) -> Vec<Asking> {
    let mut pool: Vec<Asking> = Vec::new();
    let cases =
        fixtures.iter().filter(|fixture| fixture.formula == formula.id).flat_map(|fixture| &fixture.cases);
    for (seed, case) in (0..).zip(cases) {
        let mut inputs = case.question.inputs.clone();
        let missing = formula.inputs.iter().filter(|input| {
            input.needed != Needed::Optional && !case.question.inputs.contains_key(input.name)
        });
        let sizes = sizes_of(formula, &inputs);
        let mut draw = Draw { state: seed, spread: seed % SPREADS };
        for input in missing {
            if let Some(array) = draw.array(input, &sizes, &inputs) {
                inputs.insert(input.name.to_owned(), array);
            }
        }
        let asking = Asking { name: format!("case {}", case.id), question: asked(inputs) };
        let is_new = pool.iter().all(|other| other.question != asking.question);
        if is_new && can_be_put(formula, &asking, bases, dtype) {
            pool.push(asking);
        }
    }
    pool
}

/// Generated questions; none for formulas of texts.
pub(super) fn generated(
    formula: &Formula<f64>,
    seeds: std::ops::Range<u64>,
    bases: &[Setting],
    dtype: Dtype,
) -> Vec<Asking> {
    if formula.inputs.iter().any(|input| input.kind == Kind::Text) {
        return Vec::new();
    }
    let asking = |seed: u64| {
        // One number more is one pass more for a gradient: few where there is a gradient, many where there is none.
        let has_tokens = formula.inputs.iter().any(|input| input.axes.contains(&"T"));
        let (rows, vocabulary) = if has_tokens { (4, 4) } else { (5, 80) };
        // An option may say how long an axis has to be.
        let ranks = bases.iter().filter_map(|base| base.get("rank")?.as_u64());
        let ranks: Vec<usize> = ranks.map(|rank| rank as usize).chain([2]).collect();
        let rank = ranks[seed as usize % ranks.len()];
        let sizes =
            BTreeMap::from([("B", rows), ("T", 3), ("V", vocabulary), ("I", 3), ("O", 3), ("R", rank)]);
        let mut draw = Draw { state: seed, spread: seed % SPREADS };
        let mut inputs = Named::new();
        for input in formula.inputs {
            // Every other question leaves out what may be left out.
            let is_left_out = input.needed == Needed::Optional && (seed / SPREADS) % 2 == 1;
            if !is_left_out && let Some(array) = draw.array(input, &sizes, &inputs) {
                inputs.insert(input.name.to_owned(), array);
            }
        }
        Asking { name: format!("generated {seed}"), question: asked(inputs) }
    };
    let mut pool: Vec<Asking> = Vec::new();
    for asking in seeds.map(asking) {
        let is_new = pool.iter().all(|other| other.question != asking.question);
        if is_new && can_be_put(formula, &asking, bases, dtype) {
            pool.push(asking);
        }
    }
    pool
}

/// No options: the subject answers with its own.
fn asked(inputs: Named) -> Question {
    Question { options: Map::new(), inputs }
}

/// Whether the format holds the inputs exactly, all are numbers, and some base setting has an answer.
fn can_be_put(formula: &Formula<f64>, asking: &Asking, bases: &[Setting], dtype: Dtype) -> bool {
    let inputs = &asking.question.inputs;
    let mut reals = inputs.values().flat_map(|array| array.reals());
    let fits = |&number: &f64| dtype.represents(number) && !number.is_nan() && number != f64::INFINITY;
    reals.all(fits)
        && bases.iter().any(|options| {
            let question = Question { options: options.clone(), inputs: inputs.clone() };
            evaluate_outputs(formula.id, &question).is_ok()
        })
}

/// The lengths of the named axes, as the inputs have them.
fn sizes_of(formula: &Formula<f64>, inputs: &Named) -> BTreeMap<&'static str, usize> {
    let mut sizes = BTreeMap::new();
    for input in formula.inputs {
        if let Some(array) = inputs.get(input.name) {
            sizes.extend(input.axes.iter().copied().zip(array.shape.iter().copied()));
        }
    }
    sizes
}

/// Arrays out of a fixed sequence of numbers. Every entry is exact in bfloat16, so that one question serves every
/// format.
struct Draw {
    state: u64,
    spread: u64,
}

impl Draw {
    /// A whole number from `low` to `high`: splitmix64.
    fn whole(&mut self, low: i64, high: i64) -> i64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        low + ((bits ^ (bits >> 31)) % (high - low + 1).unsigned_abs()) as i64
    }

    fn reals(&mut self, count: usize, low: i64, high: i64, step: f64) -> Vec<f64> {
        (0..count).map(|_| self.whole(low, high) as f64 * step).collect()
    }

    /// An array for the input; `None` for texts, and where an axis has no known length.
    fn array(
        &mut self,
        input: &Input,
        sizes: &BTreeMap<&'static str, usize>,
        others: &Named,
    ) -> Option<Array> {
        let shape: Vec<usize> = if input.axes == ANY {
            let given = others.values().next().map(|array| array.shape.clone());
            given.unwrap_or_else(|| vec![5, 4])
        } else {
            input.axes.iter().map(|axis| sizes.get(axis).copied().unwrap_or(4)).collect()
        };
        let count: usize = shape.iter().product();
        let power = |exponent: i32| 2.0_f64.powi(exponent);
        let step = [power(-5), power(-1), power(-12), power(-22), power(4)][self.spread as usize];
        let data = match input.role {
            Role::Number => Data::Real(self.reals(count, -96, 96, step)),
            Role::Size => Data::Real(self.reals(count, 0, 96, step)),
            Role::Reward if self.spread == 0 => Data::Real(self.reals(count, 0, 1, 1.0)),
            Role::Reward => Data::Real(self.reals(count, -8, 32, step)),
            Role::Advantage => Data::Real(self.reals(count, -48, 48, power(-4))),
            Role::Count => {
                let step = if self.spread.is_multiple_of(2) { 1.0 } else { 1280.0 };
                Data::Real(self.reals(count, 1, 16, step))
            }
            Role::Logp => Data::Real(self.reals(count, -127, -1, power(-5))),
            Role::LogpOther => Data::Real(self.near(count, &shape, others)),
            Role::Logit => Data::Real(self.reals(count, -32, 32, power(-3))),
            Role::Samples => self.integers(count, 8, 16),
            Role::Correct => self.integers(count, 0, 8),
            Role::Token => self.integers(count, 0, sizes.get("V").map_or(0, |&size| size as i64 - 1)),
            Role::Group => self.groups(count),
            Role::Mask => Data::Mask(self.mask(&shape)),
            Role::Response | Role::Answer => return None,
        };
        Some(Array { shape, data })
    }

    fn integers(&mut self, count: usize, low: i64, high: i64) -> Data {
        Data::Integer((0..count).map(|_| self.whole(low, high)).collect())
    }

    /// Log-probabilities as far from those of the policy as the spread says.
    fn near(&mut self, count: usize, shape: &[usize], others: &Named) -> Vec<f64> {
        let policy = others.get("logp").filter(|array| array.shape == shape).map(Array::reals);
        let (reach, step) = [(12, 1.0), (64, 1.0), (3, 1.0), (48, 32.0), (40, 1.0)][self.spread as usize];
        // All to one side where they are far apart, so that sums and means are far too.
        let (low, high) = match self.whole(0, 1) {
            _ if step == 1.0 => (-reach, reach),
            0 => (0, reach),
            _ => (-reach, 0),
        };
        let apart = self.reals(count, low, high, step / 32.0);
        let of = |index: usize| policy.and_then(|policy| policy.get(index)).copied().unwrap_or(-2.0);
        // Whole numbers where they are far apart: a fraction beside them would not be exact in bfloat16.
        let sum = |(index, apart): (usize, f64)| {
            let sum = of(index) + apart;
            if sum.abs() < 4.0 { sum } else { sum.trunc() }
        };
        apart.into_iter().enumerate().map(sum).collect()
    }

    /// Two groups, not side by side; every third time also one of a single member.
    fn groups(&mut self, count: usize) -> Data {
        let mut labels: Vec<i64> = (0..count as i64).map(|member| member % 2).collect();
        if self.whole(0, 2) == 0 && count > 4 {
            labels[count - 1] = 7;
        }
        Data::Integer(labels)
    }

    /// Padding on the right, none in the first row; every other spread has holes too. No row is empty.
    fn mask(&mut self, shape: &[usize]) -> Vec<bool> {
        let width = shape.last().copied().unwrap_or(1).max(1) as i64;
        let rows = shape.iter().product::<usize>() as i64 / width;
        let mut mask = Vec::new();
        for row in 0..rows {
            let length = if row == 0 { width } else { self.whole(1, width) };
            let has_hole = self.spread % 2 == 1 && length > 2;
            let hole = if has_hole { self.whole(1, length - 2) } else { -1 };
            mask.extend((0..width).map(|column| column < length && column != hole));
        }
        mask
    }
}

/// The values of an option that are tried: the default, the row's samples, those of rivals and conventions, and small
/// numbers that are common.
pub(super) fn values_of(formula: &Formula<f64>, option: &str, bases: &[Setting]) -> Vec<Value> {
    const EPSILONS: [f64; 5] = [0.0, 1e-4, 1e-5, 1e-6, 1e-8];
    let samples = formula.options.iter().find(|field| field.name == option).map(|field| field.samples);
    let samples: Vec<Value> =
        samples.and_then(|samples| serde_json::from_str(samples).ok()).unwrap_or_default();
    let rivals = formula.rivals.iter().filter_map(|rival| {
        let options: Setting = serde_json::from_str(rival.options).ok()?;
        options.get(option).cloned()
    });
    let is_epsilon = option == "eps" || option.ends_with("_eps") || option.ends_with("_epsilon");
    let common = EPSILONS.iter().filter(|_| is_epsilon).map(|&epsilon| Value::from(epsilon));
    let given = bases.iter().filter_map(|base| base.get(option).cloned());
    let mut values: Vec<Value> = Vec::new();
    for value in given.chain(samples).chain(rivals).chain(common) {
        if !values.contains(&value) {
            values.push(value);
        }
    }
    values
}
