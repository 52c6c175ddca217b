//! Options of `aggregate.*`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::positive_or_null;
use crate::Result;

/// How per-token losses become one number (clauses `aggregate.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LossAggMode {
    /// The sum over all kept tokens over their number.
    TokenMean,
    /// The sum over all kept tokens.
    TokenSum,
    /// The mean over sequences of each sequence's sum.
    SeqMeanTokenSum,
    /// The mean over sequences of each sequence's mean.
    SeqMeanTokenMean,
    /// `seq-mean-token-sum` over a constant length.
    SeqMeanTokenSumNorm,
}

/// Options of `aggregate.loss`. Counts that are `None` are taken from the batch at hand; to split a batch into parts
/// whose losses sum to the whole, give every part the counts of the whole.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Aggregate {
    /// The mode.
    pub loss_agg_mode: LossAggMode,
    /// The constant length of `seq-mean-token-sum-norm`; `None` is the padded width T.
    pub loss_scale_factor: Option<f64>,
    /// The denominator of `token-mean`; `None` is the number of kept tokens.
    pub batch_num_tokens: Option<f64>,
    /// The denominator of the `seq-mean` modes; `None` is the number of sequences with a kept token.
    pub global_batch_size: Option<f64>,
    /// The number of data-parallel ranks whose gradients are averaged afterwards; the loss is multiplied by it.
    pub dp_size: f64,
}

impl Aggregate {
    /// A mode with every count taken from the batch at hand.
    pub fn local(loss_agg_mode: LossAggMode) -> Self {
        Self {
            loss_agg_mode,
            loss_scale_factor: None,
            batch_num_tokens: None,
            global_batch_size: None,
            dp_size: 1.0,
        }
    }

    /// Eq. 29: each sequence's mean, averaged over the sequences.
    pub fn eq29() -> Self {
        Self::local(LossAggMode::SeqMeanTokenMean)
    }

    /// DAPO: every token of the batch weighs the same; the specification's default.
    pub fn dapo() -> Self {
        Self::local(LossAggMode::TokenMean)
    }

    /// Dr. GRPO: each sequence's sum over a constant length.
    pub fn dr_grpo(loss_scale_factor: f64) -> Self {
        Self { loss_scale_factor: Some(loss_scale_factor), ..Self::local(LossAggMode::SeqMeanTokenSumNorm) }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// `option` if a count is not above 0 and finite.
    pub fn check(&self) -> Result<()> {
        for (name, count) in [
            ("loss_scale_factor", self.loss_scale_factor),
            ("batch_num_tokens", self.batch_num_tokens),
            ("global_batch_size", self.global_batch_size),
            ("dp_size", Some(self.dp_size)),
        ] {
            positive_or_null(name, count)?;
        }
        Ok(())
    }
}

/// How the parts of a batch that is split into micro-batches are weighted (clauses `aggregate.micro-batches.*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MicroBatchScaling {
    /// Every part is divided by the counts of the whole batch, so that the parts sum to the loss of the whole.
    Whole,
    /// Every part's own loss is divided by the number of parts: the mean of the parts' means.
    Equal,
    /// Every part's own loss is weighted by its share of the sequences.
    Sequences,
}

/// Options of `aggregate.micro_batches`; in JSON all of them stand side by side.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct MicroBatches {
    /// How the tokens' losses of a part become one number.
    #[serde(flatten)]
    pub aggregate: Aggregate,
    /// How the parts become one.
    pub micro_batch_scaling: MicroBatchScaling,
}

impl MicroBatches {
    /// DAPO's token mean, split so that it stays the token mean of the whole; the specification's default.
    pub fn dapo() -> Self {
        Self { aggregate: Aggregate::dapo(), micro_batch_scaling: MicroBatchScaling::Whole }
    }

    /// verl up to 0.7: each micro-batch's own token mean over the number of accumulation steps.
    pub fn verl_0_7() -> Self {
        Self { micro_batch_scaling: MicroBatchScaling::Equal, ..Self::dapo() }
    }

    /// The error of an option outside its domain, if any.
    ///
    /// # Errors
    /// Those of [`Aggregate::check`].
    pub fn check(&self) -> Result<()> {
        self.aggregate.check()
    }
}
