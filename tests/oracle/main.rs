//! The oracle: named trials, formula x check x backend, all from the one table of formulas.
//!
//! `cargo test --test oracle -- kl.estimate` runs one formula's trials. The first lines say which devices and formats
//! take part. With `GRPO_ORACLE_REQUIRE_CUDA=1` a run without a CUDA device fails.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod backend;
mod checks;
mod questions;

use backend::Backend;
use grpo_oracle::formula::Formula;
use libtest_mimic::{Arguments, Failed, Trial};

fn main() -> std::process::ExitCode {
    let arguments = Arguments::from_args();
    let backends = Backend::all();
    if !arguments.list {
        let names: Vec<String> = backends.iter().map(Backend::name).collect();
        eprintln!("oracle: the reference against {}", names.join(", "));
    }
    let mut trials = vec![cuda_trial(&backends)];
    for formula in Formula::<f64>::all() {
        let id = formula.id;
        for &backend in backends.iter().filter(|backend| backend.has(formula)) {
            let name = |check: &str| format!("{id}::{check}::{}", backend.name());
            trials.push(Trial::test(name("fixtures"), move || checks::fixtures(id, backend)));
            trials.push(Trial::test(name("random"), move || checks::random(id, backend)));
            trials.push(Trial::test(name("rejects"), move || checks::rejects(id, backend)));
        }
    }
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Shows in every run whether CUDA took part; a run that must have it fails without.
fn cuda_trial(backends: &[Backend]) -> Trial {
    let present = backends.iter().any(Backend::is_cuda);
    let required = std::env::var_os("GRPO_ORACLE_REQUIRE_CUDA").is_some_and(|value| value != "0");
    let trial = Trial::test("cuda::takes-part", move || {
        if present {
            Ok(())
        } else {
            Err(Failed::from("no CUDA device, or built without the `torch` feature"))
        }
    });
    trial.with_ignored_flag(!present && !required)
}
