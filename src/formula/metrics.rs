//! The rows of `metrics.*`.

use ndarray::Ix2;

use super::objective::{CLIP_INPUTS, CLIP_OPTIONS, CLIP_RIVALS};
use super::{Formula, Output, Outputs, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::Clip;
use crate::reference::{self, Real};

impl<R: Real> Formula<R> {
    pub(super) const METRICS: &'static [Self] = &[Self {
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
        inputs: CLIP_INPUTS,
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
    }];
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

#[cfg(feature = "torch")]
mod of_torch {
    use super::super::TorchOutputs as Outputs;
    use crate::Result;
    use crate::arguments::TorchArgs;
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
}
