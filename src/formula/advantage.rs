//! The rows of `advantage.*`.

use ndarray::{Ix1, Ix2};
use serde_json::Map;

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields};
use crate::Result;
use crate::arguments::Args;
use crate::options::{
    Gpg, GroupNorm, Opo, PassAtKAdvantage, ReinforcePlusPlus, ReinforcePlusPlusBaseline, Rloo,
};
use crate::reference::{self, Real};
use crate::value::Kind;

pub(super) const REWARDS: Input = Input::data("rewards", Kind::Real, &["B"], Role::Reward);
const TOKEN_REWARDS: Input = Input::data("rewards", Kind::Real, &["B", "T"], Role::Reward);
pub(super) const GROUP: Input = Input::data("group", Kind::Label, &["B"], Role::Group);
const RESPONSE_MASK: Input = Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask);

const ADVANTAGES: Output = Output::new("advantages", &["B"]);
const TOKEN_ADVANTAGES: Output = Output::new("advantages", &["B", "T"]);
const RETURNS: Output = Output::new("returns", &["B", "T"]);

const STD: OptionField = OptionField::new(
    "std",
    "sample, population, none",
    r#"["sample", "population", "none"]"#,
    "the divisor: n - 1, n, or no division (Eq. 31)",
);
const EPS: OptionField =
    OptionField::new("eps", "at least 0", "[1e-6, 1e-4, 1e-8, 0.0, 0.25]", "the small number");
pub(super) const LONE_MEMBER: OptionField = OptionField::new(
    "singleton",
    "raw, zero, error",
    r#"["raw", "zero", "error"]"#,
    "what a group of one gets: its reward, 0, or an error",
);
pub(super) const WHITEN: OptionField = OptionField::new(
    "whiten",
    "true, false",
    "[true, false]",
    "whether the advantages are whitened over the kept tokens",
);
pub(super) const WHITEN_DDOF: OptionField =
    OptionField::new("whiten_ddof", "0, 1", "[0, 1]", "the variance's divisor is the number kept less this");
pub(super) const WHITEN_EPS: OptionField =
    OptionField::new("whiten_eps", "at least 0", "[1e-8, 0.0, 0.25]", "the small number under the root");
pub(super) const WHITEN_EPS_MODE: OptionField = OptionField::new(
    "whiten_eps_mode",
    "add, clamp",
    r#"["add", "clamp"]"#,
    "added to the variance, or: the least that the variance may be",
);

const NOT_WHITENED: Rival = Rival::new("not whitened", r#"{"whiten": false}"#);
const POPULATION_VARIANCE: Rival = Rival::new("population variance", r#"{"whiten_ddof": 0}"#);
const CLAMPED_VARIANCE: Rival = Rival::new("eps as the least variance", r#"{"whiten_eps_mode": "clamp"}"#);
const RAW_LONE_MEMBER: Rival = Rival::new("the raw reward for a group of one", r#"{"singleton": "raw"}"#);
const ZERO_LONE_MEMBER: Rival = Rival::new("zero for a group of one", r#"{"singleton": "zero"}"#);

impl<R: Real> Formula<R> {
    pub(super) const ADVANTAGE: &'static [Self] = &[
        Self {
            id: "advantage.group_norm",
            summary: "A_i = (r_i - mean(r_group)) / (std(r_group) + eps)",
            source: "CS336 assignment 5, Eq. 28 and 31; DeepSeekMath 4.1.2; Dr. GRPO; 002_cs336_notes.md, 003_grpo_trainer_guide.md",
            clauses: &[
                "advantage.group-norm",
                "advantage.group-norm.groups",
                "advantage.group-norm.std",
                "advantage.group-norm.scope",
                "advantage.group-norm.eps",
                "advantage.group-norm.constant",
                "advantage.group-norm.singleton",
            ],
            inputs: &[REWARDS, GROUP],
            options: &[
                STD,
                OptionField::new(
                    "std_scope",
                    "group, batch, leave_one_out",
                    r#"["group", "batch", "leave_one_out"]"#,
                    "whose std: the group's, the whole batch's, or (mean too) the other members'",
                ),
                EPS,
                OptionField::new(
                    "eps_mode",
                    "add, threshold, floor_variance",
                    r#"["add", "threshold", "floor_variance"]"#,
                    "added to the std; or a smaller std gives 0; or also the least variance",
                ),
                OptionField::new(
                    "singleton",
                    "raw, unit_std, zero, error",
                    r#"["raw", "unit_std", "zero", "error"]"#,
                    "what a group of one gets: its reward, its reward / (1 + eps), 0, or an error",
                ),
            ],
            defaults: || fields(&GroupNorm::eq28()),
            outputs: &[ADVANTAGES],
            rivals: &[
                Rival::new("population std", r#"{"std": "population"}"#),
                Rival::new("sample std", r#"{"std": "sample"}"#),
                Rival::new("no division by the std", r#"{"std": "none"}"#),
                Rival::new("std of the whole batch", r#"{"std_scope": "batch"}"#),
                Rival::new("mean and std of the others", r#"{"std_scope": "leave_one_out"}"#),
                Rival::new("eps 1e-4", r#"{"eps": 1e-4}"#),
                Rival::new("eps 1e-8", r#"{"eps": 1e-8}"#),
                Rival::new("eps as a threshold", r#"{"eps_mode": "threshold"}"#),
                Rival::new("eps under the variance", r#"{"eps_mode": "floor_variance"}"#),
                Rival::new("the reward over 1 + eps for a group of one", r#"{"singleton": "unit_std"}"#),
                RAW_LONE_MEMBER,
                ZERO_LONE_MEMBER,
            ],
            reference: group_norm,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::group_norm),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.relative",
            summary: "relative_i = r_i - baseline_i, baseline_i = mean(r_group)",
            source: "004_grpo_dapo_fix.md, compute_relative_rewards; Dr. GRPO",
            clauses: &["advantage.relative", "advantage.relative.constant", "advantage.group-norm.groups"],
            inputs: &[REWARDS, GROUP],
            options: &[],
            defaults: Map::new,
            outputs: &[Output::new("relative", &["B"]), Output::new("baseline", &["B"])],
            rivals: &[],
            reference: relative,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::relative),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.rloo",
            summary: "A_i = r_i - mean(r of the others of the group)",
            source: "RLOO (arXiv 2402.14740); verl, TRL, OpenRLHF",
            clauses: &[
                "advantage.rloo",
                "advantage.rloo.singleton",
                "advantage.group-norm.groups",
                "advantage.group-norm.constant",
            ],
            inputs: &[REWARDS, GROUP],
            options: &[LONE_MEMBER],
            defaults: || fields(&Rloo::verl()),
            outputs: &[ADVANTAGES],
            rivals: &[RAW_LONE_MEMBER, ZERO_LONE_MEMBER],
            reference: rloo,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::rloo),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.reinforce_plus_plus",
            summary: "R_t = r_t + gamma R_next, A = whitened R",
            source: "REINFORCE++ (arXiv 2501.03262); verl",
            clauses: &[
                "mask.select",
                "advantage.reinforce-plus-plus",
                "advantage.reinforce-plus-plus.mask",
                "advantage.reinforce-plus-plus.whiten",
                "advantage.reinforce-plus-plus.whiten-constant",
            ],
            inputs: &[TOKEN_REWARDS, RESPONSE_MASK],
            options: &[
                OptionField::new(
                    "gamma",
                    "in [0, 1]",
                    "[1.0, 0.75, 0.0]",
                    "the discount of the next kept token",
                ),
                OptionField::new(
                    "mask_mode",
                    "carry, reset",
                    r#"["carry", "reset"]"#,
                    "a masked token is passed over, or cuts the return",
                ),
                WHITEN,
                WHITEN_DDOF,
                WHITEN_EPS,
                WHITEN_EPS_MODE,
            ],
            defaults: || fields(&ReinforcePlusPlus::verl()),
            outputs: &[TOKEN_ADVANTAGES, RETURNS],
            rivals: &[
                Rival::new("the return cut at a masked token", r#"{"mask_mode": "reset"}"#),
                Rival::new("the return carried over a masked token", r#"{"mask_mode": "carry"}"#),
                Rival::new("undiscounted", r#"{"gamma": 1.0}"#),
                Rival::new("the token's own reward alone", r#"{"gamma": 0.0}"#),
                NOT_WHITENED,
                POPULATION_VARIANCE,
                CLAMPED_VARIANCE,
            ],
            reference: reinforce_plus_plus,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::reinforce_plus_plus),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.reinforce_plus_plus_baseline",
            summary: "A = whitened (r_i - mean(r_group))",
            source: "REINFORCE++ (arXiv 2501.03262); verl, OpenRLHF",
            clauses: &[
                "mask.select",
                "advantage.reinforce-plus-plus-baseline",
                "advantage.reinforce-plus-plus-baseline.absent",
                "advantage.reinforce-plus-plus.whiten",
                "advantage.reinforce-plus-plus.whiten-constant",
                "advantage.rloo.singleton",
                "advantage.group-norm.groups",
                "advantage.group-norm.constant",
            ],
            inputs: &[REWARDS, GROUP, RESPONSE_MASK],
            options: &[LONE_MEMBER, WHITEN, WHITEN_DDOF, WHITEN_EPS, WHITEN_EPS_MODE],
            defaults: || fields(&ReinforcePlusPlusBaseline::verl()),
            outputs: &[TOKEN_ADVANTAGES],
            rivals: &[RAW_LONE_MEMBER, ZERO_LONE_MEMBER, NOT_WHITENED, POPULATION_VARIANCE, CLAMPED_VARIANCE],
            reference: reinforce_plus_plus_baseline,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::reinforce_plus_plus_baseline),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.remax",
            summary: "A_t = (sum of the kept r from t on) - r_greedy",
            source: "ReMax (arXiv 2310.10505); verl",
            clauses: &["mask.select", "advantage.remax"],
            inputs: &[
                TOKEN_REWARDS,
                Input::data("baselines", Kind::Real, &["B"], Role::Reward),
                RESPONSE_MASK,
            ],
            options: &[],
            defaults: Map::new,
            outputs: &[TOKEN_ADVANTAGES, RETURNS],
            rivals: &[],
            reference: remax,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::remax),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.opo",
            summary: "A_i = r_i - sum(l r) / sum(l), sums over the group",
            source: "OPO (arXiv 2505.23585); verl",
            clauses: &[
                "advantage.opo",
                "advantage.opo.lengths",
                "advantage.rloo.singleton",
                "advantage.group-norm.groups",
                "advantage.group-norm.constant",
            ],
            inputs: &[REWARDS, GROUP, Input::data("lengths", Kind::Real, &["B"], Role::Count)],
            options: &[LONE_MEMBER],
            defaults: || fields(&Opo::paper()),
            outputs: &[ADVANTAGES],
            rivals: &[RAW_LONE_MEMBER, ZERO_LONE_MEMBER],
            reference: opo,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::opo),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.gpg",
            summary: "A_i = alpha (r_i - mean(r_group)) / f_norm",
            source: "GPG (arXiv 2504.02546); verl",
            clauses: &[
                "advantage.gpg",
                "advantage.gpg.alpha",
                "advantage.rloo.singleton",
                "advantage.group-norm.groups",
                "advantage.group-norm.constant",
            ],
            inputs: &[REWARDS, GROUP],
            options: &[
                OptionField::new(
                    "alpha",
                    "nonzero_rewards, valid_groups, one",
                    r#"["nonzero_rewards", "valid_groups", "one"]"#,
                    "what B is divided by: rewards that are not 0, samples whose group differs, B",
                ),
                OptionField::new("f_norm", "above 0", "[1.0, 0.5, 3.0]", "the divisor"),
                LONE_MEMBER,
            ],
            defaults: || fields(&Gpg::paper()),
            outputs: &[ADVANTAGES],
            rivals: &[
                Rival::new("alpha by rewards that are not 0", r#"{"alpha": "nonzero_rewards"}"#),
                Rival::new("no alpha", r#"{"alpha": "one"}"#),
                RAW_LONE_MEMBER,
                ZERO_LONE_MEMBER,
            ],
            reference: gpg,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::gpg),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "advantage.pass_at_k",
            summary: "A_best = (r_best - r_second) / (std(r_group) + eps), 0 for the others",
            source: "arXiv 2503.19595; verl, EasyR1 grpo_passk",
            clauses: &[
                "advantage.pass-at-k",
                "advantage.pass-at-k.tie",
                "advantage.pass-at-k.std",
                "advantage.pass-at-k.singleton",
                "advantage.group-norm.groups",
            ],
            inputs: &[REWARDS, GROUP],
            options: &[STD, EPS],
            defaults: || fields(&PassAtKAdvantage::verl()),
            outputs: &[ADVANTAGES],
            rivals: &[
                Rival::new("population std", r#"{"std": "population"}"#),
                Rival::new("no division by the std", r#"{"std": "none"}"#),
                Rival::new("eps 1e-4", r#"{"eps": 1e-4}"#),
            ],
            reference: pass_at_k,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::pass_at_k),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

fn group_norm<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let advantages = reference::advantage::group_norm(&rewards, &group, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn relative<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let found = reference::advantage::relative(&rewards, &group)?;
    Ok(vec![("relative", found.relative.into_dyn()), ("baseline", found.baseline.into_dyn())])
}

fn rloo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let advantages = reference::advantage::rloo(&rewards, &group, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn reinforce_plus_plus<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, mask) = (args.real::<Ix2>("rewards")?, args.mask::<Ix2>("response_mask")?);
    Ok(of_tokens(reference::advantage::reinforce_plus_plus(&rewards, &mask, &args.options()?)?))
}

fn reinforce_plus_plus_baseline<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let mask = args.mask::<Ix2>("response_mask")?;
    let advantages =
        reference::advantage::reinforce_plus_plus_baseline(&rewards, &group, &mask, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn remax<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, baselines) = (args.real::<Ix2>("rewards")?, args.real::<Ix1>("baselines")?);
    Ok(of_tokens(reference::advantage::remax(&rewards, &baselines, &args.mask::<Ix2>("response_mask")?)?))
}

fn opo<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let lengths = args.real::<Ix1>("lengths")?;
    let advantages = reference::advantage::opo(&rewards, &group, &lengths, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn gpg<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let advantages = reference::advantage::gpg(&rewards, &group, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn pass_at_k<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let advantages = reference::advantage::pass_at_k(&rewards, &group, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn of_tokens<R: Real>(found: reference::advantage::TokenAdvantages<R>) -> Outputs<R> {
    vec![("advantages", found.advantages.into_dyn()), ("returns", found.returns.into_dyn())]
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

    pub(super) fn relative(args: &TorchArgs<'_>) -> Result<Outputs> {
        let found = torch::advantage::relative(args.tensor("rewards")?, args.tensor("group")?)?;
        Ok(vec![("relative", found.relative), ("baseline", found.baseline)])
    }

    pub(super) fn rloo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let advantages =
            torch::advantage::rloo(args.tensor("rewards")?, args.tensor("group")?, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }

    pub(super) fn reinforce_plus_plus(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, mask) = (args.tensor("rewards")?, args.tensor("response_mask")?);
        Ok(of_tokens(torch::advantage::reinforce_plus_plus(rewards, mask, &args.options()?)?))
    }

    pub(super) fn reinforce_plus_plus_baseline(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, group) = (args.tensor("rewards")?, args.tensor("group")?);
        let mask = args.tensor("response_mask")?;
        let advantages =
            torch::advantage::reinforce_plus_plus_baseline(rewards, group, mask, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }

    pub(super) fn remax(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, baselines) = (args.tensor("rewards")?, args.tensor("baselines")?);
        Ok(of_tokens(torch::advantage::remax(rewards, baselines, args.tensor("response_mask")?)?))
    }

    pub(super) fn opo(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (rewards, group) = (args.tensor("rewards")?, args.tensor("group")?);
        let advantages = torch::advantage::opo(rewards, group, args.tensor("lengths")?, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }

    pub(super) fn gpg(args: &TorchArgs<'_>) -> Result<Outputs> {
        let advantages =
            torch::advantage::gpg(args.tensor("rewards")?, args.tensor("group")?, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }

    pub(super) fn pass_at_k(args: &TorchArgs<'_>) -> Result<Outputs> {
        let advantages =
            torch::advantage::pass_at_k(args.tensor("rewards")?, args.tensor("group")?, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }

    fn of_tokens(found: torch::advantage::TokenAdvantages) -> Outputs {
        vec![("advantages", found.advantages), ("returns", found.returns)]
    }
}
