//! Rewards that are read off a response's text. There is nothing here for libtorch to compute: this is the trainer's
//! own reading of the clauses, by regular expressions, which the reference's reading by hand is held against.

use std::sync::LazyLock;

use regex::Regex;

use crate::options::{Gsm8k, GsmMethod};
use crate::{Error, Result};

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(-\$?)?([0-9]+(?:,[0-9]+)*)(\.[0-9]+)?").unwrap());

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static MARKER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#{4,}[ \t$]*").unwrap());

/// 1 if the response's final answer is the problem's, else 0. See [`crate::reference::reward::gsm8k`].
///
/// # Errors
/// `input` if `answer` holds no number.
pub fn gsm8k(response: &str, answer: &str, options: &Gsm8k) -> Result<f64> {
    let wanted = strict(answer).or_else(|| flexible(answer));
    let wanted =
        wanted.ok_or_else(|| Error::input("answer", "holds no number; give the solution or the number"))?;
    let found = match options.method {
        GsmMethod::Strict => strict(response),
        GsmMethod::Flexible => flexible(response),
    };
    Ok(if found == Some(wanted) { 1.0 } else { 0.0 })
}

/// A number by its sign, its significant whole digits and its significant fraction digits.
type Number = (bool, String, String);

fn strict(text: &str) -> Option<Number> {
    let starts: Vec<usize> = MARKER.find_iter(text).map(|marker| marker.end()).collect();
    starts.into_iter().rev().find_map(|start| {
        let (at, number, _) = next_number(text, start)?;
        (at == start).then_some(number)
    })
}

fn flexible(text: &str) -> Option<Number> {
    let (mut last, mut from) = (None, 0);
    while let Some((_, number, end)) = next_number(text, from) {
        (last, from) = (Some(number), end);
    }
    last
}

/// The first number at or after `from`: where it starts, the number, and where it ends.
fn next_number(text: &str, from: usize) -> Option<(usize, Number, usize)> {
    let captures = NUMBER.captures_at(text, from)?;
    let whole = captures.get(2)?;
    let sign = captures.get(1).filter(|sign| !text[..sign.start()].ends_with(char::is_alphanumeric));
    // Commas belong to the number only before groups of three digits.
    let mut groups = whole.as_str().split(',');
    let mut digits = groups.next().unwrap_or_default().to_owned();
    let mut end = whole.start() + digits.len();
    let mut complete = true;
    for group in groups {
        complete &= group.len() == 3;
        if complete {
            digits.push_str(group);
            end += 4;
        }
    }
    let mut fraction = "";
    if let Some(decimals) = captures.get(3).filter(|_| complete) {
        fraction = decimals.as_str()[1..].trim_end_matches('0');
        end = decimals.end();
    }
    let digits = digits.trim_start_matches('0').to_owned();
    let negative = sign.is_some() && !(digits.is_empty() && fraction.is_empty());
    let start = sign.map_or(whole.start(), |sign| sign.start());
    Some((start, (negative, digits, fraction.to_owned()), end))
}
