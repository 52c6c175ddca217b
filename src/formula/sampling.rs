//! The rows of `sampling.*`.

use ndarray::{Ix1, Ix2};

use super::advantage::{GROUP, REWARDS};
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{Distribution, Dynamic, Repeat, Resample};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const SAMPLING: &'static [Self] = &[
        Self {
            id: "sampling.repeat",
            summary: "repeated = each prompt n times in a row (interleave), or the whole batch n times",
            source: "verl rollout.n; 004_grpo_dapo_fix.md, 003_grpo_trainer_guide.md",
            clauses: &["sampling.repeat", "sampling.repeat.interleave"],
            inputs: &[Input::data("index", Kind::Real, &["B"], Role::Count)],
            options: &[
                OptionField::new("n", "from 1 to 65536", "[1, 2, 4]", "how often each prompt is answered"),
                OptionField::new(
                    "interleave",
                    "true, false",
                    "[true, false]",
                    "whether a prompt's copies stand side by side",
                ),
            ],
            defaults: || fields(&Repeat::verl(4)),
            outputs: &[Output::new("repeated", &["N"])],
            rivals: &[
                Rival::new("the whole batch repeated", r#"{"interleave": false}"#),
                Rival::new("each prompt repeated", r#"{"interleave": true}"#),
            ],
            reference: repeat,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::repeat),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "sampling.dynamic",
            summary: "keep a group if its rewards differ, or if low < mean(rewards) < high",
            source: "DAPO (arXiv 2503.14476) Eq. 11; verl's DAPO recipe; 004_grpo_dapo_fix.md",
            clauses: &[
                "sampling.dynamic",
                "sampling.dynamic.groups",
                "sampling.dynamic.differ",
                "sampling.dynamic.mean-in-range",
            ],
            inputs: &[REWARDS, GROUP],
            options: &[
                OptionField::new(
                    "rule",
                    "differ, mean_in_range",
                    r#"["differ", "mean_in_range"]"#,
                    "when a group is kept",
                ),
                OptionField::new("low", "finite, below high", "[0.0, 0.01, -1.0]", "the mean is above this"),
                OptionField::new("high", "finite, above low", "[1.0, 0.99, 0.5]", "the mean is below this"),
                OptionField::new(
                    "singleton",
                    "keep, drop",
                    r#"["keep", "drop"]"#,
                    "what becomes of a group of one where rewards must differ",
                ),
            ],
            defaults: || fields(&Dynamic::dapo()),
            outputs: &[Output::new("keep", &["B"]), Output::new("kept_groups", &[])],
            rivals: &[
                Rival::new("mean in range for differing rewards", r#"{"rule": "mean_in_range"}"#),
                Rival::new("differing rewards for mean in range", r#"{"rule": "differ"}"#),
                Rival::new("a group of one dropped", r#"{"singleton": "drop"}"#),
                Rival::new("a group of one kept", r#"{"singleton": "keep"}"#),
            ],
            reference: dynamic,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::dynamic),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "sampling.resample",
            summary: "take group_size samples of each group, then one more while their rewards are equal, up to max_samples",
            source: "004_grpo_dapo_fix.md",
            clauses: &[
                "sampling.resample",
                "sampling.resample.equal",
                "sampling.resample.groups",
                "sampling.resample.unfinished",
            ],
            inputs: &[REWARDS, GROUP],
            options: &[
                OptionField::new("group_size", "at least 1", "[4, 1, 2]", "taken in any case"),
                OptionField::new(
                    "max_samples",
                    "at least group_size",
                    "[8, 4, 5]",
                    "the most that are taken",
                ),
                OptionField::new(
                    "tolerance",
                    "at least 0",
                    "[1e-6, 0.0, 0.25]",
                    "rewards with a smaller sample std count as equal",
                ),
            ],
            defaults: || fields(&Resample::fix()),
            outputs: &[Output::new("taken", &["B"]), Output::new("unfinished", &[])],
            rivals: &[
                Rival::new("no further samples", r#"{"group_size": 4, "max_samples": 4}"#),
                Rival::new("no tolerance", r#"{"tolerance": 0.0}"#),
            ],
            reference: resample,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::resample),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "sampling.distribution",
            summary: "probs = softmax(logits / temperature), of which the top_k and then the top_p most likely stay, renormalised",
            source: "Holtzman et al. (arXiv 1904.09751); Fan et al. (arXiv 1805.04833); 003_grpo_trainer_guide.md",
            clauses: &[
                "sampling.distribution",
                "sampling.distribution.order",
                "sampling.distribution.greedy",
                "sampling.distribution.top-k",
                "sampling.distribution.top-p",
                "sampling.distribution.ruled-out",
            ],
            inputs: &[Input::data("logits", Kind::Real, &["B", "V"], Role::Logit)],
            options: &[
                OptionField::new(
                    "temperature",
                    "at least 0",
                    "[1.0, 0.0, 0.5, 0.7, 3.0]",
                    "the logits are divided by it; 0 takes the most likely token",
                ),
                OptionField::new(
                    "top_k",
                    "null or at least 1",
                    "[null, 1, 2, 50]",
                    "only so many tokens stay",
                ),
                OptionField::new(
                    "top_p",
                    "null or in (0, 1]",
                    "[null, 1.0, 0.9, 0.3]",
                    "only the fewest tokens that reach this probability stay",
                ),
            ],
            defaults: || fields(&Distribution::plain()),
            outputs: &[Output::new("probs", &["B", "V"])],
            rivals: &[
                Rival::new("the temperature forgotten", r#"{"temperature": 1.0}"#),
                Rival::new("top-k forgotten", r#"{"top_k": null}"#),
                Rival::new("top-p forgotten", r#"{"top_p": null}"#),
            ],
            reference: distribution,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::distribution),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

fn repeat<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let repeated = reference::sampling::repeat(&args.real::<Ix1>("index")?, &args.options()?)?;
    Ok(vec![("repeated", repeated.into_dyn())])
}

fn dynamic<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let kept = reference::sampling::dynamic(&rewards, &group, &args.options()?)?;
    Ok(vec![("keep", kept.keep.into_dyn()), ("kept_groups", scalar(kept.kept_groups))])
}

fn resample<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let drawn = reference::sampling::resample(&rewards, &group, &args.options()?)?;
    Ok(vec![("taken", drawn.taken.into_dyn()), ("unfinished", scalar(drawn.unfinished))])
}

fn distribution<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let probs = reference::sampling::distribution(&args.real::<Ix2>("logits")?, &args.options()?)?;
    Ok(vec![("probs", probs.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn repeat(args: &TorchArgs<'_>) -> Result<Outputs> {
        Ok(vec![("repeated", torch::sampling::repeat(args.tensor("index")?, &args.options()?)?)])
    }

    pub(super) fn dynamic(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, group) = (args.tensor("rewards")?, args.tensor("group")?);
        let kept = torch::sampling::dynamic(rewards, group, &args.options()?)?;
        Ok(vec![("keep", kept.keep), ("kept_groups", kept.kept_groups)])
    }

    pub(super) fn resample(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, group) = (args.tensor("rewards")?, args.tensor("group")?);
        let drawn = torch::sampling::resample(rewards, group, &args.options()?)?;
        Ok(vec![("taken", drawn.taken), ("unfinished", drawn.unfinished)])
    }

    pub(super) fn distribution(args: &TorchArgs<'_>) -> Result<Outputs> {
        Ok(vec![("probs", torch::sampling::distribution(args.tensor("logits")?, &args.options()?)?)])
    }
}
