//! The shape of the sources: which module may name which, and that the reference and its libtorch mirror match.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which modules of the crate each module may name. `main` and its `command` stand on all.
const ARROWS: &[(&str, &[&str])] = &[
    // Leaves.
    ("error", &[]),
    ("axes", &["error"]),
    ("file", &["error"]),
    ("options", &["error"]),
    ("config", &["error", "options"]),
    ("problem", &["error"]),
    ("value", &["error"]),
    ("spec", &[]),
    // Shared arithmetic would be a shared bug: these two never name each other.
    ("reference", &["error", "axes", "options"]),
    ("torch", &["error", "axes", "options"]),
    // A fast path is held to both, and names the mirror for the types that it gives alone.
    ("fused", &["error", "axes", "options", "torch"]),
    // Only the table and its helpers see both.
    ("formula", &["error", "axes", "options", "value", "arguments", "reference", "torch", "fused"]),
    ("arguments", &["error", "value", "formula", "reference"]),
    ("evaluate", &["error", "axes", "value", "arguments", "formula", "reference"]),
    ("convention", &["error", "formula"]),
    // Judging stands on the table, training on the mirror.
    ("fixture", &["error", "file", "options", "value", "formula", "evaluate", "conformance"]),
    (
        "conformance",
        &["error", "file", "options", "value", "formula", "convention", "evaluate", "fixture", "spec"],
    ),
    ("hub", &["error"]),
    ("llm", &["error", "file", "hub", "torch", "fused", "options"]),
    ("train", &["error", "axes", "file", "hub", "torch", "fused", "options", "config", "llm", "problem"]),
    // What verl is to us: its data, its configuration, and judging it by both.
    (
        "verl",
        &[
            "error",
            "file",
            "options",
            "config",
            "problem",
            "value",
            "formula",
            "evaluate",
            "fixture",
            "conformance",
        ],
    ),
];

/// The scalars that the reference is read with have no counterpart in libtorch.
const SCALARS: [&str; 3] = ["real.rs", "dual.rs", "bounded.rs"];

#[test]
fn modules_name_only_what_they_stand_on() {
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let module = module_of(&path);
        if ["lib", "main", "command"].contains(&module.as_str()) {
            continue;
        }
        let Some(allowed) = allowed.get(module.as_str()) else {
            wrong.push(format!("{path}: what may `{module}` stand on? Add it to ARROWS"));
            continue;
        };
        for named in named_modules(&code) {
            if named != module && !allowed.contains(&named.as_str()) {
                wrong.push(format!("{path}: `{module}` may not name `{named}`"));
            }
        }
        if code.contains("super::super") {
            wrong.push(format!("{path}: name what is above by crate::, which this test reads"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_scan_sees_what_it_must() {
    let code = without_comments(
        "use crate::{Error, axes::Axes, torch::{self, mask}}; // crate::evaluate\n\
         /// [`crate::llm`]\nfn f() { crate::reference::mask::mean(\"crate\") }",
    );
    let named: Vec<String> = named_modules(&code).into_iter().collect();
    assert_eq!(named, ["axes", "error", "reference", "torch"]);
    let mirrored = functions("pub fn f<R: Real>(\n    a: &Array<R, Ix1>,\n    b: Option<(u8, u8)>,\n) {}\n");
    assert_eq!(mirrored, ["f(a, b)"]);
}

#[test]
fn the_mirror_has_the_same_files_functions_and_arguments() {
    let names = |folder: &str| -> BTreeSet<String> {
        let files = fs::read_dir(root().join("src").join(folder)).expect("a folder of sources");
        let names = files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned());
        names.filter(|name| name != "mod.rs" && !SCALARS.contains(&name.as_str())).collect()
    };
    let families = names("reference");
    for family in names("torch") {
        assert!(families.contains(&family), "src/torch/{family} mirrors nothing");
        let of = |folder: &str| functions(&without_comments(&read(&format!("src/{folder}/{family}"))));
        let (reference, mirror) = (of("reference"), of("torch"));
        let mirrored: Vec<&String> = reference.iter().filter(|function| mirror.contains(function)).collect();
        assert_eq!(
            mirrored,
            mirror.iter().collect::<Vec<_>>(),
            "{family}: the reference (left) and its mirror (right)"
        );
    }
}

#[test]
fn the_formulas_are_pure() {
    let impure =
        ["std::fs", "std::io", "std::net", "std::env", "std::time", "std::thread", "rand::", "println!"];
    for (path, code) in sources() {
        if ["reference", "torch"].contains(&module_of(&path).as_str()) {
            for word in impure {
                assert!(
                    !code.contains(word),
                    "{path} names {word}: no I/O, clock, randomness or threads here"
                );
            }
        }
    }
}

#[test]
fn nothing_is_left_to_do_and_nothing_panics_on_input() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let code = code.split("#[cfg(test)]").next().unwrap_or_default();
        let lines: Vec<&str> = code.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            let reasoned =
                lines[index.saturating_sub(3)..index].iter().any(|l| l.contains("clippy::unwrap_used"));
            for word in ["todo!", "unimplemented!", ".unwrap()"] {
                if line.contains(word) && !(word == ".unwrap()" && reasoned) {
                    wrong.push(format!("{path}:{}: {word}", index + 1));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The modules at the root of the crate that some code names by `crate::`, alone or in braces.
fn named_modules(code: &str) -> BTreeSet<String> {
    let mut named = BTreeSet::new();
    for rest in code.split("crate::").skip(1) {
        let items = match rest.strip_prefix('{') {
            Some(group) => split_at_depth_0(group),
            None => vec![rest],
        };
        for item in items {
            let name: String =
                item.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            match name.as_str() {
                "" => {}
                "Error" | "Result" => _ = named.insert("error".to_owned()),
                _ => _ = named.insert(name),
            }
        }
    }
    named
}

/// Every `pub fn` at the left margin as `name(argument, argument)`.
fn functions(code: &str) -> Vec<String> {
    code.split("\npub fn ")
        .skip(usize::from(!code.starts_with("pub fn ")))
        .map(|rest| {
            let rest = rest.strip_prefix("pub fn ").unwrap_or(rest);
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            let after_generics = match rest[name.len()..].strip_prefix('<') {
                Some(generics) => &generics[generics.find(">(").map_or(0, |at| at + 1)..],
                None => &rest[name.len()..],
            };
            let arguments = split_at_depth_0(after_generics.trim_start_matches('('));
            let arguments = arguments.iter().filter_map(|argument| Some(argument.split_once(':')?.0.trim()));
            format!("{name}({})", arguments.collect::<Vec<_>>().join(", "))
        })
        .collect()
}

/// The parts between commas, up to the bracket that closes what the text starts within.
fn split_at_depth_0(text: &str) -> Vec<&str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, character) in text.char_indices() {
        match character {
            '(' | '[' | '{' | '<' => depth += 1,
            ')' | ']' | '}' | '>' if depth == 0 => {
                parts.push(&text[start..at]);
                return parts;
            }
            ')' | ']' | '}' | '>' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts
}

/// The code without line comments; this package has no block comments. A `//` within a text ends the line here too,
/// which hides nothing that these tests look for.
fn without_comments(source: &str) -> String {
    source.lines().map(|line| line.split("//").next().unwrap_or_default().to_owned() + "\n").collect()
}

fn module_of(path: &str) -> String {
    let inside = path.trim_start_matches("src/");
    inside.split('/').next().unwrap_or_default().trim_end_matches(".rs").to_owned()
}

/// Every source file with its code, by path from the package's root.
fn sources() -> Vec<(String, String)> {
    let mut files = Vec::new();
    collect(&root().join("src"), &mut files);
    files.sort();
    let relative = |path: &Path| path.strip_prefix(root()).expect("a path below").display().to_string();
    files
        .iter()
        .map(|path| relative(path))
        .map(|path| (path.clone(), without_comments(&read(&path))))
        .collect()
}

fn collect(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("a file").path();
        if path.is_dir() {
            collect(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|problem| format!("{path}: {problem}"))
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
