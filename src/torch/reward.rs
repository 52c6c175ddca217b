//! Rewards that are read off a response's text or length. Texts leave nothing for libtorch to compute: this is the
//! trainer's own reading of the clauses, by regular expressions, which the reference's reading by hand is held against.

use std::sync::LazyLock;

use regex::Regex;
use tch::Tensor;

use super::at_least_f32;
use crate::axes::Axes;
use crate::options::{Gsm8k, GsmCompare, GsmMethod, GsmOccurrence, Overlong};
use crate::{Error, Result};

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static NUMBER: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"(-\$?)?([0-9]+(?:,[0-9]+)*)(\.[0-9]+)?").unwrap());

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static MARKER: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#{4,}[ \t$]*").unwrap());

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static MARKED_TEXT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"#### (-?[0-9.,]+)").unwrap());

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static TEXT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"-?[0-9.,]+").unwrap());

#[expect(clippy::unwrap_used, reason = "the patterns are constants that the tests compile")]
static BRACES: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"[{}]").unwrap());

/// 1 if the response's final answer is the problem's, else 0. See [`crate::reference::reward::gsm8k`].
///
/// # Errors
/// `option` if no character is to be searched, `input` if `answer` holds no number.
pub fn gsm8k(response: &str, answer: &str, options: &Gsm8k) -> Result<f64> {
    options.check()?;
    let characters = response.chars().count();
    let skipped = options.tail_chars.map_or(0, |kept| characters.saturating_sub(kept));
    let searched: String = response.chars().skip(skipped).collect();
    let (strict, first) = (options.method == GsmMethod::Strict, options.occurrence == GsmOccurrence::First);
    let nothing = || Error::input("answer", "holds no number; give the solution or the number");
    let is_right = match options.compare {
        GsmCompare::Number => {
            let wanted = number_of(answer, true, false).or_else(|| number_of(answer, false, false));
            number_of(&searched, strict, first) == Some(wanted.ok_or_else(nothing)?)
        }
        GsmCompare::Text => {
            let wanted = text_of(answer, true, false).or_else(|| text_of(answer, false, false));
            let wanted = wanted.filter(|text| text.contains(|c: char| c.is_ascii_digit()));
            let wanted = wanted.ok_or_else(nothing)?.replace(',', "");
            let found = text_of(&searched, strict, first);
            found.is_some_and(|found| wanted.chars().eq(found.chars().filter(|&c| !(strict && c == ','))))
        }
    };
    Ok(if is_right { 1.0 } else { 0.0 })
}

/// The last (or first) answer as text, after a marker or anywhere.
fn text_of(text: &str, marked: bool, first: bool) -> Option<&str> {
    let mut found: Vec<&str> = if marked {
        let captures = MARKED_TEXT.captures_iter(text);
        captures.filter_map(|captures| captures.get(1)).map(|text| text.as_str()).collect()
    } else {
        TEXT.find_iter(text).map(|text| text.as_str()).filter(|&text| text != ".").collect()
    };
    if first {
        found.reverse();
    }
    found.pop()
}

/// A number by its sign, its significant whole digits and its significant fraction digits.
type Number = (bool, String, String);

/// The last (or first) answer as a number, after a marker or anywhere.
fn number_of(text: &str, marked: bool, first: bool) -> Option<Number> {
    let mut found = if marked { marked_numbers(text) } else { numbers(text) };
    if first {
        found.reverse();
    }
    found.pop()
}

fn marked_numbers(text: &str) -> Vec<Number> {
    let starts = MARKER.find_iter(text).map(|marker| marker.end());
    starts
        .filter_map(|start| {
            let (at, number, _) = next_number(text, start)?;
            (at == start).then_some(number)
        })
        .collect()
}

fn numbers(text: &str) -> Vec<Number> {
    let (mut found, mut from) = (Vec::new(), 0);
    while let Some((_, number, end)) = next_number(text, from) {
        found.push(number);
        from = end;
    }
    found
}

/// The first number at or after `from`: where it starts, the number, and where it ends.
fn next_number(text: &str, from: usize) -> Option<(usize, Number, usize)> {
    let captures = NUMBER.captures_at(text, from)?;
    let whole = captures.get(2)?;
    let sign = captures
        .get(1)
        .filter(|sign| !text[..sign.start()].ends_with(|before: char| before.is_ascii_alphanumeric()));
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

/// What [`r1_zero`] gives, each 0 or 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct R1Zero {
    /// 1 if format and answer are right.
    pub reward: f64,
    /// 1 if the format is right.
    pub format_reward: f64,
    /// 1 if the answer is right, and the format.
    pub answer_reward: f64,
}

/// The reward of the r1_zero prompt, which asks for `<think> ... </think> <answer> ... </answer>`.
/// See [`crate::reference::reward::r1_zero`].
///
/// # Errors
/// `input` if the answer is empty.
pub fn r1_zero(response: &str, answer: &str) -> Result<R1Zero> {
    let wanted = answer.rfind("####").map_or(answer, |at| &answer[at + 4..]).trim_matches(BLANKS);
    if wanted.is_empty() {
        return Err(Error::input("answer", "is empty; give the solution or the answer"));
    }
    let is_formed = ["</think> <answer>", "</answer>"].iter().all(|tag| response.contains(tag));
    let is_right = is_formed && given_answer(response).is_some_and(|given| is_same(given, wanted));
    let (format_reward, reward) = (f64::from(is_formed), f64::from(is_right));
    Ok(R1Zero { reward, format_reward, answer_reward: reward })
}

const BLANKS: [char; 4] = [' ', '\t', '\n', '\r'];

/// What the last answer tag opens, or what the last box in it holds.
fn given_answer(response: &str) -> Option<&str> {
    let (_, opened) = response.rsplit_once("<answer>")?;
    let given = opened.split_once("</answer>").map_or(opened, |(given, _)| given);
    let Some((_, boxed)) = given.rsplit_once("\\boxed") else { return Some(given) };
    let inside = boxed.strip_prefix('{')?;
    let mut open = 1_usize;
    let closing = BRACES.find_iter(inside).find(|brace| {
        if brace.as_str() == "{" {
            open += 1
        } else {
            open -= 1
        }
        open == 0
    });
    closing.map(|closing| &inside[..closing.start()])
}

fn is_same(given: &str, wanted: &str) -> bool {
    let given = given.trim_matches(BLANKS);
    given == wanted || sole_number(given).is_some_and(|number| Some(number) == sole_number(wanted))
}

/// The number that the text is, but for a dollar sign before it and a full stop after it.
fn sole_number(text: &str) -> Option<Number> {
    let text = text.strip_prefix('$').unwrap_or(text);
    let (start, number, end) = next_number(text, 0)?;
    (start == 0 && ["", "."].contains(&&text[end..])).then_some(number)
}

/// DAPO's soft penalty of responses that come near the length limit, `[B]`. See [`crate::reference::reward::overlong`].
///
/// # Errors
/// `rank` if there is not one axis, `option` if an option is outside its domain.
pub fn overlong(lengths: &Tensor, options: &Overlong) -> Result<Tensor> {
    options.check()?;
    Axes::default().bind("lengths", &["B"], &lengths.size())?;
    let over = at_least_f32(&lengths.detach()) - (options.max_response_length - options.buffer);
    let penalty = (over / -options.buffer * options.penalty_factor).clamp_max(0.0);
    Ok(options.floor.map_or_else(|| penalty.shallow_clone(), |floor| penalty.clamp_min(floor)))
}
