//! Pythons that have what a test wants. `tests/python/requirements.txt` names all of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// A Python that can import the package; without one the test says so and is left out, or fails with
/// `GRPO_ORACLE_REQUIRE_PYTHON=1`. `GRPO_ORACLE_PYTHON` names one that is looked at first.
pub(crate) fn with(package: &str) -> Option<PathBuf> {
    that_runs(&format!("import {package}"), package)
}

/// A Python with verl, which cannot be imported without all that it stands on.
pub(crate) fn with_verl() -> Option<PathBuf> {
    that_runs("import hydra, importlib.metadata as metadata; metadata.version('verl')", "verl")
}

fn that_runs(code: &str, package: &str) -> Option<PathBuf> {
    let of_setup = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let named = std::env::var_os("GRPO_ORACLE_PYTHON").map(PathBuf::from);
    let found = named.into_iter().chain([of_setup, PathBuf::from("python3")]).find(|python| {
        let status = Command::new(python).args(["-c", code]).stderr(Stdio::null()).status();
        status.is_ok_and(|status| status.success())
    });
    let required = std::env::var_os("GRPO_ORACLE_REQUIRE_PYTHON").is_some_and(|value| value != "0");
    assert!(found.is_some() || !required, "no Python with {package}; see tests/python/requirements*.txt");
    if found.is_none() {
        println!("left out: no Python with {package}; see tests/python/requirements*.txt");
    }
    found
}
