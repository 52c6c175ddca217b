//! The table of formulas: one row each. The specification check, the fixtures, the tests, the benches and the command
//! read it; nothing else lists formulas.
//!
//! To add one: write its clauses in `spec/`, its function in `reference/` and in `torch/`, and its row in the file of its
//! family here.

mod advantage;
mod aggregate;
mod filter;
mod gae;
mod group_ppo;
mod kl;
mod logprob;
mod mask;
mod metrics;
mod objective;
mod optim;
mod reward;
mod rollout;
mod sampling;
mod value;

use ndarray::{Array0, ArrayD};
use serde_json::{Map, Value};

use crate::arguments::Args;
#[cfg(feature = "torch")]
use crate::arguments::TorchArgs;
use crate::reference::Real;
use crate::value::Kind;
use crate::{Error, Result};

/// A formula, its reference read with the scalar `R`.
#[derive(Debug)]
pub struct Formula<R: Real> {
    /// The permanent id, `family.name`.
    pub id: &'static str,
    /// The formula in one line of maths.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The clauses of the specification that it obeys, beside [`RULES`].
    pub clauses: &'static [&'static str],
    /// What goes in, in the order of the functions' arguments.
    pub inputs: &'static [Input],
    /// The options, every one of them.
    pub options: &'static [OptionField],
    /// The specification's default for every option.
    pub defaults: fn() -> Map<String, Value>,
    /// What comes out; gradients are those of the sum of the first.
    pub outputs: &'static [Output],
    /// Well-known wrong variants that an option of the formula reproduces.
    pub rivals: &'static [Rival],
    /// The reference.
    pub reference: fn(&Args<'_, R>) -> Result<Outputs<R>>,
    /// The libtorch implementation, if there is one yet.
    #[cfg(feature = "torch")]
    pub torch: Option<fn(&TorchArgs<'_>) -> Result<TorchOutputs>>,
    /// A fast path, if there is one.
    #[cfg(feature = "torch")]
    pub fused: Option<fn(&TorchArgs<'_>) -> Result<FusedOutputs>>,
}

/// The clauses that every formula obeys.
pub const RULES: &[&str] =
    &["all.shape", "all.finite", "all.options", "all.gradient", "all.half", "all.tolerance"];

/// An input of a formula.
#[derive(Debug)]
pub struct Input {
    /// The name.
    pub name: &'static str,
    /// What its entries are.
    pub kind: Kind,
    /// Its axes; [`ANY`] stands for any shape.
    pub axes: &'static [&'static str],
    /// What its entries mean, which says how to make realistic ones.
    pub role: Role,
    /// What the gradient does.
    pub gradient: Gradient,
    /// When it has to be given.
    pub needed: Needed,
}

/// Any shape, the same for all inputs that have it.
pub const ANY: &[&str] = &["..."];

impl Input {
    const fn new(
        name: &'static str,
        kind: Kind,
        axes: &'static [&'static str],
        role: Role,
        gradient: Gradient,
    ) -> Self {
        Self { name, kind, axes, role, gradient, needed: Needed::Always }
    }

    /// An input that the gradient flows to.
    const fn differentiable(name: &'static str, axes: &'static [&'static str], role: Role) -> Self {
        Self::new(name, Kind::Real, axes, role, Gradient::Flows)
    }

    /// A real input that the formula holds constant.
    const fn constant(name: &'static str, axes: &'static [&'static str], role: Role) -> Self {
        Self::new(name, Kind::Real, axes, role, Gradient::Stops)
    }

    /// An input for which there is no gradient to speak of.
    const fn data(name: &'static str, kind: Kind, axes: &'static [&'static str], role: Role) -> Self {
        Self::new(name, kind, axes, role, Gradient::None)
    }

    const fn unless_zero(self, option: &'static str) -> Self {
        Self { needed: Needed::UnlessZero(option), ..self }
    }

    const fn when(self, option: &'static str, values: &'static [&'static str]) -> Self {
        Self { needed: Needed::When(option, values), ..self }
    }

    const fn optional(self) -> Self {
        Self { needed: Needed::Optional, ..self }
    }

    /// Whether the formula reads the input under these options, if it is given.
    pub fn is_read(&self, options: &Map<String, Value>) -> bool {
        let option = |name: &str| options.get(name).unwrap_or(&Value::Null);
        match self.needed {
            Needed::Always | Needed::Optional => true,
            Needed::UnlessZero(name) => option(name).as_f64() != Some(0.0),
            Needed::When(name, values) => option(name).as_str().is_some_and(|value| values.contains(&value)),
        }
    }

    /// Whether the formula cannot do without the input under these options.
    pub fn is_needed(&self, options: &Map<String, Value>) -> bool {
        self.needed != Needed::Optional && self.is_read(options)
    }

    /// The shape in words.
    pub fn shape(&self) -> String {
        match self.role {
            Role::Advantage if self.axes.len() == 2 => "[B] or [B, T]".to_owned(),
            _ => format!("[{}]", self.axes.join(", ")),
        }
    }

    /// The shape when axes have these lengths; what may have any shape is `[B, T]`.
    pub fn shape_with(&self, length: impl FnMut(&str) -> usize) -> Vec<usize> {
        let axes = if self.axes == ANY { &["B", "T"] } else { self.axes };
        axes.iter().copied().map(length).collect()
    }
}

/// When an input has to be given; one that is not needed may still be there, and is then left unread.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needed {
    /// Whatever the options are.
    Always,
    /// Unless this option is 0.
    UnlessZero(&'static str),
    /// When this option has one of these values.
    When(&'static str, &'static [&'static str]),
    /// Never, and yet it is read if it is there.
    Optional,
}

/// What the entries of an input mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Numbers of any size.
    Number,
    /// Scalar rewards.
    Reward,
    /// Advantages, one a token, or one a sequence for all of its tokens.
    Advantage,
    /// Log-probabilities under the policy, in nats.
    Logp,
    /// Log-probabilities of the same tokens under another policy.
    LogpOther,
    /// Logits; -inf rules a token out.
    Logit,
    /// Numbers of tokens or steps: whole and above 0.
    Count,
    /// Numbers that are not negative.
    Size,
    /// Numbers of samples, one a prompt.
    Samples,
    /// How many of a prompt's samples are correct.
    Correct,
    /// A mask; true keeps.
    Mask,
    /// Token ids below V.
    Token,
    /// Group labels.
    Group,
    /// A response's text.
    Response,
    /// A solution's text.
    Answer,
}

/// What the gradient does at an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// It flows.
    Flows,
    /// It stops: the input is a constant, its gradient exactly 0.
    Stops,
    /// The input is data; there is no gradient to speak of.
    None,
}

/// An option of a formula.
#[derive(Debug)]
pub struct OptionField {
    /// The field's name.
    pub name: &'static str,
    /// The values that it takes.
    pub values: &'static str,
    /// A JSON list of values for tests to try, every alternative among them.
    pub samples: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

impl OptionField {
    const fn new(
        name: &'static str,
        values: &'static str,
        samples: &'static str,
        meaning: &'static str,
    ) -> Self {
        Self { name, values, samples, meaning }
    }
}

/// An output of a formula.
#[derive(Debug)]
pub struct Output {
    /// The name.
    pub name: &'static str,
    /// Its axes; empty for a scalar.
    pub axes: &'static [&'static str],
}

impl Output {
    const fn new(name: &'static str, axes: &'static [&'static str]) -> Self {
        Self { name, axes }
    }
}

/// A wrong variant that is known to happen.
#[derive(Debug)]
pub struct Rival {
    /// What the implementation got wrong, in a few words.
    pub name: &'static str,
    /// The options, as JSON, that reproduce it.
    pub options: &'static str,
}

impl Rival {
    const fn new(name: &'static str, options: &'static str) -> Self {
        Self { name, options }
    }
}

/// The outputs of a reference function, in the order of the row.
pub type Outputs<R> = Vec<(&'static str, ArrayD<R>)>;

/// The outputs of a libtorch function, in the order of the row.
#[cfg(feature = "torch")]
pub type TorchOutputs = Vec<(&'static str, tch::Tensor)>;

/// What a fast path gives: the outputs, in the order of the row, and the gradients that it has computed with them.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct FusedOutputs {
    /// The outputs.
    pub outputs: TorchOutputs,
    /// The gradients of the sum of the first output, by input; those that are not here are 0.
    pub gradients: TorchOutputs,
}

/// A number without axes, in the format that an input is computed in.
#[cfg(feature = "torch")]
fn number_like(number: f64, like: &tch::Tensor) -> tch::Tensor {
    let kind = if like.kind() == tch::Kind::Double { like.kind() } else { tch::Kind::Float };
    tch::Tensor::from(number).to_kind(kind)
}

impl<R: Real> Formula<R> {
    /// Every formula, family by family.
    pub fn all() -> impl Iterator<Item = &'static Self> {
        [
            Self::MASK,
            Self::ADVANTAGE,
            Self::GAE,
            Self::FILTER,
            Self::GROUP_PPO,
            Self::LOGPROB,
            Self::ROLLOUT,
            Self::OBJECTIVE,
            Self::KL,
            Self::AGGREGATE,
            Self::VALUE,
            Self::REWARD,
            Self::SAMPLING,
            Self::OPTIM,
            Self::METRICS,
        ]
        .into_iter()
        .flatten()
    }

    /// The row with this id.
    ///
    /// # Errors
    /// `unknown-formula`, with the nearest id.
    pub fn find(id: &str) -> Result<&'static Self> {
        Self::all().find(|formula| formula.id == id).ok_or_else(|| {
            let hint = nearest(id, Self::all().map(|formula| formula.id))
                .map_or("`grpo-oracle list` shows them all".to_owned(), |near| {
                    format!("did you mean `{near}`?")
                });
            Error::UnknownFormula { id: id.to_owned(), hint }
        })
    }

    /// All of the specification's defaults, overlaid with the given options.
    ///
    /// # Errors
    /// `option` for a name that the formula does not have.
    pub fn resolve(&self, given: &Map<String, Value>) -> Result<Map<String, Value>> {
        let mut options = (self.defaults)();
        for (name, value) in given {
            if !options.contains_key(name) {
                let near = nearest(name, options.keys().map(String::as_str));
                let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                return Err(Error::option(name, format!("is not an option of {}{hint}", self.id)));
            }
            options.insert(name.clone(), value.clone());
        }
        Ok(options)
    }

    /// The values of an option that are tried: the default, and then its samples, each once.
    ///
    /// # Errors
    /// `option` if the samples are not JSON.
    pub fn tried(&self, option: &OptionField) -> Result<Vec<Value>> {
        let samples: Vec<Value> = serde_json::from_str(option.samples)
            .map_err(|problem| Error::option(option.name, problem.to_string()))?;
        let mut tried: Vec<Value> = (self.defaults)().get(option.name).cloned().into_iter().collect();
        for sample in samples {
            if !tried.iter().any(|known| is_same(known, &sample)) {
                tried.push(sample);
            }
        }
        Ok(tried)
    }
}

/// Whether two option values are the same; 1 is 1.0.
pub(crate) fn is_same(left: &Value, right: &Value) -> bool {
    match (left.as_f64(), right.as_f64()) {
        (Some(left), Some(right)) => left == right,
        _ => left == right,
    }
}

/// The options' fields as JSON, by name.
fn fields<O: serde::Serialize>(options: &O) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// The candidate that is spelled most like `name`, if any is close.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|&(likeness, _)| likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn scalar<R: Real>(value: R) -> ArrayD<R> {
    Array0::from_elem((), value).into_dyn()
}
