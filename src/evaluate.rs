//! Reading a formula: the value, the gradient, and how exactly an implementation must agree.

use ndarray::ArrayD;
use serde_json::{Map, Value, json};

use crate::arguments::{Args, Given};
use crate::formula::{Formula, Gradient, Outputs, Role};
use crate::reference::{Bounded, Dual, Real};
use crate::value::{Array, Data, Named, number};
use crate::{Error, Result};

/// A formula's answer on one input.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// The outputs by name.
    pub outputs: Named,
    /// The gradient of the sum of the first output, by input.
    pub gradients: Named,
    /// The error bounds in units of roundoff, by output and by `grad:` input.
    pub bounds: Named,
    /// The branch margin: above `4 * unit roundoff`, no branch can go the other way.
    pub margin: f64,
}

/// What a formula is asked: its options, all or some of them, and its inputs.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Every option of the formula.
    pub options: Map<String, Value>,
    /// The inputs.
    pub inputs: Named,
}

impl Question {
    /// Reads `{"options": {...}, "inputs": {...}}`; options left out take the specification's defaults.
    ///
    /// # Errors
    /// `unknown-formula`, `option` or `input`, naming what is wrong.
    pub fn from_json(id: &str, json: &Value) -> Result<Self> {
        let formula = Formula::<f64>::find(id)?;
        let object = json
            .as_object()
            .ok_or_else(|| Error::input("(all)", "must be an object with options and inputs"))?;
        if let Some(unknown) = object.keys().find(|key| !["options", "inputs"].contains(&key.as_str())) {
            return Err(Error::input(unknown, "is not a field here; there are options and inputs"));
        }
        let nothing = Map::new();
        let options = match object.get("options") {
            None | Some(Value::Null) => &nothing,
            Some(Value::Object(options)) => options,
            Some(_) => return Err(Error::option("options", "must be an object")),
        };
        let Some(Value::Object(given)) = object.get("inputs") else {
            return Err(Error::input("inputs", "is missing; it must be an object of named arrays"));
        };
        let mut inputs = Named::new();
        for (name, json) in given {
            let input = formula.inputs.iter().find(|input| input.name == name).ok_or_else(|| {
                let names: Vec<&str> = formula.inputs.iter().map(|input| input.name).collect();
                Error::input(name, format!("is not an input of {id}; it takes {}", names.join(", ")))
            })?;
            inputs.insert(name.clone(), Array::from_json(name, input.kind, json)?);
        }
        Ok(Self { options: formula.resolve(options)?, inputs })
    }

    /// The question as JSON, with every option.
    pub fn to_json(&self) -> Value {
        json!({ "options": self.options, "inputs": named_json(&self.inputs) })
    }

    pub(crate) fn given<R: Real>(&self, formula: &Formula<R>) -> Given<'_> {
        Given {
            expected: formula.inputs,
            fields: formula.options,
            defaults: formula.defaults,
            inputs: &self.inputs,
            options: &self.options,
        }
    }
}

impl Evaluation {
    /// `{"outputs", "gradients", "bounds", "margin"}`.
    pub fn to_json(&self) -> Value {
        json!({
            "outputs": named_json(&self.outputs),
            "gradients": named_json(&self.gradients),
            "bounds": named_json(&self.bounds),
            "margin": number(self.margin),
        })
    }
}

/// Arrays by name as JSON.
pub fn named_json(arrays: &Named) -> Value {
    Value::Object(arrays.iter().map(|(name, array)| (name.clone(), array.to_json())).collect())
}

/// The reference's full answer: values, gradients, bounds and margin.
///
/// Gradients cost one pass of the formula for every entry of every differentiable input.
///
/// # Errors
/// Whatever the formula says about the question; `non-finite` for NaN or an infinity where the mask keeps it.
///
/// # Example
/// ```
/// use grpo_oracle::evaluate::{Question, evaluate};
/// let question = serde_json::json!({ "inputs": { "logp": [[-1.0]], "logp_ref": [[-1.0]] } });
/// let answer = evaluate("kl.estimate", &Question::from_json("kl.estimate", &question)?)?;
/// assert_eq!(answer.outputs["kl"].reals(), [0.0]);
/// assert_eq!(answer.gradients["logp_ref"].reals(), [0.0]); // the reference policy is a constant
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn evaluate(id: &str, question: &Question) -> Result<Evaluation> {
    let formula = Formula::<Bounded>::find(id)?;
    check(formula, question)?;
    let outputs =
        (formula.reference)(&Args::new(question.given(formula), |_, _, value| Bounded::exact(value))?)?;
    let mut evaluation = Evaluation {
        outputs: Named::new(),
        gradients: Named::new(),
        bounds: Named::new(),
        margin: f64::INFINITY,
    };
    for (name, output) in &outputs {
        evaluation.record(name, output, false);
    }
    for input in formula.inputs.iter().filter(|input| input.gradient != Gradient::None) {
        if let Some(array) = question.inputs.get(input.name) {
            let gradient = gradient(id, question, input.name, array)?;
            evaluation.record(input.name, &gradient, true);
        }
    }
    Ok(evaluation)
}

/// The values alone.
///
/// # Errors
/// As [`evaluate`].
pub fn values(id: &str, question: &Question) -> Result<Named> {
    let outputs = read::<f64>(id, question, |value| value)?;
    Ok(outputs.iter().map(|(name, output)| ((*name).to_owned(), Array::real(output))).collect())
}

/// The outputs read with any scalar that a number can be lifted to.
///
/// # Errors
/// As [`evaluate`].
pub fn read<R: Real>(id: &str, question: &Question, lift: impl Fn(f64) -> R) -> Result<Outputs<R>> {
    let formula = Formula::<R>::find(id)?;
    check(formula, question)?;
    (formula.reference)(&Args::new(question.given(formula), |_, _, value| lift(value))?)
}

impl Evaluation {
    fn record(&mut self, name: &str, array: &ArrayD<Bounded>, gradient: bool) {
        let bound_name = if gradient { format!("grad:{name}") } else { name.to_owned() };
        let into = if gradient { &mut self.gradients } else { &mut self.outputs };
        into.insert(name.to_owned(), Array::real(&array.mapv(|entry| entry.value)));
        self.bounds.insert(bound_name, Array::real(&array.mapv(|entry| entry.error)));
        self.margin = array.iter().fold(self.margin, |margin, entry| margin.min(entry.margin));
    }
}

fn gradient(id: &str, question: &Question, input: &str, array: &Array) -> Result<ArrayD<Bounded>> {
    let formula = Formula::<Dual<Bounded>>::find(id)?;
    let mut entries = Vec::with_capacity(array.len());
    for entry in 0..array.len() {
        let args = Args::new(question.given(formula), |name, index, value| {
            let seed = f64::from(u8::from(name == input && index == entry));
            Dual::variable(Bounded::exact(value), Bounded::exact(seed))
        })?;
        let outputs = (formula.reference)(&args)?;
        let sum = Dual::sum(outputs.into_iter().take(1).flat_map(|(_, output)| output.into_iter()));
        entries.push(sum.tangent);
    }
    crate::value::array_d(&array.shape, entries)
}

/// What every reading checks first: that everything needed is there and that what the mask keeps is a number.
pub(crate) fn check<R: Real>(formula: &Formula<R>, question: &Question) -> Result<()> {
    let given = question.given(formula);
    if let Some(absent) = formula
        .inputs
        .iter()
        .find(|input| input.optional.is_empty() && !question.inputs.contains_key(input.name))
    {
        return Err(given.missing(absent.name));
    }
    let mask = question.inputs.values().find_map(|array| match &array.data {
        Data::Mask(mask) => Some((&array.shape, mask)),
        _ => None,
    });
    for (name, array) in &question.inputs {
        let Data::Real(data) = &array.data else { continue };
        let is_logit = formula.inputs.iter().any(|input| input.name == name && input.role == Role::Logit);
        let is_kept = |index: usize| match mask {
            Some((shape, mask)) if *shape == array.shape => mask[index],
            // One entry a sequence: kept if any token of the sequence is.
            Some((shape, mask)) if shape.len() == 2 && array.shape.as_slice() == &shape[..1] => {
                mask[index * shape[1]..(index + 1) * shape[1]].contains(&true)
            }
            _ => true,
        };
        let is_fine = |value: f64| value.is_finite() || (is_logit && value == f64::NEG_INFINITY);
        if let Some((index, value)) =
            data.iter().enumerate().find(|&(index, &value)| !is_fine(value) && is_kept(index))
        {
            return Err(Error::NonFinite { argument: name.clone(), index, value: value.to_string() });
        }
    }
    Ok(())
}

/// The libtorch implementation's answer.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct TorchAnswer {
    /// The outputs by name.
    pub outputs: std::collections::BTreeMap<String, tch::Tensor>,
    /// The gradient of the sum of the first output, by input.
    pub gradients: std::collections::BTreeMap<String, tch::Tensor>,
}

/// Asks the libtorch implementation the same question.
///
/// # Errors
/// The same as the reference's, by code.
#[cfg(feature = "torch")]
pub fn evaluate_torch(
    id: &str,
    question: &Question,
    device: tch::Device,
    kind: tch::Kind,
) -> Result<TorchAnswer> {
    use crate::arguments::TorchArgs;

    let formula = Formula::<f64>::find(id)?;
    check(formula, question)?;
    let args = TorchArgs::new(question.given(formula), device, kind);
    let differentiable: Vec<_> = formula
        .inputs
        .iter()
        .filter(|input| input.gradient != Gradient::None && question.inputs.contains_key(input.name))
        .map(|input| Ok((input.name, args.tensor(input.name)?.set_requires_grad(true))))
        .collect::<Result<_>>()?;
    let outputs = (formula.torch)(&args)?;
    let sum = outputs.first().map(|(_, first)| first.sum(None)).filter(tch::Tensor::requires_grad);
    if let Some(sum) = sum {
        sum.backward();
    }
    let gradients = differentiable.into_iter().map(|(name, input)| {
        let gradient = input.grad();
        // No path from the output to the input: the gradient is 0, of the input's own kind.
        (name.to_owned(), if gradient.defined() { gradient } else { input.zeros_like() })
    });
    Ok(TorchAnswer {
        gradients: gradients.collect(),
        outputs: outputs.into_iter().map(|(name, output)| (name.to_owned(), output.detach())).collect(),
    })
}
