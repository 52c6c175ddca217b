//! Which settings go with the answers.

use std::collections::HashSet;

use serde_json::Value;

use super::Setting;
use super::evidence::{Evidence, Score};

/// Up to so many settings, every one is tried.
const ALL: usize = 20_000;
/// Of more than that, at most so many are tried beside the bases.
const BUDGET: usize = 4_000;
/// No more are kept that go with every answer.
const MOST: usize = 512;

/// What was found.
#[derive(Debug)]
pub(super) struct Found {
    /// The settings that every answer allows.
    pub(super) allowed: Vec<Setting>,
    /// How many were tried.
    pub(super) tried: usize,
    /// Whether there are no more.
    pub(super) all: bool,
    /// If none is allowed, the one that goes with the most answers.
    pub(super) nearest: Option<(Setting, Score)>,
}

/// An option's name with the values that are tried.
pub(super) type Choices = Vec<(String, Vec<Value>)>;

/// Searches all settings, or if they are too many, the bases and what can be reached from the best of them by changing
/// one option after another.
pub(super) fn search(evidence: &Evidence, bases: &[Setting], choices: &Choices) -> Found {
    let product = choices.iter().try_fold(1_usize, |product, (_, values)| product.checked_mul(values.len()));
    match product {
        Some(count) if count <= ALL => {
            let allowed = every(bases, choices).filter(|setting| evidence.allows(setting)).collect();
            finish(evidence, bases, choices, Found { allowed, tried: count, all: true, nearest: None })
        }
        _ => climb(evidence, bases, choices),
    }
}

/// Every combination of the choices.
fn every<'a>(bases: &'a [Setting], choices: &'a Choices) -> impl Iterator<Item = Setting> + 'a {
    let count: usize = choices.iter().map(|(_, values)| values.len()).product();
    (0..count).map(move |number| {
        let mut setting = bases.first().cloned().unwrap_or_default();
        let mut rest = number;
        for (name, values) in choices {
            setting.insert(name.clone(), values[rest % values.len()].clone());
            rest /= values.len();
        }
        setting
    })
}

/// Looks for the nearest miss if nothing is allowed.
fn finish(evidence: &Evidence, bases: &[Setting], choices: &Choices, found: Found) -> Found {
    if found.allowed.is_empty() {
        let climbed = climb(evidence, bases, choices);
        return Found { nearest: climbed.nearest, ..found };
    }
    found
}

/// From the bases, always to the neighbours of what goes with the most answers.
fn climb(evidence: &Evidence, bases: &[Setting], choices: &Choices) -> Found {
    let mut climb = Climb { evidence, choices, seen: HashSet::new(), allowed: Vec::new(), tried: 0 };
    let mut open: Vec<(Setting, Score)> = Vec::new();
    let mut best: Option<(Setting, Score)> = None;
    let mut next: Vec<Setting> = bases.to_vec();
    loop {
        for setting in next.drain(..) {
            if !climb.seen.insert(key(&setting)) {
                continue;
            }
            climb.tried += 1;
            let score = evidence.score(&setting, false);
            if best.as_ref().is_none_or(|(_, best)| score.parts > best.parts) {
                best = Some((setting.clone(), score.clone()));
            }
            open.push((setting, score));
        }
        let highest = open.iter().enumerate().max_by(|(i, (_, a)), (j, (_, b))| {
            // Of equals the first, which is nearer to a base.
            a.parts.total_cmp(&b.parts).then(j.cmp(i))
        });
        let Some(index) = highest.map(|(index, _)| index) else { break };
        let (setting, score) = open.remove(index);
        let is_allowed = score.first.is_none() && score.agreed > 0;
        if !is_allowed && (!climb.allowed.is_empty() || climb.tried > BUDGET) {
            break;
        }
        if is_allowed {
            next = climb.around(&setting);
            if climb.allowed.len() >= MOST {
                break;
            }
        } else {
            next = choices.iter().flat_map(|choice| changed(&setting, choice)).collect();
        }
    }
    let nearest = best.filter(|_| climb.allowed.is_empty());
    let nearest = nearest.map(|(setting, _)| {
        let score = evidence.score(&setting, true);
        (setting, score)
    });
    Found { allowed: climb.allowed, tried: climb.tried, all: false, nearest }
}

/// A search on its way.
struct Climb<'a> {
    evidence: &'a Evidence,
    choices: &'a Choices,
    seen: HashSet<String>,
    allowed: Vec<Setting>,
    tried: usize,
}

impl Climb<'_> {
    /// Notes an allowed setting, and with it those that differ in one option of which every value is allowed; returns
    /// the neighbours by other options that are allowed, whose own neighbours are worth a look.
    fn around(&mut self, setting: &Setting) -> Vec<Setting> {
        self.allowed.push(setting.clone());
        let mut next = Vec::new();
        for choice in self.choices {
            let others: Vec<Setting> = changed(setting, choice).collect();
            self.tried += others.len();
            let count = others.len();
            let going: Vec<Setting> =
                others.into_iter().filter(|other| self.evidence.allows(other)).collect();
            if going.len() < count {
                next.extend(going);
                continue;
            }
            // It makes no difference here: each value is noted, none is followed.
            for other in going {
                if self.seen.insert(key(&other)) {
                    self.allowed.push(other);
                }
            }
        }
        next
    }
}

/// The setting with every other value of one option.
pub(super) fn changed<'a>(
    setting: &'a Setting,
    (name, values): &'a (String, Vec<Value>),
) -> impl Iterator<Item = Setting> + 'a {
    let others = values.iter().filter(|value| setting.get(name) != Some(value));
    others.map(move |value| {
        let mut other = setting.clone();
        other.insert(name.clone(), value.clone());
        other
    })
}

fn key(setting: &Setting) -> String {
    let mut fields: Vec<String> = setting.iter().map(|(name, value)| format!("{name}={value}")).collect();
    fields.sort_unstable();
    fields.join(",")
}
