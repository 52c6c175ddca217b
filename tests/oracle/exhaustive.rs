//! Every question of small domains, one after another: all masks, all values of a small grid for each input, all
//! partitions into groups, all choices of options.
//!
//! A domain is a shape, a grid and how many options may differ from their defaults at once. A trial takes the largest
//! domains of every shape that `GRPO_ORACLE_EXHAUSTIVE` questions allow, and asks each of them to its end. Questions
//! that differ only in what is not read are asked once: masked slots hold NaN and infinities, and group labels are
//! numbered as they appear. Domains of one shape may share questions, which then count twice.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use grpo_oracle::conformance::{compare, is_applicable};
use grpo_oracle::evaluate::{Evaluation, Question, evaluate};
use grpo_oracle::formula::{ANY, Formula, Input, Needed, Role};
use grpo_oracle::value::{Array, Data};
use libtest_mimic::Failed;
use serde_json::{Map, Value};

use crate::backend::{Answer, Backend, judge};
use crate::checks::is_unseen;
use crate::questions::poison_masked_slots;

type Formula64 = Formula<f64>;

/// The most questions that a trial's domains may have between them, before equal ones are dropped.
const QUESTIONS: u64 = 600;
/// The shapes: sequences, tokens of each, vocabulary.
const SHAPES: &[(usize, usize, usize)] = &[
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
/// How many values a grid has at most.
const FINEST: usize = 4;
/// The questions that are put into one call of libtorch, where they may be.
const TOGETHER: usize = 256;
/// The questions of every domain that are asked by themselves as well as joined.
const ALSO_ALONE: usize = 8;

/// The formulas whose rows (and groups, with their labels moved apart) know nothing of each other: questions are joined
/// along the first axis, unless an option has the value that makes the formula look at the whole batch.
const JOINED: &[(&str, Option<(&str, &str)>)] = &[
    ("advantage.group_norm", Some(("std_scope", r#""batch""#))),
    ("advantage.relative", None),
    ("advantage.rloo", None),
    ("advantage.opo", None),
    ("advantage.pass_at_k", None),
    ("advantage.remax", None),
    ("advantage.reinforce_plus_plus", Some(("whiten", "true"))),
    ("advantage.reinforce_plus_plus_baseline", Some(("whiten", "true"))),
    ("advantage.td_error", None),
    ("advantage.gae", Some(("whiten", "true"))),
    ("kl.estimate", None),
    ("kl.full", None),
    ("logprob.token", None),
    ("logprob.entropy", None),
    ("logprob.ratio", None),
    ("logprob.sequence_ratio", None),
    ("objective.policy_gradient", None),
    ("objective.reinforce_with_baseline", None),
    ("objective.off_policy", None),
    ("objective.cispo", None),
    ("objective.gmpo", None),
    ("objective.sapo", None),
    ("reward.overlong", None),
    ("sampling.distribution", None),
];

/// What a trial did.
struct Tally {
    formula: &'static str,
    backend: String,
    questions: usize,
    errors: usize,
    not_applicable: usize,
    calls: usize,
    seconds: f64,
}

static TALLIES: Mutex<Vec<Tally>> = Mutex::new(Vec::new());

/// Asks every question of the formula's domains.
pub(crate) fn hold(id: &'static str, backend: Backend) -> Result<(), Failed> {
    let start = Instant::now();
    let formula = Formula64::find(id)?;
    let mut tally = Tally {
        formula: id,
        backend: backend.name(),
        questions: 0,
        errors: 0,
        not_applicable: 0,
        calls: 0,
        seconds: 0.0,
    };
    let domains = Domain::of(formula, wanted()?);
    for domain in &domains {
        domain.hold(backend, &mut tally)?;
    }
    tally.seconds = start.elapsed().as_secs_f64();
    let answered = tally.questions - tally.errors - tally.not_applicable;
    if answered == 0 {
        return Err(format!("of {} questions none was judged", tally.questions).into());
    }
    println!(
        "{id}, {}: {} questions of {} domains in {:.2} s",
        tally.backend,
        tally.questions,
        domains.len(),
        tally.seconds
    );
    TALLIES.lock().unwrap_or_else(PoisonError::into_inner).push(tally);
    Ok(())
}

/// What all the trials did that passed: one line each, and the sum.
pub(crate) fn print_tallies(elapsed: Duration) {
    let mut tallies = TALLIES.lock().unwrap_or_else(PoisonError::into_inner);
    if tallies.is_empty() {
        return;
    }
    tallies.sort_by(|a, b| (a.formula, &a.backend).cmp(&(b.formula, &b.backend)));
    let line = |name: &str, backend: &str, counts: [usize; 4], seconds: f64| {
        let [questions, judged, errors, calls] = counts;
        println!("{name:40} {backend:10} {questions:>10} {judged:>10} {errors:>8} {calls:>9} {seconds:>8.2}");
    };
    println!(
        "\n{:40} {:10} {:>10} {:>10} {:>8} {:>9} {:>8}",
        "exhaustive", "", "questions", "applicable", "errors", "calls", "seconds"
    );
    let (mut sums, mut seconds) = ([0; 4], 0.0);
    for tally in tallies.iter() {
        let judged = tally.questions - tally.errors - tally.not_applicable;
        let counts = [tally.questions, judged, tally.errors, tally.calls];
        line(tally.formula, &tally.backend, counts, tally.seconds);
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        seconds += tally.seconds;
    }
    line("all of them", "", sums, seconds);
    println!("the whole run took {:.1} s", elapsed.as_secs_f64());
}

fn wanted() -> Result<u64, Failed> {
    match std::env::var("GRPO_ORACLE_EXHAUSTIVE") {
        Ok(text) => {
            text.parse().map_err(|problem| Failed::from(format!("GRPO_ORACLE_EXHAUSTIVE: {problem}")))
        }
        Err(_) => Ok(QUESTIONS),
    }
}

/// All questions of one shape, with the entries of one grid.
struct Domain {
    formula: &'static Formula64,
    options: Vec<Map<String, Value>>,
    /// The shape of every input and the values of its entries.
    inputs: Vec<(Vec<usize>, Data)>,
}

impl Domain {
    /// The largest domains that have no more questions than this between them.
    fn of(formula: &'static Formula64, wanted: u64) -> Vec<Self> {
        let is_per_token = |input: &Input| input.role == Role::Advantage && input.axes.len() == 2;
        let per_sequence: &[bool] =
            if formula.inputs.iter().any(is_per_token) { &[false, true] } else { &[false] };
        let mut seen = BTreeSet::new();
        let mut shapes: Vec<_> = SHAPES
            .iter()
            .flat_map(|&sizes| per_sequence.iter().map(move |&per_sequence| (sizes, per_sequence)))
            .filter(|&(sizes, per_sequence)| {
                let shapes: Vec<_> =
                    formula.inputs.iter().map(|input| shape(input, sizes, per_sequence)).collect();
                seen.insert((shapes, formula.inputs.iter().any(|input| input.role == Role::Token)))
            })
            .collect();
        let (mut domains, mut left) = (Vec::new(), wanted);
        // What the largest shapes have no use for is the smaller ones'.
        while let Some((sizes, per_sequence)) = shapes.pop() {
            let mut share = left / (shapes.len() as u64 + 1);
            let mut take = |changed, fineness, share: &mut u64| {
                let inputs = inputs(formula, sizes, per_sequence, fineness);
                let Some(count) = count(formula, &inputs, changed).filter(|count| *count <= *share) else {
                    return false;
                };
                domains.push(Self { formula, options: choices(formula, changed), inputs });
                (*share, left) = (*share - count, left - count);
                true
            };
            let (mut finest, mut most_changed) = (1, 0);
            for changed in (0..=formula.options.len()).rev() {
                let taken = (finest + 1..=FINEST).rev().find(|&fineness| take(changed, fineness, &mut share));
                if let Some(fineness) = taken {
                    (finest, most_changed) = (fineness, most_changed.max(changed));
                }
            }
            // Where options are many they are at least all tried, on one value.
            if most_changed == 0 {
                _ = (1..=formula.options.len()).rev().find(|&changed| take(changed, 1, &mut share));
            }
        }
        domains
    }

    /// Asks every question: many in a call where the formula allows.
    fn hold(&self, backend: Backend, tally: &mut Tally) -> Result<(), Failed> {
        let id = self.formula.id;
        let mut also_alone = ALSO_ALONE;
        let mut waiting: Vec<(Question, Evaluation)> = Vec::new();
        for question in self.questions() {
            tally.questions += 1;
            let expected = match evaluate(id, &question) {
                Ok(expected) => expected,
                Err(expected) => {
                    tally.errors += 1;
                    if !is_unseen(id, expected.code(), backend) {
                        tally.calls += 1;
                        let got = backend.answer(id, &question).err().map(|error| error.code());
                        if got != Some(expected.code()) {
                            let question = question.to_json();
                            return Err(
                                format!("{expected} is expected, the backend {got:?} on {question}").into()
                            );
                        }
                    }
                    continue;
                }
            };
            if !is_applicable(expected.margin, backend.compute_dtype()) {
                tally.not_applicable += 1;
                continue;
            }
            let goes_along = waiting.first().is_none_or(|(first, _)| is_alike(first, &question));
            if !goes_along || waiting.len() == TOGETHER {
                ask(id, backend, &mut waiting, &mut also_alone, tally)?;
            }
            let is_joined = may_join(id, &question);
            waiting.push((question, expected));
            if !is_joined {
                ask(id, backend, &mut waiting, &mut 0, tally)?;
            }
        }
        ask(id, backend, &mut waiting, &mut also_alone, tally)
    }

    /// The questions in the order of a counter whose last digit is the fastest.
    fn questions(&self) -> impl Iterator<Item = Question> {
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

/// Asks those that wait, in one call if they are several, and holds each answer against what is expected.
fn ask(
    id: &str,
    backend: Backend,
    waiting: &mut Vec<(Question, Evaluation)>,
    also_alone: &mut usize,
    tally: &mut Tally,
) -> Result<(), Failed> {
    if waiting.is_empty() {
        return Ok(());
    }
    let told = |question: &Question, problem: &dyn std::fmt::Display| -> Failed {
        format!("{problem}\n{}", question.to_json()).into()
    };
    let questions: Vec<&Question> = waiting.iter().map(|(question, _)| question).collect();
    let question = joined(&questions);
    tally.calls += 1;
    let answer = backend.answer(id, &question).map_err(|error| told(&question, &error))?;
    for (index, (question, expected)) in waiting.iter().enumerate() {
        let part = part(&answer, index, waiting.len());
        judge(expected, &part).map_err(|problem| told(question, &problem))?;
        if waiting.len() > 1 && *also_alone > 0 {
            *also_alone -= 1;
            tally.calls += 1;
            let alone = backend.answer(id, question).map_err(|error| told(question, &error))?;
            is_the_same(expected, &part, &alone).map_err(|problem| told(question, &problem))?;
        }
    }
    waiting.clear();
    Ok(())
}

/// Joining gives what asking by itself gives, within the tolerance of either.
fn is_the_same(expected: &Evaluation, joined: &Answer, alone: &Answer) -> Result<(), String> {
    judge(expected, alone).map_err(|problem| format!("alone: {problem}"))?;
    for ((name, joined, dtype), (_, alone, _)) in joined.iter().zip(alone) {
        compare(joined, expected.bounds[name].reals(), alone, *dtype)
            .map_err(|worst| format!("`{name}` joined and alone: {worst}"))?;
    }
    Ok(())
}

/// Whether the formula treats the rows, or the groups, of the question each by itself.
fn may_join(id: &str, question: &Question) -> bool {
    let looks_at_all = |(option, value): (&str, &str)| {
        let given = question.options[option].to_string();
        given == value
    };
    JOINED.iter().any(|(joined, unless)| *joined == id && !unless.is_some_and(looks_at_all))
}

/// Whether two questions differ in nothing but the entries of their inputs.
fn is_alike(one: &Question, other: &Question) -> bool {
    one.options == other.options && one.inputs.keys().eq(other.inputs.keys())
}

/// The questions one below another, each with groups of its own.
fn joined(questions: &[&Question]) -> Question {
    let mut all = questions[0].clone();
    if questions.len() == 1 {
        return all;
    }
    for (name, array) in &mut all.inputs {
        let step = if name == "group" { array.shape[0] } else { 0 };
        for (index, question) in questions.iter().enumerate().skip(1) {
            append(&mut array.data, &question.inputs[name].data, index * step);
        }
        array.shape[0] *= questions.len();
    }
    all
}

/// Labels are below a question's number of rows, so that moving them by the rows before keeps groups apart.
fn append(data: &mut Data, more: &Data, moved_by: usize) {
    match (data, more) {
        (Data::Real(data), Data::Real(more)) => data.extend(more),
        (Data::Mask(data), Data::Mask(more)) => data.extend(more),
        (Data::Integer(data), Data::Integer(more)) => {
            data.extend(more.iter().map(|label| label + moved_by as i64));
        }
        (Data::Text(data), Data::Text(more)) => data.extend_from_slice(more),
        _ => unreachable!("an input is of one kind"),
    }
}

/// The answer to one of the questions that were joined.
fn part(answer: &Answer, index: usize, count: usize) -> Answer {
    let parts = answer.iter().map(|(name, values, dtype)| {
        let length = values.len() / count;
        (name.clone(), values[index * length..(index + 1) * length].to_vec(), *dtype)
    });
    parts.collect()
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

/// How many questions there are, before equal ones are dropped; `None` if they cannot be counted.
fn count(formula: &Formula64, inputs: &[(Vec<usize>, Data)], changed: usize) -> Option<u64> {
    let is_optional = formula.inputs.iter().any(|input| input.needed == Needed::Optional);
    let start = ways(formula, changed)?.checked_mul(if is_optional { 2 } else { 1 })?;
    inputs.iter().try_fold(start, |count, (shape, grid)| {
        let entries = u32::try_from(shape.iter().product::<usize>()).ok()?;
        count.checked_mul((length(grid) as u64).checked_pow(entries)?)
    })
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

/// The row's samples of every option, without the default.
fn alternatives(formula: &Formula64) -> Vec<(&'static str, Vec<Value>)> {
    let defaults = (formula.defaults)();
    let of_option = |option: &grpo_oracle::formula::OptionField| {
        let mut samples: Vec<Value> = serde_json::from_str(option.samples).unwrap();
        samples.retain(|sample| *sample != defaults[option.name]);
        (option.name, samples)
    };
    formula.options.iter().map(of_option).collect()
}

fn inputs(
    formula: &Formula64,
    sizes: (usize, usize, usize),
    per_sequence: bool,
    fineness: usize,
) -> Vec<(Vec<usize>, Data)> {
    let of_input = |input: &Input| (shape(input, sizes, per_sequence), grid(input.role, sizes, fineness));
    formula.inputs.iter().map(of_input).collect()
}

fn shape(
    input: &Input,
    (rows, columns, vocabulary): (usize, usize, usize),
    per_sequence: bool,
) -> Vec<usize> {
    let axes: &[&str] = match input.axes {
        ANY => &["B", "T"],
        [batch, _] if input.role == Role::Advantage && per_sequence => std::slice::from_ref(batch),
        axes => axes,
    };
    let length = |axis: &&str| match *axis {
        "B" => rows,
        "T" | "I" => columns,
        "R" => 1,
        _ => vocabulary,
    };
    axes.iter().map(length).collect()
}

/// The values that entries take. All are exact in bfloat16.
fn grid(role: Role, (rows, _, vocabulary): (usize, usize, usize), fineness: usize) -> Data {
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

fn length(grid: &Data) -> usize {
    match grid {
        Data::Real(values) => values.len(),
        Data::Mask(values) => values.len(),
        Data::Integer(values) => values.len(),
        Data::Text(values) => values.len(),
    }
}

fn picked(grid: &Data, digits: &[usize]) -> Data {
    match grid {
        Data::Real(values) => Data::Real(digits.iter().map(|&digit| values[digit]).collect()),
        Data::Mask(values) => Data::Mask(digits.iter().map(|&digit| values[digit]).collect()),
        Data::Integer(values) => Data::Integer(digits.iter().map(|&digit| values[digit]).collect()),
        Data::Text(values) => Data::Text(digits.iter().map(|&digit| values[digit].clone()).collect()),
    }
}
