//! verl's command lines and YAML as a configuration of ours.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::export::{ENGINE, engine_of, export, is_read, is_verls};
use super::keys::{Engine, GONE, NEEDS, Own, RENAMED, ROWS, Row, SURPRISES, Shape};
use super::{scripts, shell, tree, write};
use crate::config::{
    Config, Dtype, Entry, Foreign, Given, Place, Read, Settings, argument, entries_of, foreign, nested,
};
use crate::{Error, Result};

/// Reads verl's words: the path of a YAML file or of a script, a whole command line, `key=value`s. What is not said
/// is as verl 0.9.1 has it by default; what this crate's trainer does not have is kept under verl's names.
///
/// # Errors
/// `file` or `option` for what cannot be read, a key that neither verl 0.9.1 nor this crate has, and a value that
/// this crate does not have.
pub fn import(words: &[String]) -> Result<Read> {
    let mut said = Said::default();
    said.read(words)?;
    let engine = said.engine()?;
    let given: Given = said.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    let mut settings = Settings::of(&defaults(engine)?);
    settings.notes = said.notes;
    if engine == Engine::Megatron {
        settings.verl.insert(ENGINE.to_owned(), json!("megatron"));
    }
    for entry in &said.entries {
        take(entry, engine, &given, &mut settings)?;
    }
    surprise(&said.entries, &mut settings.notes);
    keep_defaults(&given, &mut settings.verl);
    let mut read = settings.finish()?;
    forget_what_export_says(&mut read)?;
    let own = read.verl.len();
    if own > 0 {
        read.notes.push(format!(
            "{own} key(s) are for verl alone; they stand under `verl:`, where this crate's trainer passes \
             them over."
        ));
    }
    Ok(read)
}

/// A configuration of ours as YAML, every key said, with what is for verl alone under `verl:`.
pub fn to_yaml(read: &Read) -> String {
    let mut text = String::from("# Read from verl's configuration by `grpo-oracle import-verl`.\n");
    for note in &read.notes {
        text.push_str(&format!("# {note}\n"));
    }
    if let Ok(Value::Object(ours)) = serde_json::to_value(&read.config) {
        text.push_str(&write::yaml(&ours));
    }
    if !read.verl.is_empty() {
        let verls = nested(read.verl.iter().map(|(key, value)| (key.as_str(), value.clone())));
        text.push_str(&write::yaml(&[("verl".to_owned(), Value::Object(verls))].into_iter().collect()));
    }
    text
}

/// verl's defaults.
pub(super) fn defaults(engine: Engine) -> Result<Config> {
    let mut settings = Settings::of(&Config::default());
    for row in ROWS {
        let Some(value) = row.verl(engine).and_then(tree::default) else { continue };
        let entry =
            Entry { key: row.ours.to_owned(), value: value.clone(), place: Place::Argument, is_added: false };
        set(row, &entry, &mut settings);
    }
    let mut config = settings.finish()?.config;
    config.actor_rollout_ref.actor.dtype = Dtype::Bfloat16;
    Ok(config)
}

/// What somebody wrote, key by key.
#[derive(Default)]
struct Said {
    entries: Vec<Entry>,
    notes: Vec<String>,
    megatron: bool,
}

impl Said {
    fn read(&mut self, words: &[String]) -> Result<()> {
        let mut words = words.iter().map(String::as_str).peekable();
        while let Some(word) = words.next() {
            let (option, value) = word.split_once('=').unwrap_or((word, ""));
            match option {
                "--config-name" | "--config-path" | "--config-dir" | "-cn" | "-cp" | "-cd" => {
                    let value = if word.contains('=') { value } else { words.next().unwrap_or_default() };
                    self.megatron |= value.contains("megatron");
                }
                "python"
                | "python3"
                | "bash"
                | "sh"
                | "-m"
                | "verl.trainer.main_ppo"
                | "verl.trainer.main"
                | "\\"
                | "$@" => {}
                "config" if !Path::new(value).exists() => {
                    self.notes
                        .push(format!("{value} is not here and is not read; name the file where it is."));
                }
                "config" => self.file(Path::new(value))?,
                _ if is_file(word) => self.file(Path::new(word))?,
                _ => self.entries.push(override_of(word)?),
            }
        }
        Ok(())
    }

    fn file(&mut self, path: &Path) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if !path.exists()
            && let Some(script) = scripts::find(&name)
        {
            self.notes.push(script.words());
            let words: Vec<String> = script.says.iter().map(|word| (*word).to_owned()).collect();
            return self.read(&words);
        }
        let text = std::fs::read_to_string(path).map_err(|problem| Error::file(path, problem))?;
        if [".yaml", ".yml", ".json"].iter().any(|ending| name.ends_with(ending)) {
            let (hydras, own) = without_hydras(&text);
            self.megatron |= hydras.contains("megatron");
            self.entries.extend(entries_of(path, &own)?);
            return Ok(());
        }
        let words = shell::command(&text).ok_or_else(|| {
            Error::file(
                path,
                "has no command line with verl.trainer.main_ppo that could be read; write it out",
            )
        })?;
        self.read(&words)
    }

    fn engine(&mut self) -> Result<Engine> {
        let chosen = self.entries.iter().rfind(|entry| entry.key == ENGINE).map(|entry| entry.value.clone());
        self.entries.retain(|entry| entry.key != ENGINE);
        let by_strategy = |entry: &Entry| entry.key == STRATEGY && entry.value == "megatron";
        if chosen.is_none() && self.entries.iter().any(by_strategy) {
            self.megatron = true;
            self.notes.push(format!(
                "{STRATEGY}=megatron alone is not enough for verl 0.9.1; \
                                     model_engine=megatron takes its place."
            ));
        }
        self.entries.retain(|entry| !by_strategy(entry));
        let engine = chosen.or_else(|| self.megatron.then(|| json!("megatron")));
        engine_of(&engine.map(|engine| (ENGINE.to_owned(), engine)).into_iter().collect())
    }
}

/// The sections that are for Hydra alone, and the text with nothing in their place.
fn without_hydras(text: &str) -> (String, String) {
    let (mut hydras, mut own, mut inside) = (String::new(), String::new(), false);
    for line in text.lines() {
        let begins = line.starts_with(|c: char| c.is_ascii_alphabetic());
        inside = (inside && !begins) || line.starts_with("hydra:") || line.starts_with("defaults:");
        hydras.push_str(if inside { line } else { "" });
        own.push_str(if inside { "" } else { line });
        own.push('\n');
    }
    (hydras, own)
}

const STRATEGY: &str = "actor_rollout_ref.actor.strategy";

fn is_file(word: &str) -> bool {
    let ending = [".yaml", ".yml", ".json", ".sh"];
    !word.contains('=')
        && (ending.iter().any(|ending| word.ends_with(ending)) || PathBuf::from(word).is_file())
}

/// `key=value`; what follows `=` may be empty, as Hydra has it.
fn override_of(word: &str) -> Result<Entry> {
    match word.split_once('=') {
        Some((key, "")) => argument(&format!("{key}=''")),
        _ => argument(word),
    }
}

/// Gives one thing that was said its place.
fn take(entry: &Entry, engine: Engine, given: &Given, settings: &mut Settings) -> Result<()> {
    let key = entry.key.as_str();
    if let Some(new) = renamed(key) {
        settings.notes.push(format!("{key} decides nothing in verl 0.9.1; {new} is in its place."));
        let entry = Entry { key: new, ..entry.clone() };
        return take(&entry, engine, given, settings);
    }
    if let Some((_, why)) = GONE.iter().find(|(name, _)| *name == key) {
        settings.notes.push(format!("{key} is no longer in verl 0.9.1 and is left out: {why}."));
        return Ok(());
    }
    let row = ROWS.iter().find(|row| row.verl(engine) == Some(key));
    if let Some(row) = row {
        set(row, entry, settings);
        keep_all(row, entry, settings);
        return Ok(());
    }
    if tree::knows(key) || tree::is_open(key) || is_read(key) {
        settings.verl.insert(key.to_owned(), entry.value.clone());
        return Ok(());
    }
    translate(entry, engine, given, settings)
}

/// A key that verl 0.9.1 does not have.
fn translate(entry: &Entry, engine: Engine, given: &Given, settings: &mut Settings) -> Result<()> {
    let key = entry.key.as_str();
    match foreign(key) {
        Some(Foreign::Same(ours)) => {
            settings.notes.extend(instead(key, &[ours], engine));
            settings.set(ours, entry.value.clone(), entry);
        }
        Some(Foreign::Means(meaning)) => {
            let ours = meaning(&entry.value, given).map_err(|why| entry.error(why))?;
            let names: Vec<&str> = ours.iter().map(|(name, _)| *name).collect();
            settings.notes.extend(instead(key, &names, engine));
            for (name, value) in ours {
                settings.set(name, value, entry);
            }
        }
        Some(Foreign::Idle(_) | Foreign::Refused(_)) => {
            settings.notes.push(format!("{key} is not in verl 0.9.1 and is left out."));
        }
        None if settings.has(key) => settings.set(key, entry.value.clone(), entry),
        None if is_verls(key) && entry.is_added => {
            settings.verl.insert(key.to_owned(), entry.value.clone());
        }
        // A file has no other way to add a key.
        None if is_verls(key) && matches!(entry.place, Place::Line(..)) => {
            settings.verl.insert(key.to_owned(), entry.value.clone());
            settings.notes.push(format!("{}; it is handed on as it is.", entry.error(unknown(key))));
        }
        None => return Err(entry.error(unknown(key))),
    }
    Ok(())
}

/// Sets what a key of verl's means here.
fn set(row: &Row, entry: &Entry, settings: &mut Settings) {
    let value = entry.value.clone();
    match row.shape {
        Shape::Told(_, read) => {
            for (ours, value) in read(&value) {
                settings.set(ours, value, entry);
            }
        }
        Shape::Open(open) if value.as_f64() == Some(open) => settings.set(row.ours, Value::Null, entry),
        _ => settings.set(row.ours, as_text(row, value), entry),
    }
}

/// A name may look like a number.
fn as_text(row: &Row, value: Value) -> Value {
    let is_name = row.ours.ends_with("_name") || row.ours.ends_with(".path");
    match value {
        Value::Number(number) if is_name => json!(number.to_string()),
        value => value,
    }
}

/// Several files are verl's; the trainer here reads one.
fn keep_all(row: &Row, entry: &Entry, settings: &mut Settings) {
    let several = entry.value.as_array().is_some_and(|files| files.len() > 1);
    if several && row.ours.ends_with("_files") {
        settings.verl.insert(entry.key.clone(), entry.value.clone());
        settings
            .notes
            .push(format!("{}: the first of the files is what this crate's trainer reads.", row.ours));
    }
}

fn renamed(key: &str) -> Option<String> {
    RENAMED.iter().find_map(|(old, new)| match (old.strip_suffix('*'), new.strip_suffix('*')) {
        (Some(old), Some(new)) => key.strip_prefix(old).map(|rest| format!("{new}{rest}")),
        _ => (key == *old).then(|| (*new).to_owned()),
    })
}

/// The sentence on keys of ours that stand for one that verl does not have.
fn instead(key: &str, ours: &[&str], engine: Engine) -> Option<String> {
    let verls: Vec<&str> =
        ROWS.iter().filter(|row| ours.contains(&row.ours)).filter_map(|row| row.verl(engine)).collect();
    match verls.as_slice() {
        [] => None,
        verls => Some(format!("{key} is not in verl 0.9.1; {} is in its place.", verls.join(" and "))),
    }
}

fn unknown(key: &str) -> String {
    let likeness = |name: &str| strsim::normalized_damerau_levenshtein(name, key);
    let best = tree::keys().map(|name| (likeness(name), name)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best.filter(|(likeness, _)| *likeness > 0.6) {
        Some((_, near)) => format!(
            "verl 0.9.1 has no such key; did you mean {near}? (a key that is to be added begins with +)"
        ),
        None => "verl 0.9.1 has no such key (one that is to be added begins with +)".to_owned(),
    }
}

/// Tells of keys that verl takes otherwise than their writer may expect.
fn surprise(entries: &[Entry], notes: &mut Vec<String>) {
    let given: Own = entries.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    for (key, is_so, words) in SURPRISES {
        if given.contains_key(*key) && is_so(&given) {
            notes.push(format!("{key} {words}."));
        }
    }
}

const LOGGER: &str = "trainer.logger";

/// What an export would otherwise say of this crate's trainer is verl's own default.
fn keep_defaults(given: &Given, own: &mut Own) {
    if let (None, Some(loggers)) = (given.get(LOGGER), tree::default(LOGGER)) {
        own.insert(LOGGER.to_owned(), loggers.clone());
    }
    for need in NEEDS.iter().filter(|need| need.is_ours) {
        if let Some(default) = tree::default(need.key) {
            own.entry(need.key.to_owned()).or_insert_with(|| default.clone());
        }
    }
}

/// Leaves out what an export says by itself: it would only be in the way of whoever changes the rest.
fn forget_what_export_says(read: &mut Read) -> Result<()> {
    for (key, value) in read.verl.clone() {
        let mut without = read.clone();
        without.verl.remove(&key);
        if key != ENGINE && export(&without)?.get(&key) == Some(&value) {
            *read = without;
        }
    }
    Ok(())
}
