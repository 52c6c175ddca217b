//! The list of keys: what each is, what it may be and what it is by default, from the types themselves.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::{Config, keys};

/// A key.
#[derive(Debug, Clone, PartialEq)]
pub struct Key {
    /// Its name, with its sections.
    pub name: String,
    /// What it decides.
    pub words: String,
    /// Its value where nothing is said.
    pub default: Value,
    /// Its values, if they have names.
    pub values: Vec<String>,
}

/// Every key, section by section.
pub fn describe() -> Vec<Key> {
    let settings = SchemaSettings::draft2020_12().with(|settings| settings.inline_subschemas = true);
    let schema = settings.into_generator().into_root_schema_for::<Config>();
    let defaults = keys(&Config::default());
    let mut described = Vec::new();
    walk("", schema.as_value(), &defaults, &mut described);
    described
}

fn walk(prefix: &str, schema: &Value, defaults: &BTreeMap<String, Value>, described: &mut Vec<Key>) {
    let words = |schema: &Value| {
        schema["description"].as_str().unwrap_or_default().replace('\n', " ").replace("`None`", "null")
    };
    for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
        let name = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        match defaults.get(&name) {
            Some(default) => described.push(Key {
                words: words(inner),
                default: default.clone(),
                values: values(inner),
                name,
            }),
            None => walk(&name, inner, defaults, described),
        }
    }
}

/// The constants that the schema names, wherever it does.
fn values(schema: &Value) -> Vec<String> {
    let named = |value: &Value| value.as_str().map(str::to_owned);
    let own = schema.get("const").and_then(named);
    let listed = schema["enum"].as_array().into_iter().flatten().filter_map(named);
    let inner = ["oneOf", "anyOf"].iter().flat_map(|key| schema[*key].as_array().into_iter().flatten());
    own.into_iter().chain(listed).chain(inner.flat_map(values)).collect()
}

/// The list as a page of Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# The keys of a configuration\n\n\
         Written by `cargo run --example gsm8k --features torch -- --keys`; a test holds it to the code. The names are verl's \
         where verl has the key. A YAML file nests them, an argument joins them with dots: \
         `algorithm.adv_estimator=rloo`.\n\n",
    );
    let mut section = "";
    let all = describe();
    for key in &all {
        let first = key.name.split('.').next().unwrap_or_default();
        if first != section {
            section = first;
            let _ = writeln!(page, "## {section}\n\n| key | default | |\n|---|---|---|");
        }
        let values = match key.values.as_slice() {
            [] => String::new(),
            values => format!(" One of {}.", values.join(", ")),
        };
        let _ = writeln!(page, "| `{}` | `{}` | {}{values} |", key.name, key.default, key.words);
        let is_last = all.iter().rfind(|other| other.name.starts_with(&format!("{section}."))) == Some(key);
        if is_last {
            page.push('\n');
        }
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}
