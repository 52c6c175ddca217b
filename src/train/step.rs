//! One update of the policy from one rollout.

use std::time::Instant;

use indicatif::ProgressBar;
use serde::Serialize;
use tch::{Kind, Tensor, no_grad};

use super::optim::AdamW;
use super::progress;
use super::rollout::Rollout;
use super::score::{Responses, Scores};
use crate::llm::Model;
use crate::options::{ActorLoss, Aggregate};
use crate::torch::{self, objective};
use crate::{Error, Result};

/// How an update is made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepOptions {
    /// The loss; the counts of its aggregation are filled in from the batch.
    pub loss: ActorLoss,
    /// How often the rollout is gone through.
    pub epochs: usize,
    /// Sequences per optimiser step; at least the batch means one step an epoch.
    pub mini_batch: usize,
    /// Sequences per forward and backward pass; the gradient does not depend on it.
    pub micro_batch: usize,
    /// The temperature that the responses were sampled at.
    pub temperature: f64,
    /// The largest global norm of the gradient.
    pub max_grad_norm: f64,
}

/// What an update did; everything but the sums is a mean over response tokens, then over optimiser steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct StepMetrics {
    /// The whole loss.
    pub loss: f64,
    /// Its policy term.
    pub policy_loss: f64,
    /// The KL to the reference policy, aggregated as the loss is and not yet weighted; `None` when the loss has none.
    pub kl: Option<f64>,
    /// The share of tokens whose ratio was clipped.
    pub clip_fraction: f64,
    /// The share of tokens that the dual clip held.
    pub clip_fraction_lower: f64,
    /// The mean of logp_old - logp.
    pub ppo_kl: f64,
    /// The mean importance ratio.
    pub ratio_mean: f64,
    /// The policy's entropy in nats.
    pub entropy: f64,
    /// The gradient's global norm before it was clipped.
    pub grad_norm: f64,
    /// Optimiser steps made.
    pub updates: usize,
    /// Real tokens, prompt and response, that went forward and back in a second.
    pub train_tokens_per_s: f64,
    /// How long the update took.
    pub seconds: f64,
}

/// Exactly what went into one micro-batch's loss, and the loss: enough to compute it again elsewhere.
#[derive(Debug)]
pub struct LossRecord {
    /// `[b, T]`, detached.
    pub logp: Tensor,
    /// `[b, T]`.
    pub logp_old: Tensor,
    /// `[b, T]`; `None` without a reference policy.
    pub logp_ref: Option<Tensor>,
    /// `[b, T]`: each sequence's own, at every token.
    pub advantages: Tensor,
    /// `[b, T]` bool.
    pub response_mask: Tensor,
    /// `[b, T]`; `None` when the loss has no entropy term.
    pub entropy: Option<Tensor>,
    /// The loss's options with the counts of the whole mini-batch.
    pub options: ActorLoss,
    /// The micro-batch's loss.
    pub loss: f64,
}

/// Goes through the rollout and moves the policy; also returns what went into the first micro-batch's loss.
/// `advantages` is `[B]`. The reference policy is read only if the loss has a KL term. The gradients of the last
/// optimiser step stay with the parameters until the next call.
///
/// # Errors
/// `option` for a size of 0, `input` for a KL term without a reference, and what the formulas reject.
pub fn update(
    policy: &Model,
    reference: Option<&Model>,
    optimizer: &mut AdamW,
    rollout: &Rollout,
    advantages: &Tensor,
    options: &StepOptions,
) -> Result<(StepMetrics, LossRecord)> {
    check(reference, options)?;
    let started = Instant::now();
    let mut mini_batches = mini_batches(rollout, advantages, options);

    // The policy moves between optimiser steps, so its log-probabilities at sampling time are taken before the first.
    // A single step needs no such pass: they are those of its own forward pass.
    let several_steps = options.epochs * mini_batches.len() > 1;
    let reference = reference.filter(|_| options.loss.kl_loss_coef != 0.0);
    let passes = options.epochs + usize::from(several_steps) + usize::from(reference.is_some());
    let bar = progress::bar("training", passes * mini_batches.iter().map(Vec::len).sum::<usize>());
    let frozen_logp = |model: &Model, batch: &MicroBatch| -> Result<Tensor> {
        let scores = no_grad(|| batch.responses.score(model, options.temperature))?;
        bar.inc(1);
        Ok(scores.logp)
    };
    for batch in mini_batches.iter_mut().flatten() {
        batch.logp_old = several_steps.then(|| frozen_logp(policy, batch)).transpose()?;
        batch.logp_ref = reference.map(|model| frozen_logp(model, batch)).transpose()?;
    }

    let (mut metrics, mut first) = (StepMetrics::default(), None);
    for _ in 0..options.epochs {
        for mini_batch in &mini_batches {
            optimizer.zero_grad();
            let record = accumulate_gradients(
                policy,
                mini_batch,
                options,
                rollout.response_length(),
                &mut metrics,
                &bar,
            )?;
            metrics.grad_norm += optimizer.clip_grad_norm(options.max_grad_norm);
            optimizer.step();
            metrics.updates += 1;
            first = first.or(record);
        }
    }
    bar.finish_and_clear();

    let first = first.ok_or_else(|| Error::input("rollout", "it holds no responses"))?;
    let trained = options.epochs as f64 * count(&rollout.attention_mask);
    Ok((metrics.mean(trained, started.elapsed().as_secs_f64()), first))
}

/// Forward and backward through the micro-batches of one optimiser step; adds to the metrics.
fn accumulate_gradients(
    policy: &Model,
    mini_batch: &[MicroBatch],
    options: &StepOptions,
    response_length: i64,
    metrics: &mut StepMetrics,
    bar: &ProgressBar,
) -> Result<Option<LossRecord>> {
    let tokens: f64 = mini_batch.iter().map(|batch| count(&batch.responses.response_mask)).sum();
    let loss_options = with_counts(&options.loss, mini_batch, tokens, response_length);
    let mut first = None;
    for batch in mini_batch {
        let Scores { logp, entropy } = batch.responses.score(policy, options.temperature)?;
        let logp_old = batch.logp_old.as_ref().map_or_else(|| logp.detach(), Tensor::shallow_clone);
        let logp_ref = batch.logp_ref.as_ref();
        let bonus = (options.loss.entropy_coeff != 0.0).then_some(&entropy);
        let (advantages, response_mask) = (&batch.advantages, &batch.responses.response_mask);
        let out = objective::actor_loss(
            &logp,
            &logp_old,
            logp_ref,
            advantages,
            response_mask,
            None,
            bonus,
            &loss_options,
        )?;
        out.loss.backward();

        let ratio = torch::metrics::policy(&logp, &logp_old, advantages, response_mask, &options.loss.clip)?;
        let share = count(response_mask) / tokens;
        metrics.loss += out.loss.double_value(&[]);
        metrics.policy_loss += out.policy_loss.double_value(&[]);
        if logp_ref.is_some() {
            *metrics.kl.get_or_insert_default() += out.kl_loss.double_value(&[]);
        }
        metrics.clip_fraction += share * ratio.clip_fraction.double_value(&[]);
        metrics.clip_fraction_lower += share * ratio.clip_fraction_lower.double_value(&[]);
        metrics.ppo_kl += share * ratio.ppo_kl.double_value(&[]);
        metrics.ratio_mean += share * ratio.ratio_mean.double_value(&[]);
        metrics.entropy += entropy.sum(Kind::Double).double_value(&[]) / tokens;
        first.get_or_insert_with(|| LossRecord {
            logp: logp.detach(),
            logp_old,
            logp_ref: logp_ref.map(Tensor::shallow_clone),
            advantages: advantages.shallow_clone(),
            response_mask: response_mask.shallow_clone(),
            entropy: bonus.map(Tensor::detach),
            options: loss_options,
            loss: out.loss.double_value(&[]),
        });
        bar.inc(1);
    }
    Ok(first)
}

impl StepMetrics {
    fn mean(self, tokens: f64, seconds: f64) -> Self {
        let updates = self.updates as f64;
        Self {
            loss: self.loss / updates,
            policy_loss: self.policy_loss / updates,
            kl: self.kl.map(|kl| kl / updates),
            clip_fraction: self.clip_fraction / updates,
            clip_fraction_lower: self.clip_fraction_lower / updates,
            ppo_kl: self.ppo_kl / updates,
            ratio_mean: self.ratio_mean / updates,
            entropy: self.entropy / updates,
            grad_norm: self.grad_norm / updates,
            updates: self.updates,
            train_tokens_per_s: tokens / seconds,
            seconds,
        }
    }
}

/// Some rows of a rollout, cut to the longest prompt and the longest response among them.
struct MicroBatch {
    responses: Responses,
    advantages: Tensor,
    logp_old: Option<Tensor>,
    logp_ref: Option<Tensor>,
}

impl MicroBatch {
    fn of(rollout: &Rollout, advantages: &Tensor, (first, rows): (i64, i64)) -> Self {
        let own = |tensor: &Tensor| tensor.narrow(0, first, rows);
        let (attention_mask, response_mask) = (own(&rollout.attention_mask), own(&rollout.response_mask));
        let left = attention_mask.size()[1] - response_mask.size()[1];
        let longest = |mask: &Tensor| mask.sum_dim_intlist(1i64, false, Kind::Int64).max().int64_value(&[]);
        let (prompt, response) = (longest(&attention_mask.narrow(1, 0, left)), longest(&response_mask));
        let cut = |tensor: &Tensor| tensor.narrow(1, left - prompt, prompt + response);
        Self {
            responses: Responses {
                tokens: cut(&own(&rollout.tokens)),
                attention_mask: cut(&attention_mask),
                response_mask: response_mask.narrow(1, 0, response),
                group: own(&rollout.group),
            },
            advantages: own(advantages).unsqueeze(1).expand([rows, response], true),
            logp_old: None,
            logp_ref: None,
        }
    }
}

/// The micro-batches of each optimiser step of one epoch.
fn mini_batches(rollout: &Rollout, advantages: &Tensor, options: &StepOptions) -> Vec<Vec<MicroBatch>> {
    pieces((0, rollout.tokens.size()[0]), options.mini_batch)
        .map(|mini| {
            pieces(mini, options.micro_batch).map(|rows| MicroBatch::of(rollout, advantages, rows)).collect()
        })
        .collect()
}

/// Cuts consecutive rows (first, number) into pieces of at most `size`.
fn pieces((first, rows): (i64, i64), size: usize) -> impl Iterator<Item = (i64, i64)> {
    let size = (size as i64).min(rows.max(1));
    (first..first + rows).step_by(size as usize).map(move |start| (start, size.min(first + rows - start)))
}

/// The loss with the counts of the whole mini-batch, so that the losses of its micro-batches sum to its own.
fn with_counts(loss: &ActorLoss, mini_batch: &[MicroBatch], tokens: f64, response_length: i64) -> ActorLoss {
    let sequences: i64 = mini_batch.iter().map(|batch| batch.advantages.size()[0]).sum();
    let aggregate = Aggregate {
        loss_scale_factor: loss.aggregate.loss_scale_factor.or(Some(response_length as f64)),
        batch_num_tokens: Some(tokens),
        global_batch_size: Some(sequences as f64),
        ..loss.aggregate
    };
    ActorLoss { aggregate, ..*loss }
}

fn count(mask: &Tensor) -> f64 {
    mask.sum(Kind::Int64).int64_value(&[]) as f64
}

fn check(reference: Option<&Model>, options: &StepOptions) -> Result<()> {
    for (name, size) in
        [("epochs", options.epochs), ("mini_batch", options.mini_batch), ("micro_batch", options.micro_batch)]
    {
        if size == 0 {
            return Err(Error::option(name, "0 is too small; use at least 1"));
        }
    }
    match reference {
        None if options.loss.kl_loss_coef != 0.0 => Err(Error::input(
            "reference",
            "the loss has a KL term; give the reference policy or set kl_loss_coef to 0",
        )),
        _ => Ok(()),
    }
}
