//! Language models over libtorch: a transformer, its weights and tokenizer, batched generation.
//!
//! [`Llm::load`] takes a GGUF file or a Hugging Face directory; both end in the same [`model::Model`].

pub mod checkpoint;
pub mod config;
mod decode;
pub mod generate;
pub mod gguf;
mod graph;
pub mod lora;
pub mod model;
mod random;
mod sample;
mod save;
pub mod tokenizer;
mod weights;

use std::path::Path;

use tch::{Device, Kind};

use crate::hub::{self, Hub};
use crate::{Error, Result};
pub use checkpoint::Checkpointed;
use config::Config;
pub use generate::{Generation, Sampling, generate};
use gguf::Gguf;
pub use lora::Lora;
pub use model::Model;
pub use tokenizer::{Message, Role, TOKENIZER_FILES, Tokenizer};
use weights::Weights;

/// A language model with its tokenizer.
pub struct Llm {
    /// The transformer.
    pub model: Model,
    /// Text to tokens and back, with the model's own chat template.
    pub tokenizer: Tokenizer,
}

impl Llm {
    /// Loads a `.gguf` file, a Hugging Face directory (`config.json`, safetensors, `tokenizer.json`), or, if there is
    /// no such path, the model of this name on the hub (`org/name`), onto `device` with parameters of `kind`.
    ///
    /// # Errors
    /// One sentence that names the file: it is missing, truncated, corrupt, or of an architecture,
    /// quantisation or tokenizer that is not supported; or the hub could not be reached.
    pub fn load(path: &Path, device: Device, kind: Kind) -> Result<Self> {
        if !matches!(kind, Kind::Float | Kind::Double | Kind::BFloat16 | Kind::Half) {
            return Err(Error::option(
                "kind",
                format!("{kind:?} cannot hold weights; use Float or BFloat16"),
            ));
        }
        let fetched = match !path.exists() && hub::is_id(path) {
            true => {
                let hub = Hub { progress: true, ..Hub::default() };
                Some(hub.model(&path.display().to_string(), &TOKENIZER_FILES)?)
            }
            false => None,
        };
        let path = fetched.as_deref().unwrap_or(path);
        let (config, mut weights, tokenizer) = if path.is_dir() {
            let config = Config::from_directory(path)?;
            (config, Weights::from_directory(path)?, Tokenizer::from_directory(path)?)
        } else if path.exists() {
            let gguf = Gguf::open(path)?;
            let config = Config::from_gguf(&gguf)?;
            let weights = Weights::from_gguf(&gguf, &config)?;
            (config, weights, Tokenizer::from_gguf(&gguf)?)
        } else {
            let problem = "there is no such file or directory; ./setup fetches the demo model into models/";
            return Err(Error::file(path, problem));
        };
        if tokenizer.token_limit() > config.vocab_size {
            let (tokens, rows) = (tokenizer.token_limit(), config.vocab_size);
            let problem =
                format!("the tokenizer has ids up to {} but the model only {rows} embeddings", tokens - 1);
            return Err(Error::file(path, format!("{problem}; they are not of one model")));
        }
        let model = Model::new(config, &mut weights, device, kind)?;
        weights.finish()?;
        Ok(Self { model, tokenizer })
    }
}
