//! GSM8K from the Hugging Face hub.

use std::path::Path;

use super::data::Dataset;
use crate::Result;
pub use crate::hub::Hub;
use crate::problem::parquet;

/// The dataset's name on the hub.
pub const DATASET: &str = "openai/gsm8k";

/// Both splits of GSM8K; files that are in the cache already are not fetched again.
///
/// # Errors
/// `unsupported` if the hub cannot be reached, `file` if what it sent cannot be read.
pub fn gsm8k(hub: &Hub) -> Result<Dataset> {
    let advice = "check the network or HF_ENDPOINT, or give a folder with train.jsonl and test.jsonl as data.train_files";
    let fetched =
        |split: &str| hub.dataset_file(DATASET, &format!("main/{split}-00000-of-00001.parquet"), advice);
    let (train, test) = (fetched("train")?, fetched("test")?);
    Ok(Dataset {
        train: parquet(&train)?,
        test: parquet(&test)?,
        source: format!("GSM8K from the hub ({DATASET}, kept in {})", folder_of(&train).display()),
        level: None,
    })
}

fn folder_of(file: &Path) -> &Path {
    file.parent().unwrap_or(file)
}
