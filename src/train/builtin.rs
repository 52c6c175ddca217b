//! The problems that the crate brings along: GSM8K's format, three levels, no file and no network needed.

use std::collections::BTreeSet;

use clap::ValueEnum;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;

use super::data::{Dataset, Problem};

/// How hard the problems are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// Sums and differences that are one digit, in five characters: for the tiny model.
    #[value(alias = "0")]
    Tiny,
    /// Sums of two digits: a small model solves some of them from the start.
    #[value(alias = "1")]
    Easy,
    /// Two-digit sums and differences, and two steps with digits.
    #[value(alias = "2")]
    Medium,
    /// Short stories of two or three steps.
    #[value(alias = "3")]
    Hard,
}

impl Level {
    /// The level's name as it is typed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tiny => "tiny",
            Self::Easy => "easy",
            Self::Medium => "medium",
            Self::Hard => "hard",
        }
    }
}

/// The problems of one level, split by `seed` so that no held-out problem is trained on; for sums, not even with its
/// two numbers exchanged.
pub fn problems(level: Level, seed: u64) -> Dataset {
    let rng = &mut ChaCha8Rng::seed_from_u64(seed);
    let (train, test) = match level {
        Level::Tiny => tiny(rng),
        Level::Easy => easy(rng),
        Level::Medium => split(rng, medium),
        Level::Hard => split(rng, hard),
    };
    let source = format!("built-in {} problems in GSM8K's format (seed {seed})", level.name());
    Dataset { train, test, source, level: Some(level) }
}

const DRAWN: usize = 640;
const HELD_OUT: usize = 128;

/// All sums and differences of two digits that are a digit; an eighth is held out. The worked answer begins with the
/// result, so that its first token decides: who leaves it out of the loss learns nothing.
fn tiny(rng: &mut ChaCha8Rng) -> (Vec<Problem>, Vec<Problem>) {
    let of = |question: String, result: u32| Problem { question, answer: format!("{result}\n#### {result}") };
    let pairs = || (0..10u32).flat_map(|a| (0..10u32).map(move |b| (a, b)));
    let sums = pairs().filter(|(a, b)| a + b < 10).map(|(a, b)| of(format!("{a}+{b}"), a + b));
    let differences = pairs().filter(|(a, b)| a >= b).map(|(a, b)| of(format!("{a}-{b}"), a - b));
    let mut problems: Vec<Problem> = sums.chain(differences).collect();
    problems.shuffle(rng);
    let test = problems.split_off(problems.len() - problems.len() / 8);
    (problems, test)
}

/// All 100 sums of two digits; a quarter of the unordered pairs is held out.
fn easy(rng: &mut ChaCha8Rng) -> (Vec<Problem>, Vec<Problem>) {
    let mut pairs: Vec<(u32, u32)> = (0..10).flat_map(|a| (a..10).map(move |b| (a, b))).collect();
    pairs.shuffle(rng);
    let (test, train) = pairs.split_at(pairs.len() / 4);
    (sums(rng, train), sums(rng, test))
}

fn sums(rng: &mut ChaCha8Rng, pairs: &[(u32, u32)]) -> Vec<Problem> {
    let ordered: BTreeSet<(u32, u32)> = pairs.iter().flat_map(|&(a, b)| [(a, b), (b, a)]).collect();
    let mut problems: Vec<Problem> = ordered.into_iter().map(|(a, b)| sum(a, b)).collect();
    problems.shuffle(rng);
    problems
}

fn sum(a: u32, b: u32) -> Problem {
    bare(&format!("{a} + {b}"), a + b)
}

/// Draws distinct problems and cuts them in two.
fn split(rng: &mut ChaCha8Rng, draw: fn(&mut ChaCha8Rng) -> Problem) -> (Vec<Problem>, Vec<Problem>) {
    let (mut seen, mut problems) = (BTreeSet::new(), Vec::with_capacity(DRAWN));
    while problems.len() < DRAWN {
        let problem = draw(rng);
        if seen.insert(problem.question.clone()) {
            problems.push(problem);
        }
    }
    let train = problems.split_off(HELD_OUT);
    (train, problems)
}

fn medium(rng: &mut ChaCha8Rng) -> Problem {
    let (a, b) = (rng.random_range(10..100), rng.random_range(10..100));
    let (x, y, z) = (rng.random_range(1..10), rng.random_range(1..10), rng.random_range(1..10));
    match rng.random_range(0..4) {
        // Written with the larger number first, so that a sum and its exchange are one problem.
        0 => sum(a.max(b), a.min(b)),
        1 => bare(&format!("{} - {}", a.max(b), a.min(b)), a.max(b) - a.min(b)),
        2 => two_steps(
            &format!("{x} + {y} + {z}"),
            [&format!("{x} + {y}"), "+", &z.to_string()],
            x + y,
            x + y + z,
        ),
        _ => two_steps(
            &format!("{x} * {y} + {z}"),
            [&format!("{x} * {y}"), "+", &z.to_string()],
            x * y,
            x * y + z,
        ),
    }
}

fn bare(expression: &str, result: u32) -> Problem {
    Problem {
        question: format!("What is {expression}?"),
        answer: format!("{}\n#### {result}", line(expression, result)),
    }
}

fn two_steps(expression: &str, [first, operator, last]: [&str; 3], between: u32, result: u32) -> Problem {
    let second = line(&format!("{between} {operator} {last}"), result);
    Problem {
        question: format!("What is {expression}?"),
        answer: format!("{}\n{second}\n#### {result}", line(first, between)),
    }
}

/// One calculation with GSM8K's calculator mark: `3 + 4 = <<3+4=7>>7`.
fn line(expression: &str, result: u32) -> String {
    format!("{expression} = <<{}={result}>>{result}", expression.replace(' ', ""))
}

const NAMES: [&str; 8] = ["Ana", "Ben", "Chidi", "Dara", "Emil", "Farah", "Goro", "Hana"];
const THINGS: [&str; 8] = ["apples", "marbles", "stickers", "pencils", "shells", "cards", "buttons", "beads"];

fn hard(rng: &mut ChaCha8Rng) -> Problem {
    let name = NAMES.choose(rng).unwrap_or(&NAMES[0]);
    let things = THINGS.choose(rng).unwrap_or(&THINGS[0]);
    let (a, b, c) = (rng.random_range(2..13), rng.random_range(2..10), rng.random_range(2..10));
    let worked = |question: String, steps: &[(&str, String, u32)]| {
        let lines: Vec<String> = steps
            .iter()
            .map(|(words, expression, result)| format!("{words} {}.", line(expression, *result)))
            .collect();
        let last = steps.last().map_or(0, |step| step.2);
        Problem { question, answer: format!("{}\n#### {last}", lines.join("\n")) }
    };
    match rng.random_range(0..6) {
        0 => worked(
            format!(
                "{name} has {a} {things} and gets {b} more. Then {name} gives {} away. How many {things} are left?",
                c.min(a)
            ),
            &[
                ("With the new ones there are", format!("{a} + {b}"), a + b),
                ("After giving some away there are", format!("{} - {}", a + b, c.min(a)), a + b - c.min(a)),
            ],
        ),
        1 => worked(
            format!(
                "{name} fills {a} bags with {b} {things} each and keeps {c} more in a pocket. How many {things} does {name} have?"
            ),
            &[
                ("The bags hold", format!("{a} * {b}"), a * b),
                ("With the pocket that is", format!("{} + {c}", a * b), a * b + c),
            ],
        ),
        2 => worked(
            format!(
                "A shop sells {things} at ${b} a piece. {name} buys {a} of them and pays with ${}. How much money does {name} get back?",
                a * b + c
            ),
            &[
                ("The price in dollars is", format!("{a} * {b}"), a * b),
                ("What comes back is", format!("{} - {}", a * b + c, a * b), c),
            ],
        ),
        3 => worked(
            format!(
                "{name} finds {a} {things} on Monday and twice as many on Tuesday. How many {things} does {name} find on both days together?"
            ),
            &[
                ("On Tuesday there are", format!("{a} * 2"), 2 * a),
                ("Both days together give", format!("{a} + {}", 2 * a), 3 * a),
            ],
        ),
        4 => worked(
            format!(
                "{} {things} are shared equally among {b} children, and {name} adds {c} to each share. How many {things} does each child get?",
                a * b
            ),
            &[
                ("An equal share is", format!("{} / {b}", a * b), a),
                ("With the extra ones it is", format!("{a} + {c}"), a + c),
            ],
        ),
        _ => worked(
            format!(
                "{name} reads {a} pages in the morning and {b} pages in the evening, every day for {c} days. How many pages does {name} read?"
            ),
            &[
                ("A day has", format!("{a} + {b}"), a + b),
                ("All days together have", format!("{} * {c}", a + b), (a + b) * c),
            ],
        ),
    }
}
