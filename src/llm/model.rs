//! The transformer of Llama, Qwen2 and Qwen3. Read from top to bottom: model, layer, linear map, attention, norm,
//! rotary embedding, mask, cache.

use tch::{Device, Kind, Tensor};

use super::config::{Config, RopeScaling};
use super::lora::{Adapter, Lora};
use super::weights::Weights;
use crate::Result;
use crate::fused::linear::Joined;

/// A transformer: token ids in, hidden states and logits out, with gradients if wanted.
///
/// Letters in shapes: B sequences, S tokens, H hidden size, V vocabulary.
#[derive(Debug)]
pub struct Model {
    config: Config,
    embedding: Tensor,
    pub(super) layers: Vec<Layer>,
    norm: Tensor,
    /// The output head; without one it is the embedding.
    head: Option<Tensor>,
    pub(super) frequencies: Tensor,
    /// What the layers' adapters are, if they have any.
    lora: Option<Lora>,
    /// The head as [`Model::for_rollouts`] lays it out.
    joined_head: Option<Joined>,
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
                Layer::new(&config, |name, shape| take(&format!("model.layers.{layer}.{name}"), shape))
            })
            .collect::<Result<_>>()?;
        let norm = take(NORM, &[hidden])?;
        let head = if config.tie_word_embeddings { None } else { Some(take(HEAD, &[vocab, hidden])?) };
        if head.is_none() {
            weights.ignore(HEAD); // some checkpoints store the tied head once more
        }
        let frequencies = frequencies(&config).to_device(device);
        Ok(Self { config, embedding, layers, norm, head, frequencies, lora: None, joined_head: None })
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
    /// head is listed once, as the embedding; adapters are not among them.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        let layers = self.layers.iter().enumerate().flat_map(|(index, layer)| {
            layer
                .named()
                .into_iter()
                .map(move |(name, tensor)| (format!("model.layers.{index}.{name}"), tensor))
        });
        std::iter::once((EMBEDDING.to_owned(), &self.embedding))
            .chain(layers)
            .chain([(NORM.to_owned(), &self.norm)])
            .chain(self.head.iter().map(|head| (HEAD.to_owned(), head)))
            .map(|(name, tensor)| (name, tensor.shallow_clone()))
            .collect()
    }

    /// The adapters' parameters, named as in `peft`'s files but for the beginning `base_model.model.`; none without
    /// [`Model::add_lora`].
    pub fn adapters(&self) -> Vec<(String, Tensor)> {
        let linears = self.layers.iter().enumerate().flat_map(|(index, layer)| {
            layer.linears().map(|(name, linear)| (format!("model.layers.{index}.{name}"), linear))
        });
        let pairs = linears.filter_map(|(name, linear)| Some((name, linear.adapter.as_ref()?)));
        pairs
            .flat_map(|(name, Adapter { a, b, .. })| {
                [(format!("{name}.lora_A.weight"), a), (format!("{name}.lora_B.weight"), b)]
            })
            .map(|(name, tensor)| (name, tensor.shallow_clone()))
            .collect()
    }

    /// What an optimiser moves, with names: the adapters if there are any, else all parameters.
    pub fn trainable(&self) -> Vec<(String, Tensor)> {
        if self.lora.is_some() { self.adapters() } else { self.parameters() }
    }

    /// What the adapters are, if there are any.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_ref()
    }

    /// Whether gradients are computed for what is [`Model::trainable`]; they are not after loading.
    pub fn set_trainable(&self, trainable: bool) {
        for (_, parameter) in self.trainable() {
            let _ = parameter.set_requires_grad(trainable);
        }
    }

    /// A copy without gradients that stays as it is while this model is trained, such as the reference policy of a KL
    /// penalty. Beside adapters nothing is trained, so all but those is shared.
    pub fn frozen_copy(&self) -> Self {
        let is_shared = self.lora.is_some();
        let copy = |tensor: &Tensor| if is_shared { tensor.detach() } else { tensor.detach().copy() };
        let linear = |linear: &Linear| Linear {
            adapter: linear.adapter.as_ref().map(Adapter::copy),
            ..linear.map(copy)
        };
        Self { lora: self.lora.clone(), ..self.map(copy, linear) }
    }

    /// The model without its adapters and without gradients; it shares its tensors with this one. As the adapters
    /// alone are trained, it stays the policy that training started from.
    pub fn base(&self) -> Self {
        self.map(Tensor::detach, |linear| linear.map(Tensor::detach))
    }

    /// The model with its adapters added to the weights, without gradients. It shares all other tensors with this one,
    /// whose own weights stay as they are.
    pub fn merged(&self) -> Self {
        self.map(Tensor::detach, Linear::merged)
    }

    /// Another model without adapters: `tensor` of each tensor, `linear` of each linear map.
    fn map(&self, tensor: impl Fn(&Tensor) -> Tensor, linear: impl Fn(&Linear) -> Linear) -> Self {
        Self {
            config: self.config.clone(),
            embedding: tensor(&self.embedding),
            layers: self.layers.iter().map(|layer| layer.map(&tensor, &linear)).collect(),
            norm: tensor(&self.norm),
            head: self.head.as_ref().map(&tensor),
            frequencies: tensor(&self.frequencies),
            lora: None,
            joined_head: None,
        }
    }

    /// The model with its adapters added to the weights and without gradients, laid out for [`generate()`](super::generate())
    /// by [`crate::fused::linear`]: the same results within rounding, from a copy of the weights.
    ///
    /// # Errors
    /// None in practice: the weights' shapes were checked when they were loaded.
    pub fn for_rollouts(&self) -> Result<Self> {
        let mut model = self.merged();
        for layer in &mut model.layers {
            layer.joined = Some(JoinedLayer::of(layer)?);
        }
        model.joined_head = Some(Joined::of(&[(model.head_weight(), None)])?);
        Ok(model)
    }

    /// All linear maps of the layers, by name.
    pub(super) fn linears_mut(&mut self) -> Vec<(String, &mut Linear)> {
        let layers = self.layers.iter_mut().enumerate();
        let named = layers.flat_map(|(index, layer)| {
            layer.linears_mut().map(|(name, linear)| (format!("model.layers.{index}.{name}"), linear))
        });
        named.collect()
    }

    /// Says what the adapters are that the linear maps have been given.
    pub(super) fn set_lora(&mut self, lora: Lora) {
        self.lora = Some(lora);
    }

    /// Drops all adapters.
    pub(super) fn remove_lora(&mut self) {
        self.linears_mut().into_iter().for_each(|(_, linear)| linear.adapter = None);
        self.lora = None;
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
        self.layers_of(tokens, positions, &bias(&visible.unsqueeze(1), self.kind()), |_, k, v| (k, v))
    }

    /// The logits `[.., V]` of hidden states `[.., H]`.
    pub fn head(&self, hidden: &Tensor) -> Tensor {
        match &self.joined_head {
            Some(joined) => joined.forward(hidden),
            None => linear(hidden, self.head_weight()),
        }
    }

    /// What [`Model::head`] multiplies by, `[V, H]`: a parameter of its own, or the embedding where the head is tied.
    pub fn head_weight(&self) -> &Tensor {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// As [`Model::hidden`], with the keys and values kept in an empty cache.
    pub(super) fn prefill(&self, tokens: &Tensor, attention_mask: &Tensor, cache: &mut Cache) -> Tensor {
        self.forward(tokens, attention_mask, Some(cache))
    }

    /// The hidden states `[B, 1, H]` of one more token a sequence, whose keys and values go into a slot of the cache, `[1]`
    /// (i64). `bias` `[B, 1, 1, T]` covers the first T slots, `positions` `[B, 1]` are the tokens'. The host's count of what is
    /// filled stays as it is.
    pub(super) fn decode(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        bias: &Tensor,
        cache: &Cache,
        slot: &Tensor,
    ) -> Tensor {
        let visible = bias.size()[3];
        self.layers_of(tokens, positions, bias, |layer, k, v| cache.put(layer, &k, &v, slot, visible))
    }

    fn forward(&self, tokens: &Tensor, attention_mask: &Tensor, cache: Option<&mut Cache>) -> Tensor {
        let tokens = masked_tokens(tokens, attention_mask);
        let (positions, bias) = (positions(attention_mask), causal_bias(attention_mask, self.kind()));
        let Some(cache) = cache else {
            return self.layers_of(&tokens, &positions, &bias, |_, k, v| (k, v));
        };
        let hidden = self.layers_of(&tokens, &positions, &bias, |layer, k, v| cache.append(layer, &k, &v));
        cache.length += tokens.size()[1];
        hidden
    }

    /// `extend` gets a layer's new keys and values and gives back all that are attended to.
    fn layers_of(
        &self,
        tokens: &Tensor,
        positions: &Tensor,
        bias: &Tensor,
        extend: impl Fn(usize, Tensor, Tensor) -> (Tensor, Tensor),
    ) -> Tensor {
        let rotation = Rotation::new(positions, &self.frequencies);
        let mut x = self.embed(tokens);
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&self.config, &x, &rotation, bias, |k, v| extend(index, k, v));
        }
        self.last_norm(&x)
    }

    /// What the first layer reads, `[B, S, H]`.
    pub(super) fn embed(&self, tokens: &Tensor) -> Tensor {
        Tensor::embedding(&self.embedding, tokens, -1, false, false)
    }

    /// Whether the embedding is trained.
    pub(super) fn embeds_with_grad(&self) -> bool {
        self.embedding.requires_grad()
    }

    /// The hidden states of what the last layer gave.
    pub(super) fn last_norm(&self, x: &Tensor) -> Tensor {
        rms_norm(x, &self.norm, self.config.rms_norm_eps)
    }
}

/// Padding need not be a token id; here it is made one.
pub(super) fn masked_tokens(tokens: &Tensor, attention_mask: &Tensor) -> Tensor {
    tokens.masked_fill(&attention_mask.logical_not(), 0)
}

/// Each token's position: the number of tokens before it.
pub(super) fn positions(attention_mask: &Tensor) -> Tensor {
    (attention_mask.cumsum(-1, Kind::Int64) - 1).clamp_min(0)
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

#[derive(Debug)]
pub(super) struct Layer {
    attention_norm: Tensor,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// Qwen3's norms of each query's and each key's head.
    head_norms: Option<(Tensor, Tensor)>,
    mlp_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
    /// The maps as [`Model::for_rollouts`] lays them out.
    joined: Option<JoinedLayer>,
}

/// A layer's maps, those of one input as one.
#[derive(Debug)]
struct JoinedLayer {
    qkv: Joined,
    o: Joined,
    gate_up: Joined,
    down: Joined,
}

impl JoinedLayer {
    fn of(layer: &Layer) -> Result<Self> {
        let joined = |maps: &[&Linear]| {
            Joined::of(&maps.iter().map(|map| (&map.weight, map.bias.as_ref())).collect::<Vec<_>>())
        };
        Ok(Self {
            qkv: joined(&[&layer.q, &layer.k, &layer.v])?,
            o: joined(&[&layer.o])?,
            gate_up: joined(&[&layer.gate, &layer.up])?,
            down: joined(&[&layer.down])?,
        })
    }
}

impl Layer {
    fn new(config: &Config, mut take: impl FnMut(&str, &[i64]) -> Result<Tensor>) -> Result<Self> {
        let (hidden, inner, head) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let queries = config.num_attention_heads * head;
        let keys = config.num_key_value_heads * head;
        let (qkv_bias, o_bias, mlp_bias) = (config.qkv_bias(), config.attention_bias, config.mlp_bias);
        let take = &mut take;
        Ok(Self {
            attention_norm: take("input_layernorm.weight", &[hidden])?,
            q: Linear::new("self_attn.q_proj", [queries, hidden], qkv_bias, take)?,
            k: Linear::new("self_attn.k_proj", [keys, hidden], qkv_bias, take)?,
            v: Linear::new("self_attn.v_proj", [keys, hidden], qkv_bias, take)?,
            o: Linear::new("self_attn.o_proj", [hidden, queries], o_bias, take)?,
            head_norms: match config.head_norms() {
                true => Some((
                    take("self_attn.q_norm.weight", &[head])?,
                    take("self_attn.k_norm.weight", &[head])?,
                )),
                false => None,
            },
            mlp_norm: take("post_attention_layernorm.weight", &[hidden])?,
            gate: Linear::new("mlp.gate_proj", [inner, hidden], mlp_bias, take)?,
            up: Linear::new("mlp.up_proj", [inner, hidden], mlp_bias, take)?,
            down: Linear::new("mlp.down_proj", [hidden, inner], mlp_bias, take)?,
            joined: None,
        })
    }

    fn linears(&self) -> [(&'static str, &Linear); 7] {
        [
            ("self_attn.q_proj", &self.q),
            ("self_attn.k_proj", &self.k),
            ("self_attn.v_proj", &self.v),
            ("self_attn.o_proj", &self.o),
            ("mlp.gate_proj", &self.gate),
            ("mlp.up_proj", &self.up),
            ("mlp.down_proj", &self.down),
        ]
    }

    fn linears_mut(&mut self) -> [(&'static str, &mut Linear); 7] {
        [
            ("self_attn.q_proj", &mut self.q),
            ("self_attn.k_proj", &mut self.k),
            ("self_attn.v_proj", &mut self.v),
            ("self_attn.o_proj", &mut self.o),
            ("mlp.gate_proj", &mut self.gate),
            ("mlp.up_proj", &mut self.up),
            ("mlp.down_proj", &mut self.down),
        ]
    }

    /// All parameters with their names within the layer.
    fn named(&self) -> Vec<(String, &Tensor)> {
        let mut named = vec![
            ("input_layernorm.weight".to_owned(), &self.attention_norm),
            ("post_attention_layernorm.weight".to_owned(), &self.mlp_norm),
        ];
        if let Some((q, k)) = &self.head_norms {
            named.push(("self_attn.q_norm.weight".to_owned(), q));
            named.push(("self_attn.k_norm.weight".to_owned(), k));
        }
        for (name, linear) in self.linears() {
            named.push((format!("{name}.weight"), &linear.weight));
            named.extend(linear.bias.iter().map(|bias| (format!("{name}.bias"), bias)));
        }
        named
    }

    /// The layer with `norm` of its norms and `linear` of its linear maps.
    fn map(&self, norm: impl Fn(&Tensor) -> Tensor, linear: impl Fn(&Linear) -> Linear) -> Self {
        Self {
            attention_norm: norm(&self.attention_norm),
            q: linear(&self.q),
            k: linear(&self.k),
            v: linear(&self.v),
            o: linear(&self.o),
            head_norms: self.head_norms.as_ref().map(|(q, k)| (norm(q), norm(k))),
            mlp_norm: norm(&self.mlp_norm),
            gate: linear(&self.gate),
            up: linear(&self.up),
            down: linear(&self.down),
            joined: None,
        }
    }

    /// `extend` gets the new keys and values and gives back all that are attended to.
    pub(super) fn forward(
        &self,
        config: &Config,
        x: &Tensor,
        rotation: &Rotation,
        bias: &Tensor,
        extend: impl FnOnce(Tensor, Tensor) -> (Tensor, Tensor),
    ) -> Tensor {
        let (batch, length, eps) = (x.size()[0], x.size()[1], config.rms_norm_eps);
        let heads = |x: &Tensor, norm: Option<&Tensor>| {
            let heads = x.view([batch, length, -1, config.head_dim]);
            norm.map_or_else(|| heads.shallow_clone(), |norm| rms_norm(&heads, norm, eps)).transpose(1, 2)
        };
        let (q_norm, k_norm) = self.head_norms.as_ref().map(|(q, k)| (q, k)).unzip();
        let [q, k, v] = self.queries_keys_values(config, &rms_norm(x, &self.attention_norm, eps));
        let (q, k) = (rotation.apply(&heads(&q, q_norm)), rotation.apply(&heads(&k, k_norm)));
        let (k, v) = extend(k, heads(&v, None));
        let attended = attention(&q, &k, &v, bias).transpose(1, 2).reshape([batch, length, -1]);
        let x = x + self
            .joined
            .as_ref()
            .map_or_else(|| self.o.forward(&attended), |joined| joined.o.forward(&attended));
        &x + self.mlp(&rms_norm(&x, &self.mlp_norm, eps))
    }

    /// `[B, S, heads D]` each.
    fn queries_keys_values(&self, config: &Config, x: &Tensor) -> [Tensor; 3] {
        let Some(joined) = &self.joined else { return [&self.q, &self.k, &self.v].map(|map| map.forward(x)) };
        let all = joined.qkv.forward(x);
        let (queries, keys) = (config.num_attention_heads, config.num_key_value_heads);
        let part = |first: i64, count: i64| all.narrow(-1, first * config.head_dim, count * config.head_dim);
        [part(0, queries), part(queries, keys), part(queries + keys, keys)]
    }

    fn mlp(&self, x: &Tensor) -> Tensor {
        let Some(joined) = &self.joined else {
            return self.down.forward(&(self.gate.forward(x).silu() * self.up.forward(x)));
        };
        let gate_up = joined.gate_up.forward(x).chunk(2, -1);
        joined.down.forward(&(gate_up[0].silu() * &gate_up[1]))
    }
}

/// A linear map, `x weight^T + bias`, with a low-rank update while LoRA trains it.
#[derive(Debug)]
pub(super) struct Linear {
    pub(super) weight: Tensor,
    bias: Option<Tensor>,
    pub(super) adapter: Option<Adapter>,
}

impl Linear {
    fn new(
        name: &str,
        shape: [i64; 2],
        bias: bool,
        take: &mut impl FnMut(&str, &[i64]) -> Result<Tensor>,
    ) -> Result<Self> {
        Ok(Self {
            weight: take(&format!("{name}.weight"), &shape)?,
            bias: if bias { Some(take(&format!("{name}.bias"), &shape[..1])?) } else { None },
            adapter: None,
        })
    }

    fn forward(&self, x: &Tensor) -> Tensor {
        let mut product = linear(x, &self.weight);
        if let Some(adapter) = &self.adapter {
            product += adapter.update(x);
        }
        match &self.bias {
            Some(bias) => product + bias,
            None => product,
        }
    }

    /// Without the adapter, `f` of the rest.
    fn map(&self, f: impl Fn(&Tensor) -> Tensor) -> Self {
        Self { weight: f(&self.weight), bias: self.bias.as_ref().map(f), adapter: None }
    }

    fn merged(&self) -> Self {
        let mut merged = self.map(Tensor::detach);
        if let Some(adapter) = &self.adapter {
            let delta = tch::no_grad(|| adapter.delta());
            merged.weight = (merged.weight.to_kind(delta.kind()) + delta).to_kind(self.weight.kind());
        }
        merged
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
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Tensor {
    x.rms_norm(weight.size(), Some(weight), eps)
}

/// The rotary embedding of a batch of positions: cosines and sines `[B, 1, S, D/2]`, always in f32, because
/// bf16 cannot tell positions above 256 apart.
#[derive(Debug)]
pub(super) struct Rotation {
    cos: Tensor,
    sin: Tensor,
}

impl Rotation {
    pub(super) fn new(positions: &Tensor, frequencies: &Tensor) -> Self {
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
pub(super) fn causal_bias(attention_mask: &Tensor, kind: Kind) -> Tensor {
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
    /// Whoever calls [`Model::decode`] counts on.
    pub(super) length: i64,
}

impl Cache {
    pub(super) fn new(model: &Model, batch: i64, capacity: i64) -> Self {
        let config = &model.config;
        let size = [batch, config.num_key_value_heads, capacity, config.head_dim];
        let empty = || Tensor::empty(size, (model.kind(), model.device()));
        Self { layers: (0..config.num_hidden_layers).map(|_| (empty(), empty())).collect(), length: 0 }
    }

    /// Has some rows, an empty cache by themselves, filled by `with`.
    pub(super) fn fill<T>(
        &mut self,
        own: impl Fn(&Tensor) -> Tensor,
        with: impl FnOnce(&mut Self) -> T,
    ) -> T {
        let layers = self.layers.iter().map(|(k, v)| (own(k), own(v))).collect();
        let mut rows = Self { layers, length: 0 };
        let out = with(&mut rows);
        self.length = rows.length;
        out
    }

    /// A cache of these rows (`[R]`, i64), any of them several times. What is not filled is 0: attention may go over it,
    /// and weighs it by 0.
    pub(super) fn select(self, rows: &Tensor, capacity: i64) -> Self {
        let length = self.length;
        let copy = |old: Tensor| {
            let mut size = old.size();
            (size[0], size[2]) = (rows.size()[0], capacity);
            let new = Tensor::empty(size, (old.kind(), old.device()));
            new.narrow(2, 0, length).copy_(&old.narrow(2, 0, length).index_select(0, rows));
            let _ = new.narrow(2, length, capacity - length).zero_();
            new
        };
        Self { layers: self.layers.into_iter().map(|(k, v)| (copy(k), copy(v))).collect(), length }
    }

    /// Keeps these rows (`[R]`, i64).
    pub(super) fn keep(&mut self, rows: &Tensor) {
        let own = std::mem::replace(self, Self { layers: Vec::new(), length: 0 });
        let capacity = own.layers.first().map_or(0, |(k, _)| k.size()[2]);
        *self = own.select(rows, capacity);
    }

    /// Writes into the layer's tensors from `length` on, and gives what is filled then.
    fn append(&self, layer: usize, k: &Tensor, v: &Tensor) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let new = k.size()[2];
        keys.narrow(2, self.length, new).copy_(k);
        values.narrow(2, self.length, new).copy_(v);
        (keys.narrow(2, 0, self.length + new), values.narrow(2, 0, self.length + new))
    }

    /// Writes one slot (`[1]`, i64) of the layer's tensors, and gives the first `visible`.
    fn put(&self, layer: usize, k: &Tensor, v: &Tensor, slot: &Tensor, visible: i64) -> (Tensor, Tensor) {
        let (keys, values) = &self.layers[layer];
        let _ = keys.shallow_clone().index_copy_(2, slot, k);
        let _ = values.shallow_clone().index_copy_(2, slot, v);
        (keys.narrow(2, 0, visible), values.narrow(2, 0, visible))
    }
}
