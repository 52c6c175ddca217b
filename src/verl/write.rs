//! Values as Hydra's command line has them, and trees as YAML.

use std::fmt::Write as _;

use serde_json::{Map, Value};

/// A value after `key=`.
pub(super) fn hydra(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) if is_plain(text) => text.clone(),
        Value::String(text) => format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'")),
        Value::Array(list) => format!("[{}]", list.iter().map(hydra).collect::<Vec<_>>().join(",")),
        Value::Object(section) => {
            let pairs: Vec<String> =
                section.iter().map(|(key, value)| format!("{key}:{}", hydra(value))).collect();
            format!("{{{}}}", pairs.join(","))
        }
    }
}

/// A word for a shell, in quotes where it needs them.
pub(super) fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_/.,:=+@%-".contains(c);
    match word.chars().all(plain) {
        true => word.to_owned(),
        false => shlex::try_quote(word).map_or_else(|_| word.to_owned(), Into::into),
    }
}

/// A tree in block style; one list or number a line.
pub(super) fn yaml(tree: &Map<String, Value>) -> String {
    let mut text = String::new();
    section(tree, 0, &mut text);
    text
}

fn section(tree: &Map<String, Value>, depth: usize, text: &mut String) {
    for (key, value) in tree {
        let indent = "  ".repeat(depth);
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                let _ = writeln!(text, "{indent}{key}:");
                section(inner, depth + 1, text);
            }
            leaf => _ = writeln!(text, "{indent}{key}: {}", scalar(leaf)),
        }
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) if is_plain(text) => text.clone(),
        // YAML 1.1 takes 1e-6 for a text.
        Value::Number(number) => {
            let text = number.to_string();
            match text.split_once('e') {
                Some((mantissa, exponent)) if !mantissa.contains('.') => format!("{mantissa}.0e{exponent}"),
                _ => text,
            }
        }
        Value::Array(list) => format!("[{}]", list.iter().map(scalar).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

/// Whether a text can stand without quotes in Hydra's words and in YAML, and is a text in both.
fn is_plain(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_/.-".contains(c);
    let word = ["true", "false", "null", "none", "yes", "no", "on", "off", "nan", "inf", "y", "n"];
    let begins = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/' || c == '_');
    begins && text.chars().all(plain) && !word.contains(&text.to_ascii_lowercase().as_str())
}
