//! Writing a model as a Hugging Face directory, whole or not at all.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::Path;

use safetensors::tensor::{Dtype, View};
use serde_json::{Map, Value, json};
use tch::{Kind, Tensor};

use super::TOKENIZER_FILES;
use super::config::{Architecture, Config, RopeScaling};
use super::{Llm, Model, Tokenizer};
use crate::{Error, Result, file};

/// The most bytes of a shard.
const SHARD: usize = 4 << 30;

impl Llm {
    /// Writes a directory that transformers loads, and [`Llm::load`]: `config.json`, the weights in their present kind
    /// (adapters merged into them), and the tokenizer's files as they were read; those that a GGUF file does not have
    /// are made. A directory that was saved before is replaced; one with anything else in it is not.
    ///
    /// # Errors
    /// `file` if the directory cannot be written or holds something else; `unsupported` for a model that `config.json`
    /// cannot describe.
    pub fn save(&self, directory: &Path) -> Result<()> {
        let config = config(self.model.config(), self.model.kind(), &self.tokenizer)?;
        replace(directory, |directory| {
            write_json(&directory.join("config.json"), &config)?;
            for (name, content) in self.tokenizer.files()? {
                write(&directory.join(name), content)?;
            }
            write_weights(directory, &self.model, SHARD)
        })
    }
}

/// Puts what `fill` writes in the place of a directory that was saved before, or where there is none.
pub(super) fn replace(directory: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    file::replace_folder(directory, is_saved, fill)
}

/// The key and value by which safetensors files that were written here are known.
const MARK: (&str, &str) = ("saved_by", "grpo-oracle");

/// Checks that a directory holds nothing but what was saved here, so that nobody's files are lost with it.
fn is_saved(directory: &Path) -> Result<()> {
    let other = |name: String| {
        Error::file(directory, format!("holds {name}, which was not saved here; name another directory"))
    };
    if !directory.is_dir() {
        return Err(Error::file(directory, "is not a directory; name another one"));
    }
    let entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<std::io::Result<Vec<_>>>)
        .map_err(|e| Error::file(directory, format!("cannot be read ({e})")))?;
    let mut marked = false;
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let weights = name.ends_with(".safetensors") && has_mark(&entry.path());
        if !weights && !TOKENIZER_FILES.contains(&name.as_str()) && !DESCRIPTIONS.contains(&name.as_str()) {
            return Err(other(format!("`{name}`")));
        }
        marked |= weights;
    }
    if marked { Ok(()) } else { Err(other("a model".into())) }
}

/// What else a saved directory holds.
const DESCRIPTIONS: [&str; 3] = ["config.json", "model.safetensors.index.json", "adapter_config.json"];

/// A safetensors file starts with the length of its header, which is JSON.
fn has_mark(path: &Path) -> bool {
    let header = fs::File::open(path).and_then(|mut file| {
        let (mut length, mut header) = ([0; 8], Vec::new());
        file.read_exact(&mut length)?;
        file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
        Ok(header)
    });
    let header = header.ok().and_then(|header| serde_json::from_slice::<Value>(&header).ok());
    header.is_some_and(|header| header["__metadata__"][MARK.0] == MARK.1)
}

/// What `config.json` says, in the words that every version of transformers understands.
fn config(config: &Config, kind: Kind, tokenizer: &Tokenizer) -> Result<Value> {
    let mut json = json!({
        "architectures": [config.architecture.class()],
        "model_type": config.architecture.model_type(),
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_hidden_layers,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": config.max_position_embeddings,
        "rms_norm_eps": config.rms_norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": rope_scaling(&config.rope_scaling)?,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": 0.02,
        "use_cache": true,
        "torch_dtype": kind_name(kind)?,
        "bos_token_id": tokenizer.bos_id(),
        "eos_token_id": one_or_list(tokenizer.stop_tokens()),
        "pad_token_id": tokenizer.pad_token(),
    });
    match config.architecture {
        Architecture::Llama => {
            json["attention_bias"] = config.attention_bias.into();
            json["mlp_bias"] = config.mlp_bias.into();
        }
        Architecture::Qwen2 => json["use_sliding_window"] = false.into(),
        Architecture::Qwen3 => {
            json["attention_bias"] = config.attention_bias.into();
            json["use_sliding_window"] = false.into();
        }
    }
    Ok(json)
}

fn rope_scaling(scaling: &RopeScaling) -> Result<Value> {
    match scaling {
        RopeScaling::None => Ok(Value::Null),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => Ok(json!({
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low_freq_factor,
            "high_freq_factor": high_freq_factor,
            "original_max_position_embeddings": *original_max_position_embeddings as i64,
        })),
        RopeScaling::Factors(_) => Err(Error::Unsupported {
            what: "a model whose GGUF file lists its rotary factors one by one cannot be saved, because config.json \
                   has no place for them; load its Hugging Face directory instead"
                .into(),
        }),
    }
}

/// Token ids as transformers writes them.
pub(super) fn one_or_list(ids: &[i64]) -> Value {
    match ids {
        [id] => json!(id),
        ids => json!(ids),
    }
}

fn kind_name(kind: Kind) -> Result<&'static str> {
    match kind {
        Kind::Float => Ok("float32"),
        Kind::BFloat16 => Ok("bfloat16"),
        Kind::Half => Ok("float16"),
        Kind::Double => Ok("float64"),
        other => Err(Error::Unsupported { what: format!("weights of the kind {other:?} cannot be saved") }),
    }
}

/// `model.safetensors`, or shards of at most `limit` bytes with their index.
fn write_weights(directory: &Path, model: &Model, limit: usize) -> Result<()> {
    let parameters = model.merged().parameters();
    let bytes = |tensor: &Tensor| tensor.numel() * tensor.kind().elt_size_in_bytes();
    let total: usize = parameters.iter().map(|(_, tensor)| bytes(tensor)).sum();
    let (mut shards, mut room) = (vec![Vec::new()], limit);
    for (name, tensor) in parameters {
        let size = bytes(&tensor);
        if size > room && shards.last().is_some_and(|shard: &Vec<_>| !shard.is_empty()) {
            shards.push(Vec::new());
            room = limit;
        }
        room = room.saturating_sub(size);
        shards.last_mut().into_iter().for_each(|shard| shard.push((name.clone(), tensor.shallow_clone())));
    }
    if let [only] = shards.as_slice() {
        return write_tensors(&directory.join("model.safetensors"), only);
    }
    let mut weight_map = Map::new();
    for (index, shard) in shards.iter().enumerate() {
        let name = format!("model-{:05}-of-{:05}.safetensors", index + 1, shards.len());
        write_tensors(&directory.join(&name), shard)?;
        weight_map.extend(shard.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
    write_json(&directory.join("model.safetensors.index.json"), &index)
}

/// A safetensors file of these tensors.
pub(super) fn write_tensors(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    let views =
        tensors.iter().map(|(name, tensor)| Ok((name, Bytes::of(tensor)?))).collect::<Result<Vec<_>>>()?;
    let metadata = [("format", "pt"), MARK].map(|(key, value)| (key.to_owned(), value.to_owned()));
    safetensors::serialize_to_file(views, Some(HashMap::from(metadata)), path)
        .map_err(|e| Error::file(path, format!("cannot be written: {e}")))
}

/// A tensor as safetensors wants to see it; copied from its device when its turn comes.
struct Bytes<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
    dtype: Dtype,
}

impl<'a> Bytes<'a> {
    fn of(tensor: &'a Tensor) -> Result<Self> {
        let dtype = match kind_name(tensor.kind())? {
            "float32" => Dtype::F32,
            "bfloat16" => Dtype::BF16,
            "float16" => Dtype::F16,
            _ => Dtype::F64,
        };
        Ok(Self { tensor, shape: tensor.size().iter().map(|&size| size as usize).collect(), dtype })
    }
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        let tensor = self.tensor.detach().to_device(tch::Device::Cpu).contiguous();
        tensor.copy_data_u8(&mut bytes, tensor.numel());
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Indented JSON with a line end.
pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    write(path, format!("{value:#}\n"))
}

fn write(path: &Path, content: impl AsRef<[u8]>) -> Result<()> {
    fs::write(path, content).map_err(|problem| file::unwritable(path, &problem))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn a_large_model_is_saved_in_shards() {
        let directory = tempfile::tempdir().unwrap();
        let llm = Llm::load(Path::new("fixtures/llm/tiny-qwen2"), Device::Cpu, Kind::Float).unwrap();
        llm.save(&directory.path().join("model")).unwrap();
        let path = directory.path().join("model");
        fs::remove_file(path.join("model.safetensors")).unwrap();
        write_weights(&path, &llm.model, 20_000).unwrap();
        let sizes: Vec<u64> = fs::read_dir(&path)
            .unwrap()
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_name().to_string_lossy().ends_with(".safetensors"))
            .map(|entry| entry.metadata().unwrap().len())
            .collect();
        assert!(sizes.len() > 2 && sizes.iter().all(|&size| size < 24_000), "{sizes:?}");
        let again = Llm::load(&path, Device::Cpu, Kind::Float).unwrap();
        for ((name, a), (other, b)) in llm.model.parameters().into_iter().zip(again.model.parameters()) {
            assert_eq!((name, a), (other, b));
        }
    }
}
