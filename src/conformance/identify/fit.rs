//! Which named conventions go with what was found.

use serde_json::{Value, json};

use super::evidence::Evidence;
use super::{Finding, Identified, Setting};
use crate::convention::Convention;

/// How a convention goes with an implementation.
#[derive(Debug, Clone)]
pub struct Fit {
    /// Its name.
    pub convention: &'static str,
    /// The formulas of both for which the answers are the convention's.
    pub same: Vec<String>,
    /// Those for which they are not, and how.
    pub different: Vec<(String, Difference)>,
}

/// Where a convention and an implementation part on one formula.
#[derive(Debug, Clone, PartialEq)]
pub enum Difference {
    /// They part in these options: name, the convention's value, the implementation's.
    Options(Vec<(String, Value, Value)>),
    /// No known setting gives all answers; the convention's gives so many of so many.
    Agreed(usize, usize),
}

/// How each convention that computes the formula goes with the answers.
pub(super) fn fits(
    conventions: &[Convention],
    evidence: &Evidence,
    finding: &Finding,
) -> Vec<(&'static str, Option<Difference>)> {
    let fit = |convention: &Convention| {
        let setting = convention.options(evidence.formula.id).ok()?;
        let difference = match finding {
            Finding::Unanswered => return None,
            Finding::Found { .. } if evidence.allows(&setting) => None,
            Finding::Found { settings, .. } => {
                Some(Difference::Options(least_difference(&setting, settings)))
            }
            Finding::NoMatch { .. } => {
                Some(Difference::Agreed(evidence.score(&setting, true).agreed, evidence.answers.len()))
            }
        };
        Some((convention.name, difference))
    };
    conventions.iter().filter_map(fit).collect()
}

/// The options in which the setting differs from the nearest of the others.
fn least_difference(setting: &Setting, others: &[Setting]) -> Vec<(String, Value, Value)> {
    let difference = |other: &Setting| -> Vec<(String, Value, Value)> {
        let pairs = setting.iter().filter_map(|(name, value)| Some((name, value, other.get(name)?)));
        pairs
            .filter(|(_, value, other)| value != other)
            .map(|(name, value, other)| (name.clone(), value.clone(), other.clone()))
            .collect()
    };
    others.iter().map(difference).min_by_key(Vec::len).unwrap_or_default()
}

/// Every convention that has a formula in common with what was found, the best first.
pub(super) fn rank(conventions: &[Convention], formulas: &[Identified]) -> Vec<Fit> {
    let mut fits: Vec<Fit> = Vec::new();
    for convention in conventions {
        let mut fit = Fit { convention: convention.name, same: Vec::new(), different: Vec::new() };
        for one in formulas {
            match one.conventions.iter().find(|(name, _)| *name == convention.name) {
                Some((_, None)) => fit.same.push(one.formula.clone()),
                Some((_, Some(difference))) => fit.different.push((one.formula.clone(), difference.clone())),
                None => {}
            }
        }
        if fit.total() > 0 {
            fits.push(fit);
        }
    }
    let share = |fit: &Fit| fit.same.len() as f64 / fit.total() as f64;
    fits.sort_by(|a, b| share(b).total_cmp(&share(a)).then(b.total().cmp(&a.total())));
    fits
}

impl Fit {
    /// How many formulas the convention and the implementation have in common.
    pub fn total(&self) -> usize {
        self.same.len() + self.different.len()
    }

    /// The fit as JSON.
    pub fn to_json(&self) -> Value {
        let different = self.different.iter().map(|(formula, difference)| match difference {
            Difference::Options(options) => {
                let options: Vec<Value> = options
                    .iter()
                    .map(|(name, theirs, its)| json!({ "option": name, "convention": theirs, "found": its }))
                    .collect();
                json!({ "formula": formula, "options": options })
            }
            Difference::Agreed(agreed, answered) => {
                json!({ "formula": formula, "agreed": agreed, "answered": answered })
            }
        });
        json!({
            "name": self.convention, "same": self.same, "different": different.collect::<Vec<_>>(),
        })
    }
}
