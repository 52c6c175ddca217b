//! Text to tokens and back, and the model's own chat template.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, context};
use serde_json::{Value, json};
use tokenizers::decoders::byte_level::ByteLevel;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{AddedToken, PreTokenizerWrapper, SplitDelimiterBehavior};

use super::gguf::Gguf;
use crate::{Error, Result};

/// A tokenizer with its special tokens and chat template.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    template: Option<Environment<'static>>,
    bos_token: Option<String>,
    eos_token: Option<String>,
    stop_tokens: Vec<i64>,
    pad_token: i64,
    /// The files that it was read from, by name; none from a GGUF file.
    files: BTreeMap<String, Vec<u8>>,
    /// The chat template of a GGUF file.
    template_source: Option<String>,
}

/// The files of a directory that belong to its tokenizer or say how the model is to be used.
pub const TOKENIZER_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who says it.
    pub role: Role,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of this role.
    pub fn new(role: Role, content: impl Into<String>) -> Self {
        Self { role, content: content.into() }
    }
}

/// Who says a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Instructions that hold for the whole conversation.
    System,
    /// The person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The role's name in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Self::System => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

impl Tokenizer {
    /// The tokens of a text. No special tokens are added; those that stand in the text are recognised.
    ///
    /// # Errors
    /// The tokenizer has no token for something in the text.
    pub fn encode(&self, text: &str) -> Result<Vec<i64>> {
        let encoding = self
            .inner
            .encode_fast(text, false)
            .map_err(|e| Error::input("text", format!("has no tokens ({e})")))?;
        Ok(encoding.get_ids().iter().copied().map(i64::from).collect())
    }

    /// The text of tokens, special tokens left out; bytes that are not UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// An id is negative or past any token id; ids that merely have no token are left out.
    pub fn decode(&self, tokens: &[i64]) -> Result<String> {
        let ids = tokens.iter().enumerate().map(|(index, &token)| {
            u32::try_from(token).map_err(|_| Error::Index {
                argument: "tokens".into(),
                index,
                got: token,
                limit: self.token_limit() as usize,
            })
        });
        let ids = ids.collect::<Result<Vec<u32>>>()?;
        self.inner.decode(&ids, true).map_err(|e| Error::input("tokens", format!("cannot be decoded ({e})")))
    }

    /// The tokens of a conversation in the model's own chat template, up to where the assistant's answer starts.
    ///
    /// # Errors
    /// The model has no chat template, or its template refuses the conversation.
    pub fn chat(&self, messages: &[Message]) -> Result<Vec<i64>> {
        self.encode(&self.chat_text(messages)?)
    }

    /// As [`Tokenizer::chat`], but the text.
    ///
    /// # Errors
    /// As those of [`Tokenizer::chat`].
    pub fn chat_text(&self, messages: &[Message]) -> Result<String> {
        let at = |problem: String| Error::file(&self.path, problem);
        let environment = self.template.as_ref();
        let environment =
            environment.ok_or_else(|| at("has no chat template; use an instruction-tuned model".into()))?;
        let messages: Vec<_> = messages
            .iter()
            .map(|message| context! { role => message.role.name(), content => message.content.as_str() })
            .collect();
        environment
            .get_template(TEMPLATE)
            .and_then(|template| {
                template.render(context! {
                    messages,
                    add_generation_prompt => true,
                    bos_token => self.bos_token.as_deref().unwrap_or_default(),
                    eos_token => self.eos_token.as_deref().unwrap_or_default(),
                })
            })
            .map_err(|e| at(format!("its chat template cannot be rendered ({e})")))
    }

    /// The tokens that end an answer: end of turn and end of text.
    pub fn stop_tokens(&self) -> &[i64] {
        &self.stop_tokens
    }

    /// The token to fill unused slots with.
    pub fn pad_token(&self) -> i64 {
        self.pad_token
    }

    /// The token that starts a text, if the model has one.
    pub(super) fn bos_id(&self) -> Option<i64> {
        self.bos_token.as_ref().and_then(|text| self.inner.token_to_id(text)).map(i64::from)
    }

    /// The files of a Hugging Face directory that make this tokenizer: as they were read, and the missing ones made.
    pub(super) fn files(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let mut files = self.files.clone();
        if !files.contains_key("tokenizer.json") {
            let text = self.inner.to_string(true);
            let text =
                text.map_err(|e| Error::file(&self.path, format!("its tokenizer cannot be saved ({e})")))?;
            files.insert("tokenizer.json".into(), text.into());
        }
        let settings = || {
            let mut settings = json!({
                "tokenizer_class": "PreTrainedTokenizerFast",
                "clean_up_tokenization_spaces": false,
                "bos_token": self.bos_token,
                "eos_token": self.eos_token,
                "pad_token": u32::try_from(self.pad_token).ok().and_then(|id| self.inner.id_to_token(id)),
            });
            if let Some(template) = &self.template_source {
                settings["chat_template"] = template.as_str().into();
            }
            settings
        };
        let generation = || {
            json!({
                "bos_token_id": self.bos_id(),
                "eos_token_id": super::save::one_or_list(&self.stop_tokens),
                "pad_token_id": self.pad_token,
            })
        };
        let made: [(&str, &dyn Fn() -> Value); 2] =
            [("tokenizer_config.json", &settings), ("generation_config.json", &generation)];
        for (name, content) in made {
            files.entry(name.into()).or_insert_with(|| format!("{:#}\n", content()).into());
        }
        Ok(files)
    }

    /// One more than the largest token id.
    pub fn token_limit(&self) -> i64 {
        self.inner.get_vocab(true).values().max().map_or(0, |&id| i64::from(id) + 1)
    }

    /// From a GGUF file's metadata: byte-level BPE with the pre-tokenizer `smollm` or `qwen2`.
    ///
    /// # Errors
    /// A key is missing or of the wrong type, the vocabulary or the merges are inconsistent, or the model or
    /// pre-tokenizer is another one.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let missing = |key: &str| gguf.error(format!("metadata `tokenizer.ggml.{key}` is missing"));
        let need_text = |key: &str| gguf.text(&format!("tokenizer.ggml.{key}"))?.ok_or_else(|| missing(key));
        let elsewhere = "load the model's Hugging Face directory instead";
        let (model, pre) = (need_text("model")?, need_text("pre")?);
        let Some(splitting) = Splitting::named(pre).filter(|_| model == "gpt2") else {
            let problem = format!("has a `{model}` tokenizer with the pre-tokenizer `{pre}`");
            let known = "only `gpt2` with `smollm` or `qwen2` is supported";
            return Err(gguf.error(format!("{problem}; {known}, so {elsewhere}")));
        };
        let tokens = gguf.texts("tokenizer.ggml.tokens")?.ok_or_else(|| missing("tokens"))?;
        let merges = gguf.texts("tokenizer.ggml.merges")?.ok_or_else(|| missing("merges"))?;
        let types = gguf.integers("tokenizer.ggml.token_type")?.ok_or_else(|| missing("token_type"))?;
        if types.len() != tokens.len() {
            return Err(gguf.error(format!("has {} tokens but {} token types", tokens.len(), types.len())));
        }
        let id = |key: &str| -> Result<Option<i64>> {
            let key = format!("tokenizer.ggml.{key}");
            let Some(id) = gguf.unsigned(&key)? else { return Ok(None) };
            if id >= tokens.len() as u64 {
                return Err(gguf.error(format!("metadata `{key}` is {id}, past its {} tokens", tokens.len())));
            }
            Ok(Some(id as i64))
        };
        let text = |id: Option<i64>| id.map(|id| tokens[id as usize].to_owned());

        let inner =
            byte_level_bpe(splitting, &tokens, &merges, &types).map_err(|problem| gguf.error(problem))?;
        let (bos, eos) = (id("bos_token_id")?, id("eos_token_id")?);
        let ends = [eos, id("eot_token_id")?, id("eom_token_id")?].into_iter().flatten();
        let stop_tokens = stop_tokens(&inner, ends);
        let template = gguf.text("tokenizer.chat_template")?;
        Ok(Self {
            path: gguf.path().to_owned(),
            template: template.map(environment).transpose().map_err(|e| gguf.error(e))?,
            template_source: template.map(str::to_owned),
            files: BTreeMap::new(),
            bos_token: text(bos),
            eos_token: text(eos),
            pad_token: id("padding_token_id")?.or(eos).unwrap_or_default(),
            stop_tokens,
            inner,
        })
    }

    /// From a Hugging Face directory: `tokenizer.json`, and what is there of `tokenizer_config.json`,
    /// `generation_config.json`, `config.json` and `chat_template.jinja`.
    ///
    /// # Errors
    /// `tokenizer.json` is missing, or one of the files cannot be understood.
    pub fn from_directory(directory: &Path) -> Result<Self> {
        let path = directory.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::file(&path, format!("cannot be read ({e})")))?;
        let mut inner = tokenizers::Tokenizer::from_bytes(bytes)
            .map_err(|e| Error::file(&path, format!("is not a tokenizer ({e})")))?;
        // What a file says of truncation and padding is for another use.
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&path, format!("cannot be used ({e})")))?;

        let json = |name: &str| optional_json(&directory.join(name));
        let (settings, generation, config) =
            (json("tokenizer_config.json")?, json("generation_config.json")?, json("config.json")?);
        let token = |name: &str| match &settings[name] {
            Value::String(text) => Some(text.clone()),
            Value::Object(token) => token.get("content").and_then(Value::as_str).map(str::to_owned),
            _ => None,
        };
        let id =
            |text: &Option<String>| text.as_ref().and_then(|text| inner.token_to_id(text)).map(i64::from);
        let (bos_token, eos_token) = (token("bos_token"), token("eos_token"));
        let ends = id(&eos_token)
            .into_iter()
            .chain(ids(&generation["eos_token_id"]))
            .chain(ids(&config["eos_token_id"]));
        let stop_tokens = stop_tokens(&inner, ends);
        let pad_token = id(&token("pad_token"))
            .or_else(|| ids(&generation["pad_token_id"]).next())
            .or_else(|| ids(&config["pad_token_id"]).next())
            .or_else(|| stop_tokens.first().copied())
            .unwrap_or_default();
        let template = match template_of(directory, &settings)? {
            Some((path, source)) => Some(environment(&source).map_err(|e| Error::file(path, e))?),
            None => None,
        };
        let mut files = BTreeMap::new();
        for path in TOKENIZER_FILES.map(|name| directory.join(name)).iter().filter(|path| path.is_file()) {
            let bytes =
                std::fs::read(path).map_err(|e| Error::file(path, format!("cannot be read ({e})")))?;
            files.insert(path.file_name().unwrap_or_default().to_string_lossy().into_owned(), bytes);
        }
        Ok(Self {
            path: directory.to_owned(),
            inner,
            template,
            bos_token,
            eos_token,
            stop_tokens,
            pad_token,
            files,
            template_source: None,
        })
    }
}

const TEMPLATE: &str = "chat_template";

/// A Jinja environment that behaves as transformers' does, with this one template.
fn environment(source: &str) -> std::result::Result<Environment<'static>, String> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|e| e.to_string())?);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function(
        "raise_exception",
        |message: String| -> std::result::Result<String, minijinja::Error> {
            Err(minijinja::Error::new(minijinja::ErrorKind::InvalidOperation, message))
        },
    );
    environment
        .add_template_owned(TEMPLATE, source.to_owned())
        .map_err(|e| format!("its chat template is not valid Jinja ({e})"))?;
    Ok(environment)
}

/// How a text is split before pairs of bytes are merged.
#[derive(Debug, Clone, Copy)]
enum Splitting {
    /// Every digit apart, the rest as GPT-2 does.
    SmolLm,
    /// By Qwen2's own pattern, after normalising to NFC.
    Qwen2,
}

impl Splitting {
    fn named(name: &str) -> Option<Self> {
        match name {
            "smollm" => Some(Self::SmolLm),
            "qwen2" => Some(Self::Qwen2),
            _ => None,
        }
    }

    fn apply(self, tokenizer: &mut tokenizers::Tokenizer) -> tokenizers::Result<()> {
        let steps: Vec<PreTokenizerWrapper> = match self {
            Self::SmolLm => vec![Digits::new(true).into(), ByteLevel::new(false, true, true).into()],
            Self::Qwen2 => {
                tokenizer.with_normalizer(Some(NFC))?;
                let pattern = SplitPattern::Regex(QWEN2_PATTERN.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                vec![split.into(), ByteLevel::new(false, true, false).into()]
            }
        };
        tokenizer.with_pre_tokenizer(Some(Sequence::new(steps)));
        tokenizer.with_decoder(Some(ByteLevel::new(false, true, true)));
        Ok(())
    }
}

/// Contractions, words, single digits, signs, line ends, spaces.
const QWEN2_PATTERN: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// GPT-2's byte-level BPE.
fn byte_level_bpe(
    splitting: Splitting,
    tokens: &[&str],
    merges: &[&str],
    types: &[i64],
) -> std::result::Result<tokenizers::Tokenizer, String> {
    // The types of a GGUF token that stand for themselves in the text, and of those which are special.
    const CONTROL: i64 = 3;
    const USER_DEFINED: i64 = 4;

    let mut vocabulary = Vocab::default();
    for (id, &token) in tokens.iter().enumerate() {
        if vocabulary.insert(token.to_owned(), id as u32).is_some() {
            return Err(format!("has the token `{token}` twice"));
        }
    }
    let merges = merges
        .iter()
        .map(|merge| {
            let (left, right) = merge
                .split_once(' ')
                .ok_or_else(|| format!("has the merge `{merge}`, which is not a pair"))?;
            Ok((left.to_owned(), right.to_owned()))
        })
        .collect::<std::result::Result<Vec<_>, String>>()?;
    let bpe = BPE::builder().vocab_and_merges(vocabulary, merges).build();
    let mut tokenizer =
        tokenizers::Tokenizer::new(bpe.map_err(|e| format!("has inconsistent merges ({e})"))?);
    splitting.apply(&mut tokenizer).map_err(|e| format!("has a splitting that cannot be used ({e})"))?;
    let of_type = |wanted: i64| {
        let matching = tokens.iter().zip(types).filter(move |&(_, &kind)| kind == wanted);
        matching.map(move |(&token, _)| AddedToken::from(token, wanted == CONTROL).normalized(false))
    };
    tokenizer
        .add_special_tokens(of_type(CONTROL))
        .and_then(|_| tokenizer.add_tokens(of_type(USER_DEFINED)))
        .map_err(|e| format!("has special tokens that cannot be used ({e})"))?;
    Ok(tokenizer)
}

/// What the file says, with the special tokens that end a turn or a text whatever the file says: many files
/// name only one of the two.
fn stop_tokens(tokenizer: &tokenizers::Tokenizer, named: impl Iterator<Item = i64>) -> Vec<i64> {
    let ends = ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "</s>"];
    let special = tokenizer.get_added_tokens_decoder().into_iter();
    let special = special.filter(|(_, token)| token.special && ends.contains(&token.content.as_str()));
    let all: BTreeSet<i64> = named.chain(special.map(|(id, _)| i64::from(id))).collect();
    all.into_iter().collect()
}

/// The chat template of a directory and the file it is from.
fn template_of(directory: &Path, settings: &Value) -> Result<Option<(PathBuf, String)>> {
    let path = directory.join("chat_template.jinja");
    if path.is_file() {
        let source = std::fs::read_to_string(&path)
            .map_err(|e| Error::file(&path, format!("cannot be read ({e})")))?;
        return Ok(Some((path, source)));
    }
    let template = match &settings["chat_template"] {
        Value::Array(named) => {
            named.iter().find(|entry| entry["name"] == "default").map_or(&Value::Null, |e| &e["template"])
        }
        template => template,
    };
    Ok(template.as_str().map(|source| (directory.join("tokenizer_config.json"), source.to_owned())))
}

/// A JSON file, or null if there is none.
fn optional_json(path: &Path) -> Result<Value> {
    if !path.is_file() {
        return Ok(Value::Null);
    }
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read ({e})")))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, format!("is not JSON ({e})")))
}

/// A token id, or a list of them.
fn ids(value: &Value) -> impl Iterator<Item = i64> {
    let list = value.as_array().map_or_else(|| std::slice::from_ref(value), Vec::as_slice);
    list.iter().filter_map(Value::as_i64)
}

impl Tokenizer {
    /// A tokenizer that is on no disk: `stop_token` ends a turn and fills unused slots.
    ///
    /// # Errors
    /// The template is not valid, or `stop_token` is not one of its tokens.
    pub fn in_memory(inner: tokenizers::Tokenizer, template: &str, stop_token: &str) -> Result<Self> {
        let stop = inner
            .token_to_id(stop_token)
            .map(i64::from)
            .ok_or_else(|| Error::input("stop_token", format!("`{stop_token}` is no token")))?;
        Ok(Self {
            path: PathBuf::from("a tokenizer made in memory"),
            files: BTreeMap::new(),
            template_source: Some(template.to_owned()),
            template: Some(environment(template).map_err(|problem| Error::input("template", problem))?),
            bos_token: None,
            eos_token: Some(stop_token.to_owned()),
            stop_tokens: vec![stop],
            pad_token: stop,
            inner,
        })
    }
}
