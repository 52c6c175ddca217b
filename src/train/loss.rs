//! The loss of some responses: one of the objectives, the KL to the reference policy, the entropy bonus.

use tch::{Kind, Tensor};

use crate::Result;
use crate::options::{ActorLoss, Aggregate, LossAggMode, LossOptions, MaskedMean, Objective};
use crate::torch::objective::{self, ActorLossOutput, Kept};
use crate::torch::{aggregate, mask};

/// What a loss is computed from, each `[b, T]`.
#[derive(Debug)]
pub struct LossInputs {
    /// The tokens' log-probabilities; the gradient's way.
    pub logp: Tensor,
    /// What they were at sampling time.
    pub logp_old: Tensor,
    /// Under the reference policy; `None` without a KL term.
    pub logp_ref: Option<Tensor>,
    /// The advantages.
    pub advantages: Tensor,
    /// Which tokens count, bool.
    pub mask: Tensor,
    /// The entropy at each token; `None` without an entropy term.
    pub entropy: Option<Tensor>,
}

/// The loss of these tokens.
///
/// # Errors
/// As the formulas of [`objective`].
pub fn loss(inputs: &LossInputs, options: &LossOptions) -> Result<ActorLossOutput> {
    options.check()?;
    let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = inputs;
    let of_tokens = |losses: &Tensor| aggregate::loss(losses, mask, &options.terms.aggregate);
    let policy_loss = match &options.objective {
        Objective::Vanilla => {
            of_tokens(&objective::clip(logp, logp_old, advantages, mask, &options.terms.clip)?)?
        }
        Objective::Gpg => {
            // The formula has no mask, and 0 times what may stand in a masked slot is no gradient.
            let Kept { logp, advantages, .. } = objective::kept(logp, logp_old, advantages, mask)?;
            of_tokens(&objective::policy_gradient(&logp, &advantages)?)?
        }
        Objective::Gspo(gspo) => of_tokens(&objective::gspo(logp, logp_old, advantages, mask, gspo)?.loss)?,
        Objective::Cispo(cispo) => of_tokens(&objective::cispo(logp, logp_old, advantages, mask, cispo)?)?,
        Objective::GeoMean(gmpo) => {
            let of_rows = mask::mean(advantages, mask, &MaskedMean::along(1))?;
            let losses = objective::gmpo(logp, logp_old, &of_rows, mask, gmpo)?;
            let rows = mask.any_dim(1, true);
            aggregate::loss(&losses.unsqueeze(1), &rows, &over_rows(&options.terms.aggregate))?
        }
        Objective::Sapo(sapo) => of_tokens(&objective::sapo(logp, logp_old, advantages, mask, sapo)?)?,
    };
    let (logp_ref, entropy) = (logp_ref.as_ref(), entropy.as_ref());
    objective::with_other_terms(policy_loss, logp, logp_old, logp_ref, mask, entropy, &options.terms)
}

/// The mean over sequences of one loss a sequence.
pub fn over_rows(aggregate: &Aggregate) -> Aggregate {
    Aggregate { loss_agg_mode: LossAggMode::SeqMeanTokenSum, ..*aggregate }
}

/// The loss's options with the counts of a whole mini-batch, so that the losses of its parts sum to its own.
pub fn with_counts(options: &LossOptions, mask: &Tensor, response_length: i64) -> LossOptions {
    let aggregate = &options.terms.aggregate;
    let count = |mask: &Tensor| Some(mask.sum(Kind::Int64).int64_value(&[]).max(1) as f64);
    let aggregate = Aggregate {
        loss_scale_factor: aggregate.loss_scale_factor.or(Some(response_length as f64)),
        batch_num_tokens: count(mask),
        global_batch_size: count(&mask.any_dim(1, false)),
        ..*aggregate
    };
    LossOptions { terms: ActorLoss { aggregate, ..options.terms }, ..*options }
}
