//! A Llama with random weights, to be trained from nothing.

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tch::{Device, Kind, Tensor};

use super::config::Config;
use super::weights::Weights;
use super::{Llm, Model, Tokenizer};
use crate::Result;

impl Llm {
    /// A model of this configuration whose matrices are drawn from `seed`, so that every layer keeps the size of what
    /// goes through it; the norms' weights are 1.
    ///
    /// # Errors
    /// As those of [`Llm::load`], for a configuration that fits no model.
    pub fn random(
        config: Config,
        tokenizer: Tokenizer,
        seed: u64,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let tensors: BTreeMap<String, Tensor> =
            shapes(&config).into_iter().map(|(name, shape)| (name, drawn(&mut rng, &shape))).collect();
        let mut weights = Weights::in_memory("random weights", tensors);
        let model = Model::new(config, &mut weights, device, kind)?;
        weights.finish()?;
        Ok(Self { model, tokenizer })
    }
}

/// Uniform numbers whose variance is one over the matrix's width; 1 for a norm.
fn drawn(rng: &mut ChaCha8Rng, shape: &[i64]) -> Tensor {
    let &[rows, columns] = shape else { return Tensor::ones(shape, (Kind::Float, Device::Cpu)) };
    let bound = (3.0 / columns as f32).sqrt();
    let values: Vec<f32> = (0..rows * columns).map(|_| rng.random_range(-bound..bound)).collect();
    Tensor::from_slice(&values).view(shape)
}

/// The tensors of a Llama by their Hugging Face names.
fn shapes(config: &Config) -> Vec<(String, Vec<i64>)> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let queries = config.num_attention_heads * config.head_dim;
    let keys = config.num_key_value_heads * config.head_dim;
    let mut shapes = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !config.tie_word_embeddings {
        shapes.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_hidden_layers {
        for (name, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}
