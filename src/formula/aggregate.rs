//! The rows of `aggregate.*`.

use ndarray::{Ix1, Ix2};

use super::{Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{Aggregate, MicroBatches};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const AGGREGATE: &'static [Self] = &[
        Self {
            id: "aggregate.loss",
            summary: "token-mean: sum_i s_i / N;  seq-mean-token-mean: (1/S) sum_i s_i / n_i;  ...",
            source: "verl 0.9.1 agg_loss; CS336 Eq. 29; DAPO; Dr. GRPO; 003_grpo_trainer_guide.md",
            clauses: &[
                "mask.select",
                "aggregate.loss",
                "aggregate.token-mean",
                "aggregate.token-sum",
                "aggregate.seq-mean-token-sum",
                "aggregate.seq-mean-token-mean",
                "aggregate.seq-mean-token-sum-norm",
                "aggregate.empty",
                "aggregate.counts",
                "aggregate.dp-size",
            ],
            inputs: &[
                Input::differentiable("loss", &["B", "T"], Role::Number),
                Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
            ],
            options: AGGREGATE_OPTIONS,
            defaults: || fields(&Aggregate::dapo()),
            outputs: &[Output::new("loss", &[])],
            rivals: &[
                Rival::new("token mean", r#"{"loss_agg_mode": "token-mean"}"#),
                Rival::new("token sum", r#"{"loss_agg_mode": "token-sum"}"#),
                Rival::new("sequence mean of token sums", r#"{"loss_agg_mode": "seq-mean-token-sum"}"#),
                Rival::new("sequence mean of token means", r#"{"loss_agg_mode": "seq-mean-token-mean"}"#),
                Rival::new(
                    "token sums over a constant length",
                    r#"{"loss_agg_mode": "seq-mean-token-sum-norm"}"#,
                ),
                Rival::new(
                    "counts of the micro-batch",
                    r#"{"batch_num_tokens": null, "global_batch_size": null}"#,
                ),
                Rival::new("the padded width as the constant length", r#"{"loss_scale_factor": null}"#),
                Rival::new("dp_size forgotten", r#"{"dp_size": 1.0}"#),
            ],
            reference: aggregate_loss,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::aggregate_loss),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "aggregate.micro_batches",
            summary: "whole: sum_m agg(m) with the batch's counts;  equal: (1/M) sum_m agg(m);  sequences: sum_m (b_m/B) agg(m)",
            source: "verl 0.9.1 agg_loss and verl 0.7.0 dp_actor; CS336 assignment 5, grpo_microbatch_train_step",
            clauses: &[
                "mask.select",
                "aggregate.micro-batches",
                "aggregate.micro-batches.whole",
                "aggregate.micro-batches.equal",
                "aggregate.micro-batches.sequences",
                "aggregate.micro-batches.empty",
                "aggregate.loss",
                "aggregate.counts",
            ],
            inputs: &[
                Input::differentiable("loss", &["B", "T"], Role::Number),
                Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
                Input::data("micro_batch", Kind::Label, &["B"], Role::Group),
            ],
            options: &[
                LOSS_AGG_MODE,
                LOSS_SCALE_FACTOR,
                BATCH_NUM_TOKENS,
                GLOBAL_BATCH_SIZE,
                DP_SIZE,
                OptionField::new(
                    "micro_batch_scaling",
                    "whole, equal, sequences",
                    r#"["whole", "equal", "sequences"]"#,
                    "how the parts are weighted",
                ),
            ],
            defaults: || fields(&MicroBatches::dapo()),
            outputs: &[Output::new("loss", &[]), Output::new("parts", &["M"])],
            rivals: &[
                Rival::new("mean of the micro-batches' means", r#"{"micro_batch_scaling": "equal"}"#),
                Rival::new("weighted by sequences", r#"{"micro_batch_scaling": "sequences"}"#),
                Rival::new("weighted by the counts of the whole", r#"{"micro_batch_scaling": "whole"}"#),
                Rival::new("sequence mean for token mean", r#"{"loss_agg_mode": "seq-mean-token-mean"}"#),
                Rival::new("token mean for sequence mean", r#"{"loss_agg_mode": "token-mean"}"#),
                Rival::new(
                    "counts of the micro-batch",
                    r#"{"batch_num_tokens": null, "global_batch_size": null}"#,
                ),
            ],
            reference: micro_batches,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::micro_batches),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

pub(super) const AGGREGATE_OPTIONS: &[OptionField] =
    &[LOSS_AGG_MODE, LOSS_SCALE_FACTOR, BATCH_NUM_TOKENS, GLOBAL_BATCH_SIZE, DP_SIZE];
pub(super) const LOSS_AGG_MODE: OptionField = OptionField::new(
    "loss_agg_mode",
    "token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean, seq-mean-token-sum-norm",
    r#"["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]"#,
    "how the tokens' losses become one number",
);
pub(super) const LOSS_SCALE_FACTOR: OptionField = OptionField::new(
    "loss_scale_factor",
    "null or above 0",
    "[null, 512.0, 3.0]",
    "the constant length of seq-mean-token-sum-norm; null is the padded width T",
);
pub(super) const BATCH_NUM_TOKENS: OptionField = OptionField::new(
    "batch_num_tokens",
    "null or above 0",
    "[null, 11.0]",
    "the denominator of token-mean; null counts the kept tokens",
);
pub(super) const GLOBAL_BATCH_SIZE: OptionField = OptionField::new(
    "global_batch_size",
    "null or above 0",
    "[null, 7.0]",
    "the denominator of the seq-mean modes; null counts the sequences with a kept token",
);
pub(super) const DP_SIZE: OptionField =
    OptionField::new("dp_size", "above 0", "[1.0, 4.0]", "the loss is multiplied by it");

fn aggregate_loss<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let loss = reference::aggregate::loss(
        &args.real::<Ix2>("loss")?,
        &args.mask::<Ix2>("response_mask")?,
        &args.options()?,
    )?;
    Ok(vec![("loss", scalar(loss))])
}

fn micro_batches<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let output = reference::aggregate::micro_batches(
        &args.real::<Ix2>("loss")?,
        &args.mask::<Ix2>("response_mask")?,
        &args.integer::<Ix1>("micro_batch")?,
        &args.options()?,
    )?;
    Ok(vec![("loss", scalar(output.loss)), ("parts", output.parts.into_dyn())])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn aggregate_loss(args: &TorchArgs<'_>) -> Result<Outputs> {
        let loss =
            torch::aggregate::loss(args.tensor("loss")?, args.tensor("response_mask")?, &args.options()?)?;
        Ok(vec![("loss", loss)])
    }

    pub(super) fn micro_batches(args: &TorchArgs<'_>) -> Result<Outputs> {
        let output = torch::aggregate::micro_batches(
            args.tensor("loss")?,
            args.tensor("response_mask")?,
            args.tensor("micro_batch")?,
            &args.options()?,
        )?;
        Ok(vec![("loss", output.loss), ("parts", output.parts)])
    }
}
