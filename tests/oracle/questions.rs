//! Questions for any formula of the table, made from what the table says about its inputs and options.
//!
//! Every number is exact in bfloat16, so that one question serves every format.

use std::collections::BTreeMap;

use grpo_oracle::evaluate::Question;
use grpo_oracle::formula::{Formula, Input, Needed, Role};
use grpo_oracle::value::{Array, Data};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Map, Value};

type Formula64 = Formula<f64>;

/// The largest batch: sequences, tokens of each, vocabulary.
pub(crate) type Largest = (usize, usize, usize);

/// Small enough for a person to follow a failure.
pub(crate) const SMALL: Largest = (5, 6, 6);
/// Large enough for the order of a sum to matter.
pub(crate) const LARGE: Largest = (24, 12, 16);
/// Long enough for a recursion over the tokens to take all its steps.
pub(crate) const LONG: Largest = (3, 100, 2);

/// Questions of every family.
pub(crate) fn strategy(formula: &'static Formula64, largest: Largest) -> BoxedStrategy<Question> {
    (1..=largest.0, 1..=largest.1, 2..=largest.2)
        .prop_flat_map(move |(rows, columns, vocabulary)| {
            let sizes = BTreeMap::from([
                ("B", rows),
                ("T", columns),
                ("V", vocabulary),
                ("I", columns),
                ("O", vocabulary),
                ("R", 2),
            ]);
            let inputs: Vec<_> = formula.inputs.iter().map(|input| array(input, &sizes)).collect();
            (options(formula), inputs, any::<bool>(), any::<bool>())
        })
        .prop_map(move |(options, arrays, poison, all)| {
            let names = formula.inputs.iter().map(|input| input.name.to_owned());
            let mut question = Question { options, inputs: names.zip(arrays).collect() };
            let is_left_out = |input: &&Input| input.needed == Needed::Optional && !all;
            for input in formula.inputs.iter().filter(is_left_out) {
                question.inputs.remove(input.name);
            }
            if poison {
                poison_masked_slots(formula, &mut question);
            }
            question
        })
        .boxed()
}

/// The first questions of a fixed sequence.
pub(crate) fn sample(formula: &'static Formula64, count: usize) -> Vec<Question> {
    stream(formula, SMALL).take(count).collect()
}

/// A fixed sequence of questions without end.
pub(crate) fn stream(formula: &'static Formula64, largest: Largest) -> impl Iterator<Item = Question> {
    let mut runner = TestRunner::deterministic();
    let strategy = strategy(formula, largest);
    std::iter::repeat_with(move || strategy.new_tree(&mut runner).unwrap().current())
}

/// One more entry along the first axis; false for an array without axes.
pub(crate) fn lengthen(array: &mut Array) -> bool {
    let Some(first) = array.shape.first_mut() else { return false };
    *first += 1;
    let count = array.shape.iter().product();
    resize(&mut array.data, count);
    true
}

/// One more axis, of length 1; false for texts, which take any shape.
pub(crate) fn deepen(array: &mut Array) -> bool {
    array.shape.push(1);
    !matches!(array.data, Data::Text(_))
}

fn resize(data: &mut Data, count: usize) {
    match data {
        Data::Real(data) => data.resize(count, 0.0),
        Data::Mask(data) => data.resize(count, true),
        Data::Integer(data) => data.resize(count, 0),
        Data::Text(data) => data.resize(count, String::new()),
    }
}

/// Each option at its default or at one of the row's samples.
fn options(formula: &'static Formula64) -> BoxedStrategy<Map<String, Value>> {
    let fields: Vec<_> = formula
        .options
        .iter()
        .map(|option| {
            let samples: Vec<Value> = serde_json::from_str(option.samples).unwrap();
            let default = (formula.defaults)()[option.name].clone();
            prop_oneof![Just(default), proptest::sample::select(samples)]
                .prop_map(|value| (option.name.to_owned(), value))
        })
        .collect();
    fields.prop_map(|fields| fields.into_iter().collect()).boxed()
}

fn array(input: &'static Input, sizes: &BTreeMap<&'static str, usize>) -> BoxedStrategy<Array> {
    let shape = input.shape_with(|axis| sizes[axis]);
    let count: usize = shape.iter().product();
    let width = shape.last().copied().unwrap_or(1);
    let vocabulary = sizes["V"] as i64;
    let data = match input.role {
        Role::Number => {
            reals(vec![grid(-64, 64, 0.125), grid(-8, 8, 32.0), grid(-16, 16, 2.0_f64.powi(-12))], count)
        }
        Role::Reward => reals(
            vec![
                prop_oneof![Just(0.0), Just(1.0)].boxed(),
                grid(0, 64, 1.0 / 64.0),
                grid(128, 132, 1.0 / 128.0), // nearly equal
                grid(128, 132, 2.0),         // with a large offset
                grid(0, 4, 2.0_f64.powi(-20)),
                Just(0.8984375).boxed(), // constant
            ],
            count,
        ),
        Role::Advantage => reals(vec![grid(-48, 48, 1.0 / 16.0), grid(-1, 1, 1.0)], count),
        Role::Count => reals(vec![grid(1, 16, 1.0)], count),
        Role::Size => reals(vec![grid(0, 64, 1.0 / 16.0), Just(0.0).boxed()], count),
        Role::Samples => proptest::collection::vec(8_i64..=16, count).prop_map(Data::Integer).boxed(),
        Role::Correct => proptest::collection::vec(0_i64..=8, count).prop_map(Data::Integer).boxed(),
        Role::Logp => reals(vec![grid(-255, 0, 1.0 / 32.0)], count),
        Role::LogpOther => reals(
            vec![grid(-255, 0, 1.0 / 32.0), grid(-32, 0, 0.25), grid(-80, 0, 1.0)], // near and far ratios
            count,
        ),
        Role::Logit => reals(
            vec![
                grid(-128, 128, 0.125),
                grid(-4, 4, 128.0),
                prop_oneof![3 => grid(-16, 16, 0.5), 1 => Just(f64::NEG_INFINITY)].boxed(),
            ],
            count,
        ),
        Role::Mask => masks(count, width),
        Role::Token => proptest::collection::vec(0..vocabulary, count).prop_map(Data::Integer).boxed(),
        Role::Group => groups(count),
        Role::Response => prop_oneof![text(), tagged()].prop_map(|text| Data::Text(vec![text])).boxed(),
        Role::Answer => text().prop_map(|text| Data::Text(vec![format!("{text} #### 18")])).boxed(),
    };
    data.prop_map(move |data| Array { shape: shape.clone(), data }).boxed()
}

/// Multiples of a power of two.
fn grid(low: i32, high: i32, step: f64) -> BoxedStrategy<f64> {
    (low..=high).prop_map(move |steps| f64::from(steps) * step).boxed()
}

/// All entries from one of the families.
fn reals(families: Vec<BoxedStrategy<f64>>, count: usize) -> BoxedStrategy<Data> {
    let arrays = families.into_iter().map(|family| proptest::collection::vec(family, count).boxed());
    proptest::strategy::Union::new(arrays).prop_map(Data::Real).boxed()
}

/// Groups of two and more, not side by side, and groups of any size.
fn groups(count: usize) -> BoxedStrategy<Data> {
    let large = (1..=(count / 2).max(1))
        .prop_map(move |groups| (0..count).map(|member| (member % groups) as i64).collect::<Vec<_>>());
    let any = proptest::collection::vec(prop_oneof![3 => 0_i64..2, 1 => -3_i64..9], count);
    prop_oneof![2 => large, 1 => any].prop_map(Data::Integer).boxed()
}

/// Ragged right padding, empty rows among it, and masks with holes.
fn masks(count: usize, width: usize) -> BoxedStrategy<Data> {
    let rows = count / width.max(1);
    let padded = proptest::collection::vec(0..=width, rows).prop_map(move |lengths| {
        Data::Mask(lengths.iter().flat_map(|&length| (0..width).map(move |column| column < length)).collect())
    });
    let holes = proptest::collection::vec(any::<bool>(), count).prop_map(Data::Mask);
    prop_oneof![padded, holes].boxed()
}

/// Pieces that answers are made of, in any order.
fn text() -> BoxedStrategy<String> {
    const PIECES: &[&str] = &[
        "####",
        "#### ",
        "###",
        "$",
        "-",
        "18",
        "18.0",
        "1",
        "8",
        "0",
        "007",
        "1,800",
        "18,000",
        ",",
        ".",
        "</think> <answer>",
        "<answer>",
        "</answer>",
        "\\boxed{",
        "}",
        " ",
        "\n",
        "x",
        "é",
        "答",
        "= ",
        "**",
        "#### 18",
        "-18",
        "$-18",
        "-$18",
        "18.",
        "1,8",
    ];
    let piece = proptest::sample::select(PIECES);
    proptest::collection::vec(piece, 0..8).prop_map(|pieces| pieces.concat()).boxed()
}

/// An answer between the tags of the r1_zero prompt, often the right one but for what stands around it.
fn tagged() -> BoxedStrategy<String> {
    const AROUND: &[&str] =
        &["", " ", "\n", "\r", "\t", "\u{a0}", "x", "$", "-", ".", "}", "\\boxed{", "####"];
    let around = || proptest::collection::vec(proptest::sample::select(AROUND), 0..3);
    let number = proptest::sample::select(&["18", "18.0", "018", "8", "1,8", "x"][..]);
    let answer = (around(), number, around())
        .prop_map(|(before, number, after)| format!("{}{number}{}", before.concat(), after.concat()));
    (text(), answer, text())
        .prop_map(|(before, answer, after)| format!("{before}</think> <answer>{answer}</answer>{after}"))
        .boxed()
}

/// Not a number, or infinite, wherever the mask leaves a slot out.
pub(crate) fn poison_masked_slots(formula: &Formula64, question: &mut Question) {
    let first = formula.inputs.iter().find(|input| input.role == Role::Mask);
    let mask = first.and_then(|input| question.inputs.get(input.name)).and_then(|array| match &array.data {
        Data::Mask(mask) => Some((array.shape.clone(), mask.clone())),
        _ => None,
    });
    let Some((shape, mask)) = mask else { return };
    const POISON: [f64; 3] = [f64::NAN, f64::INFINITY, f64::NEG_INFINITY];
    for array in question.inputs.values_mut().filter(|array| array.shape == shape) {
        if let Data::Real(data) = &mut array.data {
            let masked = data.iter_mut().zip(&mask).enumerate().filter(|(_, (_, keep))| !**keep);
            masked.for_each(|(index, (entry, _))| *entry = POISON[index % 3]);
        }
    }
}
