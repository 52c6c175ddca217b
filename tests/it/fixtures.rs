//! The fixture files: what is there is what the reference gives, and reading refuses whatever is not a fixture.

use std::path::{Path, PathBuf};

use grpo_oracle::evaluate::{Evaluation, Question, values};
use grpo_oracle::fixture::{self, Expected, Fixture};
use grpo_oracle::formula::{Formula, Gradient, RULES};
use grpo_oracle::value::{Data, Named};
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

fn fixtures() -> impl Iterator<Item = (&'static Formula<f64>, Fixture)> {
    Formula::<f64>::all()
        .map(|formula| (formula, fixture::read(&fixture::path_of(&root(), formula.id)).unwrap()))
}

/// The questions that have an answer, with it.
fn answered(fixture: &Fixture) -> impl Iterator<Item = (&Question, &Evaluation)> {
    fixture.cases.iter().filter_map(|case| match &case.expected {
        Expected::Answer(answer) => Some((&case.question, answer)),
        Expected::Error(_) => None,
    })
}

/// Each rival of a row gives itself away on some case.
#[test]
fn tell_every_rival_apart() {
    for (formula, fixture) in fixtures() {
        for rival in formula.rivals {
            let differs = |case: &fixture::Case| case.rivals.iter().any(|other| other.name == rival.name);
            assert!(fixture.cases.iter().any(differs), "{}: no case tells `{}`", formula.id, rival.name);
        }
    }
}

/// An implementation that gives no gradient at all fails on every input that a gradient flows to.
#[test]
fn have_a_gradient_wherever_one_flows() {
    for (formula, fixture) in fixtures() {
        for input in formula.inputs.iter().filter(|input| input.gradient == Gradient::Flows) {
            let is_seen = |(_, answer): (&Question, &Evaluation)| {
                answer
                    .gradients
                    .get(input.name)
                    .is_some_and(|gradient| gradient.reals().iter().any(|&g| g != 0.0))
            };
            assert!(answered(&fixture).any(is_seen), "{}: `{}` never has a gradient", formula.id, input.name);
        }
    }
}

/// An implementation that lets the gradient through to a constant fails too: on some case the constant moves the first
/// output, of which the gradient is.
#[test]
fn would_show_a_gradient_where_none_flows() {
    // Shares and masks of 0 and 1 have no slope by anything, and one statistic is of another input.
    let is_flat = |formula: &str, input: &str| match formula {
        "metrics.policy" | "rollout.rejection" => true,
        "metrics.advantages" => input == "advantages",
        _ => false,
    };
    for (formula, fixture) in fixtures() {
        let first = formula.outputs[0].name;
        let constants = formula.inputs.iter().filter(|input| input.gradient == Gradient::Stops);
        for input in constants.filter(|input| !is_flat(formula.id, input.name)) {
            let has_slope = |(question, answer): (&Question, &Evaluation)| {
                let Some(array) = question.inputs.get(input.name) else { return false };
                (0..array.len()).any(|entry| {
                    let mut moved = question.clone();
                    if let Some(Data::Real(data)) =
                        moved.inputs.get_mut(input.name).map(|array| &mut array.data)
                    {
                        data[entry] += 1.0 / 1024.0;
                    }
                    let sum = |outputs: &Named| outputs[first].reals().iter().sum::<f64>();
                    values(formula.id, &moved)
                        .is_ok_and(|moved| (sum(&moved) - sum(&answer.outputs)).abs() > 1e-9)
                })
            };
            assert!(
                answered(&fixture).any(has_slope),
                "{}: a leak to `{}` is not seen",
                formula.id,
                input.name
            );
        }
    }
}
