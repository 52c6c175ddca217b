//! The rows of `reward.*`.

use ndarray::{ArrayD, Ix1};
use serde_json::Map;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::axes::Axes;
use crate::options::{Gsm8k, Overlong};
use crate::reference::reward::R1Zero;
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const REWARD: &'static [Self] = &[
        Self {
            id: "reward.gsm8k",
            summary: "1 if the number after the last #### (strict) or the last number (flexible) is the answer, else 0",
            source: "GSM8K (arXiv 2110.14168); verl reward_score/gsm8k; 002_cs336_notes.md",
            clauses: &[
                "reward.gsm8k",
                "reward.gsm8k.answer",
                "reward.gsm8k.strict",
                "reward.gsm8k.flexible",
                "reward.gsm8k.number",
                "reward.gsm8k.text",
                "reward.gsm8k.occurrence",
                "reward.gsm8k.tail",
            ],
            inputs: &[RESPONSE, ANSWER],
            options: &[
                OptionField::new(
                    "method",
                    "strict, flexible",
                    r#"["strict", "flexible"]"#,
                    "whether the marker #### is required",
                ),
                OptionField::new("compare", "number, text", r#"["number", "text"]"#, "by value, or as text"),
                OptionField::new(
                    "occurrence",
                    "last, first",
                    r#"["last", "first"]"#,
                    "which of several answers counts",
                ),
                OptionField::new(
                    "tail_chars",
                    "null or at least 1",
                    "[null, 300, 8, 1]",
                    "only so many characters at the response's end are searched",
                ),
            ],
            defaults: || fields(&Gsm8k::strict()),
            outputs: &[Output::new("reward", &[])],
            rivals: &[
                Rival::new("flexible extraction", r#"{"method": "flexible"}"#),
                Rival::new("strict extraction", r#"{"method": "strict"}"#),
                Rival::new("compared as text", r#"{"compare": "text"}"#),
                Rival::new("compared as numbers", r#"{"compare": "number"}"#),
                Rival::new("the first answer counts", r#"{"occurrence": "first"}"#),
                Rival::new("the last answer counts", r#"{"occurrence": "last"}"#),
                Rival::new("the last 300 characters only", r#"{"tail_chars": 300}"#),
                Rival::new("the whole response", r#"{"tail_chars": null}"#),
            ],
            reference: gsm8k,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::gsm8k),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "reward.r1_zero",
            summary: "1 if the response has the tags of the r1_zero prompt and the right answer between them, else 0",
            source: "CS336 assignment 5; Dr. GRPO r1_zero_reward_fn; 002_cs336_notes.md",
            clauses: &[
                "reward.r1-zero",
                "reward.r1-zero.format",
                "reward.r1-zero.answer",
                "reward.r1-zero.same",
            ],
            inputs: &[RESPONSE, ANSWER],
            options: &[],
            defaults: Map::new,
            outputs: &[
                Output::new("reward", &[]),
                Output::new("format_reward", &[]),
                Output::new("answer_reward", &[]),
            ],
            rivals: &[],
            reference: r1_zero,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::r1_zero),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "reward.overlong",
            summary: "penalty = max(floor, min(0, -(length - (max_response_length - buffer)) / buffer * penalty_factor))",
            source: "DAPO (arXiv 2503.14476) Eq. 13; verl reward_manager/dapo",
            clauses: &["reward.overlong", "reward.overlong.floor", "reward.overlong.domain"],
            inputs: &[Input::data("lengths", Kind::Real, &["B"], Role::Count)],
            options: &[
                OptionField::new(
                    "max_response_length",
                    "above 0",
                    "[20480.0, 16.0, 8.0]",
                    "the longest response that is allowed",
                ),
                OptionField::new(
                    "buffer",
                    "above 0, at most max_response_length",
                    "[4096.0, 8.0, 4.0, 3.0]",
                    "within so many tokens of it the penalty grows",
                ),
                OptionField::new(
                    "penalty_factor",
                    "at least 0",
                    "[1.0, 0.0, 0.5, 2.0]",
                    "the penalty at max_response_length",
                ),
                OptionField::new(
                    "floor",
                    "null or at most 0",
                    "[null, -1.0, -0.5, 0.0]",
                    "the penalty is never below this",
                ),
            ],
            defaults: || fields(&Overlong::dapo()),
            outputs: &[Output::new("penalty", &["B"])],
            rivals: &[
                Rival::new("no floor", r#"{"floor": null}"#),
                Rival::new("floor at -1 whatever the factor", r#"{"floor": -1.0}"#),
                Rival::new("the factor forgotten", r#"{"penalty_factor": 1.0}"#),
            ],
            reference: overlong,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::overlong),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const RESPONSE: Input = Input::data("response", Kind::Text, &[], Role::Response);
const ANSWER: Input = Input::data("answer", Kind::Text, &[], Role::Answer);

fn gsm8k<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let options = args.options()?;
    let rewards = text_pairs(args.text("response")?, args.text("answer")?, |response, answer| {
        reference::reward::gsm8k(response, answer, &options)
    })?;
    Ok(vec![("reward", rewards.mapv(R::constant))])
}

fn r1_zero<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let graded = text_pairs(args.text("response")?, args.text("answer")?, reference::reward::r1_zero)?;
    let each = |reward: fn(&R1Zero) -> f64| graded.map(|graded| R::constant(reward(graded)));
    Ok(vec![
        ("reward", each(|graded| graded.reward)),
        ("format_reward", each(|graded| graded.format_reward)),
        ("answer_reward", each(|graded| graded.answer_reward)),
    ])
}

fn overlong<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let penalty = reference::reward::overlong(&args.real::<Ix1>("lengths")?, &args.options()?)?;
    Ok(vec![("penalty", penalty.into_dyn())])
}

/// `f` over pairs of texts of equal shape.
fn text_pairs<T>(
    response: ArrayD<String>,
    answer: ArrayD<String>,
    f: impl Fn(&str, &str) -> Result<T>,
) -> Result<ArrayD<T>> {
    Axes::default().bind_any("response", response.shape())?.bind_any("answer", answer.shape())?;
    let results: Result<Vec<T>> = response.iter().zip(&answer).map(|(a, b)| f(a, b)).collect();
    crate::value::array_d(response.shape(), results?)
}

#[cfg(feature = "torch")]
mod of_torch {
    use ndarray::ArrayD;
    use tch::{Kind, Tensor};

    use super::text_pairs;
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;
    use crate::torch::reward::R1Zero;

    pub(super) fn gsm8k(args: &TorchArgs<'_>) -> Result<Outputs> {
        let options = args.options()?;
        let rewards = text_pairs(args.text("response")?, args.text("answer")?, |response, answer| {
            torch::reward::gsm8k(response, answer, &options)
        })?;
        Ok(vec![("reward", tensor(&rewards))])
    }

    pub(super) fn r1_zero(args: &TorchArgs<'_>) -> Result<Outputs> {
        let graded = text_pairs(args.text("response")?, args.text("answer")?, torch::reward::r1_zero)?;
        let each = |reward: fn(&R1Zero) -> f64| tensor(&graded.map(reward));
        Ok(vec![
            ("reward", each(|graded| graded.reward)),
            ("format_reward", each(|graded| graded.format_reward)),
            ("answer_reward", each(|graded| graded.answer_reward)),
        ])
    }

    pub(super) fn overlong(args: &TorchArgs<'_>) -> Result<Outputs> {
        Ok(vec![("penalty", torch::reward::overlong(args.tensor("lengths")?, &args.options()?)?)])
    }

    fn tensor(rewards: &ArrayD<f64>) -> Tensor {
        let shape: Vec<i64> = rewards.shape().iter().map(|&axis| axis as i64).collect();
        let rewards: Vec<f64> = rewards.iter().copied().collect();
        Tensor::from_slice(&rewards).to_kind(Kind::Double).reshape(shape.as_slice())
    }
}
