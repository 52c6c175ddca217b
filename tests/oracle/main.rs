//! The oracle: named trials, formula x check x backend, all from the one table of formulas.
//!
//! `cargo test --test oracle -- kl.estimate` runs one formula's trials. The first lines say which devices and formats
//! take part. With `GRPO_ORACLE_REQUIRE_CUDA=1` a run without a CUDA device fails. `GRPO_ORACLE_EXHAUSTIVE=N` has every
//! `exhaustive` trial take domains of up to N questions; their table ends the run, and goes to the file that
//! `GRPO_ORACLE_EXHAUSTIVE_TABLE` names.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod backend;
mod bounds;
mod checks;
mod exhaustive;
mod questions;
mod second;
mod single;

use backend::Backend;
use grpo_oracle::formula::Formula;
use std::path::PathBuf;
use std::time::Instant;

use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let backends = Backend::all();
    if !arguments.list {
        let names: Vec<String> = backends.iter().map(Backend::name).collect();
        eprintln!("oracle: the reference against {}", names.join(", "));
    }
    let python = second::python();
    let mut trials = vec![cuda_trial(&backends)];
    for formula in Formula::<f64>::all() {
        let id = formula.id;
        trials.push(Trial::test(format!("{id}::bound"), move || bounds::hold(id)));
        trials.push(second_oracle(id, python.clone()));
        for &backend in backends.iter().filter(|backend| backend.has(formula)) {
            let name = |check: &str| format!("{id}::{check}::{}", backend.name());
            trials.push(Trial::test(name("fixtures"), move || checks::fixtures(id, backend)));
            trials.push(Trial::test(name("random"), move || checks::random(id, backend)));
            trials.push(Trial::test(name("rejects"), move || checks::rejects(id, backend)));
            trials.push(Trial::test(name("relations"), move || checks::relations(id, backend)));
            if checks::RECURSIVE.contains(&id) {
                trials.push(Trial::test(name("long"), move || checks::long(id, backend)));
            }
        }
        let exhausted: Vec<Backend> = backends
            .iter()
            .copied()
            .filter(|backend| backend.is_exhausted() && backend.has(formula))
            .collect();
        if !exhausted.is_empty() {
            trials.push(Trial::test(format!("{id}::exhaustive"), move || exhaustive::hold(id, &exhausted)));
        }
    }
    let start = Instant::now();
    let conclusion = libtest_mimic::run(&arguments, trials);
    if let Err(problem) = exhaustive::tell(&backends, start.elapsed(), conclusion.has_failed()) {
        eprintln!("oracle: {problem}");
        return std::process::ExitCode::FAILURE;
    }
    conclusion.exit_code()
}

/// Shows in every run whether the second oracle took part; a run that must have it fails without.
fn second_oracle(id: &'static str, python: Option<PathBuf>) -> Trial {
    let required = is_set("GRPO_ORACLE_REQUIRE_MPMATH");
    let ignored = python.is_none() && !required;
    let trial = Trial::test(format!("{id}::second-oracle"), move || match &python {
        Some(python) => second::agrees(id, python),
        None => Err(Failed::from("no Python with mpmath; run ./setup, or install mpmath")),
    });
    trial.with_ignored_flag(ignored)
}

/// Whether an environment variable asks for something.
fn is_set(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| value != "0")
}

/// Shows in every run whether CUDA took part; a run that must have it fails without.
fn cuda_trial(backends: &[Backend]) -> Trial {
    let present = backends.iter().any(Backend::is_cuda);
    let required = is_set("GRPO_ORACLE_REQUIRE_CUDA");
    let trial = Trial::test("cuda::takes-part", move || {
        if present {
            Ok(())
        } else {
            Err(Failed::from("no CUDA device, or built without the `torch` feature"))
        }
    });
    trial.with_ignored_flag(!present && !required)
}
