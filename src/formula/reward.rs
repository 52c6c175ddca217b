//! The rows of `reward.*`.

use ndarray::ArrayD;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::axes::Axes;
use crate::options::Gsm8k;
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const REWARD: &'static [Self] = &[Self {
        id: "reward.gsm8k",
        summary: "1 if the number after the last #### (strict) or the last number (flexible) is the answer, else 0",
        source: "GSM8K (arXiv 2110.14168); verl reward_score/gsm8k; 002_cs336_notes.md",
        clauses: &[
            "reward.gsm8k",
            "reward.gsm8k.answer",
            "reward.gsm8k.strict",
            "reward.gsm8k.flexible",
            "reward.gsm8k.number",
        ],
        inputs: &[
            Input::data("response", Kind::Text, &[], Role::Response),
            Input::data("answer", Kind::Text, &[], Role::Answer),
        ],
        options: &[OptionField::new(
            "method",
            "strict, flexible",
            r#"["strict", "flexible"]"#,
            "whether the marker #### is required",
        )],
        defaults: || fields(&Gsm8k::strict()),
        outputs: &[Output::new("reward", &[])],
        rivals: &[
            Rival::new("flexible extraction", r#"{"method": "flexible"}"#),
            Rival::new("strict extraction", r#"{"method": "strict"}"#),
        ],
        reference: gsm8k,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::gsm8k),
    }];
}

fn gsm8k<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let options = args.options()?;
    let rewards = text_pairs(args.text("response")?, args.text("answer")?, |response, answer| {
        reference::reward::gsm8k(response, answer, &options)
    })?;
    Ok(vec![("reward", rewards.mapv(R::constant))])
}

/// `f` over pairs of texts of equal shape.
fn text_pairs(
    response: ArrayD<String>,
    answer: ArrayD<String>,
    f: impl Fn(&str, &str) -> Result<f64>,
) -> Result<ArrayD<f64>> {
    Axes::default().bind_any("response", response.shape())?.bind_any("answer", answer.shape())?;
    let results: Result<Vec<f64>> = response.iter().zip(&answer).map(|(a, b)| f(a, b)).collect();
    crate::value::array_d(response.shape(), results?)
}

#[cfg(feature = "torch")]
mod of_torch {
    use tch::{Kind, Tensor};

    use super::text_pairs;
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn gsm8k(args: &TorchArgs<'_>) -> Result<Outputs> {
        let options = args.options()?;
        let rewards = text_pairs(args.text("response")?, args.text("answer")?, |response, answer| {
            torch::reward::gsm8k(response, answer, &options)
        })?;
        let shape: Vec<i64> = rewards.shape().iter().map(|&axis| axis as i64).collect();
        let rewards: Vec<f64> = rewards.iter().copied().collect();
        Ok(vec![("reward", Tensor::from_slice(&rewards).to_kind(Kind::Double).reshape(shape.as_slice()))])
    }
}
