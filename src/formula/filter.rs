//! The row of `advantage.filter`.

use ndarray::Ix1;

use super::advantage::{GROUP, LONE_MEMBER, REWARDS};
use super::{Formula, OptionField, Output, Outputs, Rival, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::Filter;
use crate::reference::{self, Real};

impl<R: Real> Formula<R> {
    pub(super) const FILTER: &'static [Self] = &[Self {
        id: "advantage.filter",
        summary: "keep the best with A > 0, the worst with A < 0 and all with A = 0; A_i = (r_i - mean_kept) / std_kept if compute_new_adv",
        source: "000_compute_new_adv.md and the code behind it",
        clauses: &[
            "filter.sample",
            "filter.sign",
            "filter.keep",
            "filter.order",
            "filter.new",
            "filter.nothing-filtered",
            "filter.singleton",
            "filter.estimator",
            "filter.loss-mask",
        ],
        inputs: &[REWARDS, GROUP],
        options: &[
            OptionField::new(
                "keep_pos_ratio",
                "in [0, 1]",
                "[1.0, 0.7, 0.5, 0.0]",
                "the share of the samples with A > 0 that is kept, the best first",
            ),
            OptionField::new(
                "keep_neg_ratio",
                "in [0, 1]",
                "[1.0, 0.5, 0.3, 0.0]",
                "the share of the samples with A < 0 that is kept, the worst first",
            ),
            OptionField::new(
                "compute_new_adv",
                "true, false",
                "[true, false]",
                "whether the kept samples are normalised again",
            ),
            OptionField::new(
                "eps",
                "at least 0",
                "[1e-6, 1e-8, 0.0, 0.25]",
                "a group with a smaller std gets 0; nothing is added",
            ),
            LONE_MEMBER,
            OptionField::new(
                "adv_estimator",
                "grpo",
                r#"["grpo"]"#,
                "whose advantages are filtered; gae, rloo, reinforce_plus_plus and remax are unsupported",
            ),
        ],
        defaults: || fields(&Filter::guide()),
        outputs: &[
            Output::new("advantages", &["B"]),
            Output::new("advantages_original", &["B"]),
            Output::new("kept", &["B"]),
        ],
        rivals: &[
            Rival::new("not normalised again", r#"{"compute_new_adv": false}"#),
            Rival::new("normalised again without being asked", r#"{"compute_new_adv": true}"#),
            Rival::new("positive samples not filtered", r#"{"keep_pos_ratio": 1.0}"#),
            Rival::new("negative samples not filtered", r#"{"keep_neg_ratio": 1.0}"#),
            Rival::new("no threshold for the std", r#"{"eps": 0.0}"#),
            Rival::new("zero for a group of one", r#"{"singleton": "zero"}"#),
        ],
        reference: filter,
        #[cfg(feature = "torch")]
        torch: Some(of_torch::filter),
        #[cfg(feature = "torch")]
        fused: None,
    }];
}

fn filter<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let output = reference::filter::filter(&rewards, &group, &args.options()?)?;
    Ok(vec![
        ("advantages", output.advantages.into_dyn()),
        ("advantages_original", output.advantages_original.into_dyn()),
        ("kept", output.kept.into_dyn()),
    ])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn filter(args: &TorchArgs<'_>) -> Result<Outputs> {
        let output = torch::filter::filter(args.tensor("rewards")?, args.tensor("group")?, &args.options()?)?;
        Ok(vec![
            ("advantages", output.advantages),
            ("advantages_original", output.advantages_original),
            ("kept", output.kept),
        ])
    }
}
