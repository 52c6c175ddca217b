//! A configuration as verl 0.9.1's command line and YAML.

use serde_json::{Value, json};

use super::import;
use super::keys::{Engine, NEEDS, Own, PLUG_IN, ROWS, Row, Shape};
use super::{tree, write};
use crate::config::{Config, Read, keys, nested};
use crate::{Error, Result};

/// A job for verl.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// The engine that trains.
    pub engine: Engine,
    /// What is said otherwise than by verl's defaults: its keys with their values.
    pub overrides: Vec<(String, Value)>,
    /// A sentence for each option that has no exact counterpart.
    pub notes: Vec<String>,
}

/// The key that chooses the engine.
pub(super) const ENGINE: &str = "model_engine";

/// The job that computes what this configuration does.
///
/// # Errors
/// `option` for an engine of verl's that is neither `dp` nor `megatron`.
pub fn export(read: &Read) -> Result<Export> {
    let (config, own) = (&read.config, &read.verl);
    let engine = engine_of(own)?;
    let mut notes = differences(config, engine);
    let mut overrides: Vec<(String, Value)> = Vec::new();
    if engine == Engine::Megatron {
        overrides.push((ENGINE.to_owned(), json!("megatron")));
    }
    let said = rows(config, engine)?.into_iter().filter(|(key, _)| !own.contains_key(*key));
    overrides.extend(said.map(|(key, value)| (key.to_owned(), value)));
    for need in NEEDS {
        if is_said(need.key, own, &overrides) {
            continue;
        }
        if let Some(value) = (need.value)(config, own) {
            overrides.push((need.key.to_owned(), value));
            notes.extend(need.words.map(|words| format!("{} {words}.", need.key)));
        }
    }
    for (key, value) in own.iter().filter(|(key, _)| *key != ENGINE) {
        notes.extend(word_on(key, engine));
        if is_verls(key) {
            overrides.push((key.clone(), with_plug_in(key, value, config)));
        }
    }
    overrides.sort_by_key(|(key, _)| section(key));
    Ok(Export { engine, overrides, notes })
}

/// What there is to say of a key that is for verl alone.
fn word_on(key: &str, engine: Engine) -> Option<String> {
    if !is_verls(key) {
        return Some(format!("{key} is not in verl 0.9.1 and is left out."));
    }
    let known = tree::has(key, engine) || tree::is_open(key) || is_read(key);
    let of = if engine == Engine::Megatron { "Megatron" } else { "FSDP" };
    (!known).then(|| format!("{key} is not in verl 0.9.1's configuration for {of}; it is added to it."))
}

impl Export {
    /// The value that is said for a key.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.overrides.iter().find(|(name, _)| name == key).map(|(_, value)| value)
    }

    /// `key=value` as Hydra reads it, with `+` before a key that verl's own configuration does not have.
    pub fn arguments(&self) -> Vec<String> {
        let argument = |(key, value): &(String, Value)| {
            let plus = if key == ENGINE || tree::has(key, self.engine) { "" } else { "+" };
            format!("{plus}{key}={}", write::hydra(value))
        };
        self.overrides.iter().map(argument).collect()
    }

    /// For a shell.
    pub fn command_line(&self) -> String {
        let words: Vec<String> = self.arguments().iter().map(|word| write::shell(word)).collect();
        format!("python3 -m verl.trainer.main_ppo \\\n    {}\n", words.join(" \\\n    "))
    }

    /// The same as a file, for `python3 -m verl.trainer.main_ppo --config-path FOLDER --config-name NAME`.
    pub fn yaml(&self) -> String {
        let mut text = String::from(
            "# A job for verl 0.9.1, written by `grpo-oracle export-verl`. Start it with\n\
             #     python3 -m verl.trainer.main_ppo --config-path /this/folder --config-name THIS_FILE\n",
        );
        for note in &self.notes {
            text.push_str(&format!("# {note}\n"));
        }
        text.push_str(
            "hydra:\n  searchpath:\n    - pkg://verl.trainer.config\ndefaults:\n  - \
                       ppo_trainer\n",
        );
        if self.engine == Engine::Megatron {
            text.push_str("  - override model_engine: megatron\n");
        }
        text.push_str("  - _self_\n");
        let said = self.overrides.iter().filter(|(key, _)| key != ENGINE);
        text.push_str(&write::yaml(&nested(said.map(|(key, value)| (key.as_str(), value.clone())))));
        text
    }
}

/// The engine that these keys choose.
pub(super) fn engine_of(own: &Own) -> Result<Engine> {
    match own.get(ENGINE).map(|value| value.as_str().unwrap_or_default()) {
        None | Some("dp") => Ok(Engine::Fsdp),
        Some("megatron") => Ok(Engine::Megatron),
        Some(other) => {
            let problem = format!("`{other}` is not one that is told of here; use dp or megatron");
            Err(Error::option(ENGINE, problem))
        }
    }
}

/// What a configuration says otherwise than verl's defaults.
fn rows(config: &Config, engine: Engine) -> Result<Vec<(&'static str, Value)>> {
    let defaults = import::defaults(engine)?;
    let (ours, theirs) = (keys(config), keys(&defaults));
    let mut said = Vec::new();
    for row in ROWS.iter().filter(|row| row.only.is_none_or(|only| only(config, engine))) {
        let value = written(row, ours.get(row.ours), config, engine);
        let (Some(key), Some(value)) = (row.verl(engine), value) else { continue };
        let added = !tree::has(key, engine);
        if row.always
            || added
            || written(row, theirs.get(row.ours), &defaults, engine).as_ref() != Some(&value)
        {
            said.push((key, value));
        }
    }
    Ok(said)
}

/// A row's value as verl writes it; `None` where it is left unsaid.
fn written(row: &Row, value: Option<&Value>, config: &Config, engine: Engine) -> Option<Value> {
    let value = value.cloned().unwrap_or_default();
    match (row.shape, value.is_null()) {
        (Shape::Told(write, _), _) => Some(write(config, engine)),
        (Shape::Unsaid, true) => None,
        (Shape::Open(number), true) => Some(whole(json!(number))),
        (Shape::Filled(fill), true) => Some(fill(config)),
        (Shape::Whole | Shape::Filled(_), _) => Some(whole(value)),
        _ => Some(value),
    }
}

/// 10000.0 is 10000.
fn whole(value: Value) -> Value {
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() < 1e15 => json!(number as i64),
        _ => value,
    }
}

/// A sentence for each row that differs.
fn differences(config: &Config, engine: Engine) -> Vec<String> {
    let differing = ROWS.iter().filter_map(|row| match row.differs {
        Some((when, words)) if when(config, engine) => Some(format!("{} {words}.", row.ours)),
        _ => None,
    });
    differing.collect()
}

/// Whether a key is said already, or an older one that does not go with it.
fn is_said(key: &str, own: &Own, overrides: &[(String, Value)]) -> bool {
    let older = key.trim_end_matches("_per_gpu");
    own.contains_key(key) || own.contains_key(older) || overrides.iter().any(|(name, _)| name == key)
}

/// Whether it lies in one of verl's sections.
pub(super) fn is_verls(key: &str) -> bool {
    let section = key.split('.').next().unwrap_or_default();
    tree::keys().any(|known| known.split('.').next() == Some(section))
}

/// Keys outside of verl's own configuration that it reads all the same.
pub(super) fn is_read(key: &str) -> bool {
    key.starts_with("reward.reward_kwargs.") || key.contains(".fsdp_config.mixed_precision.")
}

/// A user's own modules are loaded beside the plug-in.
fn with_plug_in(key: &str, value: &Value, config: &Config) -> Value {
    let need = NEEDS.iter().find(|need| need.key == key && key.ends_with(".external_lib"));
    let wanted = need.and_then(|need| (need.value)(config, &Own::new()));
    let mut modules = match value {
        Value::Array(modules) => modules.clone(),
        Value::Null => Vec::new(),
        module => vec![module.clone()],
    };
    match wanted {
        Some(_) if !modules.contains(&json!(PLUG_IN)) => {
            modules.push(json!(PLUG_IN));
            Value::Array(modules)
        }
        _ => value.clone(),
    }
}

/// The order in which a reader looks for things.
fn section(key: &str) -> usize {
    const ORDER: [&str; 8] = [
        ENGINE,
        "algorithm.",
        "data.",
        "actor_rollout_ref.model.",
        "actor_rollout_ref.actor.",
        "actor_rollout_ref.",
        "critic.",
        "reward.",
    ];
    ORDER.iter().position(|section| key.starts_with(section)).unwrap_or(ORDER.len())
}
