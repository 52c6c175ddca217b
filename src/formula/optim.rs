//! The rows of `optim.*`.

use ndarray::{Ix0, Ix2, IxDyn};

use super::{ANY, Formula, Input, OptionField, Output, Outputs, Rival, Role, fields, scalar};
use crate::Result;
use crate::arguments::Args;
use crate::options::{AdamW, ClipGradNorm, Lora, Schedule};
use crate::reference::{self, Real};
use crate::value::Kind;

impl<R: Real> Formula<R> {
    pub(super) const OPTIM: &'static [Self] = &[
        Self {
            id: "optim.adamw",
            summary: "param <- (1 - lr weight_decay) param - lr (m / (1 - beta1^step)) / (sqrt(v / (1 - beta2^step)) + eps)",
            source: "Loshchilov and Hutter (arXiv 1711.05101) algorithm 2; torch.optim.AdamW",
            clauses: &[
                "optim.adamw",
                "optim.adamw.means",
                "optim.adamw.decay",
                "optim.adamw.eps",
                "optim.adamw.step",
            ],
            inputs: &[
                Input::data("param", Kind::Real, ANY, Role::Number),
                Input::data("grad", Kind::Real, ANY, Role::Number),
                Input::data("m", Kind::Real, ANY, Role::Number),
                Input::data("v", Kind::Real, ANY, Role::Size),
                STEP,
            ],
            options: &[
                OptionField::new("lr", "at least 0", "[0.001, 1e-6, 0.0, 0.5]", "the learning rate"),
                OptionField::new("beta1", "in [0, 1)", "[0.9, 0.0, 0.5]", "decay of the gradient's mean"),
                OptionField::new(
                    "beta2",
                    "in [0, 1)",
                    "[0.999, 0.95, 0.0]",
                    "decay of the squared gradient's mean",
                ),
                OptionField::new("eps", "at least 0", "[1e-8, 1e-6, 0.25]", "added to the root"),
                OptionField::new(
                    "weight_decay",
                    "at least 0",
                    "[0.01, 0.0, 0.5]",
                    "decoupled, times the rate",
                ),
            ],
            defaults: || fields(&AdamW::torch()),
            outputs: &[Output::new("param", ANY), Output::new("m", ANY), Output::new("v", ANY)],
            rivals: &[
                Rival::new("no weight decay", r#"{"weight_decay": 0.0}"#),
                Rival::new("eps forgotten", r#"{"eps": 0.0}"#),
                Rival::new("betas 0.9 and 0.95", r#"{"beta1": 0.9, "beta2": 0.95}"#),
                Rival::new("betas 0.9 and 0.999", r#"{"beta1": 0.9, "beta2": 0.999}"#),
            ],
            reference: adamw,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::adamw),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::adamw),
        },
        Self {
            id: "optim.clip_grad_norm",
            summary: "grad <- grad min(1, max_norm / (norm + eps));  norm = sqrt(sum grad^2)",
            source: "Pascanu et al. (arXiv 1211.5063); torch.nn.utils.clip_grad_norm_",
            clauses: &["optim.clip-grad-norm", "optim.clip-grad-norm.short", "optim.clip-grad-norm.norm"],
            inputs: &[Input::data("grad", Kind::Real, ANY, Role::Number)],
            options: &[
                OptionField::new(
                    "max_norm",
                    "above 0",
                    "[1.0, 0.2, 16.0, 4096.0]",
                    "the norm that is allowed",
                ),
                OptionField::new("eps", "at least 0", "[1e-6, 0.0, 0.5]", "added to the norm"),
            ],
            defaults: || fields(&ClipGradNorm::torch(1.0)),
            outputs: &[Output::new("grad", ANY), Output::new("norm", &[])],
            rivals: &[
                Rival::new("eps forgotten", r#"{"eps": 0.0}"#),
                Rival::new("not clipped", r#"{"max_norm": 1e30}"#),
            ],
            reference: clip_grad_norm,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::clip_grad_norm),
            #[cfg(feature = "torch")]
            fused: Some(of_fused::clip_grad_norm),
        },
        Self {
            id: "optim.lora",
            summary: "y = x w^T + (alpha / rank) x a^T b^T",
            source: "Hu et al. (arXiv 2106.09685) Eq. 3; PEFT; 003_grpo_trainer_guide.md",
            clauses: &["optim.lora", "optim.lora.rank", "optim.lora.frozen"],
            inputs: &[
                Input::differentiable("x", &["B", "I"], Role::Number),
                Input::constant("w", &["O", "I"], Role::Number),
                Input::differentiable("a", &["R", "I"], Role::Number),
                Input::differentiable("b", &["O", "R"], Role::Number),
            ],
            options: &[
                OptionField::new(
                    "alpha",
                    "any number",
                    "[8.0, 32.0, 0.0, 3.0]",
                    "the update's scale, times the rank",
                ),
                OptionField::new(
                    "rank",
                    "null or that of the matrices",
                    "[null, 2]",
                    "what alpha is divided by",
                ),
            ],
            defaults: || fields(&Lora::peft()),
            outputs: &[Output::new("y", &["B", "O"])],
            rivals: &[
                Rival::new("the update forgotten", r#"{"alpha": 0.0}"#),
                Rival::new("alpha forgotten", r#"{"alpha": 1.0}"#),
            ],
            reference: lora,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::lora),
            #[cfg(feature = "torch")]
            fused: None,
        },
        Self {
            id: "optim.schedule",
            summary: "scale = step / warmup_steps, then 1, a straight line or half a cosine down to min_ratio at total_steps",
            source: "transformers get_linear_schedule_with_warmup, get_cosine_schedule_with_warmup",
            clauses: &[
                "optim.schedule",
                "optim.schedule.warmup",
                "optim.schedule.course",
                "optim.schedule.end",
                "optim.schedule.domain",
            ],
            inputs: &[STEP],
            options: &[
                OptionField::new(
                    "kind",
                    "constant, linear, cosine",
                    r#"["constant", "linear", "cosine"]"#,
                    "the course after the warm-up",
                ),
                OptionField::new(
                    "warmup_steps",
                    "a whole number, at least 0",
                    "[0, 4, 7]",
                    "up to the full rate",
                ),
                OptionField::new(
                    "total_steps",
                    "a whole number, at least 1 and, unless constant, at least warmup_steps",
                    "[16, 7, 12]",
                    "when the rate is at its lowest",
                ),
                OptionField::new(
                    "min_ratio",
                    "in [0, 1]",
                    "[0.0, 0.1, 1.0]",
                    "the lowest rate over the full one",
                ),
            ],
            defaults: || fields(&Schedule::constant()),
            outputs: &[Output::new("scale", &[])],
            rivals: &[
                Rival::new("no warm-up", r#"{"warmup_steps": 0}"#),
                Rival::new("constant", r#"{"kind": "constant"}"#),
                Rival::new("a straight line for the cosine", r#"{"kind": "linear"}"#),
                Rival::new("the cosine for a straight line", r#"{"kind": "cosine"}"#),
                Rival::new("down to 0", r#"{"min_ratio": 0.0}"#),
            ],
            reference: schedule,
            #[cfg(feature = "torch")]
            torch: Some(of_torch::schedule),
            #[cfg(feature = "torch")]
            fused: None,
        },
    ];
}

const STEP: Input = Input::data("step", Kind::Real, &[], Role::Count);

fn adamw<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let after = reference::optim::adamw(
        &args.real::<IxDyn>("param")?,
        &args.real::<IxDyn>("grad")?,
        &args.real::<IxDyn>("m")?,
        &args.real::<IxDyn>("v")?,
        args.real::<Ix0>("step")?.into_scalar(),
        &args.options()?,
    )?;
    Ok(vec![("param", after.param), ("m", after.m), ("v", after.v)])
}

fn clip_grad_norm<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let clipped = reference::optim::clip_grad_norm(&args.real::<IxDyn>("grad")?, &args.options()?)?;
    Ok(vec![("grad", clipped.grad), ("norm", scalar(clipped.norm))])
}

fn lora<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let y = reference::optim::lora(
        &args.real::<Ix2>("x")?,
        &args.real::<Ix2>("w")?,
        &args.real::<Ix2>("a")?,
        &args.real::<Ix2>("b")?,
        &args.options()?,
    )?;
    Ok(vec![("y", y.into_dyn())])
}

fn schedule<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let scale = reference::optim::schedule(args.real::<Ix0>("step")?.into_scalar(), &args.options()?)?;
    Ok(vec![("scale", scalar(scale))])
}

#[cfg(feature = "torch")]
mod of_torch {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::TorchOutputs as Outputs;
    use crate::torch;

    pub(super) fn adamw(args: &TorchArgs<'_>) -> Result<Outputs> {
        let after = torch::optim::adamw(
            args.tensor("param")?,
            args.tensor("grad")?,
            args.tensor("m")?,
            args.tensor("v")?,
            args.tensor("step")?,
            &args.options()?,
        )?;
        Ok(vec![("param", after.param), ("m", after.m), ("v", after.v)])
    }

    pub(super) fn clip_grad_norm(args: &TorchArgs<'_>) -> Result<Outputs> {
        let clipped = torch::optim::clip_grad_norm(args.tensor("grad")?, &args.options()?)?;
        Ok(vec![("grad", clipped.grad), ("norm", clipped.norm)])
    }

    pub(super) fn lora(args: &TorchArgs<'_>) -> Result<Outputs> {
        let y = torch::optim::lora(
            args.tensor("x")?,
            args.tensor("w")?,
            args.tensor("a")?,
            args.tensor("b")?,
            &args.options()?,
        )?;
        Ok(vec![("y", y)])
    }

    pub(super) fn schedule(args: &TorchArgs<'_>) -> Result<Outputs> {
        Ok(vec![("scale", torch::optim::schedule(args.tensor("step")?, &args.options()?)?)])
    }
}

#[cfg(feature = "torch")]
mod of_fused {
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::formula::FusedOutputs;
    use crate::fused;

    pub(super) fn adamw(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let after = fused::optim::adamw(
            args.tensor("param")?,
            args.tensor("grad")?,
            args.tensor("m")?,
            args.tensor("v")?,
            args.tensor("step")?,
            &args.options()?,
        )?;
        let outputs = vec![("param", after.param), ("m", after.m), ("v", after.v)];
        Ok(FusedOutputs { outputs, gradients: Vec::new() })
    }

    pub(super) fn clip_grad_norm(args: &TorchArgs<'_>) -> Result<FusedOutputs> {
        let clipped = fused::optim::clip_grad_norm(args.tensor("grad")?, &args.options()?)?;
        let outputs = vec![("grad", clipped.grad), ("norm", clipped.norm)];
        Ok(FusedOutputs { outputs, gradients: Vec::new() })
    }
}
