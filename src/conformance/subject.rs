//! Who is judged.

use std::time::Duration;

use super::{Dtype, Hello, Reply, Request};
use crate::evaluate::{Question, differentiable, gradient, read, values};
use crate::formula::Formula;
use crate::value::{Array, Named};
use crate::{Error, Result};

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

/// The reference, judged by itself: in double precision, or in honest single precision.
#[derive(Debug)]
pub struct Reference {
    hello: Hello,
}

impl Reference {
    /// The reference read with this format.
    ///
    /// # Errors
    /// `unsupported` for bf16, which is a format of inputs and not of arithmetic here.
    pub fn new(dtype: Dtype) -> Result<Self> {
        if dtype == Dtype::Bf16 {
            return Err(Error::Unsupported { what: "the reference computes in f64 and f32 only".to_owned() });
        }
        let formulas = Formula::<f64>::all().map(|formula| formula.id.to_owned()).collect();
        let (name, version) = ("grpo-oracle reference".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(Self { hello: Hello { name, version, language: "rust".to_owned(), dtype, formulas } })
    }

    fn answer(&self, request: &Request<'_>) -> Result<Named> {
        let id = request.formula;
        // Which inputs are read may depend on an option that the question leaves out.
        let options = Formula::<f64>::find(id)?.resolve(&request.question.options)?;
        let question = &Question { options, inputs: request.question.inputs.clone() };
        let mut answer = match self.hello.dtype {
            Dtype::F64 => values(id, question)?,
            _ => {
                let outputs = read::<f32>(id, question, |value| value as f32)?;
                outputs
                    .iter()
                    .map(|(name, output)| (String::from(*name), real(output.mapv(f64::from))))
                    .collect()
            }
        };
        let is_wanted = |input: &&str| request.want.contains(&format!("grad:{input}"));
        for input in differentiable(Formula::<f64>::find(id)?, question).filter(is_wanted) {
            let gradient = match self.hello.dtype {
                Dtype::F64 => gradient::<f64>(id, question, input, |value| value)?,
                _ => gradient::<f32>(id, question, input, |value| value as f32)?.mapv(f64::from),
            };
            answer.insert(format!("grad:{input}"), real(gradient));
        }
        answer.retain(|name, _| request.want.contains(name));
        Ok(answer)
    }
}

fn real(array: ndarray::ArrayD<f64>) -> Array {
    Array::real(&array)
}

impl Subject for Reference {
    fn hello(&self) -> &Hello {
        &self.hello
    }

    fn ask(&mut self, request: &Request<'_>) -> Result<Reply, Fault> {
        Ok(self.answer(request).map_or_else(
            |error| Reply::Error { kind: error.code().to_owned(), message: error.to_string() },
            Reply::Answer,
        ))
    }
}
