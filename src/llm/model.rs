//! The Llama-family transformer. Read from top to bottom: model, layer, attention, norm, rotary embedding,
//! mask, cache.

use tch::{Device, Kind, Tensor};

use super::config::{Config, RopeScaling};
use super::weights::Weights;
use crate::Result;

/// A Llama-family transformer: token ids in, hidden states and logits out, with gradients if wanted.
///
/// Letters in shapes: B sequences, S tokens, H hidden size, V vocabulary.
#[derive(Debug)]
pub struct Model {
    config: Config,
    embedding: Tensor,
    layers: Vec<Layer>,
    norm: Tensor,
    /// The output head; without one it is the embedding.
    head: Option<Tensor>,
    frequencies: Tensor,
}

impl Model {
    /// Takes a model's tensors out of `weights`.
    pub(super) fn new(config: Config, weights: &mut Weights, device: Device, kind: Kind) -> Result<Self> {
        let mut take = |name: &str, shape: &[i64]| -> Result<Tensor> {
            Ok(weights.take(name, shape)?.to_device(device).to_kind(kind).contiguous())
        };
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let embedding = take(EMBEDDING, &[vocab, hidden])?;
        let layers = (0..config.num_hidden_layers)
            .map(|layer| {
                Layer::new(&config, |name, shape| take(&format!("model.layers.{layer}.{name}.weight"), shape))
            })
            .collect::<Result<_>>()?;
        let norm = take(NORM, &[hidden])?;
        let head = if config.tie_word_embeddings { None } else { Some(take(HEAD, &[vocab, hidden])?) };
        if head.is_none() {
            weights.ignore(HEAD); // some checkpoints store the tied head once more
        }
        let frequencies = frequencies(&config).to_device(device);
        Ok(Self { config, embedding, layers, norm, head, frequencies })
    }

    /// Sizes and constants.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Where the parameters are.
    pub fn device(&self) -> Device {
        self.embedding.device()
    }

    /// The parameters' kind.
    pub fn kind(&self) -> Kind {
        self.embedding.kind()
    }

    /// All parameters with their Hugging Face names: leaves that share their storage with the model. A tied
    /// head is listed once, as the embedding.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let layers = self.layers.iter().enumerate().flat_map(|(index, layer)| {
            layer.named().map(|(name, tensor)| (format!("model.layers.{index}.{name}.weight"), tensor))
        });
        std::iter::once((EMBEDDING.to_owned(), &self.embedding))
            .chain(layers)
            .chain([(NORM.to_owned(), &self.norm)])
            .chain(self.head.iter().map(|head| (HEAD.to_owned(), head)))
            .map(|(name, tensor)| (name, tensor.shallow_clone()))
            .collect()
    }

    /// Whether gradients are computed for the parameters; they are not after loading.
    pub fn set_trainable(&self, trainable: bool) {
        for (_, parameter) in self.parameters() {
            let _ = parameter.set_requires_grad(trainable);
        }
    }

    /// A deep copy without gradients, such as the reference policy of a KL penalty.
    pub fn frozen_copy(&self) -> Self {
        let copy = |tensor: &Tensor| tensor.detach().copy();
        Self {
            config: self.config.clone(),
            embedding: copy(&self.embedding),
            layers: self.layers.iter().map(|layer| layer.map(copy)).collect(),
            norm: copy(&self.norm),
            head: self.head.as_ref().map(copy),
            frequencies: copy(&self.frequencies),
        }
    }

    /// The hidden states after the final norm, `[B, S, H]`, of `tokens` `[B, S]` (i64).
    ///
    /// `attention_mask` `[B, S]` (bool) is false at padding, on either side: positions count the tokens before,
    /// no token attends to padding, and whatever stands in padded slots reaches no other output and no gradient.
    /// The rows of padded slots themselves are finite but mean nothing.
    pub fn hidden(&self, tokens: &Tensor, attention_mask: &Tensor) -> Tensor {
        self.forward(tokens, attention_mask, None)
    }

    /// As [`Model::hidden`], with everything said that is derived there from a mask: each token's position
    /// `[B, S]` (i64), and which tokens it sees, `visible` `[B, S, S]` (bool, a row for each token that looks;
    /// every token must see itself). Several responses can so stand behind one prompt.
    pub fn hidden_at(&self, tokens: &Tensor, positions: &Tensor, visible: &Tensor) -> Tensor {
        self.layers_of(tokens, positions, &bias(&visible.unsqueeze(1), self.kind()), None)
    }

    /// The logits `[.., V]` of hidden states `[.., H]`.
    pub fn head(&self, hidden: &Tensor) -> Tensor {
        linear(hidden, self.head.as_ref().unwrap_or(&self.embedding))
    }

    /// As [`Model::hidden`], with the keys and values kept in an empty cache.
    pub(super) fn prefill(&self, tokens: &Tensor, attention_mask: &Tensor, cache: &mut Cache) -> Tensor {
        self.forward(tokens, attention_mask, Some(cache))
    }

    /// The hidden states `[B, 1, H]` of one more token a sequence. `bias` `[B, 1, 1, T]` covers the tokens in
    /// the cache and the new one, `positions` `[B, 1]` are the new tokens'.
    pub(super) fn decode(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        bias: &Tensor,
        cache: &mut Cache,
    ) -> Tensor {
        self.layers_of(tokens, positions, bias, Some(cache))
    }

    fn forward(&self, tokens: &Tensor, attention_mask: &Tensor, cache: Option<&mut Cache>) -> Tensor {
        let tokens = tokens.masked_fill(&attention_mask.logical_not(), 0); // padding need not be a token id
        let positions = (attention_mask.cumsum(-1, Kind::Int64) - 1).clamp_min(0);
        self.layers_of(&tokens, &positions, &causal_bias(attention_mask, self.kind()), cache)
    }

    fn layers_of(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        bias: &Tensor,
        mut cache: Option<&mut Cache>,
    ) -> Tensor {
        let rotation = Rotation::new(positions, &self.frequencies);
        let mut x = Tensor::embedding(&self.embedding, tokens, -1, false, false);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&self.config, &x, &rotation, bias, |k, v| match &mut cache {
                Some(cache) => cache.append(index, &k, &v),
                None => (k, v),
            });
        }
        if let Some(cache) = cache {
            cache.length += tokens.size()[1];
        }
        rms_norm(&x, &self.norm, self.config.rms_norm_eps)
    }
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

#[derive(Debug)]
struct Layer {
    attention_norm: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    mlp_norm: Tensor,
    gate: Tensor,
    up: Tensor,
    down: Tensor,
}

impl Layer {
    fn new(config: &Config, mut take: impl FnMut(&str, &[i64]) -> Result<Tensor>) -> Result<Self> {
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let queries = config.num_attention_heads * config.head_dim;
        let keys = config.num_key_value_heads * config.head_dim;
        Ok(Self {
            attention_norm: take("input_layernorm", &[hidden])?,
            q: take("self_attn.q_proj", &[queries, hidden])?,
            k: take("self_attn.k_proj", &[keys, hidden])?,
            v: take("self_attn.v_proj", &[keys, hidden])?,
            o: take("self_attn.o_proj", &[hidden, queries])?,
            mlp_norm: take("post_attention_layernorm", &[hidden])?,
            gate: take("mlp.gate_proj", &[inner, hidden])?,
            up: take("mlp.up_proj", &[inner, hidden])?,
            down: take("mlp.down_proj", &[hidden, inner])?,
        })
    }

    fn named(&self) -> [(&'static str, &Tensor); 9] {
        [
            ("input_layernorm", &self.attention_norm),
            ("self_attn.q_proj", &self.q),
            ("self_attn.k_proj", &self.k),
            ("self_attn.v_proj", &self.v),
            ("self_attn.o_proj", &self.o),
            ("post_attention_layernorm", &self.mlp_norm),
            ("mlp.gate_proj", &self.gate),
            ("mlp.up_proj", &self.up),
            ("mlp.down_proj", &self.down),
        ]
    }

    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self {
            attention_norm: f(&self.attention_norm),
            q: f(&self.q),
            k: f(&self.k),
            v: f(&self.v),
            o: f(&self.o),
            mlp_norm: f(&self.mlp_norm),
            gate: f(&self.gate),
            up: f(&self.up),
            down: f(&self.down),
        }
    }

    /// `extend` gets the new keys and values and gives back all that are attended to.
    fn forward(
        &self,
        config: &Config,
        x: &Tensor,
        rotation: &Rotation,
        bias: &Tensor,
        extend: impl FnOnce(Tensor, Tensor) -> (Tensor, Tensor),
    ) -> Tensor {
        let (batch, length) = (x.size()[0], x.size()[1]);
        let heads = |x: &Tensor, weight: &Tensor, count: i64| {
            linear(x, weight).view([batch, length, count, config.head_dim]).transpose(1, 2)
        };
        let normed = rms_norm(x, &self.attention_norm, config.rms_norm_eps);
        let q = rotation.apply(&heads(&normed, &self.q, config.num_attention_heads));
        let k = rotation.apply(&heads(&normed, &self.k, config.num_key_value_heads));
        let v = heads(&normed, &self.v, config.num_key_value_heads);
        let (k, v) = extend(k, v);
        let attended = attention(&q, &k, &v, bias).transpose(1, 2).reshape([batch, length, -1]);
        let x = x + linear(&attended, &self.o);

        let normed = rms_norm(&x, &self.mlp_norm, config.rms_norm_eps);
        let gated = linear(&normed, &self.gate).silu() * linear(&normed, &self.up);
        x + linear(&gated, &self.down)
    }
}

/// Grouped-query attention: q `[B, heads, S, D]`, k and v `[B, groups, T, D]`, bias `[B, 1, S, T]`.
fn attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor) -> Tensor {
    let (q_size, k_size) = (q.size(), k.size());
    let &[batch, heads, 1, width] = q_size.as_slice() else {
        return Tensor::scaled_dot_product_attention(q, k, v, Some(bias), 0., false, None, true);
    };
    // The single queries of a group share their keys: standing in one row, they read them once.
    let (groups, keys) = (k_size[1], k_size[2]);
    let q = q.reshape([batch, groups, heads / groups, width]);
    let bias = bias.expand([batch, 1, heads / groups, keys], true);
    Tensor::scaled_dot_product_attention(&q, k, v, Some(bias), 0., false, None, false)
        .view([batch, heads, 1, width])
}

/// `x weight^T`. On the CPU a few rows go through the product the other way around: as the narrow right-hand
/// side they spare the library from packing the whole weight, which for 32 rows costs more than the product.
fn linear(x: &Tensor, weight: &Tensor) -> Tensor {
    let (size, out) = (x.size(), weight.size()[0]);
    let rows: i64 = size[..size.len() - 1].iter().product();
    if x.device() != Device::Cpu || !(2..=64).contains(&rows) {
        return x.linear(weight, None::<Tensor>);
    }
    let columns = weight.mm(&x.reshape([rows, -1]).tr());
    columns.tr().contiguous().view([&size[..size.len() - 1], &[out]].concat().as_slice())
}

/// libtorch computes the mean square in f32 whatever the kind of `x`.
fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), eps)
}

/// The rotary embedding of a batch of positions: cosines and sines `[B, 1, S, D/2]`, always in f32, because
/// bf16 cannot tell positions above 256 apart.
struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    fn new(positions: &Tensor, frequencies: &Tensor) -> Self {
        let angles = positions.to_kind(Kind::Float).unsqueeze(-1) * frequencies;
        Self { cos: angles.cos().unsqueeze(1), sin: angles.sin().unsqueeze(1) }
    }

    /// Rotates the pairs `(x[i], x[i + D/2])` of heads `[B, heads, S, D]`.
    fn apply(&self, x: &Tensor) -> Tensor {
        let kind = x.kind();
        let halves = x.to_kind(Kind::Float).chunk(2, -1);
        let (left, right) = (&halves[0], &halves[1]);
        let rotated = [left * &self.cos - right * &self.sin, right * &self.cos + left * &self.sin];
        Tensor::cat(&rotated, -1).to_kind(kind)
    }
}

/// Radians a token for each pair of a head, `[D/2]`, f32 on the CPU; computed in f32 as it was in training.
fn frequencies(config: &Config) -> Tensor {
    let exponents =
        Tensor::arange_start_step(0, config.head_dim, 2, (Kind::Float, Device::Cpu)) / config.head_dim as f64;
    let plain = Tensor::pow_scalar(config.rope_theta, &exponents).reciprocal();
    match &config.rope_scaling {
        RopeScaling::None => plain,
        RopeScaling::Factors(factors) => plain / Tensor::from_slice(factors).to_kind(Kind::Float),
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_max_position_embeddings,
        } => {
            let turns = &plain * (original_max_position_embeddings / std::f64::consts::TAU);
            // 0 for long wavelengths (stretched), 1 for short ones (kept), linear in the turns between.
            let kept = ((turns - *low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0., 1.);
            &plain * &kept + (&plain / *factor) * (1. - &kept)
        }
    }
}

/// What is added to the attention scores, `[B, 1, S, S]`: 0 where a query may look, -inf where not. A token
/// looks at itself and at the tokens before it. Padding looks at itself, so that its softmax is not NaN.
fn causal_bias(attention_mask: &Tensor, kind: Kind) -> Tensor {
    let (length, device) = (attention_mask.size()[1], attention_mask.device());
    let square = Tensor::ones([length, length], (Kind::Bool, device));
    let itself = Tensor::eye(length, (Kind::Bool, device));
    let seen = attention_mask.unsqueeze(1).logical_or(&itself).logical_and(&square.tril(0)).unsqueeze(1);
    bias(&seen, kind)
}

/// 0 where `seen`, -inf elsewhere.
pub(super) fn bias(seen: &Tensor, kind: Kind) -> Tensor {
    Tensor::zeros(seen.size(), (kind, seen.device())).masked_fill(&seen.logical_not(), f64::NEG_INFINITY)
}

/// The keys and values of all layers, each `[B, groups, capacity, D]`, of which the first `length` are filled.
pub(super) struct Cache {
    layers: Vec<(Tensor, Tensor)>,
    length: i64,
}

impl Cache {
    pub(super) fn new(model: &Model, batch: i64, capacity: i64) -> Self {
        let config = &model.config;
        let size = [batch, config.num_key_value_heads, capacity, config.head_dim];
        let empty = || Tensor::empty(size, (model.kind(), model.device()));
        Self { layers: (0..config.num_hidden_layers).map(|_| (empty(), empty())).collect(), length: 0 }
    }

    /// A cache of these rows (`[R]`, i64), any of them several times.
    pub(super) fn select(self, rows: &Tensor, capacity: i64) -> Self {
        let length = self.length;
        let copy = |old: Tensor| {
            let mut size = old.size();
            (size[0], size[2]) = (rows.size()[0], capacity);
            let new = Tensor::empty(size, (old.kind(), old.device()));
            new.narrow(2, 0, length).copy_(&old.narrow(2, 0, length).index_select(0, rows));
            new
        };
        Self { layers: self.layers.into_iter().map(|(k, v)| (copy(k), copy(v))).collect(), length }
    }

    /// Writes into the layer's tensors from `length` on, and gives what is filled then.
    fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let new = k.size()[2];
        keys.narrow(2, self.length, new).copy_(k);
        values.narrow(2, self.length, new).copy_(v);
        (keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new))
    }
}
