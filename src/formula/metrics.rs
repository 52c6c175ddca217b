//! The rows of `metrics.*`.

use ndarray::{Ix0, Ix1, Ix2};
use serde_json::Map;

use super::advantage::REWARDS;
use super::objective::{ADVANTAGES, CLIP_OPTIONS, CLIP_RIVALS, LOGP_OLD, RESPONSE_MASK};
use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{AdvantageMetrics, Clip, HealthRules, PassAtK};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const METRICS: &'static [Self] = &[
        Self {
            id: "metrics.policy",
            summary: "means over the kept tokens of: gain clipped, dual clip active, -log ratio, ratio",
            source: "verl 0.9.1 compute_policy_loss_vanilla; 003_grpo_trainer_guide.md",
            clauses: &[
                "mask.select",
                "metrics.policy",
                "metrics.clip-fraction",
                "metrics.clip-fraction-lower",
                "metrics.ppo-kl",
                "metrics.ratio-mean",
            ],
            inputs: &[Input::constant("logp", &["B", "T"], Role::Logp), LOGP_OLD, ADVANTAGES, RESPONSE_MASK],
            options: CLIP_OPTIONS,
            defaults: || fields(&Clip::eq29()),
            outputs: &[
                Output::new("clip_fraction", &[]),
                Output::new("clip_fraction_lower", &[]),
                Output::new("ppo_kl", &[]),
                Output::new("ratio_mean", &[]),
            ],
            rivals: CLIP_RIVALS,
            reference: policy_metrics,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::policy_metrics),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::policy_metrics),
        },
        Self {
            id: "metrics.rewards",
            summary: "mean, sample standard deviation, largest and smallest of the rewards",
            source: "verl 0.9.1 compute_data_metrics; 003_grpo_trainer_guide.md",
            clauses: &["metrics.rewards", "metrics.statistics"],
            inputs: &[REWARDS],
            options: &[],
            defaults: Map::new,
            outputs: &[
                Output::new("mean", &[]),
                Output::new("std", &[]),
                Output::new("max", &[]),
                Output::new("min", &[]),
            ],
            rivals: &[],
            reference: rewards,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::rewards),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "metrics.advantages",
            summary: "mean, largest, smallest (and std) of the tokens' advantages, before and after samples were filtered",
            source: "000_compute_new_adv.md, critic/advantages/* and critic/advantages_processed/*; verl compute_data_metrics",
            clauses: &[
                "mask.select",
                "metrics.advantages",
                "metrics.advantages.processed",
                "metrics.advantages.zeros",
                "metrics.statistics",
            ],
            inputs: &[
                ADVANTAGES,
                Input::constant("advantages_original", &["B", "T"], Role::Advantage),
                RESPONSE_MASK,
                Input::data("kept", Kind::Mask, &["B"], Role::Mask).optional(),
            ],
            options: &[OptionField::new(
                "processed_excludes",
                "filtered, zeros",
                r#"["filtered", "zeros"]"#,
                "what the processed statistics leave out",
            )],
            defaults: || fields(&AdvantageMetrics::document()),
            outputs: &[
                Output::new("mean", &[]),
                Output::new("max", &[]),
                Output::new("min", &[]),
                Output::new("processed_mean", &[]),
                Output::new("processed_std", &[]),
                Output::new("processed_max", &[]),
                Output::new("processed_min", &[]),
            ],
            rivals: &[
                Rival::new("every zero left out", r#"{"processed_excludes": "zeros"}"#),
                Rival::new("filtered samples left out", r#"{"processed_excludes": "filtered"}"#),
            ],
            reference: advantages,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::advantages),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "metrics.health",
            summary: "kl < 0.1;  clipped < 0.3;  ratio near 1;  advantages near mean 0 and std 1",
            source: "003_grpo_trainer_guide.md, question 8",
            clauses: &["metrics.health", "metrics.health.below", "metrics.health.near"],
            inputs: &[
                Input::data("kl_divergence", Kind::Real, &[], Role::Number),
                Input::data("ppo_ratio_clipped", Kind::Real, &[], Role::Size),
                Input::data("ppo_ratio_mean", Kind::Real, &[], Role::Size),
                Input::data("advantage_mean", Kind::Real, &[], Role::Number),
                Input::data("advantage_std", Kind::Real, &[], Role::Size),
            ],
            options: &[
                OptionField::new(
                    "max_kl_divergence",
                    "above 0",
                    "[0.1, 1.0, 4.0]",
                    "kl_divergence is healthy below it",
                ),
                OptionField::new(
                    "max_ppo_ratio_clipped",
                    "above 0",
                    "[0.3, 1.0]",
                    "ppo_ratio_clipped is healthy below it",
                ),
                OptionField::new(
                    "near",
                    "above 0",
                    "[0.2, 0.5, 2.0]",
                    "a metric that is to be near its target is less than this far from it",
                ),
            ],
            defaults: || fields(&HealthRules::guide()),
            outputs: &[
                Output::new("healthy", &[]),
                Output::new("kl_divergence_ok", &[]),
                Output::new("ppo_ratio_clipped_ok", &[]),
                Output::new("ppo_ratio_mean_ok", &[]),
                Output::new("advantage_mean_ok", &[]),
                Output::new("advantage_std_ok", &[]),
            ],
            rivals: &[],
            reference: health,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::health),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "metrics.pass_at_k",
            summary: "pass@k = 1 - C(n - c, k) / C(n, k)",
            source: "Chen et al. 2021 (arXiv 2107.03374) Eq. 1",
            clauses: &["metrics.pass-at-k", "metrics.pass-at-k.domain"],
            inputs: &[
                Input::data("num_samples", Kind::Token, &["B"], Role::Samples),
                Input::data("num_correct", Kind::Token, &["B"], Role::Correct),
            ],
            options: &[OptionField::new("k", "1, 2, ...", "[1, 2, 8]", "how many samples are drawn")],
            defaults: || fields(&PassAtK::chen(1)),
            outputs: &[Output::new("pass_at_k", &["B"])],
            rivals: &[Rival::new("pass@1", r#"{"k": 1}"#)],
            reference: pass_at_k,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::pass_at_k),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

fn policy_metrics<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let metrics = reference::metrics::policy(&logp, &logp_old, &advantages, &mask, &args.options()?)?;
    Ok(vec![
        ("clip_fraction", scalar(metrics.clip_fraction)),
        ("clip_fraction_lower", scalar(metrics.clip_fraction_lower)),
        ("ppo_kl", scalar(metrics.ppo_kl)),
        ("ratio_mean", scalar(metrics.ratio_mean)),
    ])
}

fn rewards<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let statistics = reference::metrics::rewards(&args.real::<Ix1>("rewards")?)?;
    Ok(vec![
        ("mean", scalar(statistics.mean)),
        ("std", scalar(statistics.std)),
        ("max", scalar(statistics.max)),
        ("min", scalar(statistics.min)),
    ])
}

fn advantages<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let mask = args.mask::<Ix2>("response_mask")?;
    let kept = args.optional_mask::<Ix1>("kept")?;
    let statistics = reference::metrics::advantages(
        &args.per_token("advantages", mask.ncols())?,
        &args.per_token("advantages_original", mask.ncols())?,
        &mask,
        kept.as_deref(),
        &args.options()?,
    )?;
    Ok(vec![
        ("mean", scalar(statistics.original.mean)),
        ("max", scalar(statistics.original.max)),
        ("min", scalar(statistics.original.min)),
        ("processed_mean", scalar(statistics.processed.mean)),
        ("processed_std", scalar(statistics.processed.std)),
        ("processed_max", scalar(statistics.processed.max)),
        ("processed_min", scalar(statistics.processed.min)),
    ])
}

fn health<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let metric = |name: &str| Ok(args.real::<Ix0>(name)?.into_scalar());
    let health = reference::metrics::health(
        metric("kl_divergence")?,
        metric("ppo_ratio_clipped")?,
        metric("ppo_ratio_mean")?,
        metric("advantage_mean")?,
        metric("advantage_std")?,
        &args.options()?,
    )?;
    Ok(vec![
        ("healthy", scalar(health.healthy)),
        ("kl_divergence_ok", scalar(health.kl_divergence)),
        ("ppo_ratio_clipped_ok", scalar(health.ppo_ratio_clipped)),
        ("ppo_ratio_mean_ok", scalar(health.ppo_ratio_mean)),
        ("advantage_mean_ok", scalar(health.advantage_mean)),
        ("advantage_std_ok", scalar(health.advantage_std)),
    ])
}

fn pass_at_k<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let pass_at_k = reference::metrics::pass_at_k(
        &args.integer::<Ix1>("num_samples")?,
        &args.integer::<Ix1>("num_correct")?,
        &args.options()?,
    )?;
    Ok(vec![("pass_at_k", pass_at_k.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn policy_metrics(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let metrics = torch::metrics::policy(logp, logp_old, &advantages, mask, &args.options()?)?;
        Ok(vec![
            ("clip_fraction", metrics.clip_fraction),
            ("clip_fraction_lower", metrics.clip_fraction_lower),
            ("ppo_kl", metrics.ppo_kl),
            ("ratio_mean", metrics.ratio_mean),
        ])
    }

    pub(super) fn rewards(args: &TorchArgs<'_>) -> Result<Outputs> {
        let statistics = torch::metrics::rewards(args.tensor("rewards")?)?;
        Ok(vec![
            ("mean", statistics.mean),
            ("std", statistics.std),
            ("max", statistics.max),
            ("min", statistics.min),
        ])
    }

    pub(super) fn advantages(args: &TorchArgs<'_>) -> Result<Outputs> {
        let mask = args.tensor("response_mask")?;
        let statistics = torch::metrics::advantages(
            &args.per_token("advantages", mask)?,
            &args.per_token("advantages_original", mask)?,
            mask,
            args.optional_tensor("kept"),
            &args.options()?,
        )?;
        Ok(vec![
            ("mean", statistics.original.mean),
            ("max", statistics.original.max),
            ("min", statistics.original.min),
            ("processed_mean", statistics.processed.mean),
            ("processed_std", statistics.processed.std),
            ("processed_max", statistics.processed.max),
            ("processed_min", statistics.processed.min),
        ])
    }

    pub(super) fn health(args: &TorchArgs<'_>) -> Result<Outputs> {
        let health = torch::metrics::health(
            args.tensor("kl_divergence")?,
            args.tensor("ppo_ratio_clipped")?,
            args.tensor("ppo_ratio_mean")?,
            args.tensor("advantage_mean")?,
            args.tensor("advantage_std")?,
            &args.options()?,
        )?;
        Ok(vec![
            ("healthy", health.healthy),
            ("kl_divergence_ok", health.kl_divergence),
            ("ppo_ratio_clipped_ok", health.ppo_ratio_clipped),
            ("ppo_ratio_mean_ok", health.ppo_ratio_mean),
            ("advantage_mean_ok", health.advantage_mean),
            ("advantage_std_ok", health.advantage_std),
        ])
    }

    pub(super) fn pass_at_k(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (samples, correct) = (args.tensor("num_samples")?, args.tensor("num_correct")?);
        Ok(vec![("pass_at_k", torch::metrics::pass_at_k(samples, correct, &args.options()?)?)])
    }
}

#[cfg(feature = "torch")]
mod of_fused {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::{FusedOutputs, number_like};
    use crate::fused;

    pub(super) fn policy_metrics(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let metrics = fused::metrics::policy(logp, logp_old, &advantages, mask, &args.options()?)?;
        let outputs = vec![
            ("clip_fraction", number_like(metrics.clip_fraction, logp)),
            ("clip_fraction_lower", number_like(metrics.clip_fraction_lower, logp)),
            ("ppo_kl", number_like(metrics.ppo_kl, logp)),
            ("ratio_mean", number_like(metrics.ratio_mean, logp)),
        ];
        Ok(FusedOutputs { outputs, gradients: Vec::new() })
    }
}
