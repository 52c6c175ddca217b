//! `fixtures/schema.json`: it accepts every fixture file, and refuses what the strict reader refuses.

use std::path::{Path, PathBuf};

use grpo_oracle::fixture;
use serde_json::{Value, json};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

fn validator() -> jsonschema::Validator {
    let schema = read(&root().join("schema.json"));
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::draft202012::new(&schema).unwrap()
}

#[test]
fn every_fixture_file_is_valid() {
    let validator = validator();
    let mut files = 0;
    for folder in std::fs::read_dir(root().join("v1")).unwrap() {
        for file in std::fs::read_dir(folder.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if let Err(problem) = validator.validate(&read(&path)) {
                panic!("{}: {problem} at {}", path.display(), problem.instance_path());
            }
            files += 1;
        }
    }
    assert!(files > 50, "{files}");
}

/// Whether the strict reader takes the file.
fn is_read(json: &Value) -> bool {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("changed.json");
    std::fs::write(&file, json.to_string()).unwrap();
    fixture::read(&file).is_ok()
}

/// What can be told without the table of formulas, the schema and the reader tell alike.
#[test]
fn the_schema_and_the_reader_agree() {
    let validator = validator();
    let good = read(&root().join("v1/objective/clip.json"));
    let refused =
        good["cases"].as_array().unwrap().iter().position(|case| case["expect"]["error"].is_string());
    let at = refused.unwrap();
    type Change = fn(&mut Value, usize);
    let bad: [Change; 33] = [
        |json, _| *json = json!([]),
        |json, _| json["format"] = json!(2),
        |json, _| json["format"] = json!("1"),
        |json, _| json["formula"] = json!("Clip"),
        |json, _| json["formula"] = json!(1),
        |json, _| json["extra"] = json!(1),
        |json, _| json["flags"] = json!([]),
        |json, _| json["flags"]["dual-clip"] = json!(1),
        |json, _| json["cases"] = json!({}),
        |json, _| json["cases"][0] = json!(null),
        |json, _| json["cases"][0]["note"] = json!(""),
        |json, _| json["cases"][0]["id"] = json!("Not A Slug"),
        |json, _| json["cases"][0]["id"] = json!(""),
        |json, _| json["cases"][0]["clauses"] = json!("objective.clip"),
        |json, _| json["cases"][0]["clauses"] = json!([1]),
        |json, _| json["cases"][0]["flags"] = json!(null),
        |json, _| json["cases"][0]["exact_in"] = json!(["f16"]),
        |json, _| json["cases"][0]["exact_in"] = json!(["f32", "f32"]),
        |json, _| json["cases"][0]["options"] = json!([]),
        |json, _| json["cases"][0]["inputs"]["logp"] = json!([[1.0]]),
        |json, _| json["cases"][0]["inputs"]["logp"]["shape"] = json!([-1]),
        |json, _| json["cases"][0]["inputs"]["logp"]["shape"] = json!([0.5]),
        |json, _| json["cases"][0]["inputs"]["logp"]["data"][0] = json!(true),
        |json, _| json["cases"][0]["inputs"]["logp"]["dtype"] = json!("f32"),
        |json, _| json["cases"][0]["expect"]["outputs"]["loss"]["data"][0] = json!("inf"),
        |json, _| json["cases"][0]["expect"]["outputs"]["loss"]["data"][0] = json!(null),
        |json, _| json["cases"][0]["expect"]["error"] = json!("shape"),
        |json, _| json["cases"][0]["expect"] = json!({}),
        |json, _| json["cases"][0]["margin"] = json!(null),
        |json, _| json["cases"][0]["margin"] = json!("large"),
        |json, _| json["cases"][0]["rivals"] = json!([{ "name": "of nothing" }]),
        |json, at| json["cases"][at]["expect"] = json!({ "error": 1 }),
        |json, at| json["cases"][at]["margin"] = json!(1.0),
    ];
    let harmless: [Change; 5] = [
        |_, _| (),
        |json, _| json["cases"] = json!([]),
        |json, _| json["cases"][0]["margin"] = json!("Infinity"),
        |json, _| json["cases"][0]["exact_in"] = json!([]),
        |json, _| json["cases"][0]["rivals"] = json!([]),
    ];
    let changes =
        bad.iter().map(|change| (change, false)).chain(harmless.iter().map(|change| (change, true)));
    for (index, (change, is_good)) in changes.enumerate() {
        let mut json = good.clone();
        change(&mut json, at);
        assert_eq!(validator.is_valid(&json), is_good, "the schema and change {index}");
        assert_eq!(is_read(&json), is_good, "the reader and change {index}");
    }
    let members = ["format", "formula", "flags", "cases"].map(|name| ("", name)).into_iter();
    let of_case = ["id", "clauses", "flags", "exact_in", "options", "inputs", "expect", "margin", "rivals"];
    for (place, name) in members.chain(of_case.map(|name| ("/cases/0", name))) {
        let mut json = good.clone();
        json.pointer_mut(place).unwrap().as_object_mut().unwrap().shift_remove(name);
        assert!(!validator.is_valid(&json) && !is_read(&json), "without {place}/{name}");
    }
}
