//! Files from the Hugging Face hub: fetched once, kept in the hub's usual cache, gone on with where a download broke off.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError, ApiRepo};
use hf_hub::{Cache, CacheRepo, Repo, RepoType};
use serde::Deserialize;

use crate::{Error, Result};

/// Where files are fetched from and kept; what is left open comes from `HF_ENDPOINT`, `HF_HOME` and `HF_HUB_OFFLINE`, or
/// is the hub's usual place.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// The address of the hub.
    pub endpoint: Option<String>,
    /// The folder that keeps downloaded files.
    pub cache: Option<PathBuf>,
    /// Whether to draw a progress bar for each download.
    pub progress: bool,
    /// Whether to use what is kept already and nothing else.
    pub offline: Option<bool>,
}

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const WEIGHTS: &str = "model.safetensors";

/// How often a download that breaks off is gone on with.
const ATTEMPTS: usize = 5;

/// Whether a path looks like a model's name on the hub, `org/name`.
pub fn is_id(path: &Path) -> bool {
    let word = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
    };
    let id = path.to_str().and_then(|text| text.split_once('/'));
    id.is_some_and(|(org, name)| word(org) && word(name) && !name.ends_with(".gguf"))
}

impl Hub {
    /// The directory of a model, such as `HuggingFaceTB/SmolLM2-135M-Instruct`: its config, safetensors
    /// and, as far as the hub has them, the files `beside`.
    /// What is in the cache as a whole is not asked for again.
    ///
    /// # Errors
    /// `unsupported` if the hub cannot be reached or has no such model, or, offline, if the cache lacks a file.
    pub fn model(&self, id: &str, beside: &[&str]) -> Result<PathBuf> {
        let kept = self.kept(RepoType::Model, id);
        let missing = match missing_file(&kept) {
            None => return folder_of(&kept, id),
            Some(missing) => missing,
        };
        let advice = "there is no such directory here, so check the name, the network or HF_ENDPOINT";
        if self.is_offline() {
            return Err(not_kept(id, missing));
        }
        let remote = self.remote(RepoType::Model, id, advice)?;
        let info = remote.info().map_err(|error| unreachable_hub(id, &error, advice))?;
        let there: Vec<&str> = info.siblings.iter().map(|sibling| sibling.rfilename.as_str()).collect();
        let fetch = |file: &str| fetch(&remote, file).map_err(|error| unreachable_hub(id, &error, advice));
        // The weights last: a cache that has them has everything.
        for file in [CONFIG].iter().chain(beside).chain([&INDEX]).filter(|file| there.contains(file)) {
            fetch(file)?;
        }
        for file in weights(&kept) {
            if !there.contains(&file.as_str()) {
                let what = format!("{id} on the hub has no {file}; only safetensors are read");
                return Err(Error::Unsupported { what });
            }
            fetch(&file)?;
        }
        match missing_file(&kept) {
            None => folder_of(&kept, id),
            Some(missing) => Err(Error::Unsupported {
                what: format!("{id} on the hub has no {missing}, which a model needs"),
            }),
        }
    }

    /// A file of a dataset; `advice` ends the sentence of an error.
    ///
    /// # Errors
    /// `unsupported` if the hub cannot be reached or has no such file, or, offline, if the cache lacks it.
    pub fn dataset_file(&self, id: &str, file: &str, advice: &str) -> Result<PathBuf> {
        if let Some(path) = self.kept(RepoType::Dataset, id).get(file) {
            return Ok(path);
        }
        if self.is_offline() {
            return Err(not_kept(id, file.to_owned()));
        }
        let remote = self.remote(RepoType::Dataset, id, advice)?;
        fetch(&remote, file).map_err(|error| unreachable_hub(id, &error, advice))
    }

    fn is_offline(&self) -> bool {
        let said = |value: String| ["1", "ON", "YES", "TRUE"].contains(&value.to_uppercase().as_str());
        self.offline.unwrap_or_else(|| std::env::var("HF_HUB_OFFLINE").is_ok_and(said))
    }

    fn kept(&self, kind: RepoType, id: &str) -> CacheRepo {
        let cache = self.cache.clone().map_or_else(Cache::from_env, Cache::new);
        cache.repo(Repo::new(id.to_owned(), kind))
    }

    fn remote(&self, kind: RepoType, id: &str, advice: &str) -> Result<ApiRepo> {
        let mut builder = ApiBuilder::from_env().with_progress(self.progress);
        if let Some(cache) = &self.cache {
            builder = builder.with_cache_dir(cache.clone());
        }
        if let Some(endpoint) = &self.endpoint {
            builder = builder.with_endpoint(endpoint.clone());
        }
        let api = builder.build().map_err(|error| unreachable_hub(id, &error, advice))?;
        Ok(api.repo(Repo::new(id.to_owned(), kind)))
    }
}

/// A file from the cache or the hub. What a broken download left is gone on with; the crate's own retrying would put the
/// file's beginning behind it.
fn fetch(remote: &ApiRepo, file: &str) -> std::result::Result<PathBuf, ApiError> {
    let mut result = remote.get(file);
    for _ in 1..ATTEMPTS {
        match &result {
            Err(ApiError::IoError(_)) => result = remote.get(file),
            _ => break,
        }
    }
    result
}

/// The files of a model's weights: those that its index names, or the one.
fn weights(kept: &CacheRepo) -> Vec<String> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let text = kept.get(INDEX).and_then(|path| std::fs::read_to_string(path).ok());
    match text.and_then(|text| serde_json::from_str::<Index>(&text).ok()) {
        Some(index) => {
            let files: BTreeSet<String> = index.weight_map.into_values().collect();
            // What is no file beside the index is refused when the model is loaded.
            files.into_iter().filter(|file| Path::new(file).file_name() == Some(file.as_ref())).collect()
        }
        None => vec![WEIGHTS.to_owned()],
    }
}

/// The first file that the cache lacks of a whole model.
fn missing_file(kept: &CacheRepo) -> Option<String> {
    let needed = [CONFIG, "tokenizer.json"].map(str::to_owned).into_iter().chain(weights(kept));
    needed.into_iter().find(|file| kept.get(file).is_none())
}

fn folder_of(kept: &CacheRepo, id: &str) -> Result<PathBuf> {
    let config = kept.get(CONFIG);
    config.and_then(|path| path.parent().map(Path::to_owned)).ok_or_else(|| not_kept(id, CONFIG.to_owned()))
}

fn not_kept(id: &str, file: String) -> Error {
    Error::Unsupported {
        what: format!(
            "{id} is not whole in the hub's cache, which lacks {file}; unset HF_HUB_OFFLINE to fetch it, or set \
             HF_HOME to where it is kept"
        ),
    }
}

fn unreachable_hub(id: &str, error: &ApiError, advice: &str) -> Error {
    // A download that was ended between its last byte and its new name: there is no range behind the end.
    let whole_part = error.to_string().contains("416");
    let advice =
        if whole_part { "delete the .part files below the cache's blobs and try again" } else { advice };
    let what = format!("{id} could not be fetched from the hub ({error}); {advice}");
    Error::Unsupported { what: what.replace('\n', " ") }
}
