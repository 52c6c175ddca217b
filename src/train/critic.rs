//! The value model of GAE and GROUP-PPO: the policy's layers, copied, with one number for every token on top.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::algorithm::Advantages;
use super::checkpoint::State;
use super::experience::Seen;
use super::optim::{Course, Optimizer, adamw_of};
use super::progress;
use super::rollout::Rollout;
use super::score::Responses;
use crate::config::{Config, value_clip};
use crate::llm::Model;
use crate::options::{Aggregate, MaskedMean, ValueClip};
use crate::torch::{mask, value};
use crate::{Error, Result};

/// The critic, and what trains it.
#[derive(Debug)]
pub struct Critic {
    trunk: Model,
    /// `[1, H]`; zeros at first, so that nothing is claimed before anything is known.
    head: Tensor,
    optimizer: Optimizer,
    course: Course,
    loss: ValueClip,
    epochs: usize,
    mini_batch: usize,
    micro_batch: usize,
    max_grad_norm: f64,
}

/// What an update of the critic did; means over optimiser steps.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct CriticMetrics {
    /// The clipped squared error.
    pub value_loss: f64,
    /// The share of tokens whose clipped error was the larger one.
    pub value_clip_fraction: f64,
    /// The mean value before the update.
    pub value_mean: f64,
    /// The mean of what the critic learns.
    pub return_mean: f64,
    /// The gradient's global norm before it was clipped.
    pub value_grad_norm: f64,
}

impl Critic {
    /// A critic with the policy's weights as they are. What `critic` leaves open is the actor's.
    ///
    /// # Errors
    /// `option` for a size of 0 or an option outside its domain.
    pub fn new(policy: &Model, config: &Config, micro_batch: usize, total_steps: usize) -> Result<Self> {
        let (critic, actor) = (&config.critic, &config.actor_rollout_ref.actor);
        let trunk = policy.frozen_copy();
        trunk.set_trainable(true);
        let width = trunk.config().hidden_size;
        let head = Tensor::zeros([1, width], (trunk.kind(), trunk.device())).set_requires_grad(true);
        // The vocabulary's head, where it is a tensor of its own, has no part in a value.
        let parameters = trunk.trainable().into_iter().filter(|(name, _)| name != "lm_head.weight");
        let parameters = parameters.map(|named| named.1).chain([head.shallow_clone()]);
        let loss = value_clip(config);
        loss.check()?;
        let fused = config.actor_rollout_ref.model.uses_fused_kernels(trunk.device() == Device::Cpu);
        let critic = Self {
            optimizer: Optimizer::new(parameters, adamw_of(&critic.optim), fused),
            course: Course::of(&critic.optim, total_steps)?,
            loss,
            epochs: critic.ppo_epochs.unwrap_or(actor.ppo_epochs),
            mini_batch: critic
                .ppo_mini_batch_size
                .or(actor.ppo_mini_batch_size)
                .unwrap_or(config.data.train_batch_size),
            micro_batch: critic.ppo_micro_batch_size_per_gpu.unwrap_or(micro_batch),
            max_grad_norm: critic.grad_clip,
            trunk,
            head,
        };
        for (name, size) in [
            ("critic.ppo_epochs", critic.epochs),
            ("critic.ppo_mini_batch_size", critic.mini_batch),
            ("critic.ppo_micro_batch_size_per_gpu", critic.micro_batch),
        ] {
            if size == 0 {
                return Err(Error::option(name, "0 is too small; use at least 1"));
            }
        }
        Ok(critic)
    }

    /// Puts its weights and its optimiser into a checkpoint.
    ///
    /// # Errors
    /// None that a caller could bring about.
    pub fn save(&self, state: &mut State) -> Result<()> {
        for (name, tensor) in self.trunk.trainable() {
            state.tensor(format!("critic.{name}"), &tensor);
        }
        state.tensor("critic.head", &self.head);
        self.optimizer.save("critic.optimizer", state)
    }

    /// Takes them out of one.
    ///
    /// # Errors
    /// As [`State::restore`].
    pub fn restore(&mut self, state: &mut State) -> Result<()> {
        for (name, mut tensor) in self.trunk.trainable() {
            state.restore(&format!("critic.{name}"), &mut tensor)?;
        }
        state.restore("critic.head", &mut self.head)?;
        self.optimizer.restore("critic.optimizer", state)
    }

    /// The value of the state before each response token, `[B, T]`, without gradients; 0 in masked slots.
    ///
    /// # Errors
    /// None that a caller could bring about.
    pub fn values(&self, responses: &Responses) -> Result<Tensor> {
        responses.piece_by_piece(self.micro_batch, |piece| Ok(self.of(piece)))
    }

    fn of(&self, responses: &Responses) -> Tensor {
        let values = responses.states(&self.trunk).linear(&self.head, None::<Tensor>);
        responses.spread(&values.squeeze_dim(1))
    }

    /// Goes through the rollout and moves the values towards the returns.
    ///
    /// # Errors
    /// `input` if there are no values or returns, and what the formula rejects.
    pub fn update(
        &mut self,
        rollout: &Rollout,
        seen: &Seen,
        advantages: &Advantages,
        step: usize,
    ) -> Result<CriticMetrics> {
        let absent = |name: &str| Error::input(name, "is needed to train the critic");
        let values_old = seen.values.as_ref().ok_or_else(|| absent("values"))?;
        let returns = advantages.returns.as_ref().ok_or_else(|| absent("returns"))?;
        let batch = rollout.responses();
        let rows = Tensor::arange(batch.tokens.size()[0], (Kind::Int64, batch.tokens.device()));
        let mini_batches = rows.split((self.mini_batch * rollout.n) as i64, 0);
        let bar = progress::bar("critic", self.epochs * mini_batches.len());

        self.optimizer.options.lr = self.course.lr(step)?;
        let mut metrics = CriticMetrics::default();
        for _ in 0..self.epochs {
            for rows in &mini_batches {
                self.optimizer.zero_grad();
                self.accumulate_gradients(
                    &batch,
                    rows,
                    values_old,
                    returns,
                    &advantages.loss_mask,
                    &mut metrics,
                )?;
                metrics.value_grad_norm += self.optimizer.clip_grad_norm(self.max_grad_norm)?;
                self.optimizer.step()?;
                bar.inc(1);
            }
        }
        bar.finish_and_clear();
        let updates = (self.epochs * mini_batches.len()) as f64;
        let mean = |tokens: &Tensor| {
            Ok::<f64, Error>(
                mask::mean(tokens, &rollout.response_mask, &MaskedMean::over_all())?.double_value(&[]),
            )
        };
        Ok(CriticMetrics {
            value_loss: metrics.value_loss / updates,
            value_clip_fraction: metrics.value_clip_fraction / updates,
            value_grad_norm: metrics.value_grad_norm / updates,
            value_mean: mean(values_old)?,
            return_mean: mean(returns)?,
        })
    }

    fn accumulate_gradients(
        &self,
        batch: &Responses,
        rows: &Tensor,
        values_old: &Tensor,
        returns: &Tensor,
        loss_mask: &Tensor,
        metrics: &mut CriticMetrics,
    ) -> Result<()> {
        let options = self.with_counts(&loss_mask.index_select(0, rows));
        let tokens = options.aggregate.batch_num_tokens.unwrap_or(1.0);
        for rows in rows.split(self.micro_batch as i64, 0) {
            let responses = batch.rows(&rows);
            let own = |tensor: &Tensor| tensor.index_select(0, &rows).narrow(1, 0, responses.width());
            let (values, mask) = (self.of(&responses), own(loss_mask));
            let out = value::clipped(&values, &own(values_old), &own(returns), &mask, &options)?;
            out.loss.backward();
            metrics.value_loss += out.loss.double_value(&[]);
            let share = mask.sum(Kind::Double).double_value(&[]) / tokens;
            metrics.value_clip_fraction += share * out.clip_fraction.double_value(&[]);
        }
        Ok(())
    }

    /// The loss's options with the counts of a whole mini-batch.
    fn with_counts(&self, mask: &Tensor) -> ValueClip {
        let count = |mask: &Tensor| Some(mask.sum(Kind::Int64).int64_value(&[]).max(1) as f64);
        let aggregate = Aggregate {
            loss_scale_factor: Some(mask.size()[1] as f64),
            batch_num_tokens: count(mask),
            global_batch_size: count(&mask.any_dim(1, false)),
            ..self.loss.aggregate
        };
        ValueClip { aggregate, ..self.loss }
    }
}
