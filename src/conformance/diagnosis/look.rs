//! What is seen by laying an answer beside the right one: factors, signs, gradients, leaks.

use std::collections::BTreeMap;

use super::{Seen, is_close, is_zero};
use crate::conformance::{Judged, Status};
use crate::evaluate::Question;
use crate::fixture::Expected;
use crate::formula::{Formula, Gradient};
use crate::value::{Array, Data, Kind};

/// What a factor is of a count.
type Power = fn(f64) -> f64;

/// Something to be seen.
pub(super) enum Look {
    /// Everything that is wrong is the right thing times a count of the question.
    Times(&'static str, Power),
    /// Everything that is wrong is the right thing times this.
    By(f64),
    /// No gradient reaches this input.
    Stopped(&'static str),
    /// A gradient reaches this input, which is a constant.
    Flowing(&'static str),
    /// What should be an error is answered.
    Accepts,
    /// What has an answer is refused.
    Refuses,
    /// What stands in masked slots comes out as NaN or an infinity.
    Leak,
    /// Only groups of one are wrong.
    LoneMembers,
    /// Only groups of equal members are wrong.
    EqualMembers,
    /// Off by no more than a variance in one pass loses.
    OnePass,
}

/// What may be seen of a formula's failures, in words.
pub(super) fn looks(row: &Formula<f64>) -> Vec<(String, Look)> {
    let mut all = vec![
        ("masked slots leak: NaN or an infinity in one of them comes out".to_owned(), Look::Leak),
        ("a group of one goes wrong".to_owned(), Look::LoneMembers),
        ("equal members are told by a rounded deviation, not by comparing".to_owned(), Look::EqualMembers),
        ("the variance is computed in one pass and cancels".to_owned(), Look::OnePass),
        ("off by the sign".to_owned(), Look::By(-1.0)),
        ("off by the factor 2".to_owned(), Look::By(2.0)),
        ("off by the factor 1/2".to_owned(), Look::By(0.5)),
        ("accepts what should be an error".to_owned(), Look::Accepts),
        ("refuses what has an answer".to_owned(), Look::Refuses),
    ];
    for input in row.inputs {
        let name = input.name;
        let word = match input.gradient {
            Gradient::Flows => (format!("no gradient reaches `{name}`"), Look::Stopped(name)),
            Gradient::Stops => {
                (format!("the gradient flows to `{name}`, which is a constant"), Look::Flowing(name))
            }
            Gradient::None => continue,
        };
        all.push((format!("value right, gradient wrong: {}", word.0), word.1));
    }
    let shapes: [(&str, Power); 4] = [
        ("C", |count| count),
        ("1/C", |count| 1.0 / count),
        ("sqrt(C)", f64::sqrt),
        ("1/sqrt(C)", |count| 1.0 / count.sqrt()),
    ];
    for count in COUNTS {
        // Roots are those of variances.
        let shapes = if count.starts_with('n') { &shapes[..] } else { &shapes[..2] };
        for &(shape, power) in shapes {
            let words = format!("off by the factor {}", shape.replace('C', count));
            all.push((words, Look::Times(count, power)));
        }
    }
    all
}

impl Look {
    /// Whether it is seen; `None` if it cannot be seen in such a case.
    pub(super) fn sees(&self, seen: &Seen<'_>) -> Option<bool> {
        match self {
            Self::Accepts => return accepts(seen),
            Self::Refuses => return refuses(seen),
            Self::LoneMembers if refusal(seen) == Some("group-size") => return accepts(seen),
            _ => {}
        }
        if seen.outcome.judged.is_empty() {
            return (seen.outcome.status != Status::Pass).then_some(false);
        }
        match self {
            Self::By(factor) => times(seen, *factor),
            Self::Times(count, power) => {
                let factor = power(*counts(seen.question()).get(count)?);
                if factor == 1.0 || !factor.is_finite() { None } else { times(seen, factor) }
            }
            Self::Stopped(input) => stopped(seen, input),
            Self::Flowing(input) => {
                let gradient = gradient(seen, input)?;
                if seen.outcome.status == Status::Pass {
                    return None;
                }
                let only = seen.wrong().all(|judged| judged.name == gradient.name);
                Some(only && is_zero(&gradient.expected) && !is_zero(&gradient.got))
            }
            Self::Accepts => accepts(seen),
            Self::Refuses => refuses(seen),
            Self::Leak => leak(seen),
            Self::LoneMembers => only_in(seen, |members, _| members.len() == 1),
            Self::EqualMembers => only_in(seen, |members, values| {
                members.len() > 1 && members.iter().all(|&member| values[member] == values[members[0]])
            }),
            Self::OnePass => one_pass(seen),
        }
    }
}

/// The error that the question should get.
fn refusal<'a>(seen: &Seen<'a>) -> Option<&'a str> {
    match &seen.outcome.task.expected {
        Expected::Error(code) => Some(code),
        Expected::Answer(_) => None,
    }
}

fn accepts(seen: &Seen<'_>) -> Option<bool> {
    if refusal(seen).is_none() {
        return (seen.outcome.status != Status::Pass).then_some(false);
    }
    Some(seen.error().is_none())
}

fn refuses(seen: &Seen<'_>) -> Option<bool> {
    (seen.outcome.status != Status::Pass).then(|| refusal(seen).is_none() && seen.error().is_some())
}

fn gradient<'a>(seen: &Seen<'a>, input: &str) -> Option<&'a Judged> {
    seen.outcome.judged.iter().find(|judged| judged.name.strip_prefix("grad:") == Some(input))
}

fn stopped(seen: &Seen<'_>, input: &str) -> Option<bool> {
    let gradient = gradient(seen, input)?;
    if is_zero(&gradient.expected) {
        return (seen.outcome.status != Status::Pass).then_some(false);
    }
    Some(seen.values_are_right() && is_zero(&gradient.got))
}

// Factors --------------------------------------------------------------------------------------------------------------

/// The counts that a factor may be.
const COUNTS: &[&str] = &[
    "B",
    "T",
    "V",
    "the number of slots",
    "the number of kept tokens",
    "the number of kept sequences",
    "kept tokens over slots",
    "kept sequences over B",
    "the number of groups",
    "the number of micro-batches",
    "n",
    "n/(n-1)",
    "the temperature",
    "dp_size",
    "gradient_accumulation_steps",
    "loss_scale_factor",
    "n/(n-1) of the kept",
];

fn counts(question: &Question) -> BTreeMap<&'static str, f64> {
    let mut counts = BTreeMap::new();
    let shapes = question.inputs.values().map(|input| &input.shape);
    if let Some(shape) = shapes.clone().max_by_key(|shape| shape.len()) {
        for (axis, &length) in ["B", "T", "V"].into_iter().zip(shape) {
            counts.insert(axis, length as f64);
        }
    }
    for (name, input) in &question.inputs {
        match &input.data {
            Data::Mask(mask) => mask_counts(&mut counts, &input.shape, mask),
            Data::Integer(labels) if name == "group" => {
                let sizes: Vec<usize> = members(labels).iter().map(Vec::len).collect();
                counts.insert("the number of groups", sizes.len() as f64);
                if sizes.iter().all(|&size| size == sizes[0]) && !sizes.is_empty() {
                    let size = sizes[0] as f64;
                    counts.extend([("n", size), ("n/(n-1)", size / (size - 1.0))]);
                }
            }
            Data::Integer(labels) if name == "micro_batch" => {
                counts.insert("the number of micro-batches", members(labels).len() as f64);
            }
            _ => {}
        }
    }
    let options = [
        ("the temperature", "temperature"),
        ("dp_size", "dp_size"),
        ("loss_scale_factor", "loss_scale_factor"),
        ("gradient_accumulation_steps", "gradient_accumulation_steps"),
    ];
    for (words, option) in options {
        if let Some(value) = question.options.get(option).and_then(serde_json::Value::as_f64) {
            counts.insert(words, value);
        }
    }
    counts
}

fn mask_counts(counts: &mut BTreeMap<&'static str, f64>, shape: &[usize], mask: &[bool]) {
    let kept = mask.iter().filter(|&&keep| keep).count() as f64;
    counts.insert("the number of slots", mask.len() as f64);
    counts.insert("the number of kept tokens", kept);
    counts.insert("kept tokens over slots", kept / mask.len() as f64);
    counts.insert("n/(n-1) of the kept", kept / (kept - 1.0));
    if let &[sequences, width] = shape
        && width > 0
    {
        let rows = mask.chunks(width).filter(|row| row.contains(&true)).count() as f64;
        counts.insert("the number of kept sequences", rows);
        counts.insert("kept sequences over B", rows / sequences as f64);
    }
}

/// The members of each group.
pub(super) fn members(labels: &[i64]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<i64, Vec<usize>> = BTreeMap::new();
    for (index, &label) in labels.iter().enumerate() {
        groups.entry(label).or_default().push(index);
    }
    groups.into_values().collect()
}

/// Whether what is wrong is the right thing times this factor. Of a case that passed, whether its first output is.
fn times(seen: &Seen<'_>, factor: f64) -> Option<bool> {
    let is_scaled = |judged: &Judged| {
        let entries = judged.expected.reals().iter().zip(judged.bound.reals()).zip(judged.got.reals());
        judged.expected.shape == judged.got.shape
            && !is_zero(&judged.expected)
            && entries.into_iter().all(|((&expected, &bound), &got)| {
                is_close(factor * expected, factor.abs() * bound, got, seen.dtype)
            })
    };
    if seen.outcome.status == Status::Pass {
        let first = seen.row.outputs.first()?.name;
        let judged = seen.outcome.judged.iter().find(|judged| judged.name == first)?;
        return if is_zero(&judged.expected) { None } else { Some(is_scaled(judged)) };
    }
    Some(seen.wrong().next().is_some() && seen.wrong().all(is_scaled))
}

/// The factor by which an answer of several entries is off, if it is off by one.
pub(super) fn factor(seen: &Seen<'_>) -> Option<f64> {
    let entries = |judged: &Judged| judged.expected.reals().iter().filter(|entry| **entry != 0.0).count();
    let judged = seen.wrong().max_by_key(|judged| entries(judged)).filter(|judged| entries(judged) > 1)?;
    let pairs = judged.expected.reals().iter().zip(judged.got.reals());
    let (expected, got) = pairs.max_by(|a, b| a.0.abs().total_cmp(&b.0.abs()))?;
    let factor = got / expected;
    let is_telling = factor.is_finite() && factor != 0.0 && (factor - 1.0).abs() > 1e-5;
    (is_telling && times(seen, factor) == Some(true)).then_some(factor)
}

// Masks ----------------------------------------------------------------------------------------------------------------

/// The mask that decides what is kept.
pub(super) fn mask(
    question: &Question,
    seen: impl Iterator<Item = &'static crate::formula::Input>,
) -> Option<&Array> {
    let mut masks = seen.filter(|input| input.kind == Kind::Mask);
    masks.find_map(|input| question.inputs.get(input.name))
}

/// Whether a masked slot of a real input holds NaN or an infinity.
pub(super) fn has_rubbish(question: &Question, mask: &Array) -> bool {
    let Data::Mask(keeps) = &mask.data else { return false };
    let mut reals =
        question.inputs.values().filter(|input| input.shape == mask.shape && !input.reals().is_empty());
    reals.any(|input| input.reals().iter().zip(keeps).any(|(value, keep)| !keep && !value.is_finite()))
}

fn leak(seen: &Seen<'_>) -> Option<bool> {
    let mask = mask(seen.question(), seen.row.inputs.iter())?;
    if !has_rubbish(seen.question(), mask) {
        return (seen.outcome.status == Status::Fail).then_some(false);
    }
    let leaks = |judged: &Judged| {
        let mut entries = judged.expected.reals().iter().zip(judged.got.reals());
        entries.any(|(expected, got)| expected.is_finite() && !got.is_finite())
    };
    Some(seen.wrong().any(leaks))
}

// Groups ---------------------------------------------------------------------------------------------------------------

/// Whether everything wrong stands in groups of a kind. A case that passed says nothing: not every such group goes wrong.
fn only_in(seen: &Seen<'_>, is_such: impl Fn(&[usize], &[f64]) -> bool) -> Option<bool> {
    if seen.outcome.status == Status::Pass {
        return None;
    }
    let values = ["rewards", "values"].iter().find_map(|name| seen.question().inputs.get(*name))?;
    let labels = match seen.question().inputs.get("group").map(|group| &group.data) {
        Some(Data::Integer(labels)) => labels.clone(),
        _ => match mask(seen.question(), seen.row.inputs.iter()).map(|mask| &mask.data) {
            Some(Data::Mask(mask)) => mask.iter().map(|&keep| i64::from(keep)).collect(),
            _ => return None,
        },
    };
    if labels.len() != values.reals().len() {
        return None;
    }
    let groups = members(&labels);
    let such: Vec<&Vec<usize>> = groups.iter().filter(|group| is_such(group, values.reals())).collect();
    let is_in = |index: usize| such.iter().any(|group| group.contains(&index));
    let is_explained = |judged: &Judged| {
        let (expected, bound, got) = (judged.expected.reals(), judged.bound.reals(), judged.got.reals());
        expected.len() == got.len()
            && (expected.len() == 1 && such.len() == groups.len()
                || expected.len() == values.reals().len()
                    && (0..got.len())
                        .all(|at| is_in(at) || is_close(expected[at], bound[at], got[at], seen.dtype)))
    };
    Some(seen.wrong().next().is_some() && seen.wrong().all(is_explained))
}

/// Whether the answer is off by no more than a variance as the mean of squares less the square of the mean loses. That is
/// an upper limit and not a forecast, so a case that passed says nothing.
fn one_pass(seen: &Seen<'_>) -> Option<bool> {
    if seen.outcome.status == Status::Pass {
        return None;
    }
    let values = ["rewards", "values"].iter().find_map(|name| seen.question().inputs.get(*name))?;
    let kept: Vec<f64> = match mask(seen.question(), seen.row.inputs.iter()).map(|mask| &mask.data) {
        Some(Data::Mask(mask)) if mask.len() == values.reals().len() => {
            values.reals().iter().zip(mask).filter(|(_, keep)| **keep).map(|(value, _)| *value).collect()
        }
        _ => values.reals().to_vec(),
    };
    let groups = match seen.question().inputs.get("group").map(|group| &group.data) {
        Some(Data::Integer(labels)) if labels.len() == kept.len() => members(labels),
        _ => vec![(0..kept.len()).collect()],
    };
    let lost: Vec<f64> =
        groups.iter().map(|group| share_lost(group, &kept, seen.dtype.unit_roundoff())).collect();
    // The share that an entry may have lost: its group's where there is an entry a member.
    let share = |at: usize, count: usize| {
        let own = groups.iter().zip(&lost).find(|(group, _)| count == kept.len() && group.contains(&at));
        own.map_or_else(|| lost.iter().copied().fold(0.0, f64::max), |(_, lost)| *lost)
    };
    let is_within = |judged: &Judged| {
        let (expected, got) = (judged.expected.reals(), judged.got.reals());
        expected.len() == got.len()
            && (0..got.len()).all(|at| {
                let share = share(at, got.len());
                let allowed = 2.0 * share * expected[at].abs();
                share > 0.25
                    || is_close(expected[at], judged.bound.reals()[at], got[at], seen.dtype)
                    || (got[at] - expected[at]).abs() <= allowed
            })
    };
    let is_variance = seen.row.clauses.iter().any(|clause| VARIANCES.contains(clause));
    Some(is_variance && seen.wrong().next().is_some() && seen.wrong().all(is_within))
}

/// The clauses that have a variance.
const VARIANCES: &[&str] = &[
    "mask.variance",
    "advantage.group-norm.std",
    "metrics.statistics",
    "advantage.pass-at-k.std",
    "filter.new",
];

/// The share of a group's variance that rounding takes in one pass.
fn share_lost(group: &[usize], values: &[f64], roundoff: f64) -> f64 {
    let count = group.len() as f64;
    let mean = group.iter().map(|&member| values[member]).sum::<f64>() / count;
    let squares = group.iter().map(|&member| values[member] * values[member]).sum::<f64>();
    let spread = group.iter().map(|&member| (values[member] - mean).powi(2)).sum::<f64>();
    // Equal members have no variance at all, and lose nothing where all squares are 0.
    let lost = 2.0 * (count + 3.0) * roundoff * squares / spread;
    if lost.is_nan() { 0.0 } else { lost }
}
