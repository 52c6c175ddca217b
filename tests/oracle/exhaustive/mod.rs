//! Every question of small domains, one after another: all masks, all values of a small grid for each input, all
//! partitions into groups, all choices of options.
//!
//! A domain is a shape, a grid and how many options may differ from their defaults at once. A trial takes the largest
//! domains of every shape that `GRPO_ORACLE_EXHAUSTIVE` questions allow, and asks each of them to its end. Where every
//! question is a call of its own it takes domains of a 64th, which cost as much. Questions that differ only in what is
//! not read are asked once: masked slots hold NaN and infinities, and group labels are numbered as they appear. Domains
//! of one shape may share questions, which then count twice.
//!
//! The reference answers a question once, and every format of libtorch is held against that answer.

mod domain;
mod grid;
mod joined;
mod tally;

use std::fmt::Display;
use std::time::{Duration, Instant};

use domain::Domains;
use grpo_oracle::conformance::{Dtype, compare, is_applicable};
use grpo_oracle::evaluate::{Evaluation, Question, evaluate, evaluate_outputs};
use grpo_oracle::formula::Formula;
use joined::{is_alike, joined, may_join, part};
use libtest_mimic::Failed;
use tally::Tally;

use crate::backend::{Answer, Backend, judge};
use crate::checks::is_unseen;

/// The most questions that a trial's domains may have between them.
const QUESTIONS: u64 = 450;
/// How many times fewer, though no fewer than these, where every question is a call of its own.
const DEARER: u64 = 64;
/// How many of a trial's questions have gradients as well, about: they cost the reference a pass for every entry.
const GRADIENTS: u64 = 10_000;
/// The questions that are put into one call of libtorch, where they may be.
const TOGETHER: usize = 256;
/// The questions of every domain that are asked by themselves as well as joined.
const ALSO_ALONE: usize = 8;

/// Asks every question of the formula's domains, of all of these that compute in double or single precision.
pub(crate) fn hold(id: &'static str, backends: &[Backend]) -> Result<(), Failed> {
    let start = Instant::now();
    let wanted = wanted()?;
    let formula = Formula::<f64>::find(id)?;
    let fewer = wanted.min(QUESTIONS.max(wanted / DEARER));
    let together = Domains::of(formula, wanted, |options| may_join(id, options));
    let alone = Domains::of(formula, fewer, |options| !may_join(id, options));
    let is_whole = together.is_whole && alone.is_whole;
    let domains: Vec<_> = together.domains.into_iter().chain(alone.domains).collect();
    let count: u64 = domains.iter().map(|domain| domain.count).sum();
    let share = (GRADIENTS as f64 / count as f64).min(1.0);
    let tally = Tally { formula: id, is_whole, ..Tally::default() };
    let mut asker = Asker { id, backends, share, also_alone: 0, waiting: Vec::new(), tally };
    for domain in &domains {
        asker.also_alone = ALSO_ALONE;
        for question in domain.questions() {
            asker.put(question)?;
        }
        asker.ask()?;
    }
    let mut tally = asker.tally;
    tally.seconds = start.elapsed().as_secs_f64();
    if tally.applicable.contains(&0) {
        return Err(format!("of {} questions none was judged", tally.questions).into());
    }
    let names: Vec<String> = backends.iter().map(Backend::name).collect();
    println!(
        "{id} against {}: {} questions of {} domains in {:.2} s, {} of them with gradients",
        names.join(", "),
        tally.questions,
        domains.len(),
        tally.seconds,
        tally.gradients
    );
    tally.keep();
    Ok(())
}

/// Prints what all the trials did that passed; if none failed it is written to the file that
/// `GRPO_ORACLE_EXHAUSTIVE_TABLE` names, too.
pub(crate) fn tell(backends: &[Backend], elapsed: Duration, has_failed: bool) -> std::io::Result<()> {
    let Some(table) = tally::table() else { return Ok(()) };
    println!("\n{table}\nthe whole run took {:.1} s", elapsed.as_secs_f64());
    match std::env::var_os("GRPO_ORACLE_EXHAUSTIVE_TABLE") {
        Some(path) if !has_failed => std::fs::write(path, page(backends, &table, elapsed)),
        _ => Ok(()),
    }
}

fn page(backends: &[Backend], table: &str, elapsed: Duration) -> String {
    let exhausted = backends.iter().filter(|backend| backend.is_exhausted());
    let names: Vec<String> = exhausted.map(Backend::name).collect();
    let wanted = wanted().unwrap_or(QUESTIONS);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (build, flag) = if cfg!(debug_assertions) { ("dev", "") } else { ("release", " --release") };
    format!(
        "# Exhaustive trials\n\n\
         Written by a run, not by hand:\n\n\
         ```sh\n\
         GRPO_ORACLE_EXHAUSTIVE={wanted} GRPO_ORACLE_EXHAUSTIVE_TABLE=docs/exhaustive.md \\\n    \
         cargo test{flag} --features torch --test oracle -- ::exhaustive\n\
         ```\n\n\
         {}, {cores} cores, {build} build, {:.0} s: libtorch ({}) against the reference, every question of the domains \
         that `tests/oracle/exhaustive/domain.rs` names, fewer where every question is a call of its own. Applicable are those whose branches are certain in the format; \
         what is neither applicable nor an error is left to other questions. \"whole domain\" says that no larger \
         number of questions adds one.\n\n{table}",
        today(),
        elapsed.as_secs_f64(),
        names.join(", "),
    )
}

#[cfg(feature = "torch")]
fn today() -> String {
    chrono::Utc::now().format("%Y-%m-%d").to_string()
}

/// Without libtorch there is no trial to tell of.
#[cfg(not(feature = "torch"))]
fn today() -> String {
    String::new()
}

fn wanted() -> Result<u64, Failed> {
    match std::env::var("GRPO_ORACLE_EXHAUSTIVE") {
        Ok(text) => {
            text.parse().map_err(|problem| Failed::from(format!("GRPO_ORACLE_EXHAUSTIVE: {problem}")))
        }
        Err(_) => Ok(QUESTIONS),
    }
}

/// Puts questions, many in a call where the formula allows.
struct Asker<'a> {
    id: &'static str,
    backends: &'a [Backend],
    /// The share of the questions that have gradients.
    share: f64,
    /// How many of the domain's questions are still to be asked by themselves, too.
    also_alone: usize,
    /// Questions that go into one call.
    waiting: Vec<(Question, Evaluation)>,
    tally: Tally,
}

impl Asker<'_> {
    fn put(&mut self, question: Question) -> Result<(), Failed> {
        self.tally.questions += 1;
        // Multiples of the golden ratio spread evenly, in step with no digit of the enumeration.
        let spread = (self.tally.questions as f64 * 0.618_033_988_749_894_9).fract();
        let has_gradients = spread < self.share;
        let asked = if has_gradients { evaluate } else { evaluate_outputs };
        let expected = match asked(self.id, &question) {
            Ok(expected) => expected,
            Err(expected) => return self.put_wrong(&question, expected.code()),
        };
        let has_gradients = has_gradients && !expected.gradients.is_empty();
        self.tally.count_answer(expected.margin, has_gradients);
        if !is_applicable(expected.margin, Dtype::F64) {
            return Ok(());
        }
        let goes_along = self.waiting.first().is_none_or(|(first, _)| is_alike(first, &question));
        if !goes_along || self.waiting.len() == TOGETHER {
            self.ask()?;
        }
        let is_joined = may_join(self.id, &question.options);
        self.waiting.push((question, expected));
        if is_joined { Ok(()) } else { self.ask() }
    }

    /// A question on which the reference ends in this error.
    fn put_wrong(&mut self, question: &Question, code: &str) -> Result<(), Failed> {
        self.tally.errors += 1;
        for backend in self.backends.iter().filter(|backend| !is_unseen(self.id, code, **backend)) {
            self.tally.calls += 1;
            let got = backend.answer(self.id, question).err().map(|error| error.code());
            if got != Some(code) {
                let problem = format!("`{code}` is expected, {} says {got:?}", backend.name());
                return Err(told(question, &problem));
            }
        }
        Ok(())
    }

    /// Asks those that wait, in one call if they are several, and holds each answer against what is expected.
    fn ask(&mut self) -> Result<(), Failed> {
        let waiting = std::mem::take(&mut self.waiting);
        for &backend in self.backends {
            let is_certain = |(_, expected): &&(Question, Evaluation)| {
                is_applicable(expected.margin, backend.compute_dtype())
            };
            let certain: Vec<_> = waiting.iter().filter(is_certain).collect();
            self.ask_one(backend, &certain)?;
        }
        self.also_alone = self.also_alone.saturating_sub(waiting.len());
        Ok(())
    }

    fn ask_one(&mut self, backend: Backend, waiting: &[&(Question, Evaluation)]) -> Result<(), Failed> {
        let Some((first, _)) = waiting.first() else { return Ok(()) };
        let questions: Vec<&Question> = waiting.iter().map(|(question, _)| question).collect();
        self.tally.calls += 1;
        let named = |problem: &dyn Display| format!("{}: {problem}", backend.name());
        let answer =
            backend.answer(self.id, &joined(&questions)).map_err(|error| told(first, &named(&error)))?;
        for (index, (question, expected)) in waiting.iter().enumerate() {
            let part = part(&answer, index, waiting.len());
            judge_some(expected, &part).map_err(|problem| told(question, &named(&problem)))?;
            if waiting.len() > 1 && index < self.also_alone {
                self.tally.calls += 1;
                let alone =
                    backend.answer(self.id, question).map_err(|error| told(question, &named(&error)))?;
                is_the_same(expected, &part, &alone).map_err(|problem| told(question, &named(&problem)))?;
            }
        }
        Ok(())
    }
}

fn told(question: &Question, problem: &str) -> Failed {
    format!("{problem}\n{}", question.to_json()).into()
}

/// Holds an answer against the reference's, its gradients if the reference was asked for them.
fn judge_some(expected: &Evaluation, answer: &Answer) -> Result<(), String> {
    if !expected.gradients.is_empty() {
        return judge(expected, answer);
    }
    let outputs = answer.iter().filter(|(name, ..)| !name.starts_with("grad:"));
    judge(expected, &outputs.cloned().collect())
}

/// Joining gives what asking by itself gives, within the tolerance of either.
fn is_the_same(expected: &Evaluation, joined: &Answer, alone: &Answer) -> Result<(), String> {
    judge_some(expected, alone).map_err(|problem| format!("alone: {problem}"))?;
    for ((name, joined, dtype), (_, alone, _)) in joined.iter().zip(alone) {
        let Some(bounds) = expected.bounds.get(name) else { continue };
        compare(joined, bounds.reals(), alone, *dtype)
            .map_err(|worst| format!("`{name}` joined and alone: {worst}"))?;
    }
    Ok(())
}
