//! What the judge and an adapter say to each other: one JSON object a line. The case's id, its flags and the right
//! answer are never sent.

use serde_json::{Map, Value, json};

use super::Dtype;
use crate::evaluate::{Question, named_json};
use crate::value::{Array, Kind, Named};

/// The version of the protocol.
pub const PROTOCOL: u64 = 1;

/// What an adapter says of itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Hello {
    /// The implementation's name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// The language that it is written in.
    pub language: String,
    /// The format that it computes in.
    pub dtype: Dtype,
    /// The formulas that it has, by id.
    pub formulas: Vec<String>,
}

/// A question put to an adapter.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The formula's id.
    pub formula: &'a str,
    /// Options and inputs.
    pub question: &'a Question,
    /// The outputs wanted, and the gradients as `grad:` and the input's name.
    pub want: &'a [String],
}

/// What an adapter answers.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// What was wanted, by name; what the adapter gives `null` for is left out.
    Answer(Named),
    /// An error, as the formula may have it.
    Error {
        /// Its code.
        kind: String,
        /// What the adapter says about it.
        message: String,
    },
    /// The adapter does not do this, and says why.
    Unsupported(String),
}

impl Hello {
    /// Reads the line that answers the `hello` of this id.
    ///
    /// # Errors
    /// How it breaks the protocol, in a sentence.
    pub fn from_line(json: &Value, id: u64) -> Result<Self, String> {
        let line = object(json, "the answer to hello", &["id", "ok", "error", "unsupported"])?;
        check_id(line, id)?;
        match line.get("ok") {
            Some(ok) if line.len() == 2 => Self::from_json(ok),
            _ => {
                Err(format!("the answer to hello is {} where `ok` is needed", plain(&json.to_string(), 200)))
            }
        }
    }

    /// Reads what stands in the answer to `hello`.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn from_json(json: &Value) -> Result<Self, String> {
        let fields = &["protocol", "name", "version", "language", "dtype", "formulas"];
        let hello = object(json, "the answer to hello", fields)?;
        if hello.get("protocol") != Some(&json!(PROTOCOL)) {
            let got = plain(&hello.get("protocol").unwrap_or(&Value::Null).to_string(), 40);
            return Err(format!("the answer to hello has the protocol {got}; this judge speaks {PROTOCOL}"));
        }
        let text = |name: &str| match hello.get(name) {
            Some(Value::String(text)) => Ok(plain(text, 200)),
            _ => Err(format!("the answer to hello lacks the text `{name}`")),
        };
        let dtype = text("dtype")?;
        let dtype = Dtype::ALL.into_iter().find(|known| known.name() == dtype).ok_or_else(|| {
            format!("the answer to hello has the dtype `{dtype}`; there are f64, f32 and bf16")
        })?;
        let formulas = hello.get("formulas").and_then(Value::as_array);
        let formulas = formulas.and_then(|ids| ids.iter().map(|id| id.as_str().map(str::to_owned)).collect());
        let formulas = formulas.ok_or("the answer to hello lacks `formulas`, a list of ids")?;
        Ok(Self {
            name: text("name")?,
            version: text("version")?,
            language: text("language")?,
            dtype,
            formulas,
        })
    }

    /// The answer to `hello`.
    pub fn to_json(&self) -> Value {
        json!({
            "protocol": PROTOCOL, "name": self.name, "version": self.version, "language": self.language,
            "dtype": self.dtype.name(), "formulas": self.formulas,
        })
    }
}

impl Request<'_> {
    /// The line that is sent.
    pub fn to_json(&self, id: u64) -> Value {
        json!({
            "id": id, "cmd": "run", "formula": self.formula,
            "options": self.question.options, "inputs": named_json(&self.question.inputs), "want": self.want,
        })
    }
}

impl Reply {
    /// Reads the line that answers the request of this id.
    ///
    /// # Errors
    /// How it breaks the protocol, in a sentence.
    pub fn from_json(json: &Value, id: u64, want: &[String]) -> Result<Self, String> {
        let line = object(json, "the answer", &["id", "ok", "error", "unsupported"])?;
        check_id(line, id)?;
        match (line.get("ok"), line.get("error"), line.get("unsupported")) {
            (Some(ok), None, None) => answer(ok, want).map(Self::Answer),
            (None, Some(error), None) => {
                let error = object(error, "`error`", &["kind", "message"])?;
                let text = |name: &str| error.get(name).and_then(Value::as_str).map(|text| plain(text, 1000));
                let kind = text("kind").ok_or("`error` lacks the text `kind`")?;
                Ok(Self::Error { kind, message: text("message").unwrap_or_default() })
            }
            (None, None, Some(Value::String(why))) => Ok(Self::Unsupported(plain(why, 1000))),
            (None, None, Some(_)) => Err("`unsupported` is not a text".to_owned()),
            _ => Err("the answer has not exactly one of ok, error and unsupported".to_owned()),
        }
    }

    /// The line that answers the request of this id.
    pub fn to_json(&self, id: u64) -> Value {
        match self {
            Self::Answer(arrays) => json!({ "id": id, "ok": named_json(arrays) }),
            Self::Error { kind, message } => {
                json!({ "id": id, "error": { "kind": kind, "message": message } })
            }
            Self::Unsupported(why) => json!({ "id": id, "unsupported": why }),
        }
    }
}

fn check_id(line: &Map<String, Value>, id: u64) -> Result<(), String> {
    match line.get("id") {
        Some(got) if *got == json!(id) => Ok(()),
        Some(got) => {
            Err(format!("the answer has the id {} where {id} was asked", plain(&got.to_string(), 40)))
        }
        None => Err(format!("the answer has no id where {id} was asked")),
    }
}

/// A text of an adapter's, fit for a report: at most so many characters, none of them a control character.
pub(super) fn plain(text: &str, longest: usize) -> String {
    let mut plain: String =
        text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(longest).collect();
    if text.chars().nth(longest).is_some() {
        plain.push_str("...");
    }
    plain.trim().to_owned()
}

/// The arrays that were wanted, and no others. One that the adapter does not have is `null`, and is left out here.
fn answer(json: &Value, want: &[String]) -> Result<Named, String> {
    let names: Vec<&str> = want.iter().map(String::as_str).collect();
    let ok = object(json, "`ok`", &names)?;
    let array = |name: &String| match ok.get(name) {
        None => Some(Err(format!("`ok` lacks `{name}`, which was wanted; null says that there is none"))),
        Some(Value::Null) => None,
        Some(json) => {
            let array = Array::from_json(name, Kind::Real, json);
            let array = array.map_err(|error| plain(&error.to_string(), 300));
            Some(array.map(|array| (name.clone(), array)))
        }
    };
    want.iter().filter_map(array).collect()
}

fn object<'a>(json: &'a Value, what: &str, fields: &[&str]) -> Result<&'a Map<String, Value>, String> {
    let Value::Object(object) = json else { return Err(format!("{what} is not an object")) };
    match object.keys().find(|key| !fields.contains(&key.as_str())) {
        Some(unknown) => Err(format!("{what} has the unknown field `{}`", plain(unknown, 80))),
        None => Ok(object),
    }
}
