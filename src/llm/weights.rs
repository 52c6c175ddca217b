//! A model's tensors by their Hugging Face names, from a GGUF file or from safetensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tch::Tensor;

use super::config::{Architecture, Config};
use super::gguf::Gguf;
use crate::{Error, Result};

/// Tensors on the CPU under their Hugging Face names; the model takes them out one by one.
pub(super) struct Weights {
    path: PathBuf,
    tensors: BTreeMap<String, Tensor>,
}

impl Weights {
    /// All tensors of a GGUF file, in f32.
    pub(super) fn from_gguf(gguf: &Gguf, config: &Config) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for name in gguf.tensor_names().filter(|&name| name != "rope_freqs.weight") {
            let Some(tensor) = gguf.tensor(name)? else { continue };
            let heads = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
                Some((_, "attn_q.weight" | "attn_q.bias")) => Some(config.num_attention_heads),
                Some((_, "attn_k.weight" | "attn_k.bias")) => Some(config.num_key_value_heads),
                _ => None,
            };
            let heads = heads.filter(|_| config.architecture == Architecture::Llama);
            let tensor = match heads {
                Some(heads) => halves(&tensor, heads).ok_or_else(|| {
                    gguf.error(format!("tensor `{name}` does not divide into {heads} heads"))
                })?,
                None => tensor,
            };
            tensors.insert(hugging_face_name(name), tensor);
        }
        Ok(Self { path: gguf.path().to_owned(), tensors })
    }

    /// All tensors of `model.safetensors`, or of the shards that `model.safetensors.index.json` names.
    pub(super) fn from_directory(directory: &Path) -> Result<Self> {
        let index = directory.join("model.safetensors.index.json");
        let files = if index.is_file() { shards(&index)? } else { ["model.safetensors".to_owned()].into() };
        let mut tensors = BTreeMap::new();
        for file in files.iter().map(|file| directory.join(file)) {
            if !file.is_file() {
                return Err(Error::file(
                    file,
                    "is not there; a model's directory needs its weights as safetensors",
                ));
            }
            for (name, tensor) in read_tensors(&file)? {
                // Old checkpoints carry a table that every reader computes anew.
                if !name.ends_with("rotary_emb.inv_freq") {
                    tensors.insert(name, tensor);
                }
            }
        }
        Ok(Self { path: directory.to_owned(), tensors })
    }

    /// Takes the tensor of this name out.
    ///
    /// # Errors
    /// There is none, or it has another shape.
    pub(super) fn take(&mut self, name: &str, shape: &[i64]) -> Result<Tensor> {
        let tensor = self.tensors.remove(name);
        let tensor = tensor
            .ok_or_else(|| Error::file(&self.path, format!("has no tensor `{name}`; it is incomplete")))?;
        if tensor.size() != shape {
            let got = tensor.size();
            let problem = format!("tensor `{name}` has the shape {got:?} where the config wants {shape:?}");
            return Err(Error::file(&self.path, problem));
        }
        Ok(tensor)
    }

    /// Drops a tensor that the model has no use for.
    pub(super) fn ignore(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// Checks that the model took everything: a tensor left over means that it computes something else.
    pub(super) fn finish(self) -> Result<()> {
        match self.tensors.keys().next() {
            None => Ok(()),
            Some(name) => {
                let others = self.tensors.len() - 1;
                let problem = format!(
                    "has the tensor `{name}` (and {others} others) that a model with its config does not have"
                );
                Err(Error::file(self.path, problem))
            }
        }
    }
}

/// All tensors of a safetensors file.
pub(super) fn read_tensors(file: &Path) -> Result<Vec<(String, Tensor)>> {
    let read = Tensor::read_safetensors(file).map_err(|e| {
        Error::file(file, format!("is truncated or no safetensors file ({e}); fetch it again"))
    })?;
    match read.iter().find(|(_, tensor)| !tensor.is_floating_point()) {
        None => Ok(read),
        Some((name, tensor)) => {
            let kind = tensor.kind();
            Err(Error::file(file, format!("stores `{name}` as {kind:?}; weights must be floating-point")))
        }
    }
}

/// Puts the rows of each head back: Llama's GGUF files have the two entries of a rotary pair side by side, where
/// Hugging Face has them in the head's two halves.
fn halves(tensor: &Tensor, heads: i64) -> Option<Tensor> {
    let rows = *tensor.size().first()?;
    (rows % (2 * heads) == 0)
        .then(|| tensor.view([heads, rows / heads / 2, 2, -1]).transpose(1, 2).reshape(tensor.size()))
}

fn hugging_face_name(name: &str) -> String {
    let part = |part: &str| match part {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => "",
    };
    match name.split('.').collect::<Vec<_>>().as_slice() {
        ["token_embd", "weight"] => "model.embed_tokens.weight".into(),
        ["output_norm", "weight"] => "model.norm.weight".into(),
        ["output", "weight"] => "lm_head.weight".into(),
        ["blk", layer, name, kind @ ("weight" | "bias")] if !part(name).is_empty() => {
            format!("model.layers.{layer}.{}.{kind}", part(name))
        }
        // Left as it is, so that it is named as one that does not belong.
        _ => name.to_owned(),
    }
}

/// The files that an index names.
fn shards(index: &Path) -> Result<BTreeSet<String>> {
    #[derive(Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let at = |problem: String| Error::file(index, problem);
    let text = std::fs::read_to_string(index).map_err(|e| at(format!("cannot be read ({e})")))?;
    let Index { weight_map } =
        serde_json::from_str(&text).map_err(|e| at(format!("is not an index of shards ({e})")))?;
    let files: BTreeSet<String> = weight_map.into_values().collect();
    match files.iter().find(|file| Path::new(file).file_name().is_none_or(|name| name != file.as_str())) {
        Some(file) => Err(at(format!("names the shard `{file}`, which is not a file beside it"))),
        None => Ok(files),
    }
}

impl Weights {
    /// Tensors that are in no file; `name` stands for it in errors.
    pub(super) fn in_memory(name: &str, tensors: BTreeMap<String, Tensor>) -> Self {
        Self { path: PathBuf::from(name), tensors }
    }
}
