//! The shapes of inputs and the values that their entries take.

use grpo_oracle::formula::{Input, Role};
use grpo_oracle::value::Data;

/// How many values a grid has at most.
pub(super) const FINEST: usize = 4;

/// The shape of an input; advantages are one a token, or one a sequence.
pub(super) fn shape(
    input: &Input,
    (rows, columns, vocabulary): (usize, usize, usize),
    per_sequence: bool,
) -> Vec<usize> {
    let mut shape = input.shape_with(|axis| match axis {
        "B" => rows,
        "T" | "I" => columns,
        "R" => 1,
        _ => vocabulary,
    });
    if input.role == Role::Advantage && per_sequence {
        shape.truncate(1);
    }
    shape
}

/// The values that entries take. All are exact in bfloat16.
pub(super) fn values(role: Role, (rows, _, vocabulary): (usize, usize, usize), fineness: usize) -> Data {
    let reals = |values: [f64; FINEST]| Data::Real(values[..fineness].to_vec());
    let integers = |values: [i64; FINEST]| Data::Integer(values[..fineness].to_vec());
    match role {
        Role::Number => reals([0.5, -1.0, 0.25, 3.0]),
        Role::Reward => reals([0.0, 1.0, 0.5, -0.25]),
        Role::Advantage => reals([1.0, -1.0, 0.0, 0.5]),
        Role::Logp => reals([-0.5, -1.0, -2.0, -0.25]),
        Role::LogpOther => reals([-0.5, -1.0, -0.5625, -40.0]), // no, some, little and much of a ratio
        Role::Logit => reals([0.0, 1.0, f64::NEG_INFINITY, -2.0]),
        Role::Count => reals([1.0, 3.0, 2.0, 8.0]),
        Role::Size => reals([0.5, 0.0, 1.0, 8.0]),
        Role::Samples => integers([8, 4, 1, 2]),
        Role::Correct => integers([0, 2, 1, 8]),
        Role::Mask => Data::Mask(vec![true, false]),
        Role::Token => Data::Integer((0..vocabulary as i64 + i64::from(fineness == FINEST)).collect()),
        Role::Group => Data::Integer((0..rows as i64).collect()),
        Role::Response => Data::Text(texts(fineness - 1)),
        Role::Answer => {
            let answers = ["#### 18", "18", "#### -1,800", "#### x"];
            Data::Text(answers.into_iter().take(fineness).map(str::to_owned).collect())
        }
    }
}

/// All texts of so many pieces and fewer.
fn texts(pieces: usize) -> Vec<String> {
    const PIECES: &[&str] =
        &["#### ", "18", "-", "$", ",", ".0", "</think> <answer>", "</answer>", "\\boxed{", "}", "\n", "x"];
    let mut texts = vec![String::new()];
    let mut longest = texts.clone();
    for _ in 0..pieces {
        longest = longest
            .iter()
            .flat_map(|text| PIECES.iter().map(move |piece| format!("{text}{piece}")))
            .collect();
        texts.extend_from_slice(&longest);
    }
    texts
}

pub(super) fn length(grid: &Data) -> usize {
    match grid {
        Data::Real(values) => values.len(),
        Data::Mask(values) => values.len(),
        Data::Integer(values) => values.len(),
        Data::Text(values) => values.len(),
    }
}

pub(super) fn picked(grid: &Data, digits: &[usize]) -> Data {
    match grid {
        Data::Real(values) => Data::Real(digits.iter().map(|&digit| values[digit]).collect()),
        Data::Mask(values) => Data::Mask(digits.iter().map(|&digit| values[digit]).collect()),
        Data::Integer(values) => Data::Integer(digits.iter().map(|&digit| values[digit]).collect()),
        Data::Text(values) => Data::Text(digits.iter().map(|&digit| values[digit].clone()).collect()),
    }
}
