//! Who is judged.

use std::time::Duration;

use super::{Dtype, Hello, Reply, Request};
use crate::Result;
#[cfg(feature = "torch")]
use crate::evaluate::evaluate_torch;
use crate::evaluate::{Question, evaluate_with};
use crate::formula::{Formula, Input};
use crate::value::{Array, Data, Named};

/// An implementation that can be asked.
pub trait Subject {
    /// What it says of itself.
    fn hello(&self) -> &Hello;

    /// Its answer to one question.
    ///
    /// # Errors
    /// Why there is no answer. The next question may be asked all the same.
    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault>;
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Fault {
    /// It ended, or cannot be started again.
    #[error("{0}")]
    Died(String),
    /// It said nothing for so long.
    #[error("the adapter did not answer within {:.1} s", .0.as_secs_f64())]
    Hung(Duration),
    /// What it said is not an answer.
    #[error("{0}")]
    Garbled(String),
}

/// The reference, judged by itself: computed in double precision, its answers rounded to a format.
#[derive(Debug)]
pub struct Reference {
    hello: Hello,
}

impl Reference {
    /// The reference with answers in this format.
    pub fn new(dtype: Dtype) -> Self {
        let formulas = Formula::<f64>::all().map(|formula| formula.id.to_owned()).collect();
        let (name, version) = ("grpo-oracle reference".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Self { hello: Hello { name, version, language: "rust".to_owned(), dtype, formulas } }
    }

    fn answer(&self, request: &Request<'_>) -> Result<Named> {
        let gradient_of = |name: &str| format!("grad:{name}");
        let is_wanted = |input: &Input| request.want.contains(&gradient_of(input.name));
        let answer = evaluate_with(request.formula, &complete(request)?, is_wanted)?;
        let gradients = answer.gradients.into_iter().map(|(input, array)| (gradient_of(&input), array));
        let wanted =
            answer.outputs.into_iter().chain(gradients).filter(|(name, _)| request.want.contains(name));
        Ok(wanted.map(|(name, array)| (name, self.rounded(&array))).collect())
    }

    fn rounded(&self, array: &Array) -> Array {
        let data = array.reals().iter().map(|&number| self.hello.dtype.rounded(number)).collect();
        Array { shape: array.shape.clone(), data: Data::Real(data) }
    }
}

impl Subject for Reference {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        Ok(reply(self.answer(request)))
    }
}

/// The libtorch implementation, its inputs in one format on one device.
#[cfg(feature = "torch")]
#[derive(Debug)]
pub struct Torch {
    hello: Hello,
    device: tch::Device,
}

#[cfg(feature = "torch")]
impl Torch {
    /// The libtorch implementation of every formula that has one.
    pub fn new(dtype: Dtype, device: tch::Device) -> Self {
        let rows = Formula::<f64>::all().filter(|formula| formula.torch.is_some());
        let formulas = rows.map(|formula| formula.id.to_owned()).collect();
        let name = match device {
            tch::Device::Cuda(index) => format!("grpo-oracle libtorch on CUDA device {index}"),
            _ => "grpo-oracle libtorch".to_owned(),
        };
        let version = env!("CARGO_PKG_VERSION").to_owned();
        Self { hello: Hello { name, version, language: "rust".to_owned(), dtype, formulas }, device }
    }

    fn answer(&self, request: &Request<'_>) -> Result<Named> {
        let answer =
            evaluate_torch(request.formula, &complete(request)?, self.device, self.hello.dtype.kind())?;
        let arrays = answer.arrays()?.into_iter().map(|(name, array, _)| (name, array));
        Ok(arrays.filter(|(name, _)| request.want.contains(name)).collect())
    }
}

#[cfg(feature = "torch")]
impl Subject for Torch {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        Ok(reply(self.answer(request)))
    }
}

/// The question with every option: which inputs are read may depend on one that is left out.
fn complete(request: &Request<'_>) -> Result<Question> {
    let options = Formula::<f64>::find(request.formula)?.resolve(&request.question.options)?;
    Ok(Question { options, inputs: request.question.inputs.clone() })
}

fn reply(answer: Result<Named>) -> Reply {
    answer.map_or_else(
        |error| Reply::Error { kind: error.code().to_owned(), message: error.to_string() },
        Reply::Answer,
    )
}
