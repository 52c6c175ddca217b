//! The keys of verl 0.9.1's own configuration with their defaults: `tree.txt`, which
//! `tests/python/check_verl_config.py --tree` writes from the installed verl.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::keys::Engine;

struct Leaf {
    /// `d` for FSDP, `m` for Megatron.
    engines: &'static str,
    default: Value,
}

static TREE: LazyLock<BTreeMap<&'static str, Leaf>> = LazyLock::new(|| {
    let leaves = include_str!("tree.txt").lines().filter_map(|line| {
        let mut parts = line.splitn(3, ' ');
        let (key, engines) = (parts.next()?, parts.next()?);
        let default = serde_json::from_str(parts.next()?).ok()?;
        Some((key, Leaf { engines, default }))
    });
    leaves.collect()
});

/// Whether this engine's configuration has the key.
pub(super) fn has(key: &str, engine: Engine) -> bool {
    TREE.get(key).is_some_and(|leaf| leaf.engines.contains(engine.letter()))
}

/// Whether any engine's configuration has the key.
pub(super) fn knows(key: &str) -> bool {
    TREE.contains_key(key)
}

/// Whether the key lies in a section that takes any.
pub(super) fn is_open(key: &str) -> bool {
    let mut above = key.match_indices('.').map(|(at, _)| &key[..at]);
    let empty = |default: &Value| default.is_null() || default.as_object().is_some_and(Map::is_empty);
    let takes_any = |section: &str| TREE.get(section).is_some_and(|leaf| empty(&leaf.default));
    above.any(|section| takes_any(section) || section.ends_with(".override_transformer_config"))
}

/// What verl takes where nothing is said; `None` for a key that there is not, one that has to be said, and one that is
/// told from others.
pub(super) fn default(key: &str) -> Option<&'static Value> {
    let default = &TREE.get(key)?.default;
    let told = default.as_str().is_some_and(|text| text == "???" || text.contains("${"));
    (!told).then_some(default)
}

/// All keys.
pub(super) fn keys() -> impl Iterator<Item = &'static str> {
    TREE.keys().copied()
}
