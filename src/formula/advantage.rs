//! The rows of `advantage.*`.

use ndarray::Ix1;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::GroupNorm;
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const ADVANTAGE: &'static [Self] = &[Self {
        id: "advantage.group_norm",
        summary: "A_i = (r_i - mean(r_group)) / (std(r_group) + eps)",
        source: "CS336 assignment 5, Eq. 28 and 31; DeepSeekMath 4.1.2; Dr. GRPO; 002_cs336_notes.md, 003_grpo_trainer_guide.md",
        clauses: &[
            "advantage.group-norm",
            "advantage.group-norm.groups",
            "advantage.group-norm.std",
            "advantage.group-norm.eps",
            "advantage.group-norm.constant",
            "advantage.group-norm.singleton",
        ],
        inputs: &[
            Input::data("rewards", Kind::Real, &["B"], Role::Reward),
            Input::data("group", Kind::Label, &["B"], Role::Group),
        ],
        options: &[
            OptionField::new(
                "std",
                "sample, population, none",
                r#"["sample", "population", "none"]"#,
                "the divisor: n - 1, n, or no division (Eq. 31)",
            ),
            OptionField::new("eps", "at least 0", "[1e-6, 1e-4, 1e-8, 0.0, 0.25]", "the small number"),
            OptionField::new(
                "eps_mode",
                "add, threshold",
                r#"["add", "threshold"]"#,
                "added to the std, or: a group with a smaller std gets 0 and nothing is added",
            ),
            OptionField::new(
                "singleton",
                "raw, unit_std, zero, error",
                r#"["raw", "unit_std", "zero", "error"]"#,
                "what a group of one gets: its reward, its reward / (1 + eps), 0, or an error",
            ),
        ],
        defaults: || fields(&GroupNorm::eq28()),
        outputs: &[Output::new("advantages", &["B"])],
        rivals: &[
            Rival::new("population std", r#"{"std": "population"}"#),
            Rival::new("sample std", r#"{"std": "sample"}"#),
            Rival::new("no division by the std", r#"{"std": "none"}"#),
            Rival::new("eps 1e-4", r#"{"eps": 1e-4}"#),
            Rival::new("eps 1e-8", r#"{"eps": 1e-8}"#),
            Rival::new("eps as a threshold", r#"{"eps_mode": "threshold"}"#),
            Rival::new("the raw reward for a group of one", r#"{"singleton": "raw"}"#),
            Rival::new("zero for a group of one", r#"{"singleton": "zero"}"#),
        ],
        reference: group_norm,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::group_norm),
    }];
}

fn group_norm<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let advantages = reference::advantage::group_norm(&rewards, &group, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn group_norm(args: &TorchArgs<'_>) -> Result<Outputs> {
        let advantages =
            torch::advantage::group_norm(args.tensor("rewards")?, args.tensor("group")?, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }
}
