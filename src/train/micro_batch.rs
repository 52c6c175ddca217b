//! Some rows of a rollout, forward and back: what they add to the gradients, and the numbers of their loss.
//!
//! Twice: [`MicroBatch::by_graph`] holds the logits and lets libtorch differentiate the formulas of [`crate::torch`];
//! [`MicroBatch::fused`] takes the fast paths of [`crate::fused`], and gives the same within rounding.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::loss::{LossInputs, loss};
use super::score::{Responses, Scores};
use crate::Result;
use crate::fused::head::{self, ScoreGradients};
use crate::fused::loss::{self as fused, Metrics, Numbers, TokenSums, Tokens};
use crate::llm::Model;
use crate::options::LossOptions;
use crate::torch;

/// What goes into a loss beside the policy; each tensor `[b, T]`.
pub(super) struct MicroBatch {
    /// The rows, cut to their longest prompt and response.
    pub(super) responses: Responses,
    /// Log-probabilities at sampling time; `None` where the policy has not moved since.
    pub(super) logp_old: Option<Tensor>,
    /// Under the reference policy, if the loss has a KL term.
    pub(super) logp_ref: Option<Tensor>,
    /// The advantages.
    pub(super) advantages: Tensor,
    /// Which tokens count, bool.
    pub(super) mask: Tensor,
}

/// How the policy is asked.
#[derive(Clone, Copy)]
pub(super) struct Policy<'a> {
    pub(super) model: &'a Model,
    pub(super) temperature: f64,
    pub(super) checkpointing: bool,
}

/// What a pass leaves beside the gradients.
pub(super) struct Passed {
    /// The inputs of the loss, without a graph; the entropy only if it is part of the loss.
    pub(super) inputs: LossInputs,
    /// The gradient of the loss by the log-probabilities, `[b, T]`.
    pub(super) grad_logp: Tensor,
    /// The loss in numbers.
    pub(super) figures: Figures,
}

/// The loss of some tokens, its terms, and means over these tokens.
pub(super) struct Figures {
    pub(super) loss: f64,
    pub(super) policy_loss: f64,
    pub(super) kl_loss: f64,
    pub(super) clip_fraction: f64,
    pub(super) clip_fraction_lower: f64,
    pub(super) ppo_kl: f64,
    pub(super) ratio_mean: f64,
    /// A sum, in nats.
    pub(super) entropy_sum: f64,
    pub(super) tokens: f64,
}

impl Figures {
    fn of(numbers: &Numbers) -> Self {
        let Numbers { loss, policy_loss, kl_loss, metrics, .. } = *numbers;
        let Metrics { clip_fraction, clip_fraction_lower, ppo_kl, ratio_mean, entropy_sum, tokens, .. } =
            metrics;
        Self {
            loss,
            policy_loss,
            kl_loss,
            clip_fraction,
            clip_fraction_lower,
            ppo_kl,
            ratio_mean,
            entropy_sum,
            tokens,
        }
    }
}

impl MicroBatch {
    /// Through the logits and an autograd graph.
    pub(super) fn by_graph(self, policy: Policy, options: &LossOptions) -> Result<Passed> {
        let scored = self.responses.scored(policy.model, policy.temperature, policy.checkpointing)?;
        let Scores { logp, entropy } = scored.scores.shallow_clone();
        // A leaf whose gradient is that by the log-probabilities: libtorch keeps no other's.
        let nothing = logp.zeros_like().detach().set_requires_grad(true);
        let mut inputs = self.inputs(logp + &nothing, &entropy, options);
        let out = loss(&inputs, options)?;
        scored.backward(&out.loss)?;
        let grad_logp = nothing.grad();
        inputs.logp = inputs.logp.detach();
        inputs.entropy = inputs.entropy.map(|entropy| entropy.detach());

        let number = |tensor: &Tensor| tensor.double_value(&[]);
        let LossInputs { logp, logp_old, advantages, mask, .. } = &inputs;
        let told = torch::metrics::policy(logp, logp_old, advantages, mask, &options.clip())?;
        let of_kept = |tensor: &Tensor| number(&tensor.masked_select(mask).sum(Kind::Double));
        let figures = Figures {
            loss: number(&out.loss),
            policy_loss: number(&out.policy_loss),
            kl_loss: number(&out.kl_loss),
            clip_fraction: number(&told.clip_fraction),
            clip_fraction_lower: number(&told.clip_fraction_lower),
            ppo_kl: number(&told.ppo_kl),
            ratio_mean: number(&told.ratio_mean),
            entropy_sum: of_kept(&entropy.detach()),
            tokens: number(&mask.sum(Kind::Int64)),
        };
        Ok(Passed { inputs, grad_logp, figures })
    }

    /// By the fused head and the fused loss. Where a token's part of the loss depends on that token alone the gradient is
    /// made on the way forward, else the logits are computed twice.
    pub(super) fn fused(self, policy: Policy, options: &LossOptions) -> Result<Passed> {
        let before = self.responses.before_head(policy.model, policy.temperature, policy.checkpointing);
        if !options.is_per_token() {
            let Scores { logp, entropy } = before.scores()?;
            let logp_old = self.logp_old.as_ref().unwrap_or(&logp);
            let (logp_ref, mask) = (self.logp_ref.as_ref(), &self.mask);
            let out = fused::loss(
                &logp,
                logp_old,
                logp_ref,
                &self.advantages,
                mask,
                None,
                Some(&entropy),
                options,
            )?;
            before.backward_from(&out.grad_logp, out.grad_entropy.as_ref())?;
            let figures = Figures::of(&out.numbers());
            let inputs = self.inputs(logp, &entropy, options);
            return Ok(Passed { inputs, grad_logp: out.grad_logp, figures });
        }
        let mut sums = TokenSums::none(self.advantages.device());
        let list = self.list(options)?;
        let mut by_logp = Vec::new();
        let Scores { logp, entropy } = before.backward(|range, scores| {
            let (gradients, of_range) = list.sweep(range, scores, options)?;
            sums.add(&of_range);
            by_logp.push(gradients.logp.shallow_clone());
            Ok(gradients)
        })?;
        let grad_logp = match by_logp.is_empty() {
            true => logp.zeros_like(),
            false => self.responses.spread(&Tensor::cat(&by_logp, 0)),
        };
        let figures = Figures::of(&sums.numbers(options));
        Ok(Passed { inputs: self.inputs(logp, &entropy, options), grad_logp, figures })
    }

    /// The tokens one behind another, as the fused head goes through them.
    fn list(&self, options: &LossOptions) -> Result<List> {
        let of_tokens = |tensor: &Tensor| self.responses.gather(tensor);
        let weights = fused::weights(&self.mask, &options.terms.aggregate)?;
        Ok(List {
            logp_old: self.logp_old.as_ref().map(of_tokens),
            logp_ref: self.logp_ref.as_ref().map(of_tokens),
            advantages: of_tokens(&self.advantages),
            weights: of_tokens(&weights.unsqueeze(1).expand_as(&self.mask)),
            mask: of_tokens(&self.mask),
        })
    }

    fn inputs(self, logp: Tensor, entropy: &Tensor, options: &LossOptions) -> LossInputs {
        LossInputs {
            logp_old: self.logp_old.unwrap_or_else(|| logp.detach()),
            logp_ref: self.logp_ref,
            advantages: self.advantages,
            mask: self.mask,
            entropy: (options.terms.entropy_coeff != 0.0).then(|| entropy.shallow_clone()),
            logp,
        }
    }
}

/// [`MicroBatch`] as a list of all response tokens, `[N]` each.
struct List {
    logp_old: Option<Tensor>,
    logp_ref: Option<Tensor>,
    advantages: Tensor,
    weights: Tensor,
    mask: Tensor,
}

impl List {
    /// The gradients by the scores of some of the tokens, and what those that count add to the loss.
    fn sweep(
        &self,
        range: Range<i64>,
        scores: &head::Scores,
        options: &LossOptions,
    ) -> Result<(ScoreGradients, TokenSums)> {
        let counts = self.mask.narrow(0, range.start, range.end - range.start);
        let kept = |scores: &Tensor| scores.masked_select(&counts);
        let own = |tensor: &Tensor| kept(&tensor.narrow(0, range.start, range.end - range.start));
        let (logp, entropy) = (kept(&scores.logp), kept(&scores.entropy));
        let logp_old = self.logp_old.as_ref().map_or_else(|| logp.shallow_clone(), own);
        let logp_ref = self.logp_ref.as_ref().map(own);
        let tokens = Tokens {
            logp: &logp,
            logp_old: &logp_old,
            logp_ref: logp_ref.as_ref(),
            advantages: &own(&self.advantages),
            entropy: Some(&entropy),
            weights: &own(&self.weights),
        };
        let swept = fused::sweep(&tokens, options)?;
        let spread = |gradient: Tensor| scores.logp.zeros_like().masked_scatter(&counts, &gradient);
        let gradients =
            ScoreGradients { logp: spread(swept.grad_logp), entropy: swept.grad_entropy.map(spread) };
        Ok((gradients, swept.sums))
    }
}
