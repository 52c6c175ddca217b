//! `extract`: a case to read, and one to run.

use std::process::Command;

use grpo_oracle::evaluate::{Question, values};
use grpo_oracle::fixture::{self, Expected};

fn extract(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output =
        Command::new(env!("CARGO_BIN_EXE_grpo-oracle")).arg("extract").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Runs a script; what it says, and whether it is content.
fn python(script: &str, arguments: &[&str]) -> (bool, String) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("case.py");
    std::fs::write(&file, script).unwrap();
    let output = Command::new("python3").arg(file).args(arguments).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(said).unwrap())
}

const STUB: &str = "raise NotImplementedError(\"fill in `answer`\")";

#[test]
fn shows_a_case() {
    let (code, text, _) = extract(&["kl.estimate", "near-k1"]);
    assert_eq!(code, Some(0));
    let has = [
        "kl.estimate, case near-k1\n",
        "    \"logp\": {\"shape\":[1,4],\"data\":[-1.0,-2.0,-0.5,-3.0]},\n",
        "            1                      -0.5     2.2e-16   1.2e-7   7.8e-3\n",
        "    grad:logp_ref [1, 4]\n",
        "    r[kl.estimate]\n        The estimate MUST be, by `kl_penalty`,\n",
        "    k2: kl = [0.0,0.125,0.03125,0.125]\n",
    ];
    for part in has {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    // What stands there as the question is one.
    let question = text.split_once("takes it\n").unwrap().1.split_once("\n\nanswer").unwrap().0;
    let question = Question::from_json("kl.estimate", &serde_json::from_str(question).unwrap()).unwrap();
    assert_eq!(values("kl.estimate", &question).unwrap()["kl"].reals(), [0.0, -0.5, 0.25, 0.5]);
}

#[test]
fn an_unknown_case_is_refused_with_the_nearest() {
    let (code, _, said) = extract(&["kl.estimate", "nearr-k1"]);
    assert_eq!(code, Some(2));
    assert_eq!(said, "error: option `case`: `nearr-k1` is no case of kl.estimate; did you mean `near-k1`?\n");
    assert!(extract(&["kl.estimat", "near-k1"]).2.contains("did you mean `kl.estimate`?"));
    assert!(extract(&["kl.estimate", "near-k1~upside-down"]).2.contains("is no case of kl.estimate"));
}

/// One case of every family: the script fails as it stands, and passes once the stub gives what is expected; a wrong
/// answer does not pass.
#[test]
fn scripts_run_and_judge() {
    let mut families = std::collections::BTreeSet::new();
    let mut is_new = |formula: &str| families.insert(formula.split('.').next().unwrap().to_owned());
    for fixture in fixture::built_in().unwrap().into_iter().filter(|fixture| is_new(&fixture.formula)) {
        let case = fixture.cases.iter().find(|case| matches!(case.expected, Expected::Answer(_))).unwrap();
        let (code, script, _) = extract(&[&fixture.formula, &case.id, "--python"]);
        assert_eq!(code, Some(0));
        assert!(script.contains(STUB) && script.len() < 60_000, "{}", fixture.formula);
        let (passes, said) = python(&script, &[]);
        assert!(!passes && said.contains("NotImplementedError"), "{}: {said}", fixture.formula);
        let (passes, said) = python(&script.replace(STUB, "return EXPECTED"), &[]);
        assert!(passes && said == "right\n", "{}: {said}", fixture.formula);
        let (passes, said) = python(&script.replace(STUB, "return {}"), &[]);
        assert!(!passes && said.contains("is missing"), "{}: {said}", fixture.formula);
    }
}

#[test]
fn scripts_know_formats_and_errors() {
    let (_, script, _) = extract(&["advantage.group_norm", "one-in-four", "--python"]);
    assert!(script.contains("r[advantage.group-norm"), "{script}");
    let off = "return {name: [entry * (1 + 1e-7) for entry in array] for name, array in EXPECTED.items()}";
    let script = script.replace(STUB, off);
    assert!(!python(&script, &["f64"]).0);
    assert!(python(&script, &["f32"]).0, "{}", python(&script, &["f32"]).1);

    let fixtures = fixture::built_in().unwrap();
    let cases = fixtures.iter().flat_map(|fixture| fixture.cases.iter().map(|case| (&fixture.formula, case)));
    let refused = cases.filter_map(|(formula, case)| match &case.expected {
        Expected::Error(code) => Some((formula, case, code)),
        Expected::Answer(_) => None,
    });
    for (formula, case, code) in refused.take(3) {
        let (_, script, _) = extract(&[formula, &case.id, "--python"]);
        assert!(python(&script.replace(STUB, &format!("raise Refused(\"{code}\")")), &[]).0);
        assert!(!python(&script.replace(STUB, "raise Refused(\"another\")"), &[]).0);
        assert!(!python(&script.replace(STUB, "return {}"), &[]).0);
    }
}
