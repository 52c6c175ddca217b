//! Reading a formula: the value, the gradient, and how exactly an implementation must agree.

use ndarray::ArrayD;
use serde_json::{Map, Value, json};

#[cfg(feature = "torch")]
use crate::arguments::TorchArgs;
use crate::arguments::{Args, Given};
use crate::axes::Axes;
use crate::formula::{ANY, Formula, Gradient, Input, Outputs, Role};
use crate::reference::{Bounded, Dual, Real};
use crate::value::{Array, Data, Kind, Named, number};
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

    /// The arguments for a row's reference, every real input lifted to its scalar.
    ///
    /// # Errors
    /// `input` if an array is not what its shape says.
    pub fn args<R: Real>(&self, formula: &Formula<R>, lift: impl Fn(f64) -> R) -> Result<Args<'_, R>> {
        Args::new(self.given(formula), lift)
    }

    /// The arguments for a row's libtorch implementation.
    #[cfg(feature = "torch")]
    pub fn torch_args(&self, formula: &Formula<f64>, device: tch::Device, kind: tch::Kind) -> TorchArgs<'_> {
        TorchArgs::new(self.given(formula), device, kind)
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
/// Gradients cost one pass of the formula for every entry of every differentiable input; [`evaluate_outputs`] leaves
/// them out.
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
    evaluate_with(id, question, |_| true)
}

/// The reference's answer with the gradients by these inputs alone.
pub(crate) fn evaluate_with(
    id: &str,
    question: &Question,
    is_wanted: impl Fn(&Input) -> bool,
) -> Result<Evaluation> {
    let mut evaluation = evaluate_outputs(id, question)?;
    let formula = Formula::<f64>::find(id)?;
    let is_wanted = |name: &str| formula.inputs.iter().any(|input| input.name == name && is_wanted(input));
    for input in differentiable(formula, question).filter(|name| is_wanted(name)) {
        evaluation.record(input, &gradient(id, question, input, Bounded::exact)?, true);
    }
    Ok(evaluation)
}

/// The reference's answer without gradients: values, their bounds and their margin, in one pass of the formula.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_outputs(id: &str, question: &Question) -> Result<Evaluation> {
    let mut evaluation = Evaluation {
        outputs: Named::new(),
        gradients: Named::new(),
        bounds: Named::new(),
        margin: f64::INFINITY,
    };
    for (name, output) in read(id, question, Bounded::exact)? {
        evaluation.record(name, &output, false);
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
    (formula.reference)(&question.args(formula, lift)?)
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

/// The inputs of a question that gradients are asked for.
pub fn differentiable<R: Real>(
    formula: &Formula<R>,
    question: &Question,
) -> impl Iterator<Item = &'static str> {
    let inputs = formula.inputs.iter().filter(|input| input.gradient != Gradient::None);
    inputs.map(|input| input.name).filter(|name| question.inputs.contains_key(*name))
}

/// The gradient of the sum of the first output by one input, read with any scalar.
///
/// # Errors
/// As [`evaluate`]; `input` if the question has no such input.
pub fn gradient<R: Real>(
    id: &str,
    question: &Question,
    input: &str,
    lift: impl Fn(f64) -> R,
) -> Result<ArrayD<R>> {
    let formula = Formula::<Dual<R>>::find(id)?;
    check(formula, question)?;
    let array = question.inputs.get(input).ok_or_else(|| question.given(formula).missing(input))?;
    let zero = R::constant(0.0);
    let mut args = question.args(formula, |value| Dual::variable(lift(value), zero))?;
    let mut entries = Vec::with_capacity(array.len());
    for entry in 0..array.len() {
        args.set_tangent(input, entry, R::constant(1.0));
        let outputs = (formula.reference)(&args)?;
        let sum = Dual::sum(outputs.into_iter().take(1).flat_map(|(_, output)| output.into_iter()));
        entries.push(sum.tangent);
        args.set_tangent(input, entry, zero);
    }
    crate::value::array_d(&array.shape, entries)
}

/// What every reading checks first: that everything needed is there, that the shapes go together, and that what the
/// mask keeps is a number.
pub(crate) fn check<R: Real>(formula: &Formula<R>, question: &Question) -> Result<()> {
    let mut axes = Axes::default();
    for input in formula.inputs {
        let Some(array) = question.inputs.get(input.name) else {
            if input.is_needed(&question.options) {
                return Err(question.given(formula).missing(input.name));
            }
            continue;
        };
        axes = match input.role {
            _ if input.axes == ANY || input.kind == Kind::Text => axes.bind_any(input.name, &array.shape)?,
            Role::Advantage if array.shape.len() == 1 => {
                axes.bind(input.name, &input.axes[..1], &array.shape)?
            }
            _ => axes.bind(input.name, input.axes, &array.shape)?,
        };
    }
    check_finite(formula, question)
}

fn check_finite<R: Real>(formula: &Formula<R>, question: &Question) -> Result<()> {
    // The first mask of the row says what is kept.
    let masks = formula.inputs.iter().filter(|input| input.kind == Kind::Mask);
    let mask =
        masks.filter_map(|input| question.inputs.get(input.name)).find_map(|array| match &array.data {
            Data::Mask(mask) => Some((&array.shape, mask)),
            _ => None,
        });
    for input in formula.inputs.iter().filter(|input| input.is_read(&question.options)) {
        let Some(array) = question.inputs.get(input.name) else { continue };
        let Data::Real(data) = &array.data else { continue };
        let is_logit = input.role == Role::Logit;
        let is_kept = |index: usize| match mask {
            Some((shape, mask)) if *shape == array.shape => mask[index],
            // One entry a sequence: kept if any token of the sequence is.
            Some((shape, mask)) if shape.len() == 2 && array.shape.as_slice() == &shape[..1] => {
                mask[index * shape[1]..(index + 1) * shape[1]].contains(&true)
            }
            _ => true,
        };
        if is_logit && let Some(position) = all_ruled_out(&array.shape, data) {
            return Err(Error::input(input.name, format!("rules out every token at position {position}")));
        }
        let is_fine = |value: f64| value.is_finite() || (is_logit && value == f64::NEG_INFINITY);
        if let Some((index, value)) =
            data.iter().enumerate().find(|&(index, &value)| !is_fine(value) && is_kept(index))
        {
            return Err(Error::NonFinite {
                argument: input.name.to_owned(),
                index,
                value: value.to_string(),
            });
        }
    }
    Ok(())
}

/// The first position whose logits rule out every token; without a vocabulary, any position does.
fn all_ruled_out(shape: &[usize], logits: &[f64]) -> Option<usize> {
    let (&vocabulary, positions) = shape.split_last()?;
    if vocabulary == 0 {
        return (!positions.contains(&0)).then_some(0);
    }
    logits.chunks(vocabulary).position(|logits| logits.iter().all(|&logit| logit == f64::NEG_INFINITY))
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

#[cfg(feature = "torch")]
impl TorchAnswer {
    /// The outputs and, as `grad:` and the input's name, the gradients: off the device, with the kind that each had there.
    ///
    /// # Errors
    /// `unsupported` if libtorch cannot hand a tensor over.
    pub fn arrays(&self) -> Result<Vec<(String, Array, tch::Kind)>> {
        let outputs = self.outputs.iter().map(|(name, tensor)| (name.clone(), tensor));
        let gradients = self.gradients.iter().map(|(input, tensor)| (format!("grad:{input}"), tensor));
        outputs
            .chain(gradients)
            .map(|(name, tensor)| {
                let flat = tensor.to_device(tch::Device::Cpu).to_kind(tch::Kind::Double).reshape([-1]);
                let data = Vec::<f64>::try_from(flat)
                    .map_err(|problem| Error::Unsupported { what: format!("reading `{name}`: {problem}") })?;
                let shape = tensor.size().iter().map(|&axis| axis as usize).collect();
                Ok((name, Array { shape, data: Data::Real(data) }, tensor.kind()))
            })
            .collect()
    }
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
    let formula = Formula::<f64>::find(id)?;
    let torch = formula
        .torch
        .ok_or_else(|| Error::Unsupported { what: format!("{id} has no libtorch implementation yet") })?;
    check(formula, question)?;
    let args = question.torch_args(formula, device, kind);
    let differentiable: Vec<_> = differentiable(formula, question)
        .map(|input| Ok((input, args.tensor(input)?.set_requires_grad(true))))
        .collect::<Result<_>>()?;
    let outputs = torch(&args)?;
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

/// Asks the fast path the same question.
///
/// # Errors
/// The same as the reference's, by code.
#[cfg(feature = "torch")]
pub fn evaluate_fused(
    id: &str,
    question: &Question,
    device: tch::Device,
    kind: tch::Kind,
) -> Result<TorchAnswer> {
    let formula = Formula::<f64>::find(id)?;
    let fused = formula.fused.ok_or_else(|| Error::Unsupported { what: format!("{id} has no fast path") })?;
    check(formula, question)?;
    let args = question.torch_args(formula, device, kind);
    let answer = fused(&args)?;
    let mut gradients = std::collections::BTreeMap::new();
    for input in differentiable(formula, question) {
        gradients.insert(input.to_owned(), args.tensor(input)?.zeros_like());
    }
    for (input, gradient) in answer.gradients {
        gradients.insert(input.to_owned(), gradient);
    }
    let outputs = answer.outputs.into_iter().map(|(name, output)| (name.to_owned(), output));
    Ok(TorchAnswer { outputs: outputs.collect(), gradients })
}
