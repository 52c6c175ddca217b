//! Named arrays as they stand in JSON: the inputs and outputs of formulas.

use std::collections::{BTreeMap, HashMap};

use ndarray::{ArrayD, IxDyn};
use serde_json::{Map, Value, json};

use crate::{Error, Result};

/// Arrays by name.
pub type Named = BTreeMap<String, Array>;

/// An array of one of the kinds that formulas read, row-major.
#[derive(Debug, Clone, PartialEq)]
pub struct Array {
    /// The length of each axis; empty for a scalar.
    pub shape: Vec<usize>,
    /// The entries.
    pub data: Data,
}

/// The entries of an [`Array`].
#[derive(Debug, Clone, PartialEq)]
pub enum Data {
    /// Real numbers.
    Real(Vec<f64>),
    /// A mask; true keeps.
    Mask(Vec<bool>),
    /// Token ids or group labels.
    Integer(Vec<i64>),
    /// Texts.
    Text(Vec<String>),
}

/// What the entries of an input are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Real numbers.
    Real,
    /// 0/1 numbers or booleans.
    Mask,
    /// Whole numbers from 0.
    Token,
    /// Whole numbers or texts, of which only equality counts.
    Label,
    /// Texts.
    Text,
}

impl Array {
    /// Real numbers from an ndarray.
    pub fn real(array: &ArrayD<f64>) -> Self {
        Self { shape: array.shape().to_vec(), data: Data::Real(array.iter().copied().collect()) }
    }

    /// The real numbers; none if the array is of another kind.
    pub fn reals(&self) -> &[f64] {
        if let Data::Real(data) = &self.data { data } else { &[] }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no entry.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The array as `{"shape": [...], "data": [...]}`; non-finite numbers become the strings "NaN", "Infinity" and
    /// "-Infinity".
    pub fn to_json(&self) -> Value {
        let data: Vec<Value> = match &self.data {
            Data::Real(data) => data.iter().copied().map(number).collect(),
            Data::Mask(data) => data.iter().map(|&keep| json!(u8::from(keep))).collect(),
            Data::Integer(data) => data.iter().map(|integer| json!(integer)).collect(),
            Data::Text(data) => data.iter().map(|text| json!(text)).collect(),
        };
        json!({ "shape": self.shape, "data": data })
    }

    /// Reads an array of a known kind from `{"shape", "data"}`, from nested lists, or from a bare scalar.
    ///
    /// # Errors
    /// `input` if the JSON is not such an array.
    pub fn from_json(name: &str, kind: Kind, json: &Value) -> Result<Self> {
        if let Value::Object(object) = json {
            return Self::from_strict_json(name, kind, object);
        }
        let (mut shape, mut entries) = (Vec::new(), Vec::new());
        flatten(name, json, 0, &mut shape, &mut entries)?;
        Ok(Self { shape, data: parse(name, kind, &entries)? })
    }

    /// Reads an array from `{"shape", "data"}` and nothing else.
    ///
    /// # Errors
    /// `input` if a field is missing, unknown or wrong, or if the shape does not count the data.
    pub fn from_strict_json(name: &str, kind: Kind, object: &Map<String, Value>) -> Result<Self> {
        if let Some(unknown) = object.keys().find(|key| !["shape", "data"].contains(&key.as_str())) {
            return Err(Error::input(
                name,
                format!("has the unknown field `{unknown}`; it takes shape and data"),
            ));
        }
        let (Some(Value::Array(shape)), Some(Value::Array(data))) = (object.get("shape"), object.get("data"))
        else {
            return Err(Error::input(name, "must have the lists shape and data"));
        };
        let shape: Option<Vec<usize>> =
            shape.iter().map(|axis| axis.as_u64().and_then(|axis| axis.try_into().ok())).collect();
        let shape =
            shape.ok_or_else(|| Error::input(name, "has a shape that is not a list of whole numbers"))?;
        let count = shape.iter().try_fold(1_usize, |product, &axis| product.checked_mul(axis));
        if count != Some(data.len()) {
            return Err(Error::input(
                name,
                format!("has {} entries, which is not its shape {shape:?}", data.len()),
            ));
        }
        // An array without entries may still claim axes that an output would have to be as long as.
        let longest = shape.iter().filter(|&&axis| axis > 0).try_fold(1_usize, |product, &axis| {
            product.checked_mul(axis).filter(|&product| product <= 1 << 32)
        });
        if longest.is_none() {
            return Err(Error::input(name, format!("has the shape {shape:?}, whose axes are too long")));
        }
        let entries: Vec<&Value> = data.iter().collect();
        Ok(Self { data: parse(name, kind, &entries)?, shape })
    }
}

/// A number as JSON; non-finite ones as strings.
pub fn number(number: f64) -> Value {
    if number.is_finite() {
        json!(number)
    } else if number.is_nan() {
        json!("NaN")
    } else {
        json!(if number > 0.0 { "Infinity" } else { "-Infinity" })
    }
}

/// A number from JSON, as [`number`] writes it.
pub fn number_from(json: &Value) -> Option<f64> {
    match json {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => match text.as_str() {
            "NaN" => Some(f64::NAN),
            "Infinity" => Some(f64::INFINITY),
            "-Infinity" => Some(f64::NEG_INFINITY),
            _ => None,
        },
        _ => None,
    }
}

/// The real array with this shape and data.
pub(crate) fn array_d<T>(shape: &[usize], data: Vec<T>) -> Result<ArrayD<T>> {
    ArrayD::from_shape_vec(IxDyn(shape), data).map_err(|problem| Error::input("shape", problem.to_string()))
}

fn flatten<'a>(
    name: &str,
    json: &'a Value,
    depth: usize,
    shape: &mut Vec<usize>,
    entries: &mut Vec<&'a Value>,
) -> Result<()> {
    let Value::Array(list) = json else {
        if depth == shape.len() {
            entries.push(json);
            return Ok(());
        }
        return Err(ragged(name));
    };
    let new_axis = depth == shape.len();
    if new_axis && !entries.is_empty() {
        return Err(ragged(name)); // a list beside a scalar
    }
    if new_axis {
        shape.push(list.len());
    }
    if shape[depth] != list.len() {
        return Err(ragged(name));
    }
    list.iter().try_for_each(|entry| flatten(name, entry, depth + 1, shape, entries))
}

fn ragged(name: &str) -> Error {
    Error::input(name, "has lists of different lengths; pad them and mask the padding")
}

fn parse(name: &str, kind: Kind, entries: &[&Value]) -> Result<Data> {
    let wrong = |index: usize, wanted: &str| {
        Error::input(name, format!("entry {index} is {}, where {wanted} is wanted", entries[index]))
    };
    let all = |wanted: &str, bad: Option<usize>| bad.map_or(Ok(()), |index| Err(wrong(index, wanted)));
    match kind {
        Kind::Real => {
            let numbers: Vec<Option<f64>> = entries.iter().map(|entry| number_from(entry)).collect();
            all(
                "a number, \"NaN\", \"Infinity\" or \"-Infinity\"",
                numbers.iter().position(Option::is_none),
            )?;
            Ok(Data::Real(numbers.into_iter().flatten().collect()))
        }
        Kind::Mask => {
            let bits: Vec<Option<bool>> = entries
                .iter()
                .map(|entry| {
                    entry.as_bool().or(match entry.as_f64() {
                        Some(0.0) => Some(false),
                        Some(1.0) => Some(true),
                        _ => None,
                    })
                })
                .collect();
            all("0, 1, false or true", bits.iter().position(Option::is_none))?;
            Ok(Data::Mask(bits.into_iter().flatten().collect()))
        }
        Kind::Token => {
            let tokens: Vec<Option<i64>> = entries.iter().map(|entry| whole(entry)).collect();
            all("a whole number", tokens.iter().position(Option::is_none))?;
            Ok(Data::Integer(tokens.into_iter().flatten().collect()))
        }
        Kind::Label => {
            let wrong = entries.iter().position(|entry| whole(entry).is_none() && !entry.is_string());
            all("a whole number or a text", wrong)?;
            if entries.iter().all(|entry| whole(entry).is_some()) {
                return Ok(Data::Integer(entries.iter().filter_map(|entry| whole(entry)).collect()));
            }
            // Only equality counts: each label is numbered by its first appearance.
            let mut numbered = HashMap::new();
            let labels = entries.iter().map(|entry| {
                let next = numbered.len() as i64;
                *numbered.entry((whole(entry), entry.as_str())).or_insert(next)
            });
            Ok(Data::Integer(labels.collect()))
        }
        Kind::Text => {
            all("a text", entries.iter().position(|entry| !entry.is_string()))?;
            Ok(Data::Text(entries.iter().filter_map(|entry| entry.as_str().map(str::to_owned)).collect()))
        }
    }
}

/// A whole number, also when it is written as 3.0.
fn whole(json: &Value) -> Option<i64> {
    json.as_i64().or_else(|| json.as_f64().filter(|n| n.fract() == 0.0 && n.abs() < 9e15).map(|n| n as i64))
}
