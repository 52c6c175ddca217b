//! The sizes and constants of a model, from a GGUF file's metadata or a `config.json`.

use std::path::Path;

use serde::Deserialize;

use super::gguf::Gguf;
use crate::{Error, Result};

/// The sizes and constants of a model, under their names in `config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Which family's transformer this is.
    pub architecture: Architecture,
    /// Rows of the embedding table.
    pub vocab_size: i64,
    /// Width of the residual stream.
    pub hidden_size: i64,
    /// Width inside the feed-forward blocks.
    pub intermediate_size: i64,
    /// Number of layers.
    pub num_hidden_layers: i64,
    /// Number of query heads.
    pub num_attention_heads: i64,
    /// Number of key and value heads; divides the number of query heads.
    pub num_key_value_heads: i64,
    /// Width of one head.
    pub head_dim: i64,
    /// The longest sequence that the model was made for, in tokens.
    pub max_position_embeddings: i64,
    /// Added to the mean square in the norms.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding's wavelengths.
    pub rope_theta: f64,
    /// How the rotary wavelengths are stretched for longer contexts.
    pub rope_scaling: RopeScaling,
    /// Whether the output head is the embedding table.
    pub tie_word_embeddings: bool,
    /// Whether all four maps of attention add a bias; Qwen2's first three do in any case.
    pub attention_bias: bool,
    /// Whether the maps of the feed-forward blocks add a bias.
    pub mlp_bias: bool,
}

/// The families of transformers that there are here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, SmolLM2.
    Llama,
    /// Qwen2 and Qwen2.5: queries, keys and values with a bias.
    Qwen2,
    /// Qwen3: a norm of each head of the queries and the keys.
    Qwen3,
}

impl Architecture {
    const ALL: [Self; 3] = [Self::Llama, Self::Qwen2, Self::Qwen3];

    /// Its name in GGUF files and as `model_type`.
    pub fn model_type(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }

    /// Its name among a config's `architectures`.
    pub fn class(self) -> &'static str {
        match self {
            Self::Llama => "LlamaForCausalLM",
            Self::Qwen2 => "Qwen2ForCausalLM",
            Self::Qwen3 => "Qwen3ForCausalLM",
        }
    }

    fn named(name: &str) -> std::result::Result<Self, String> {
        let found = Self::ALL.into_iter().find(|known| [known.model_type(), known.class()].contains(&name));
        found.ok_or_else(|| {
            format!("is a model of the architecture `{name}`; Llama (SmolLM2), Qwen2, Qwen2.5 and Qwen3 are supported")
        })
    }
}

/// How the rotary wavelengths are stretched for longer contexts.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// As in Llama 3.1: long wavelengths by `factor`, short ones not, with a ramp between.
    Llama3 {
        /// The stretch of the long wavelengths.
        factor: f64,
        /// Wavelengths over `original_max_position_embeddings / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_position_embeddings / high_freq_factor` are short.
        high_freq_factor: f64,
        /// The context that the model was first trained with.
        original_max_position_embeddings: f64,
    },
    /// One stretch for each of the `head_dim / 2` wavelengths, as GGUF stores Llama 3.1's.
    Factors(Vec<f64>),
}

impl Config {
    /// From a GGUF file's metadata.
    ///
    /// # Errors
    /// The architecture or a variant is not supported, a key is missing or of the wrong type.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let name = gguf.text("general.architecture")?.unwrap_or("unnamed");
        let architecture = Architecture::named(name).map_err(|problem| gguf.error(problem))?;
        let size = |key: &str| -> Result<Option<i64>> {
            let key = format!("{name}.{key}");
            gguf.unsigned(&key)?
                .map(|n| i64::try_from(n).map_err(|_| gguf.error(format!("metadata `{key}` is {n}"))))
                .transpose()
        };
        let need =
            |key: &str| size(key)?.ok_or_else(|| gguf.error(format!("metadata `{name}.{key}` is missing")));
        let real = |key: &str| gguf.float(&format!("{name}.{key}"));
        let has_tensor = |wanted: &str| gguf.tensor_names().any(|name| name == wanted);

        if let Some(experts) = size("expert_count")?.filter(|&n| n > 0) {
            return Err(
                gguf.error(format!("is a mixture of {experts} experts; only dense models are supported"))
            );
        }
        if let Some(scaling) = gguf.text(&format!("{name}.rope.scaling.type"))?.filter(|&s| s != "none") {
            return Err(
                gguf.error(format!("stretches its rotary embedding by `{scaling}`, which is not supported"))
            );
        }
        let num_attention_heads = need("attention.head_count")?;
        let hidden_size = need("embedding_length")?;
        let head_dim = match size("attention.key_length")? {
            Some(length) => length,
            None => hidden_size / num_attention_heads.max(1),
        };
        if let Some(rotated) = size("rope.dimension_count")?.filter(|&n| n != head_dim) {
            return Err(gguf.error(format!(
                "rotates {rotated} of {head_dim} entries of a head; all or none is supported"
            )));
        }
        let vocab_size = match size("vocab_size")? {
            Some(size) => size,
            None => gguf.texts("tokenizer.ggml.tokens")?.map_or(0, |tokens| tokens.len() as i64),
        };
        let rope_scaling = match gguf.tensor("rope_freqs.weight")? {
            Some(factors) => RopeScaling::Factors(
                Vec::try_from(factors.view(-1).to_kind(tch::Kind::Double)).unwrap_or_default(),
            ),
            None => RopeScaling::None,
        };
        let config = Self {
            architecture,
            vocab_size,
            hidden_size,
            intermediate_size: need("feed_forward_length")?,
            num_hidden_layers: need("block_count")?,
            num_attention_heads,
            num_key_value_heads: size("attention.head_count_kv")?.unwrap_or(num_attention_heads),
            head_dim,
            max_position_embeddings: need("context_length")?,
            rms_norm_eps: real("attention.layer_norm_rms_epsilon")?.unwrap_or(1e-5),
            rope_theta: real("rope.freq_base")?.unwrap_or(10000.),
            rope_scaling,
            tie_word_embeddings: !has_tensor("output.weight"),
            attention_bias: has_tensor("blk.0.attn_output.bias"),
            mlp_bias: has_tensor("blk.0.ffn_down.bias"),
        };
        config.check().map_err(|problem| gguf.error(problem))?;
        Ok(config)
    }

    /// From the `config.json` of a Hugging Face directory.
    ///
    /// # Errors
    /// The file is missing or not JSON, the architecture or a variant is not supported, a key is missing or of the
    /// wrong type.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let path = directory.join("config.json");
        let at = |problem: String| Error::file(&path, problem);
        let text = std::fs::read_to_string(&path).map_err(|e| at(format!("cannot be read ({e})")))?;
        // The architecture first: another one need not have the keys that a Llama has.
        let Names { architectures, model_type } =
            serde_json::from_str(&text).map_err(|e| at(format!("is not a model's config ({e})")))?;
        let name = architectures.first().or(model_type.as_ref()).map_or("unnamed", String::as_str);
        let architecture = Architecture::named(name).map_err(at)?;
        let json: Json = serde_json::from_str(&text).map_err(|e| at(format!("cannot be used ({e})")))?;
        json.config(architecture).map_err(at)
    }

    /// Whether queries, keys and values add a bias.
    pub(super) fn qkv_bias(&self) -> bool {
        self.attention_bias || self.architecture == Architecture::Qwen2
    }

    /// Whether each head of the queries and the keys has a norm.
    pub(super) fn head_norms(&self) -> bool {
        self.architecture == Architecture::Qwen3
    }

    fn check(&self) -> std::result::Result<(), String> {
        let sizes = [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", self.num_attention_heads),
            ("num_key_value_heads", self.num_key_value_heads),
            ("head_dim", self.head_dim),
            ("max_position_embeddings", self.max_position_embeddings),
        ];
        // The upper bound is far above any model and keeps products of two sizes within i64.
        if let Some((name, size)) = sizes.iter().find(|(_, size)| !(1..1 << 28).contains(size)) {
            return Err(format!("{name} is {size}, which no model has"));
        }
        let (heads, groups) = (self.num_attention_heads, self.num_key_value_heads);
        if heads % groups != 0 {
            return Err(format!("num_key_value_heads {groups} does not divide num_attention_heads {heads}"));
        }
        if self.head_dim % 2 != 0 {
            return Err(format!("head_dim {} is odd, but rotary embedding pairs its entries", self.head_dim));
        }
        let positive = |value: f64| value.is_finite() && value > 0.;
        let stretches: &[f64] = match &self.rope_scaling {
            RopeScaling::None => &[],
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                if low_freq_factor >= high_freq_factor {
                    return Err(format!(
                        "low_freq_factor {low_freq_factor} is not below high_freq_factor {high_freq_factor}"
                    ));
                }
                &[*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings]
            }
            RopeScaling::Factors(factors) if factors.len() as i64 == self.head_dim / 2 => factors,
            RopeScaling::Factors(factors) => {
                return Err(format!(
                    "has {} rotary factors where head_dim wants {}",
                    factors.len(),
                    self.head_dim / 2
                ));
            }
        };
        if !positive(self.rms_norm_eps)
            || !positive(self.rope_theta)
            || !stretches.iter().all(|&s| positive(s))
        {
            return Err("rms_norm_eps, rope_theta and the rotary factors must be positive numbers".into());
        }
        Ok(())
    }
}

#[derive(Deserialize)]
struct Names {
    #[serde(default)]
    architectures: Vec<String>,
    model_type: Option<String>,
}

/// The keys of `config.json` that matter here.
#[derive(Deserialize)]
struct Json {
    vocab_size: i64,
    hidden_size: i64,
    intermediate_size: i64,
    num_hidden_layers: i64,
    num_attention_heads: i64,
    num_key_value_heads: Option<i64>,
    head_dim: Option<i64>,
    max_position_embeddings: i64,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<Rope>,
    /// Where transformers 5 writes both of the above.
    rope_parameters: Option<Rope>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    use_sliding_window: bool,
    #[serde(default)]
    layer_types: Option<Vec<String>>,
    partial_rotary_factor: Option<f64>,
    hidden_act: Option<String>,
    quantization_config: Option<serde_json::Value>,
}

#[derive(Deserialize, Default)]
struct Rope {
    rope_theta: Option<f64>,
    rope_type: Option<String>,
    /// What `rope_type` was called; some files have both.
    r#type: Option<String>,
    partial_rotary_factor: Option<f64>,
    factor: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    original_max_position_embeddings: Option<f64>,
}

impl Json {
    fn config(self, architecture: Architecture) -> std::result::Result<Config, String> {
        let slides = |kinds: Vec<String>| kinds.iter().any(|kind| kind != "full_attention");
        if self.use_sliding_window || self.layer_types.is_some_and(slides) {
            return Err(
                "has layers of sliding-window attention; only models whose layers all see the whole text are supported"
                    .into(),
            );
        }
        if let Some(act) = self.hidden_act.filter(|act| act != "silu") {
            return Err(format!("has hidden_act `{act}`; only `silu` is supported"));
        }
        if self.quantization_config.is_some() {
            return Err(
                "describes quantised weights; only plain f32, f16 and bf16 safetensors are supported".into(),
            );
        }
        let rope = self.rope_parameters.or(self.rope_scaling).unwrap_or_default();
        if let Some(part) = self.partial_rotary_factor.or(rope.partial_rotary_factor).filter(|&p| p != 1.) {
            return Err(format!(
                "has partial_rotary_factor {part}; only heads rotated as a whole are supported"
            ));
        }
        let head_dim = self.head_dim.unwrap_or(match architecture {
            Architecture::Qwen3 => 128, // what a file that does not say it means
            _ => self.hidden_size / self.num_attention_heads.max(1),
        });
        let config = Config {
            architecture,
            vocab_size: self.vocab_size,
            hidden_size: self.hidden_size,
            intermediate_size: self.intermediate_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            head_dim,
            max_position_embeddings: self.max_position_embeddings,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta: rope.rope_theta.or(self.rope_theta).unwrap_or(10000.),
            rope_scaling: rope.scaling()?,
            tie_word_embeddings: self.tie_word_embeddings,
            // Qwen2 has the biases that it has, whatever its file says.
            attention_bias: self.attention_bias && architecture != Architecture::Qwen2,
            mlp_bias: self.mlp_bias && architecture == Architecture::Llama,
        };
        config.check()?;
        Ok(config)
    }
}

impl Rope {
    fn scaling(&self) -> std::result::Result<RopeScaling, String> {
        let need = |name: &str, value: Option<f64>| {
            value.ok_or_else(|| format!("has llama3 rope scaling without {name}"))
        };
        match self.rope_type.as_deref().or(self.r#type.as_deref()) {
            None | Some("default") => Ok(RopeScaling::None),
            Some("llama3") => Ok(RopeScaling::Llama3 {
                factor: need("factor", self.factor)?,
                low_freq_factor: need("low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: need("high_freq_factor", self.high_freq_factor)?,
                original_max_position_embeddings: need(
                    "original_max_position_embeddings",
                    self.original_max_position_embeddings,
                )?,
            }),
            Some(other) => {
                Err(format!("has rope scaling of the type `{other}`; `default` and `llama3` are supported"))
            }
        }
    }
}
