//! What a formula is called with: named inputs, read with a scalar or held as tensors, and options.

use std::collections::BTreeMap;

use ndarray::{Array, ArrayD, Dimension, Ix1, Ix2};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::formula::{Input, OptionField};
use crate::reference::{Dual, Real};
use crate::value::{Data, Named, array_d};
use crate::{Error, Result};

/// The arguments of a reference function.
#[derive(Debug)]
pub struct Args<'a, R> {
    reals: BTreeMap<&'a str, ArrayD<R>>,
    given: Given<'a>,
}

/// The named inputs and options as they were given, with the formula's own list of inputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Given<'a> {
    pub(crate) expected: &'static [Input],
    pub(crate) fields: &'static [OptionField],
    pub(crate) defaults: fn() -> Map<String, Value>,
    pub(crate) inputs: &'a Named,
    pub(crate) options: &'a Map<String, Value>,
}

impl<'a, R: Real> Args<'a, R> {
    /// Lifts every number to the scalar.
    pub(crate) fn new(given: Given<'a>, lift: impl Fn(f64) -> R) -> Result<Self> {
        let mut reals = BTreeMap::new();
        for (name, array) in given.inputs {
            if let Data::Real(data) = &array.data {
                let lifted = data.iter().map(|&value| lift(value)).collect();
                reals.insert(name.as_str(), array_d(&array.shape, lifted)?);
            }
        }
        Ok(Self { reals, given })
    }

    /// A real input of as many axes as `D` has.
    pub(crate) fn real<D: Dimension>(&self, name: &str) -> Result<Array<R, D>> {
        let array = self.reals.get(name).ok_or_else(|| self.given.missing(name))?;
        self.given.of_rank(name, array.clone())
    }

    /// A real input that may be absent.
    pub(crate) fn optional_real<D: Dimension>(&self, name: &str) -> Result<Option<Array<R, D>>> {
        self.reals.get(name).map(|array| self.given.of_rank(name, array.clone())).transpose()
    }

    /// A `[B, T]` input that may be given as `[B]`, one entry a sequence.
    pub(crate) fn per_token(&self, name: &str, width: usize) -> Result<Array<R, Ix2>> {
        let array = self.reals.get(name).ok_or_else(|| self.given.missing(name))?;
        if array.ndim() != 1 {
            return self.real(name);
        }
        let rows = self.given.of_rank::<_, Ix1>(name, array.clone())?;
        Ok(Array::from_shape_fn((rows.len(), width), |(row, _)| rows[row]))
    }

    /// A `[B, T]` input that may be given as `[B]`, or be absent.
    pub(crate) fn optional_per_token(&self, name: &str, width: usize) -> Result<Option<Array<R, Ix2>>> {
        self.reals.contains_key(name).then(|| self.per_token(name, width)).transpose()
    }

    /// A mask.
    pub(crate) fn mask<D: Dimension>(&self, name: &str) -> Result<Array<bool, D>> {
        self.given.mask(name)
    }

    /// A mask that may be absent.
    pub(crate) fn optional_mask<D: Dimension>(&self, name: &str) -> Result<Option<Array<bool, D>>> {
        self.given.inputs.contains_key(name).then(|| self.given.mask(name)).transpose()
    }

    /// Token ids or labels.
    pub(crate) fn integer<D: Dimension>(&self, name: &str) -> Result<Array<i64, D>> {
        self.given.integer(name)
    }

    /// Texts with their shape.
    pub(crate) fn text(&self, name: &str) -> Result<ArrayD<String>> {
        self.given.text(name)
    }

    /// The options, typed.
    pub(crate) fn options<O: DeserializeOwned>(&self) -> Result<O> {
        self.given.options()
    }
}

impl<R: Real> Args<'_, Dual<R>> {
    /// Sets the tangent of one entry.
    pub(crate) fn set_tangent(&mut self, name: &str, entry: usize, tangent: R) {
        if let Some(dual) = self.reals.get_mut(name).and_then(|array| array.iter_mut().nth(entry)) {
            dual.tangent = tangent;
        }
    }
}

impl Given<'_> {
    pub(crate) fn missing(&self, name: &str) -> Error {
        let shape = self.shape_of(name);
        Error::input(name, format!("is missing; the formula needs it with the shape {shape}"))
    }

    fn shape_of(&self, name: &str) -> String {
        self.expected.iter().find(|input| input.name == name).map(Input::shape).unwrap_or_default()
    }

    fn of_rank<T, D: Dimension>(&self, name: &str, array: ArrayD<T>) -> Result<Array<T, D>> {
        let got = array.ndim();
        array.into_dimensionality().map_err(|_| Error::Rank {
            argument: name.to_owned(),
            expected: D::NDIM.unwrap_or(0),
            got,
            shape: self.shape_of(name),
        })
    }

    pub(crate) fn mask<D: Dimension>(&self, name: &str) -> Result<Array<bool, D>> {
        match self.inputs.get(name).map(|array| (&array.shape, &array.data)) {
            Some((shape, Data::Mask(data))) => self.of_rank(name, array_d(shape, data.clone())?),
            _ => Err(self.missing(name)),
        }
    }

    pub(crate) fn integer<D: Dimension>(&self, name: &str) -> Result<Array<i64, D>> {
        match self.inputs.get(name).map(|array| (&array.shape, &array.data)) {
            Some((shape, Data::Integer(data))) => self.of_rank(name, array_d(shape, data.clone())?),
            _ => Err(self.missing(name)),
        }
    }

    pub(crate) fn text(&self, name: &str) -> Result<ArrayD<String>> {
        match self.inputs.get(name).map(|array| (&array.shape, &array.data)) {
            Some((shape, Data::Text(data))) => array_d(shape, data.clone()),
            _ => Err(self.missing(name)),
        }
    }

    pub(crate) fn options<O: DeserializeOwned>(&self) -> Result<O> {
        O::deserialize(self.options).map_err(|problem| {
            // Put alone among the defaults, the option that is wrong still fails, and so can be named.
            let is_wrong = |field: &&OptionField| {
                let mut options = (self.defaults)();
                options
                    .extend(self.options.get(field.name).map(|value| (field.name.to_owned(), value.clone())));
                O::deserialize(&options).is_err()
            };
            match self.fields.iter().find(is_wrong) {
                Some(field) => {
                    let value = self.options.get(field.name).unwrap_or(&Value::Null);
                    Error::option(field.name, format!("cannot be {value}; it takes {}", field.values))
                }
                None => Error::option("options", problem.to_string()),
            }
        })
    }
}

/// The arguments of a libtorch function.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct TorchArgs<'a> {
    tensors: BTreeMap<&'a str, tch::Tensor>,
    given: Given<'a>,
}

#[cfg(feature = "torch")]
impl<'a> TorchArgs<'a> {
    /// Puts every input on the device, real ones in `kind`.
    pub(crate) fn new(given: Given<'a>, device: tch::Device, kind: tch::Kind) -> Self {
        let mut tensors = BTreeMap::new();
        for (name, array) in given.inputs {
            let shape: Vec<i64> = array.shape.iter().map(|&axis| axis as i64).collect();
            let tensor = match &array.data {
                Data::Real(data) => tch::Tensor::from_slice(data).to_kind(kind),
                Data::Mask(data) => tch::Tensor::from_slice(data),
                Data::Integer(data) => tch::Tensor::from_slice(data),
                Data::Text(_) => continue,
            };
            tensors.insert(name.as_str(), tensor.reshape(shape.as_slice()).to_device(device));
        }
        Self { tensors, given }
    }

    /// An input; its rank is the formula's own business.
    pub(crate) fn tensor(&self, name: &str) -> Result<&tch::Tensor> {
        self.tensors.get(name).ok_or_else(|| self.given.missing(name))
    }

    /// An input that may be absent.
    pub(crate) fn optional_tensor(&self, name: &str) -> Option<&tch::Tensor> {
        self.tensors.get(name)
    }

    /// A `[B, T]` input that may be given as `[B]`, one entry a sequence.
    pub(crate) fn per_token(&self, name: &str, like: &tch::Tensor) -> Result<tch::Tensor> {
        let tensor = self.tensor(name)?;
        if tensor.dim() != 1 {
            return Ok(tensor.shallow_clone());
        }
        let width = like.size().last().copied().unwrap_or(1);
        Ok(tensor.unsqueeze(1).expand([-1, width], false))
    }

    /// A `[B, T]` input that may be given as `[B]`, or be absent.
    pub(crate) fn optional_per_token(&self, name: &str, like: &tch::Tensor) -> Result<Option<tch::Tensor>> {
        self.tensors.contains_key(name).then(|| self.per_token(name, like)).transpose()
    }

    /// Texts with their shape.
    pub(crate) fn text(&self, name: &str) -> Result<ArrayD<String>> {
        self.given.text(name)
    }

    /// The options, typed.
    pub(crate) fn options<O: DeserializeOwned>(&self) -> Result<O> {
        self.given.options()
    }
}
