//! One pass of updates of the policy over a rollout.

use std::time::Instant;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::algorithm::Advantages;
use super::experience::Seen;
use super::loss::{LossInputs, with_counts};
use super::micro_batch::{MicroBatch, Passed, Policy};
use super::optim::Optimizer;
use super::progress;
use super::rollout::Rollout;
use super::score::Responses;
use crate::config::{Config, loss_options};
use crate::fused;
use crate::llm::Model;
use crate::options::LossOptions;
use crate::{Error, Result};

/// How updates are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct StepOptions {
    /// The loss; the counts of its aggregation are filled in from the batch.
    pub loss: LossOptions,
    /// Problems, each with all of its responses, per optimiser step.
    pub mini_batch: usize,
    /// Responses per forward and backward pass; the gradient does not depend on it.
    pub micro_batch: usize,
    /// The order of the problems is drawn from it; `None` leaves them as they are.
    pub shuffle: Option<u64>,
    /// The temperature that the responses were sampled at.
    pub temperature: f64,
    /// The largest global norm of the gradient.
    pub max_grad_norm: f64,
    /// Whether the layers are computed once more on the way back: less memory, the same gradient.
    pub gradient_checkpointing: bool,
    /// Whether the head and the loss are the fused ones: less time and memory, the same gradient within rounding.
    pub fused: bool,
}

impl StepOptions {
    /// The configuration's updates. The passes over a rollout are the caller's.
    ///
    /// # Errors
    /// `option` for a size of 0, by the key's full name, or an option outside its domain; `unsupported` if fast paths are
    /// asked for that the device does not have.
    pub fn of(config: &Config, device: Device) -> Result<Self> {
        let actor = &config.actor_rollout_ref.actor;
        let options = Self {
            loss: loss_options(config)?,
            mini_batch: actor.ppo_mini_batch_size.unwrap_or(config.data.train_batch_size),
            micro_batch: actor.ppo_micro_batch_size_per_gpu.unwrap_or_else(|| micro_batch(config, device)),
            shuffle: actor.shuffle.then_some(config.data.seed),
            temperature: config.actor_rollout_ref.rollout.temperature,
            max_grad_norm: actor.grad_clip,
            gradient_checkpointing: config.actor_rollout_ref.model.enable_gradient_checkpointing,
            fused: config.actor_rollout_ref.model.uses_fused_kernels(device == Device::Cpu),
        };
        if options.fused {
            fused::loss::check_device(device)?;
        }
        for (name, size) in [
            ("ppo_mini_batch_size", options.mini_batch),
            ("ppo_micro_batch_size_per_gpu", options.micro_batch),
            ("ppo_epochs", actor.ppo_epochs),
        ] {
            if size == 0 {
                let key = format!("actor_rollout_ref.actor.{name}");
                return Err(Error::option(key, "0 is too small; use at least 1"));
            }
        }
        Ok(options)
    }

    /// The log-probabilities of a rollout under a policy as it is, `[B, T]`.
    ///
    /// # Errors
    /// As [`Responses::score`].
    pub fn logp(&self, policy: &Model, rollout: &Rollout) -> Result<Tensor> {
        rollout.responses().frozen_logp(policy, self.temperature, self.micro_batch, self.fused)
    }

    /// The same in another order of the problems.
    pub fn reshuffled(&self, step: usize, epoch: usize) -> Self {
        let seed = |seed: u64| super::seed_of(seed, ((step as u64) << 8) + epoch as u64);
        Self { shuffle: self.shuffle.map(seed), ..*self }
    }
}

/// As many responses as a modest memory holds beside the weights: about so many tokens.
fn micro_batch(config: &Config, device: Device) -> usize {
    let tokens = if device == Device::Cpu { 512 } else { 4096 };
    (tokens / config.data.max_response_length.max(1)).clamp(1, 64)
}

/// What an update did; everything but the sums is a mean over the tokens trained on, then over optimiser steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
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
    /// The largest difference between the probability that a token was drawn with and the one that the update starts
    /// from, before the policy moves; over the first optimiser step's responses.
    pub rollout_probs_diff_max: f64,
    /// The mean of these differences.
    pub rollout_probs_diff_mean: f64,
    /// The gradient's global norm before it was clipped.
    pub grad_norm: f64,
    /// The learning rate.
    pub lr: f64,
    /// Optimiser steps made.
    pub updates: usize,
    /// Responses that were not computed, because nothing about them could move the policy.
    pub skipped: usize,
    /// Real tokens, prompt and response, that went forward and back in a second.
    pub train_tokens_per_s: f64,
    /// How long the update took.
    pub seconds: f64,
}

/// Exactly what went into one micro-batch's loss, and the loss: enough to compute it again elsewhere.
#[derive(Debug)]
pub struct LossRecord {
    /// The inputs, detached.
    pub inputs: LossInputs,
    /// The loss's options with the counts of the whole mini-batch.
    pub options: LossOptions,
    /// The micro-batch's loss.
    pub loss: f64,
    /// Its gradient by the log-probabilities, `[b, T]`: the one that went on into the model.
    pub grad_logp: Tensor,
}

/// Goes once through the rollout and moves the policy; also returns what went into the first micro-batch's loss, if
/// there was anything to move it. The gradients of the last optimiser step stay with the parameters until the next
/// call.
///
/// # Errors
/// `option` for a size of 0, `input` for a KL term without the reference's log-probabilities, and what the formulas
/// reject.
pub fn update(
    policy: &Model,
    optimizer: &mut Optimizer,
    rollout: &Rollout,
    seen: &Seen,
    advantages: &Advantages,
    options: &StepOptions,
) -> Result<(StepMetrics, Option<LossRecord>)> {
    check(seen, options)?;
    let started = Instant::now();
    let batch = Batch { responses: rollout.responses(), drawn: rollout.logp(), seen, advantages, options };
    let signal = batch.rows_with_signal();
    let mini_batches = mini_batches(rollout, &batch.responses, &signal, options);
    let bar =
        progress::bar("training", mini_batches.iter().map(|mini_batch| mini_batch.micro_batches.len()).sum());

    let mut metrics = StepMetrics { lr: optimizer.options.lr, ..StepMetrics::default() };
    let (mut first, mut trained, mut measured) = (None, 0, 0);
    for MiniBatch { rows, micro_batches } in &mini_batches {
        optimizer.zero_grad();
        let loss_options = with_counts(&options.loss, &batch.loss_mask(rows), batch.responses.width());
        let tokens: i64 = micro_batches.iter().map(|rows| count(&batch.loss_mask(rows))).sum();
        for rows in micro_batches {
            let record =
                batch.accumulate_gradients(policy, rows, tokens as f64, &loss_options, &mut metrics)?;
            first.get_or_insert(record);
            trained += count(&rollout.attention_mask.index_select(0, rows));
            bar.inc(1);
        }
        let norm = optimizer.clip_grad_norm(options.max_grad_norm)?;
        if !norm.is_finite() {
            return Err(diverged(norm));
        }
        optimizer.step()?;
        metrics.grad_norm += norm;
        metrics.updates += 1;
        measured += usize::from(tokens > 0);
    }
    bar.finish_and_clear();
    metrics.skipped = signal.iter().filter(|&&has_signal| !has_signal).count();
    Ok((metrics.mean(measured, trained as f64, started.elapsed().as_secs_f64()), first))
}

/// A step with such a gradient would spoil every weight.
pub(super) fn diverged(norm: f64) -> Error {
    let problem = format!(
        "the gradient's norm is {norm}: training has diverged, and the weights were left as they were; go on from the \
         last checkpoint with a smaller learning rate or a smaller grad_clip"
    );
    Error::Unsupported { what: problem }
}

/// A rollout and what is made of it, row by row.
struct Batch<'a> {
    responses: Responses,
    /// What the tokens were drawn with, `[B, T]`.
    drawn: Tensor,
    seen: &'a Seen,
    advantages: &'a Advantages,
    options: &'a StepOptions,
}

impl Batch<'_> {
    /// Which rows could move the policy: they have a token to train on and, unless there are other terms in the loss,
    /// someone in their group has an advantage.
    fn rows_with_signal(&self) -> Vec<bool> {
        let Advantages { advantages, loss_mask, .. } = self.advantages;
        let terms = &self.options.loss.terms;
        let has_advantage = advantages.ne(0.0).logical_and(loss_mask).any_dim(1, false);
        let group = &self.responses.group;
        let same_group = group.unsqueeze(1).eq_tensor(group);
        let mut has_signal = same_group.logical_and(&has_advantage).any_dim(1, false);
        if terms.kl_loss_coef != 0.0 || terms.entropy_coeff != 0.0 {
            has_signal = has_signal.ones_like();
        }
        let has_signal = has_signal.logical_and(&loss_mask.any_dim(1, false));
        Vec::try_from(has_signal).unwrap_or_default()
    }

    fn loss_mask(&self, rows: &Tensor) -> Tensor {
        self.advantages.loss_mask.index_select(0, rows)
    }

    /// Forward and backward through some rows; adds to the metrics, weighted by the share of `tokens`.
    fn accumulate_gradients(
        &self,
        policy: &Model,
        rows: &Tensor,
        tokens: f64,
        loss_options: &LossOptions,
        metrics: &mut StepMetrics,
    ) -> Result<LossRecord> {
        let responses = self.responses.rows(rows);
        let width = responses.width();
        let own = |tensor: &Tensor| tensor.index_select(0, rows).narrow(1, 0, width);
        let terms = &loss_options.terms;
        let micro_batch = MicroBatch {
            logp_old: self.seen.logp_old.as_ref().map(own),
            logp_ref: self.seen.logp_ref.as_ref().filter(|_| terms.kl_loss_coef != 0.0).map(own),
            advantages: own(&self.advantages.advantages),
            mask: own(&self.advantages.loss_mask),
            responses,
        };
        let StepOptions { temperature, gradient_checkpointing: checkpointing, .. } = *self.options;
        let policy = Policy { model: policy, temperature, checkpointing };
        let Passed { inputs, grad_logp, figures } = match self.options.fused {
            true => micro_batch.fused(policy, loss_options)?,
            false => micro_batch.by_graph(policy, loss_options)?,
        };
        let share = figures.tokens / tokens;
        metrics.loss += figures.loss;
        metrics.policy_loss += figures.policy_loss;
        if inputs.logp_ref.is_some() {
            *metrics.kl.get_or_insert_default() += figures.kl_loss;
        }
        metrics.clip_fraction += share * figures.clip_fraction;
        metrics.clip_fraction_lower += share * figures.clip_fraction_lower;
        metrics.ppo_kl += share * figures.ppo_kl;
        metrics.ratio_mean += share * figures.ratio_mean;
        metrics.entropy += figures.entropy_sum / tokens;
        if metrics.updates == 0 && figures.tokens > 0.0 {
            let off = (inputs.logp.exp() - own(&self.drawn).exp()).abs().masked_select(&inputs.mask);
            let largest = off.max().double_value(&[]);
            metrics.rollout_probs_diff_max = metrics.rollout_probs_diff_max.max(largest);
            metrics.rollout_probs_diff_mean += share * off.mean(Kind::Double).double_value(&[]);
        }
        Ok(LossRecord { inputs, options: *loss_options, loss: figures.loss, grad_logp })
    }
}

impl StepMetrics {
    fn mean(self, measured: usize, tokens: f64, seconds: f64) -> Self {
        let (updates, measured) = (self.updates.max(1) as f64, measured.max(1) as f64);
        Self {
            loss: self.loss / updates,
            policy_loss: self.policy_loss / updates,
            kl: self.kl.map(|kl| kl / updates),
            clip_fraction: self.clip_fraction / measured,
            clip_fraction_lower: self.clip_fraction_lower / measured,
            ppo_kl: self.ppo_kl / measured,
            ratio_mean: self.ratio_mean / measured,
            entropy: self.entropy / measured,
            grad_norm: self.grad_norm / updates,
            train_tokens_per_s: tokens / seconds,
            seconds,
            ..self
        }
    }

    /// The figures of several passes over one rollout.
    pub fn of_passes(passes: &[Self]) -> Self {
        let Some(&last) = passes.last() else { return Self::default() };
        let count = passes.len() as f64;
        let mean = |of: fn(&Self) -> f64| passes.iter().map(of).sum::<f64>() / count;
        let seconds = passes.iter().map(|pass| pass.seconds).sum();
        Self {
            loss: mean(|pass| pass.loss),
            policy_loss: mean(|pass| pass.policy_loss),
            kl: last.kl.map(|_| mean(|pass| pass.kl.unwrap_or(0.0))),
            clip_fraction: mean(|pass| pass.clip_fraction),
            clip_fraction_lower: mean(|pass| pass.clip_fraction_lower),
            ppo_kl: mean(|pass| pass.ppo_kl),
            ratio_mean: mean(|pass| pass.ratio_mean),
            entropy: mean(|pass| pass.entropy),
            grad_norm: mean(|pass| pass.grad_norm),
            updates: passes.iter().map(|pass| pass.updates).sum(),
            train_tokens_per_s: passes.iter().map(|pass| pass.train_tokens_per_s * pass.seconds).sum::<f64>()
                / seconds,
            seconds,
            // Later passes start from a policy that has moved.
            rollout_probs_diff_max: passes[0].rollout_probs_diff_max,
            rollout_probs_diff_mean: passes[0].rollout_probs_diff_mean,
            ..last
        }
    }
}

/// The rows of an optimiser step, and those of them that go forward and back, in pieces.
struct MiniBatch {
    rows: Tensor,
    micro_batches: Vec<Tensor>,
}

/// The optimiser steps of one pass: so many problems each, with all of their responses, in pieces of like length.
fn mini_batches(
    rollout: &Rollout,
    responses: &Responses,
    has_signal: &[bool],
    options: &StepOptions,
) -> Vec<MiniBatch> {
    let mut groups: Vec<usize> = (0..has_signal.len() / rollout.n).collect();
    if let Some(seed) = options.shuffle {
        groups.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
    }
    let device = rollout.tokens.device();
    let tensor = |rows: &[i64]| Tensor::from_slice(rows).to_device(device);
    groups
        .chunks(options.mini_batch)
        .map(|groups| {
            let rows: Vec<i64> = groups
                .iter()
                .flat_map(|group| group * rollout.n..(group + 1) * rollout.n)
                .map(|row| row as i64)
                .collect();
            let responses = responses.rows(&tensor(&rows));
            let in_order = responses.by_length().into_iter().map(|place| rows[place as usize]);
            let moving: Vec<i64> = in_order.filter(|&row| has_signal[row as usize]).collect();
            let micro_batches = moving.chunks(options.micro_batch).map(tensor).collect();
            MiniBatch { rows: tensor(&rows), micro_batches }
        })
        .collect()
}

fn count(mask: &Tensor) -> i64 {
    mask.sum(Kind::Int64).int64_value(&[])
}

fn check(seen: &Seen, options: &StepOptions) -> Result<()> {
    options.loss.check()?;
    for (name, size) in [("mini_batch", options.mini_batch), ("micro_batch", options.micro_batch)] {
        if size == 0 {
            return Err(Error::option(name, "0 is too small; use at least 1"));
        }
    }
    match seen.logp_ref {
        None if options.loss.terms.kl_loss_coef != 0.0 => Err(Error::input(
            "logp_ref",
            "the loss has a KL term; give the reference policy's log-probabilities or set kl_loss_coef to 0",
        )),
        _ => Ok(()),
    }
}
