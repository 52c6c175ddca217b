//! GSM8K from the Hugging Face hub.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{ApiBuilder, ApiError};

use super::data::{self, Dataset};
use crate::{Error, Result};

/// The dataset's name on the hub.
pub const DATASET: &str = "openai/gsm8k";

/// Where files are fetched from and kept; what is left open comes from `HF_ENDPOINT` and `HF_HOME`, or is the hub's
/// usual place.
#[derive(Debug, Clone, Default)]
pub struct Hub {
    /// The address of the hub.
    pub endpoint: Option<String>,
    /// The folder that keeps downloaded files.
    pub cache: Option<PathBuf>,
    /// Whether to draw a progress bar for each download.
    pub progress: bool,
}

/// Both splits of GSM8K; files that are in the cache already are not fetched again.
///
/// # Errors
/// `unsupported` if the hub cannot be reached, `file` if what it sent cannot be read.
pub fn gsm8k(hub: &Hub) -> Result<Dataset> {
    let mut builder = ApiBuilder::from_env().with_progress(hub.progress);
    if let Some(endpoint) = &hub.endpoint {
        builder = builder.with_endpoint(endpoint.clone());
    }
    if let Some(cache) = &hub.cache {
        builder = builder.with_cache_dir(cache.clone());
    }
    let dataset = builder.build().map_err(|error| unreachable_hub(&error))?.dataset(DATASET.to_owned());
    let fetched = |file: &str| dataset.get(file).map_err(|error| unreachable_hub(&error));
    let train = fetched("main/train-00000-of-00001.parquet")?;
    let test = fetched("main/test-00000-of-00001.parquet")?;
    Ok(Dataset {
        train: data::parquet(&train)?,
        test: data::parquet(&test)?,
        source: format!("GSM8K from the hub ({DATASET}, kept in {})", folder_of(&train).display()),
        level: None,
    })
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}

fn unreachable_hub(error: &ApiError) -> Error {
    let what = format!(
        "{DATASET} could not be fetched from the hub ({error}); check the network or HF_ENDPOINT, \
         or give a folder with train.jsonl and test.jsonl with --data"
    );
    Error::Unsupported { what: what.replace('\n', " ") }
}
