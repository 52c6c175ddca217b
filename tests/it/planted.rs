//! The bugs that `tests/planted/run` plants can still be planted.

use std::collections::BTreeSet;
use std::path::Path;

use grpo_oracle::formula::Formula;
use serde_json::Value;

#[test]
fn every_old_text_stands_once_and_apart_from_the_others() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let list = std::fs::read_to_string(root.join("tests/planted/bugs.json")).unwrap();
    let bugs: Vec<Value> = serde_json::from_str(&list).unwrap();
    assert!(bugs.len() >= 20);
    let (mut named, mut places) = (BTreeSet::new(), Vec::new());
    for bug in &bugs {
        let of = |key: &str| bug[key].as_str().unwrap();
        let (name, file, old) = (of("name"), of("file"), of("old"));
        assert!(named.insert((of("formula"), name)), "`{name}` stands twice");
        assert!(Formula::<f64>::find(of("formula")).is_ok(), "`{name}`: `{}` is no formula", of("formula"));
        assert_ne!(old, of("new"), "`{name}` changes nothing");
        assert!(
            [None, Some("exhaustive")].contains(&bug.get("trials").map(|_| of("trials"))),
            "`{name}`: its trials"
        );
        let source = std::fs::read_to_string(root.join(file)).unwrap();
        let starts: Vec<usize> = source.match_indices(old).map(|(start, _)| start).collect();
        assert_eq!(starts.len(), 1, "`{name}`: how often its old text stands in {file}");
        places.push((file, starts[0], starts[0] + old.len()));
    }
    places.sort_unstable();
    for pair in places.windows(2) {
        assert!(pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1, "two bugs overlap: {pair:?}");
    }
    let families: BTreeSet<&str> = places.iter().map(|place| place.0).collect();
    let sources = std::fs::read_dir(root.join("src/torch")).unwrap().count() - 1; // mod.rs
    assert_eq!(families.len(), sources, "a file of src/torch has no bug");
}
