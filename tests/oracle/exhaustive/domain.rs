//! What is enumerated: domains of questions, each a shape, a grid of values for every input, and choices of options.

use std::collections::BTreeSet;

use grpo_oracle::evaluate::Question;
use grpo_oracle::formula::{Formula, Input, Needed, Role};
use grpo_oracle::value::{Array, Data};
use serde_json::{Map, Value};

use super::grid::{self, FINEST, length, picked};
use crate::questions::poison_masked_slots;

type Formula64 = Formula<f64>;

/// The shapes: sequences, tokens of each, vocabulary.
const SHAPES: &[(usize, usize, usize)] = &[
    (0, 1, 2),
    (1, 0, 2),
    (1, 1, 2),
    (1, 2, 2),
    (2, 1, 2),
    (1, 1, 3),
    (1, 3, 2),
    (3, 1, 2),
    (2, 2, 2),
    (1, 4, 2),
    (4, 1, 2),
    (2, 3, 2),
    (3, 2, 2),
    (5, 1, 2),
];

/// All questions of one shape, with the entries of one grid.
pub(super) struct Domain {
    formula: &'static Formula64,
    options: Vec<Map<String, Value>>,
    /// The shape of every input and the values of its entries.
    inputs: Vec<(Vec<usize>, Data)>,
    /// How many questions there are at most.
    pub(super) count: u64,
}

/// The domains that a trial takes.
pub(super) struct Domains {
    pub(super) domains: Vec<Domain>,
    /// Whether every shape has its finest grid with all choices of options: there is no larger domain.
    pub(super) is_whole: bool,
}

impl Domains {
    /// The largest domains that have no more questions than this between them, of the choices of options that are kept.
    pub(super) fn of(
        formula: &'static Formula64,
        wanted: u64,
        is_kept: impl Fn(&Map<String, Value>) -> bool,
    ) -> Self {
        let is_per_token = |input: &Input| input.role == Role::Advantage && input.axes.len() == 2;
        let per_sequence: &[bool] =
            if formula.inputs.iter().any(is_per_token) { &[false, true] } else { &[false] };
        let mut seen = BTreeSet::new();
        let mut shapes: Vec<_> = SHAPES
            .iter()
            .flat_map(|&sizes| per_sequence.iter().map(move |&per_sequence| (sizes, per_sequence)))
            .filter(|&(sizes, per_sequence)| {
                let shapes: Vec<_> =
                    formula.inputs.iter().map(|input| grid::shape(input, sizes, per_sequence)).collect();
                seen.insert((shapes, formula.inputs.iter().any(|input| input.role == Role::Token)))
            })
            .collect();
        let (mut domains, mut left, mut is_whole) = (Vec::new(), wanted, true);
        // What the largest shapes have no use for is the smaller ones'.
        while let Some((sizes, per_sequence)) = shapes.pop() {
            let mut share = left / (shapes.len() as u64 + 1);
            let mut take = |options: &Vec<_>, fineness, share: &mut u64| {
                let of_input = |input: &Input| {
                    (grid::shape(input, sizes, per_sequence), grid::values(input.role, sizes, fineness))
                };
                let inputs: Vec<_> = formula.inputs.iter().map(of_input).collect();
                let Some(count) = count(formula, &inputs, options.len()).filter(|count| *count <= *share)
                else {
                    return false;
                };
                domains.push(Domain { formula, options: options.clone(), inputs, count });
                (*share, left) = (*share - count, left - count);
                true
            };
            let kept = |changed, share| {
                let is_few = ways(formula, changed).is_some_and(|ways| ways <= share);
                is_few.then(|| choices(formula, changed).into_iter().filter(&is_kept).collect::<Vec<_>>())
            };
            let (mut finest, mut most_changed) = (1, 0);
            for changed in (0..=formula.options.len()).rev() {
                let options = kept(changed, share);
                if options.as_ref().is_some_and(Vec::is_empty) {
                    break; // nor is any kept of fewer
                }
                let taken = options.and_then(|options| {
                    (finest + 1..=FINEST).rev().find(|&fineness| take(&options, fineness, &mut share))
                });
                is_whole &= changed < formula.options.len() || taken == Some(FINEST);
                if let Some(fineness) = taken {
                    (finest, most_changed) = (fineness, most_changed.max(changed));
                }
            }
            // Where options are many they are at least all tried, on one value.
            if most_changed == 0 {
                let mut take_one = |changed| kept(changed, share).is_some_and(|o| take(&o, 1, &mut share));
                _ = (1..=formula.options.len()).rev().find(|&changed| take_one(changed));
            }
        }
        Self { domains, is_whole }
    }
}

impl Domain {
    /// The questions in the order of a counter whose last digit is the fastest.
    pub(super) fn questions(&self) -> impl Iterator<Item = Question> {
        let is_optional = self.formula.inputs.iter().any(|input| input.needed == Needed::Optional);
        let entries = self
            .inputs
            .iter()
            .flat_map(|(shape, grid)| std::iter::repeat_n(length(grid), shape.iter().product()));
        let radices: Vec<usize> =
            [self.options.len(), if is_optional { 2 } else { 1 }].into_iter().chain(entries).collect();
        let mut next = (!radices.contains(&0)).then(|| vec![0; radices.len()]);
        std::iter::from_fn(move || {
            let digits = next.clone()?;
            next = following(digits.clone(), &radices);
            Some(digits)
        })
        .filter_map(|digits| self.question(&digits))
    }

    /// The question with these digits, unless another one asks the same.
    fn question(&self, digits: &[usize]) -> Option<Question> {
        let options = self.options[digits[0]].clone();
        let is_all_there = digits[1] == 0;
        let mut question = Question { options, inputs: Default::default() };
        let mut rest = &digits[2..];
        let mut mask: Option<(&[usize], &[usize])> = None;
        let mut reals = Vec::new();
        for (input, (shape, grid)) in self.formula.inputs.iter().zip(&self.inputs) {
            let (digits, others) = rest.split_at(shape.iter().product());
            rest = others;
            let is_there = is_all_there || input.needed != Needed::Optional;
            if !is_there || !input.is_read(&question.options) {
                if digits.iter().any(|&digit| digit != 0) {
                    return None;
                }
                continue;
            }
            match input.role {
                Role::Group if !is_in_order(digits) => return None,
                Role::Mask => mask = mask.or(Some((shape, digits))),
                _ if matches!(grid, Data::Real(_)) => reals.push((shape, digits)),
                _ => {}
            }
            let array = Array { shape: shape.clone(), data: picked(grid, digits) };
            question.inputs.insert(input.name.to_owned(), array);
        }
        if let Some((masked, keeps)) = mask {
            let mut alike = reals.into_iter().filter(|(shape, _)| *shape == masked);
            // The second of a mask's values leaves out; nothing is read there.
            if alike
                .any(|(_, digits)| digits.iter().zip(keeps).any(|(&digit, &keep)| keep == 1 && digit != 0))
            {
                return None;
            }
        }
        poison_masked_slots(self.formula, &mut question);
        Some(question)
    }
}

/// The number after this one, each digit below its radix.
fn following(mut digits: Vec<usize>, radices: &[usize]) -> Option<Vec<usize>> {
    for (digit, &radix) in digits.iter_mut().zip(radices).rev() {
        *digit += 1;
        if *digit < radix {
            return Some(digits);
        }
        *digit = 0;
    }
    None
}

/// Whether every label is an earlier one or the next new one.
fn is_in_order(labels: &[usize]) -> bool {
    let mut next = 0;
    labels.iter().all(|&label| {
        let is_fine = label <= next;
        next = next.max(label + 1);
        is_fine
    })
}

/// How many questions there are at most, with so many choices of options; `None` if they cannot be counted.
fn count(formula: &Formula64, inputs: &[(Vec<usize>, Data)], options: usize) -> Option<u64> {
    let is_optional = formula.inputs.iter().any(|input| input.needed == Needed::Optional);
    let start = (options as u64).checked_mul(if is_optional { 2 } else { 1 })?;
    let mask = formula.inputs.iter().position(|input| input.role == Role::Mask);
    let masked = mask.map(|mask| &inputs[mask].0);
    // Of a slot: what may stand in it if it is kept, and that it is not.
    let mut of_slot = 1_u64;
    let mut all = start;
    for (index, (input, (shape, grid))) in formula.inputs.iter().zip(inputs).enumerate() {
        let (entries, values) = (shape.iter().product::<usize>(), length(grid) as u64);
        if input.role == Role::Group {
            all = all.checked_mul(partitions(entries, 0))?;
        } else if matches!(grid, Data::Real(_)) && masked == Some(shape) {
            of_slot = of_slot.checked_mul(values)?;
        } else if mask != Some(index) {
            all = all.checked_mul(values.checked_pow(u32::try_from(entries).ok()?)?)?;
        }
    }
    let slots: usize = masked.map_or(0, |shape| shape.iter().product());
    all.checked_mul(of_slot.checked_add(1)?.checked_pow(u32::try_from(slots).ok()?)?)
}

/// How many ways there are to part so many members into groups, of which there are some already.
fn partitions(members: usize, groups: u64) -> u64 {
    match members {
        0 => 1,
        _ => groups * partitions(members - 1, groups) + partitions(members - 1, groups + 1),
    }
}

/// How many choices of options there are of which at most `changed` are not the default.
fn ways(formula: &Formula64, changed: usize) -> Option<u64> {
    let mut ways = vec![0_u64; changed + 1];
    ways[0] = 1;
    for others in alternatives(formula).iter().map(|(_, others)| others.len() as u64) {
        for count in (1..=changed).rev() {
            ways[count] = ways[count].checked_add(ways[count - 1].checked_mul(others)?)?;
        }
    }
    ways.into_iter().try_fold(0_u64, u64::checked_add)
}

/// Every choice of options of which at most `changed` are not the default.
fn choices(formula: &Formula64, changed: usize) -> Vec<Map<String, Value>> {
    let mut choices = vec![(0, (formula.defaults)())];
    for (name, others) in alternatives(formula) {
        let more = choices.iter().filter(|(count, _)| *count < changed).flat_map(|(count, options)| {
            others.iter().map(move |other| {
                let mut options = options.clone();
                options.insert(name.to_owned(), other.clone());
                (count + 1, options)
            })
        });
        let more: Vec<_> = more.collect();
        choices.extend(more);
    }
    choices.into_iter().map(|(_, options)| options).collect()
}

/// The values of every option without the default.
fn alternatives(formula: &Formula64) -> Vec<(&'static str, Vec<Value>)> {
    let others = |option| formula.tried(option).unwrap().split_off(1);
    formula.options.iter().map(|option| (option.name, others(option))).collect()
}
