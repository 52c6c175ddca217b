//! Rewards that are read off a response's text or length.

use ndarray::{Array1, ArrayRef1};

use super::Real;
use crate::axes::Axes;
use crate::options::{Gsm8k, GsmCompare, GsmMethod, GsmOccurrence, Overlong};
use crate::{Error, Result};

/// 1 if the response's final answer is the problem's, else 0.
///
/// Clauses `reward.gsm8k` and below. The answer is the number after the last `####` that a number follows (strict), or
/// the last number of all (flexible); or the first. Numbers are compared as numbers: `1,000`, `$1000`, `1000.` and
/// `1000.0` are equal; or as text, as verl and the data set's own code do.
///
/// * `response`: what the policy wrote
/// * `answer`: the published solution, which ends in `#### N`, or the bare number
///
/// # Errors
/// `option` if no character is to be searched, `input` if `answer` holds no number.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Gsm8k, reference::reward};
/// assert_eq!(reward::gsm8k("2 + 2 = 4\n#### 4", "#### 4", &Gsm8k::strict())?, 1.0);
/// assert_eq!(reward::gsm8k("So she has $1,000.00.", "1000", &Gsm8k::strict())?, 0.0);
/// assert_eq!(reward::gsm8k("So she has $1,000.00.", "1000", &Gsm8k::flexible())?, 1.0);
/// assert_eq!(reward::gsm8k("So she has $1,000.00.", "1000", &Gsm8k::verl_flexible())?, 0.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn gsm8k(response: &str, answer: &str, options: &Gsm8k) -> Result<f64> {
    options.check()?;
    let searched = tail(response, options.tail_chars);
    let nothing = || Error::input("answer", "holds no number; give the solution or the number");
    let is_right = match options.compare {
        GsmCompare::Number => {
            let wanted =
                marked_numbers(answer).pop().or_else(|| numbers(answer).pop()).ok_or_else(nothing)?;
            let found = match options.method {
                GsmMethod::Strict => marked_numbers(searched),
                GsmMethod::Flexible => numbers(searched),
            };
            picked(found, options.occurrence) == Some(wanted)
        }
        GsmCompare::Text => {
            let wanted = marked_texts(answer).pop().or_else(|| texts(answer).pop()).ok_or_else(nothing)?;
            let wanted = wanted.replace(',', "");
            if !wanted.contains(|character: char| character.is_ascii_digit()) {
                return Err(nothing());
            }
            let found = match options.method {
                GsmMethod::Strict => picked(marked_texts(searched), options.occurrence),
                GsmMethod::Flexible => picked(texts(searched), options.occurrence),
            };
            let without_commas = |text: &str| match options.method {
                GsmMethod::Strict => text.replace(',', ""),
                GsmMethod::Flexible => text.to_owned(),
            };
            found.map(without_commas) == Some(wanted)
        }
    };
    Ok(f64::from(u8::from(is_right)))
}

/// The last so many characters.
fn tail(text: &str, characters: Option<usize>) -> &str {
    let start = characters.and_then(|count| text.char_indices().rev().nth(count - 1));
    start.map_or(text, |(start, _)| &text[start..])
}

fn picked<T>(mut found: Vec<T>, occurrence: GsmOccurrence) -> Option<T> {
    match occurrence {
        GsmOccurrence::Last => found.pop(),
        GsmOccurrence::First => found.into_iter().next(),
    }
}

/// Every text after `####` and one blank: an optional minus, then digits, points and commas in any order.
fn marked_texts(text: &str) -> Vec<&str> {
    let after_each_marker = text.char_indices().filter_map(|(start, _)| text[start..].strip_prefix("#### "));
    after_each_marker.filter_map(text_at_start).collect()
}

/// Every such text, wherever it stands, but for a point alone.
fn texts(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(step) = text[at..].chars().next() {
        let here = text_at_start(&text[at..]);
        found.extend(here.filter(|&here| here != "."));
        at += here.map_or(step.len_utf8(), str::len);
    }
    found
}

/// The text that `text` starts with: an optional minus, then digits, points and commas in any order.
fn text_at_start(text: &str) -> Option<&str> {
    let unsigned = text.strip_prefix('-').unwrap_or(text);
    let rest = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.' || c == ',');
    (rest.len() < unsigned.len()).then(|| &text[..text.len() - rest.len()])
}

/// Every number that follows a `####`, with blanks and a dollar sign between them allowed.
fn marked_numbers(text: &str) -> Vec<String> {
    let after_each_marker = text.char_indices().filter_map(|(start, _)| text[start..].strip_prefix("####"));
    after_each_marker
        .filter_map(|rest| number_at_start(rest.trim_start_matches([' ', '\t', '$'])).map(|(n, _)| n))
        .collect()
}

/// All numbers of the text, from left to right.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(step) = text[at..].chars().next() {
        // A minus sign that follows a letter or digit subtracts; it is not a sign.
        let sign_may_stand_here = !text[..at].ends_with(|before: char| before.is_ascii_alphanumeric());
        match number_at_start(&text[at..]) {
            Some((number, length)) if step != '-' || sign_may_stand_here => {
                found.push(number);
                at += length;
            }
            _ => at += step.len_utf8(),
        }
    }
    found
}

/// The number that the text starts with, in canonical form, and its length: an optional minus (a dollar sign may
/// follow it), digits with commas before each three, an optional fraction.
fn number_at_start(text: &str) -> Option<(String, usize)> {
    let unsigned = text.strip_prefix('-').map_or(text, |rest| rest.strip_prefix('$').unwrap_or(rest));
    let digits = |text: &str| text.bytes().take_while(u8::is_ascii_digit).count();
    let mut end = digits(unsigned);
    if end == 0 {
        return None;
    }
    while unsigned[end..].starts_with(',') && digits(&unsigned[end + 1..]) == 3 {
        end += 4;
    }
    let whole: String = unsigned[..end].chars().filter(char::is_ascii_digit).collect();
    let mut fraction = "";
    if unsigned[end..].starts_with('.') {
        let length = digits(&unsigned[end + 1..]);
        if length > 0 {
            fraction = &unsigned[end + 1..end + 1 + length];
            end += 1 + length;
        }
    }
    let canonical = canonical(text.starts_with('-'), &whole, fraction);
    Some((canonical, text.len() - unsigned.len() + end))
}

/// No leading or trailing zeros, no empty fraction, no negative zero.
fn canonical(negative: bool, whole: &str, fraction: &str) -> String {
    let (whole, fraction) = (whole.trim_start_matches('0'), fraction.trim_end_matches('0'));
    let whole = if whole.is_empty() { "0" } else { whole };
    let sign = if negative && (whole != "0" || !fraction.is_empty()) { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{whole}{point}{fraction}")
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
///
/// Clauses `reward.r1-zero` and below. The CS336 assignment 5 and Dr. GRPO `r1_zero_reward_fn`, whose grader of
/// mathematical equivalence is not part of this.
///
/// * `response`: what the policy wrote
/// * `answer`: the published solution, which ends in `#### ANSWER`, or the bare answer
///
/// # Errors
/// `input` if the answer is empty.
///
/// # Example
/// ```
/// use grpo_oracle::reference::reward;
/// let graded = reward::r1_zero("2 + 2 is 4 </think> <answer> 4.0 </answer>", "#### 4")?;
/// assert_eq!((graded.reward, graded.format_reward), (1.0, 1.0));
/// let graded = reward::r1_zero("2 + 2 is 4 </think> <answer> 5 </answer>", "#### 4")?;
/// assert_eq!((graded.reward, graded.format_reward), (0.0, 1.0));
/// assert_eq!(reward::r1_zero("#### 4", "#### 4")?.format_reward, 0.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn r1_zero(response: &str, answer: &str) -> Result<R1Zero> {
    let wanted = trimmed(answer.rsplit("####").next().unwrap_or(answer));
    if wanted.is_empty() {
        return Err(Error::input("answer", "is empty; give the solution or the answer"));
    }
    let is_formed = response.contains("</think> <answer>") && response.contains("</answer>");
    let is_right = is_formed && tagged(response).is_some_and(|found| same(found, wanted));
    let (format_reward, answer_reward) = (f64::from(u8::from(is_formed)), f64::from(u8::from(is_right)));
    Ok(R1Zero { reward: answer_reward, format_reward, answer_reward })
}

/// What stands after the last `<answer>`, up to the next `</answer>`, without a box around it.
fn tagged(response: &str) -> Option<&str> {
    let after = response.rsplit("<answer>").next().unwrap_or_default();
    let inside = after.split("</answer>").next().unwrap_or_default();
    match inside.rfind("\\boxed") {
        Some(box_) => boxed(&inside[box_ + "\\boxed".len()..]),
        None => Some(inside),
    }
}

/// What the text's first brace encloses; the text must start with it.
fn boxed(text: &str) -> Option<&str> {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        match (character, depth) {
            ('{', _) => depth += 1,
            (_, 0) => return None,
            ('}', 1) => return Some(&text[1..at]),
            ('}', _) => depth -= 1,
            _ => {}
        }
    }
    None
}

/// Whether two answers are the same number, or the same text.
fn same(found: &str, wanted: &str) -> bool {
    let found = trimmed(found);
    found == wanted || whole_number(found).is_some_and(|number| Some(number) == whole_number(wanted))
}

/// The number that the text is, if it is nothing else but a dollar sign before it and a full stop after it.
fn whole_number(text: &str) -> Option<String> {
    let text = text.strip_prefix('$').unwrap_or(text);
    let (number, length) = number_at_start(text)?;
    ["", "."].contains(&&text[length..]).then_some(number)
}

fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t', '\n', '\r'])
}

/// DAPO's soft penalty of responses that come near the length limit.
///
/// ```text
/// penalty = max(floor, min(0, -(length - (max_response_length - buffer)) / buffer * penalty_factor))
/// ```
///
/// Clauses `reward.overlong` and below. DAPO (arXiv 2503.14476) Eq. 13; verl, OpenRLHF, TRL, EasyR1, NeMo-RL.
///
/// * `lengths`: `[B]`, tokens of each response; data, no gradient flows
///
/// # Errors
/// `rank` if there is not one axis, `option` if an option is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Overlong, reference::reward};
/// use ndarray::array;
/// let lengths = array![100.0, 16_384.0, 18_432.0, 20_480.0, 24_576.0];
/// assert_eq!(reward::overlong(&lengths, &Overlong::dapo())?, array![0.0, 0.0, -0.5, -1.0, -1.0]);
/// assert_eq!(reward::overlong(&lengths, &Overlong::verl())?, array![0.0, 0.0, -0.5, -1.0, -2.0]);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn overlong<R: Real>(lengths: &ArrayRef1<R>, options: &Overlong) -> Result<Array1<R>> {
    options.check()?;
    Axes::default().bind("lengths", &["B"], lengths.shape())?;
    let of = |option: f64| R::constant(option);
    let free = of(options.max_response_length) - of(options.buffer);
    Ok(lengths.mapv(|length| {
        let penalty = -(length - free) / of(options.buffer) * of(options.penalty_factor);
        let penalty = of(0.0).min(penalty);
        options.floor.map_or(penalty, |floor| penalty.max(of(floor)))
    }))
}
