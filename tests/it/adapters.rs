//! The Python adapters that need nothing but Python, and the README's way to one's own.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use grpo_oracle::conformance::{Limits, Process, Report, Status, Verdict, plan, run};
use grpo_oracle::fixture;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The report on an adapter; none where there is no Python.
fn judged(script: &Path) -> Option<Report> {
    Command::new("python3").arg("--version").output().ok()?;
    let limits = Limits { answer: Duration::from_secs(60), hello: Duration::from_secs(120), restarts: 1 };
    let command = format!("python3 '{}'", script.display());
    let mut adapter = Process::start(&command, limits).unwrap();
    let formulas = grpo_oracle::conformance::Subject::hello(&adapter).formulas.clone();
    Some(run(&mut adapter, &command, plan(&fixture::built_in().unwrap(), &formulas, true), |_| {}))
}

#[test]
fn the_template_passes_and_gives_a_gradient() {
    let Some(report) = judged(&Path::new(ROOT).join("examples/adapters/template.py")) else { return };
    assert_eq!(report.verdict(), Verdict::Passed);
    let gradient = |name: &str| name == "grad:logp";
    assert!(report.outcomes.iter().any(|outcome| outcome.judged.iter().any(|judged| gradient(&judged.name))));
}

/// The README's block of Python after this comment, beside `adapter.py` in an empty folder.
fn attempt(comment: &str) -> Option<Report> {
    let readme = fs::read_to_string(Path::new(ROOT).join("README.md")).unwrap();
    let (_, rest) = readme.split_once(&format!("<!-- {comment} -->\n```python\n")).unwrap();
    let (code, _) = rest.split_once("```\n").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::copy(Path::new(ROOT).join("examples/adapters/adapter.py"), folder.path().join("adapter.py")).unwrap();
    fs::write(folder.path().join("mine.py"), code).unwrap();
    judged(&folder.path().join("mine.py"))
}

#[test]
fn the_first_attempt_of_the_readme_fails_in_both_formulas() {
    let Some(report) = attempt("first attempt") else { return };
    for formula in ["advantage.group_norm", "objective.clip"] {
        let failed =
            |status| report.outcomes.iter().any(|one| one.task.formula == formula && one.status == status);
        assert!(failed(Status::Fail), "{formula} does not fail");
    }
    assert_eq!(report.counts()[&Status::Error] + report.counts()[&Status::Hang], 0);
}

#[test]
fn the_second_attempt_of_the_readme_passes() {
    let Some(report) = attempt("second attempt") else { return };
    let failed: Vec<&str> = report
        .outcomes
        .iter()
        .filter(|one| one.status == Status::Fail)
        .map(|one| one.message.as_str())
        .collect();
    assert_eq!(report.verdict(), Verdict::Passed, "{failed:?}");
}
