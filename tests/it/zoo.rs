//! The zoo: every known-wrong implementation is caught and named.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn zoo(folder: &Path) -> Option<Output> {
    if Command::new("python3").arg("--version").output().is_err() {
        eprintln!("skipped: there is no python3 to run the zoo with");
        return None;
    }
    Some(Command::new(env!("CARGO_BIN_EXE_grpo-oracle")).arg("zoo").arg(folder).output().unwrap())
}

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/adapters/zoo")
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[test]
fn the_whole_zoo_is_caught_and_named() {
    let Some(output) = zoo(&folder()) else { return };
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    let judged = text.lines().filter(|line| line.starts_with("ok")).count();
    assert!(judged > 25 && text.starts_with("ok  base "), "{text}");
}

#[test]
fn every_animal_says_what_it_is() {
    for entry in fs::read_dir(folder()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.extension().is_none_or(|extension| extension != "py") || name == "base.py" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains("\n# expects: "), "{name} says not what it is to be called");
        let tells = ["\nSeen: https://github.com/", "\nSeen: `e[", "\nSeen: arXiv", "\nA plausible slip."];
        assert!(tells.iter().any(|tell| text.contains(tell)), "{name} says not where it comes from");
    }
}

#[test]
fn what_escapes_or_is_misnamed_is_told() {
    let other = tempfile::tempdir().unwrap();
    fs::copy(folder().join("base.py"), other.path().join("base.py")).unwrap();
    let add = |name: &str, text: &str| fs::write(other.path().join(name), text).unwrap();
    add("right.py", "# expects: nothing\nimport base\nbase.serve('right', ['mask.mean'])\n");
    let sign = "# expects: off by the factor B\nimport base\n\
                right = base.mask_variance\n\
                base.FORMULAS['mask.variance'] = (lambda x, o: {'variance': -right(x, o)['variance']},) + base.FORMULAS['mask.variance'][1:]\n\
                base.serve('sign', ['mask.variance'])\n";
    add("sign.py", sign);
    let Some(output) = zoo(other.path()) else { return };
    let text = text(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("mask.mean escapes"), "{text}");
    assert!(
        text.contains("off by the sign (") && text.contains("is to be named: off by the factor B"),
        "{text}"
    );
}
