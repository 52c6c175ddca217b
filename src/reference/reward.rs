//! Rewards that are read off a response's text.

use crate::options::{Gsm8k, GsmMethod};
use crate::{Error, Result};

/// 1 if the response's final answer is the problem's, else 0.
///
/// Clauses `reward.gsm8k` and below. The answer is the number after the last `####` that a number follows (strict), or
/// the last number of all (flexible). Numbers are compared as numbers: `1,000`, `$1000`, `1000.` and `1000.0` are equal.
/// Other implementations compare text; see the clause.
///
/// * `response`: what the policy wrote
/// * `answer`: the published solution, which ends in `#### N`, or the bare number
///
/// # Errors
/// `input` if `answer` holds no number.
///
/// # Example
/// ```
/// use grpo_oracle::{options::Gsm8k, reference::reward};
/// assert_eq!(reward::gsm8k("2 + 2 = 4\n#### 4", "#### 4", &Gsm8k::strict())?, 1.0);
/// assert_eq!(reward::gsm8k("So she has $1,000.00.", "1000", &Gsm8k::strict())?, 0.0);
/// assert_eq!(reward::gsm8k("So she has $1,000.00.", "1000", &Gsm8k::flexible())?, 1.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn gsm8k(response: &str, answer: &str, options: &Gsm8k) -> Result<f64> {
    let wanted = marked_number(answer).or_else(|| numbers(answer).last().cloned());
    let wanted =
        wanted.ok_or_else(|| Error::input("answer", "holds no number; give the solution or the number"))?;
    let found = match options.method {
        GsmMethod::Strict => marked_number(response),
        GsmMethod::Flexible => numbers(response).last().cloned(),
    };
    Ok(f64::from(u8::from(found == Some(wanted))))
}

/// The number after the last `####` that a number follows, with blanks and a dollar sign between them allowed.
fn marked_number(text: &str) -> Option<String> {
    let after_each_marker = text.char_indices().filter_map(|(start, _)| text[start..].strip_prefix("####"));
    after_each_marker
        .filter_map(|rest| number_at_start(rest.trim_start_matches([' ', '\t', '$'])).map(|(n, _)| n))
        .next_back()
}

/// All numbers of the text, from left to right.
fn numbers(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(step) = text[at..].chars().next() {
        // A minus sign that follows a letter or digit subtracts; it is not a sign.
        let sign_may_stand_here = !text[..at].ends_with(|before: char| before.is_alphanumeric());
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
