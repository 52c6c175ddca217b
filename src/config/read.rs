//! From a preset, a YAML file and `key=value` arguments to a [`Config`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use saphyr::{LoadableYamlNode, MarkedYaml, Scalar, YamlData};
use serde_json::{Map, Value};

use super::Config;
use super::names::{Foreign, Given, foreign};
use crate::{Error, Result};

/// A configuration, and what of it has no effect here.
#[derive(Debug, Clone, PartialEq)]
pub struct Read {
    /// What decides the run.
    pub config: Config,
    /// Keys that are for verl alone, under its names: nothing here depends on them, and an export hands them on.
    pub verl: BTreeMap<String, Value>,
    /// One sentence for each key that was accepted and decides nothing.
    pub notes: Vec<String>,
}

/// The section whose keys are for verl alone.
const VERL: &str = "verl.";

/// The preset with what the file and the arguments say otherwise; an argument, `key=value`, counts more than the file,
/// and a later argument more than an earlier one.
///
/// # Errors
/// `file` with the line, or `option`, for a key that there is not (with the nearest one that there is), a value of the
/// wrong type, and what is not supported.
pub fn read(preset: Config, file: Option<&Path>, arguments: &[String]) -> Result<Read> {
    let mut read = as_written(preset, file, arguments)?;
    let Config { data, actor_rollout_ref, trainer, .. } = &mut read.config;
    for path in
        [&mut data.train_files, &mut actor_rollout_ref.model.path].into_iter().chain(&mut data.val_files)
    {
        *path = home(path);
    }
    trainer.default_local_dir =
        trainer.default_local_dir.take().map(|path| home(&path.to_string_lossy()).into());
    Ok(read)
}

/// The same with `~/` left as it is, for who hands it on to another machine.
///
/// # Errors
/// As [`read`].
pub fn as_written(preset: Config, file: Option<&Path>, arguments: &[String]) -> Result<Read> {
    let mut all = file.map(entries).transpose()?.unwrap_or_default();
    for text in arguments {
        all.push(argument(text)?);
    }
    let given: Given = all.iter().map(|entry| (entry.key.clone(), entry.value.clone())).collect();
    let mut settings = Settings::of(&preset);
    for entry in &all {
        settings.apply(entry, &given)?;
    }
    // What is off stays off, wherever the key that says so stands.
    let notes = settings.notes.len();
    for entry in all.iter().filter(|entry| entry.key.ends_with("lora.enable")) {
        settings.apply(entry, &given)?;
    }
    settings.notes.truncate(notes);
    settings.finish()
}

/// Every key, with its value in this configuration.
pub fn keys(config: &Config) -> BTreeMap<String, Value> {
    let mut leaves = BTreeMap::new();
    flatten("", &serde_json::to_value(config).unwrap_or_default(), &mut leaves);
    leaves
}

fn flatten(prefix: &str, value: &Value, leaves: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(section) => section.iter().for_each(|(name, value)| {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            flatten(&key, value, leaves);
        }),
        leaf => drop(leaves.insert(prefix.to_owned(), leaf.clone())),
    }
}

/// A key with its value, as somebody wrote it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    /// With its sections.
    pub(crate) key: String,
    /// A scalar or a list.
    pub(crate) value: Value,
    pub(crate) place: Place,
    /// Whether it is to be added where there is none, as Hydra's `+` says.
    pub(crate) is_added: bool,
}

/// Where an entry stands.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    Argument,
    Line(PathBuf, usize),
}

impl Entry {
    pub(crate) fn error(&self, problem: impl std::fmt::Display) -> Error {
        match &self.place {
            Place::Argument => Error::option(&self.key, problem.to_string()),
            Place::Line(path, line) => Error::file(path, format!("line {line}: `{}`: {problem}", self.key)),
        }
    }
}

/// Values by our keys, and the entries that they came from; values for verl alone.
pub(crate) struct Settings {
    values: BTreeMap<String, Value>,
    from: BTreeMap<String, Entry>,
    pub(crate) verl: BTreeMap<String, Value>,
    pub(crate) notes: Vec<String>,
    /// How many keys stand under `verl:`.
    only_verls: usize,
}

impl Settings {
    pub(crate) fn of(preset: &Config) -> Self {
        let (values, from, verl) = (keys(preset), BTreeMap::new(), BTreeMap::new());
        Self { values, from, verl, notes: Vec::new(), only_verls: 0 }
    }

    /// Whether this is a key of ours.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    fn apply(&mut self, entry: &Entry, given: &Given) -> Result<()> {
        if let Some(key) = entry.key.strip_prefix(VERL) {
            self.verl.insert(key.to_owned(), entry.value.clone());
            self.only_verls += 1;
            return Ok(());
        }
        if self.has(&entry.key) {
            self.set(&entry.key, entry.value.clone(), entry);
            return Ok(());
        }
        match foreign(&entry.key) {
            Some(Foreign::Same(ours)) => self.set(ours, entry.value.clone(), entry),
            Some(Foreign::Means(meaning)) => {
                let ours = meaning(&entry.value, given).map_err(|why| entry.error(why))?;
                if ours.is_empty() {
                    self.verl.insert(entry.key.clone(), entry.value.clone());
                }
                for (ours, value) in ours {
                    self.set(ours, value, entry);
                }
            }
            Some(Foreign::Idle(why)) => {
                self.verl.insert(entry.key.clone(), entry.value.clone());
                self.notes.push(format!("{} is passed over: {why}", entry.key));
            }
            Some(Foreign::Refused(why)) => return Err(entry.error(why)),
            None => return Err(entry.error(self.unknown(&entry.key))),
        }
        Ok(())
    }

    /// Gives a key of ours a value.
    pub(crate) fn set(&mut self, key: &str, value: Value, entry: &Entry) {
        if key == "trainer.logger" {
            self.set_loggers(value, entry);
            return;
        }
        self.values.insert(key.to_owned(), usual(key, value));
        self.from.insert(key.to_owned(), entry.clone());
    }

    /// Figures go where there is a way to; the others are verl's.
    fn set_loggers(&mut self, value: Value, entry: &Entry) {
        let asked = if let Value::Array(list) = value { list } else { vec![value] };
        let (kept, others): (Vec<Value>, Vec<Value>) =
            asked.iter().cloned().partition(|name| name.as_str().is_none_or(|name| LOGGERS.contains(&name)));
        for name in &others {
            let name = name.as_str().unwrap_or_default();
            self.notes.push(format!(
                "trainer.logger: {name} is passed over; figures go to metrics.jsonl and tensorboard"
            ));
        }
        if !others.is_empty() {
            self.verl.insert("trainer.logger".to_owned(), asked.into());
        }
        self.values.insert("trainer.logger".to_owned(), kept.into());
        self.from.insert("trainer.logger".to_owned(), entry.clone());
    }

    fn unknown(&self, key: &str) -> String {
        let inside = format!("{key}.");
        let within: Vec<&str> =
            self.values.keys().filter_map(|name| name.strip_prefix(inside.as_str())).collect();
        if !within.is_empty() {
            return format!("is a section; it has the keys {}", within.join(", "));
        }
        match self.nearest(key) {
            Some(nearest) => format!("there is no such key; did you mean {nearest}? (--keys lists all)"),
            None => "there is no such key (--keys lists all)".to_owned(),
        }
    }

    /// The likeliest of the keys with the same last part, or of all if there is none.
    fn nearest(&self, key: &str) -> Option<&str> {
        let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
        let alike = |left: &str, right: &str| strsim::normalized_damerau_levenshtein(left, right);
        let likeness = |name: &str| match alike(&last(name), &last(key)) {
            1.0 => 1.0 + alike(name, key),
            part => part.max(alike(name, key)),
        };
        let best = self.values.keys().map(|name| (likeness(name), name));
        let best = best.max_by(|left, right| left.0.total_cmp(&right.0));
        best.filter(|(likeness, _)| *likeness > 0.5).map(|(_, name)| name.as_str())
    }

    /// The configuration, with a word on what is for verl alone.
    pub(crate) fn finish(mut self) -> Result<Read> {
        if self.only_verls > 0 {
            let only = self.only_verls;
            self.notes.push(format!("{only} key(s) under `verl:` are passed over: they are for verl alone"));
        }
        let config = self.config()?;
        Ok(Read { config, verl: self.verl, notes: self.notes })
    }

    fn config(&self) -> Result<Config> {
        let tree = nested(self.values.iter().map(|(key, value)| (key.as_str(), value.clone())));
        serde_path_to_error::deserialize(Value::Object(tree)).map_err(|error| {
            let key = error.path().to_string();
            let problem = error.into_inner().to_string();
            // The path ends within the value where that is a list.
            let from =
                self.from.iter().find(|(name, _)| key == **name || key.starts_with(&format!("{name}[")));
            match from {
                Some((_, entry)) => entry.error(problem),
                None => Error::option(key, problem),
            }
        })
    }
}

/// Leaves by their keys as the tree that they are of.
pub(crate) fn nested<'a>(leaves: impl Iterator<Item = (&'a str, Value)>) -> Map<String, Value> {
    let mut tree = Map::new();
    for (key, value) in leaves {
        insert(&mut tree, key, value);
    }
    tree
}

/// Puts a leaf back into the tree.
fn insert(tree: &mut Map<String, Value>, key: &str, value: Value) {
    match key.split_once('.') {
        None => drop(tree.insert(key.to_owned(), value)),
        Some((section, rest)) => {
            let inside = tree.entry(section).or_insert_with(|| Value::Object(Map::new()));
            if let Value::Object(inside) = inside {
                insert(inside, rest, value);
            }
        }
    }
}

/// Where figures can go.
const LOGGERS: [&str; 2] = ["console", "tensorboard"];

/// The value as it is written here: -1 for no limit, one file in a list.
fn usual(key: &str, value: Value) -> Value {
    match (key, value) {
        (
            "trainer.total_training_steps" | "trainer.max_actor_ckpt_to_keep" | "sft.total_training_steps",
            value,
        ) if value.as_i64() == Some(-1) => Value::Null,
        ("data.train_files" | "data.val_files", Value::Array(files)) if files.len() == 1 => files[0].clone(),
        (_, value) => value,
    }
}

/// `~/` is the home folder, as a shell would have it.
fn home(path: &str) -> String {
    let expanded = path.strip_prefix("~/").zip(std::env::home_dir());
    expanded.map_or_else(|| path.to_owned(), |(rest, home)| home.join(rest).to_string_lossy().into_owned())
}

/// `key=value`; Hydra's `+key=value` is the same.
pub(crate) fn argument(text: &str) -> Result<Entry> {
    let Some((key, value)) = text.split_once('=') else {
        return Err(Error::option(text, "is not key=value, such as algorithm.adv_estimator=grpo"));
    };
    let is_added = key.starts_with('+');
    let key = key.trim_start_matches('+').to_owned();
    if key.starts_with('~') {
        return Err(Error::option(key, "a key cannot be taken out; give it the value null"));
    }
    let entry = |value| Entry { key: key.clone(), value, place: Place::Argument, is_added };
    if value.trim().is_empty() {
        return Err(entry(Value::Null).error("has no value after `=`; write null for none"));
    }
    let unreadable =
        |problem: &str| entry(Value::Null).error(format!("`{value}` cannot be read ({problem})"));
    let nodes = MarkedYaml::load_from_str(value).map_err(|error| unreadable(error.info()))?;
    let node = nodes.first().ok_or_else(|| unreadable("it is empty"))?;
    let read = json(node).ok_or_else(|| unreadable("it is no number, text, truth value or list"))?;
    Ok(entry(read))
}

/// The file's leaves in its order.
fn entries(path: &Path) -> Result<Vec<Entry>> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::file(path, error))?;
    entries_of(path, &text)
}

/// The leaves of a file that says this.
pub(crate) fn entries_of(path: &Path, text: &str) -> Result<Vec<Entry>> {
    let nodes = MarkedYaml::load_from_str(text).map_err(|error| {
        Error::file(path, format!("line {}: is not YAML ({})", error.marker().line(), error.info()))
    })?;
    let mut found = Vec::new();
    match nodes.as_slice() {
        [] => {}
        [MarkedYaml { data: YamlData::Value(Scalar::Null), .. }] => {}
        [root] => leaves(path, "", root, &mut found)?,
        _ => return Err(Error::file(path, "holds more than one document; a configuration is one")),
    }
    Ok(found)
}

fn leaves(path: &Path, prefix: &str, node: &MarkedYaml<'_>, found: &mut Vec<Entry>) -> Result<()> {
    let at = |node: &MarkedYaml<'_>| Place::Line(path.to_owned(), node.span.start.line());
    let entry = |value| Entry { key: prefix.to_owned(), value, place: at(node), is_added: false };
    if let YamlData::Mapping(section) = &node.data {
        for (name, value) in section {
            let Some(name) = name.data.as_str() else {
                let problem = format!("line {}: a key is not text", name.span.start.line());
                return Err(Error::file(path, problem));
            };
            let key = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
            leaves(path, &key, value, found)?;
        }
        return Ok(());
    }
    if prefix.is_empty() {
        return Err(Error::file(path, "is not a configuration; write sections such as `algorithm:`"));
    }
    match json(node) {
        Some(value) => found.push(entry(value)),
        None => return Err(entry(Value::Null).error("is no number, text, truth value or list")),
    }
    Ok(())
}

/// A scalar, or a list of scalars.
fn json(node: &MarkedYaml<'_>) -> Option<Value> {
    Some(match &node.data {
        YamlData::Value(Scalar::Null) => Value::Null,
        YamlData::Value(Scalar::Boolean(value)) => (*value).into(),
        YamlData::Value(Scalar::Integer(value)) => (*value).into(),
        YamlData::Value(Scalar::FloatingPoint(value)) => value.into_inner().into(),
        YamlData::Value(Scalar::String(value)) => value.as_ref().into(),
        YamlData::Sequence(list) => list.iter().map(json).collect::<Option<Vec<_>>>()?.into(),
        _ => return None,
    })
}
