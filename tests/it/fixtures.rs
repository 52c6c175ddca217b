//! The fixture files: what is there is what the reference gives, and reading refuses whatever is not a fixture.

use std::path::{Path, PathBuf};

use grpo_oracle::fixture;
use grpo_oracle::formula::{Formula, RULES};
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/v1")
}

#[test]
fn are_written_the_same_twice() {
    let folder = tempfile::tempdir().unwrap();
    let files = fixture::generate(folder.path()).unwrap();
    assert_eq!(files.len(), Formula::<f64>::all().count());
    for file in files {
        let name = file.strip_prefix(folder.path()).unwrap();
        assert_eq!(
            std::fs::read(&file).unwrap(),
            std::fs::read(root().join(name)).unwrap(),
            "{}",
            name.display()
        );
    }
}

/// Every clause is what some case is about.
#[test]
fn cover_every_clause() {
    let fixtures: Vec<_> = Formula::<f64>::all()
        .map(|formula| fixture::read(&fixture::path_of(&root(), formula.id)).unwrap())
        .collect();
    let covered: Vec<&String> =
        fixtures.iter().flat_map(|file| &file.cases).flat_map(|case| &case.clauses).collect();
    let clauses = || Formula::<f64>::all().flat_map(|formula| formula.clauses).chain(RULES);
    // What these say holds of every case that is judged.
    const OF_EVERY_CASE: [&str; 3] = ["all.gradient", "all.half", "all.tolerance"];
    let is_covered = |clause: &str| covered.iter().any(|covered| *covered == clause);
    let gaps: Vec<_> =
        clauses().filter(|clause| !OF_EVERY_CASE.contains(clause) && !is_covered(clause)).collect();
    assert!(gaps.is_empty(), "clauses without a case: {gaps:?}");
    let strays: Vec<_> =
        covered.iter().filter(|covered| !clauses().any(|clause| clause == **covered)).collect();
    assert!(strays.is_empty(), "cases of clauses that no formula obeys: {strays:?}");
}

/// Each way of spoiling a file is refused in one sentence that names the file and the case.
#[test]
fn that_are_spoiled_are_refused() {
    let path = fixture::path_of(&root(), "kl.estimate");
    let good: Value = serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let spoil = |change: fn(&mut Value)| {
        let mut json = good.clone();
        change(&mut json);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("spoiled.json");
        std::fs::write(&file, json.to_string()).unwrap();
        let error = fixture::read(&file).unwrap_err().to_string();
        assert!(error.contains("spoiled.json"), "{error}");
        error.split_once("spoiled.json: ").unwrap().1.to_owned()
    };
    let case_0 = "case `near-k1`: ";
    type Spoiled = (fn(&mut Value), &'static str);
    let expectations: [Spoiled; 9] = [
        (|json| json["format"] = json!(2), "`format` is 2; this version reads 1"),
        (|json| json["extra"] = json!(1), "the file has the unknown field `extra`"),
        (
            |json| json["formula"] = json!("kl.estimat"),
            "there is no formula `kl.estimat`; did you mean `kl.estimate`?",
        ),
        (|json| json["cases"][0]["id"] = json!("near-abs"), "case `near-abs`: the id occurs twice"),
        (
            |json| json["cases"][0]["id"] = json!("Near K1"),
            "case `Near K1`: `id` is not a slug of lower-case letters, digits and dashes",
        ),
        (|json| json["cases"][0]["note"] = json!(""), "the case has the unknown field `note`"),
        (
            |json| json["cases"][0]["inputs"]["logp"]["shape"] = json!([1, 3]),
            "input `logp`: has 4 entries, which is not its shape [1, 3]",
        ),
        (|json| json["cases"][0]["options"] = json!({}), "`options` lacks `kl_penalty`"),
        (
            |json| json["cases"][0]["flags"] = json!(["nowhere"]),
            "the flag `nowhere` is not explained in the header",
        ),
    ];
    for (change, expected) in expectations {
        let error = spoil(change);
        assert_eq!(error.strip_prefix(case_0).unwrap_or(&error), expected);
    }
}

#[test]
fn that_are_cut_short_are_refused_everywhere() {
    let path = fixture::path_of(&root(), "mask.mean");
    let text = std::fs::read(&path).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("short.json");
    for end in (0..text.len() - 2).step_by(97) {
        std::fs::write(&file, &text[..end]).unwrap();
        assert_eq!(fixture::read(&file).unwrap_err().code(), "file");
    }
}
