//! A language model of a hundred thousand weights, made from a seed: small enough to be trained from nothing in
//! seconds, and to run every algorithm from end to end.

use tch::{Device, Kind};
use tokenizers::AddedToken;
use tokenizers::decoders::fuse::Fuse;
use tokenizers::models::bpe::{BPE, Vocab};

use crate::llm::config::{Architecture, Config, RopeScaling};
use crate::llm::{Llm, Tokenizer};
use crate::{Error, Result};

/// What `actor_rollout_ref.model.path` names it by.
pub const PATH: &str = "tiny";

/// The question and an equals sign. No instructions and no example: it is told nothing that it could not learn.
const CHAT: &str = "{% if messages[-1].role == 'assistant' %}{{ messages[-2].content }}={{ messages[-1].content }}<|end|>\
                    {% else %}{{ messages[-1].content }}={% endif %}";
const END: &str = "<|end|>";
/// The mark of the final answer is one token, as a word would be.
const MARK: &str = "\n#### ";

/// Two layers of width 64 over the printable characters.
///
/// # Errors
/// None that a caller could bring about.
pub fn llm(seed: u64, device: Device, kind: Kind) -> Result<Llm> {
    let tokenizer = tokenizer()?;
    let config = Config {
        architecture: Architecture::Llama,
        vocab_size: tokenizer.token_limit(),
        hidden_size: 64,
        intermediate_size: 192,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: 4,
        head_dim: 16,
        max_position_embeddings: 1024,
        rms_norm_eps: 1e-5,
        rope_theta: 10_000.0,
        rope_scaling: RopeScaling::None,
        tie_word_embeddings: true,
        attention_bias: false,
        mlp_bias: false,
    };
    Llm::random(config, tokenizer, seed, device, kind)
}

/// A token for each printable character and the newline; any other one counts as a question mark.
fn tokenizer() -> Result<Tokenizer> {
    let broken = |problem: &dyn std::fmt::Display| Error::input("tokenizer", problem.to_string());
    let characters = ('\n'..='\n').chain(' '..='~').map(String::from);
    let vocabulary: Vocab = characters.zip(0u32..).collect();
    let bpe = BPE::builder().vocab_and_merges(vocabulary, vec![]).unk_token("?".to_owned()).build();
    let mut inner = tokenizers::Tokenizer::new(bpe.map_err(|problem| broken(&problem))?);
    inner.with_decoder(Some(Fuse::new()));
    inner
        .add_special_tokens([AddedToken::from(END, true)])
        .and_then(|_| inner.add_tokens([AddedToken::from(MARK, false)]))
        .map_err(|problem| broken(&problem))?;
    Tokenizer::in_memory(inner, CHAT, END)
}
