//! The table of formulas: one row each. The specification check, the fixtures, the tests, the benches and the command
//! read it; nothing else lists formulas.
//!
//! To add one: write its clauses in `spec/`, its function in `reference/` and in `torch/`, and its row here.

use ndarray::{Array0, ArrayD, Ix1, Ix2, Ix3, IxDyn};
use serde_json::{Map, Value};

use crate::arguments::Args;
#[cfg(feature = "torch")]
use crate::arguments::TorchArgs;
use crate::axes::Axes;
use crate::options::{ActorLoss, Aggregate, Clip, GroupNorm, Gsm8k, KlEstimate, MaskedMean, Ratio, Softmax};
use crate::reference::{self, Real};
use crate::value::Kind;
use crate::{Error, Result};

/// A formula, its reference read with the scalar `R`.
#[derive(Debug)]
pub struct Formula<R: Real> {
    /// The permanent id, `family.name`.
    pub id: &'static str,
    /// The formula in one line of maths.
    pub summary: &'static str,
    /// Where it comes from.
    pub source: &'static str,
    /// The clauses of the specification that it obeys, beside [`RULES`].
    pub clauses: &'static [&'static str],
    /// What goes in, in the order of the functions' arguments.
    pub inputs: &'static [Input],
    /// The options, every one of them.
    pub options: &'static [OptionField],
    /// The specification's default for every option.
    pub defaults: fn() -> Map<String, Value>,
    /// What comes out; gradients are those of the sum of the first.
    pub outputs: &'static [Output],
    /// Well-known wrong variants that an option of the formula reproduces.
    pub rivals: &'static [Rival],
    /// The reference.
    pub reference: fn(&Args<'_, R>) -> Result<Outputs<R>>,
    /// The libtorch implementation.
    #[cfg(feature = "torch")]
    pub torch: fn(&TorchArgs<'_>) -> Result<TorchOutputs>,
}

/// The clauses that every formula obeys.
pub const RULES: &[&str] =
    &["all.shape", "all.finite", "all.options", "all.gradient", "all.half", "all.tolerance"];

/// An input of a formula.
#[derive(Debug)]
pub struct Input {
    /// The name.
    pub name: &'static str,
    /// What its entries are.
    pub kind: Kind,
    /// Its axes; [`ANY`] stands for any shape.
    pub axes: &'static [&'static str],
    /// What its entries mean, which says how to make realistic ones.
    pub role: Role,
    /// What the gradient does.
    pub gradient: Gradient,
    /// The option that, being 0, makes the formula leave the input unread; `None` if it is always read.
    pub read_unless_zero: Option<&'static str>,
}

/// Any shape, the same for all inputs that have it.
pub const ANY: &[&str] = &["..."];

impl Input {
    const fn new(
        name: &'static str,
        kind: Kind,
        axes: &'static [&'static str],
        role: Role,
        gradient: Gradient,
    ) -> Self {
        Self { name, kind, axes, role, gradient, read_unless_zero: None }
    }

    /// An input that the gradient flows to.
    const fn differentiable(name: &'static str, axes: &'static [&'static str], role: Role) -> Self {
        Self::new(name, Kind::Real, axes, role, Gradient::Flows)
    }

    /// A real input that the formula holds constant.
    const fn constant(name: &'static str, axes: &'static [&'static str], role: Role) -> Self {
        Self::new(name, Kind::Real, axes, role, Gradient::Stops)
    }

    /// An input for which there is no gradient to speak of.
    const fn data(name: &'static str, kind: Kind, axes: &'static [&'static str], role: Role) -> Self {
        Self::new(name, kind, axes, role, Gradient::None)
    }

    const fn read_unless_zero(self, option: &'static str) -> Self {
        Self { read_unless_zero: Some(option), ..self }
    }

    /// Whether the formula reads the input under these options.
    pub fn is_read(&self, options: &Map<String, Value>) -> bool {
        let is_zero = |option: &str| options.get(option).and_then(Value::as_f64) == Some(0.0);
        !self.read_unless_zero.is_some_and(is_zero)
    }

    /// The shape in words.
    pub fn shape(&self) -> String {
        match self.role {
            Role::Advantage => "[B] or [B, T]".to_owned(),
            _ => format!("[{}]", self.axes.join(", ")),
        }
    }
}

/// What the entries of an input mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Numbers of any size.
    Number,
    /// Scalar rewards.
    Reward,
    /// Advantages, one a token, or one a sequence for all of its tokens.
    Advantage,
    /// Log-probabilities under the policy, in nats.
    Logp,
    /// Log-probabilities of the same tokens under another policy.
    LogpOther,
    /// Logits; -inf rules a token out.
    Logit,
    /// A mask; true keeps.
    Mask,
    /// Token ids below V.
    Token,
    /// Group labels.
    Group,
    /// A response's text.
    Response,
    /// A solution's text.
    Answer,
}

/// What the gradient does at an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gradient {
    /// It flows.
    Flows,
    /// It stops: the input is a constant, its gradient exactly 0.
    Stops,
    /// The input is data; there is no gradient to speak of.
    None,
}

/// An option of a formula.
#[derive(Debug)]
pub struct OptionField {
    /// The field's name.
    pub name: &'static str,
    /// The values that it takes.
    pub values: &'static str,
    /// A JSON list of values for tests to try, every alternative among them.
    pub samples: &'static str,
    /// What it does.
    pub meaning: &'static str,
}

impl OptionField {
    const fn new(
        name: &'static str,
        values: &'static str,
        samples: &'static str,
        meaning: &'static str,
    ) -> Self {
        Self { name, values, samples, meaning }
    }
}

/// An output of a formula.
#[derive(Debug)]
pub struct Output {
    /// The name.
    pub name: &'static str,
    /// Its axes; empty for a scalar.
    pub axes: &'static [&'static str],
}

impl Output {
    const fn new(name: &'static str, axes: &'static [&'static str]) -> Self {
        Self { name, axes }
    }
}

/// A wrong variant that is known to happen.
#[derive(Debug)]
pub struct Rival {
    /// What the implementation got wrong, in a few words.
    pub name: &'static str,
    /// The options, as JSON, that reproduce it.
    pub options: &'static str,
}

impl Rival {
    const fn new(name: &'static str, options: &'static str) -> Self {
        Self { name, options }
    }
}

/// The outputs of a reference function, in the order of the row.
pub type Outputs<R> = Vec<(&'static str, ArrayD<R>)>;

/// The outputs of a libtorch function, in the order of the row.
#[cfg(feature = "torch")]
pub type TorchOutputs = Vec<(&'static str, tch::Tensor)>;

impl<R: Real> Formula<R> {
    /// The row with this id.
    ///
    /// # Errors
    /// `unknown-formula`, with the nearest id.
    pub fn find(id: &str) -> Result<&'static Self> {
        Self::ALL.iter().find(|formula| formula.id == id).ok_or_else(|| {
            let hint = nearest(id, Self::ALL.iter().map(|formula| formula.id))
                .map_or("`grpo-oracle list` shows them all".to_owned(), |near| {
                    format!("did you mean `{near}`?")
                });
            Error::UnknownFormula { id: id.to_owned(), hint }
        })
    }

    /// All of the specification's defaults, overlaid with the given options.
    ///
    /// # Errors
    /// `option` for a name that the formula does not have.
    pub fn resolve(&self, given: &Map<String, Value>) -> Result<Map<String, Value>> {
        let mut options = (self.defaults)();
        for (name, value) in given {
            if !options.contains_key(name) {
                let near = nearest(name, options.keys().map(String::as_str));
                let hint = near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                return Err(Error::option(name, format!("is not an option of {}{hint}", self.id)));
            }
            options.insert(name.clone(), value.clone());
        }
        Ok(options)
    }

    /// Every formula.
    pub const ALL: &'static [Self] = &[
        Self {
            id: "mask.mean",
            summary: "mean = (sum over kept of values) / (number kept)",
            source: "CS336 assignment 5, masked_mean; 002_cs336_notes.md",
            clauses: &["mask.select", "mask.mean", "mask.mean.empty", "mask.mean.axis"],
            inputs: &[
                Input::differentiable("values", ANY, Role::Number),
                Input::data("mask", Kind::Mask, ANY, Role::Mask),
            ],
            options: &[
                OptionField::new(
                    "axis",
                    "null, 0, 1, ...",
                    "[null, 0]",
                    "the axis that is averaged away; null averages over everything",
                ),
                OptionField::new(
                    "empty",
                    "zero, nan",
                    r#"["zero", "nan"]"#,
                    "what the mean over no kept entries is",
                ),
            ],
            defaults: || fields(&MaskedMean::over_all()),
            outputs: &[Output::new("mean", ANY)],
            rivals: &[Rival::new("0/0 on an empty mask", r#"{"empty": "nan"}"#)],
            reference: mask_mean,
            #[cfg(feature = "torch")]
            torch: of_torch::mask_mean,
        },
        Self {
            id: "advantage.group_norm",
            summary: "A_i = (r_i - mean(r_group)) / (std(r_group) + eps)",
            source: "CS336 assignment 5, Eq. 28 and 31; DeepSeekMath 4.1.2; Dr. GRPO; 002_cs336_notes.md, 003_grpo_trainer_guide.md",
            clauses: &[
                "advantage.group-norm",
                "advantage.group-norm.groups",
                "advantage.group-norm.std",
                "advantage.group-norm.eps",
                "advantage.group-norm.constant",
                "advantage.group-norm.singleton",
            ],
            inputs: &[
                Input::data("rewards", Kind::Real, &["B"], Role::Reward),
                Input::data("group", Kind::Label, &["B"], Role::Group),
            ],
            options: &[
                OptionField::new(
                    "std",
                    "sample, population, none",
                    r#"["sample", "population", "none"]"#,
                    "the divisor: n - 1, n, or no division (Eq. 31)",
                ),
                OptionField::new("eps", "at least 0", "[1e-6, 1e-4, 1e-8, 0.0, 0.25]", "the small number"),
                OptionField::new(
                    "eps_mode",
                    "add, threshold",
                    r#"["add", "threshold"]"#,
                    "added to the std, or: a group with a smaller std gets 0 and nothing is added",
                ),
                OptionField::new(
                    "singleton",
                    "raw, unit_std, zero, error",
                    r#"["raw", "unit_std", "zero", "error"]"#,
                    "what a group of one gets: its reward, its reward / (1 + eps), 0, or an error",
                ),
            ],
            defaults: || fields(&GroupNorm::eq28()),
            outputs: &[Output::new("advantages", &["B"])],
            rivals: &[
                Rival::new("population std", r#"{"std": "population"}"#),
                Rival::new("sample std", r#"{"std": "sample"}"#),
                Rival::new("no division by the std", r#"{"std": "none"}"#),
                Rival::new("eps 1e-4", r#"{"eps": 1e-4}"#),
                Rival::new("eps 1e-8", r#"{"eps": 1e-8}"#),
                Rival::new("eps as a threshold", r#"{"eps_mode": "threshold"}"#),
                Rival::new("the raw reward for a group of one", r#"{"singleton": "raw"}"#),
                Rival::new("zero for a group of one", r#"{"singleton": "zero"}"#),
            ],
            reference: group_norm,
            #[cfg(feature = "torch")]
            torch: of_torch::group_norm,
        },
        Self {
            id: "logprob.token",
            summary: "logp = z[token] - log sum_v exp(z_v);  entropy = log sum_v exp(z_v) - sum_v p_v z_v;  z = logits / temperature",
            source: "CS336 assignment 5, get_response_log_probs and compute_entropy",
            clauses: &[
                "logprob.token",
                "logprob.token.index",
                "logprob.entropy",
                "logprob.temperature",
                "logprob.ruled-out",
            ],
            inputs: &[
                Input::differentiable("logits", &["B", "T", "V"], Role::Logit),
                Input::data("tokens", Kind::Token, &["B", "T"], Role::Token),
            ],
            options: &[OptionField::new(
                "temperature",
                "above 0",
                "[1.0, 0.5, 0.7, 3.0]",
                "the logits are divided by it",
            )],
            defaults: || fields(&Softmax::plain()),
            outputs: &[Output::new("logp", &["B", "T"]), Output::new("entropy", &["B", "T"])],
            rivals: &[Rival::new("the temperature forgotten", r#"{"temperature": 1.0}"#)],
            reference: token,
            #[cfg(feature = "torch")]
            torch: of_torch::token,
        },
        Self {
            id: "logprob.ratio",
            summary: "ratio_t = exp(clamp(logp_t - logp_old_t))",
            source: "CS336 assignment 5, Eq. 27; 002_cs336_notes.md; the clamp: verl since 0.4.1",
            clauses: &["logprob.ratio", "logprob.ratio.stop", "logprob.ratio.clamp"],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_old", &["B", "T"], Role::LogpOther),
            ],
            options: &[LOG_RATIO_CLAMP],
            defaults: || fields(&Ratio::unclamped()),
            outputs: &[Output::new("ratio", &["B", "T"])],
            rivals: &[
                Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
                Rival::new("log-ratio clamped at 20", r#"{"log_ratio_clamp": 20.0}"#),
            ],
            reference: ratio,
            #[cfg(feature = "torch")]
            torch: of_torch::ratio,
        },
        Self {
            id: "objective.clip",
            summary: "loss_t = -min(ratio_t A_t, clip(ratio_t, 1 - low, 1 + high) A_t);  at most -c A_t where A_t < 0",
            source: "CS336 assignment 5, Eq. 29 and 30; PPO Eq. 7; DAPO; dual clip (arXiv 1912.09729); 002_cs336_notes.md",
            clauses: &[
                "mask.select",
                "objective.clip",
                "objective.clip.stop",
                "objective.clip.edge",
                "objective.clip.dual",
                "objective.clip.clamp",
                "metrics.policy",
                "metrics.clip-fraction",
                "metrics.clip-fraction-lower",
                "metrics.ppo-kl",
            ],
            inputs: CLIP_INPUTS,
            options: CLIP_OPTIONS,
            defaults: || fields(&Clip::eq29()),
            outputs: &[
                Output::new("loss", &["B", "T"]),
                Output::new("clip_fraction", &[]),
                Output::new("clip_fraction_lower", &[]),
                Output::new("ppo_kl", &[]),
            ],
            rivals: CLIP_RIVALS,
            reference: clip,
            #[cfg(feature = "torch")]
            torch: of_torch::clip,
        },
        Self {
            id: "objective.actor_loss",
            summary: "loss = (agg(clip) + kl_loss_coef agg(kl) - entropy_coeff agg(entropy)) / gradient_accumulation_steps",
            source: "DeepSeekMath Eq. 3; CS336 assignment 5, grpo_microbatch_train_step; 003_grpo_trainer_guide.md",
            clauses: &[
                "mask.select",
                "objective.actor-loss",
                "objective.actor-loss.terms",
                "objective.actor-loss.order",
                "objective.actor-loss.accumulation",
            ],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_old", &["B", "T"], Role::LogpOther),
                Input::constant("logp_ref", &["B", "T"], Role::LogpOther).read_unless_zero("kl_loss_coef"),
                Input::constant("advantages", &["B", "T"], Role::Advantage),
                Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
                Input::differentiable("entropy", &["B", "T"], Role::Number).read_unless_zero("entropy_coeff"),
            ],
            options: ACTOR_LOSS_OPTIONS,
            defaults: || fields(&ActorLoss::grpo()),
            outputs: &[
                Output::new("loss", &[]),
                Output::new("policy_loss", &[]),
                Output::new("kl_loss", &[]),
                Output::new("entropy_loss", &[]),
            ],
            rivals: &[
                Rival::new("token mean for sequence mean", r#"{"loss_agg_mode": "token-mean"}"#),
                Rival::new("sequence mean for token mean", r#"{"loss_agg_mode": "seq-mean-token-mean"}"#),
                Rival::new("k1 in the loss", r#"{"kl_loss_type": "k1"}"#),
                Rival::new("k2 in the loss", r#"{"kl_loss_type": "k2"}"#),
                Rival::new("no KL term", r#"{"kl_loss_coef": 0.0}"#),
                Rival::new("no entropy bonus", r#"{"entropy_coeff": 0.0}"#),
                Rival::new(
                    "not divided by the accumulation steps",
                    r#"{"gradient_accumulation_steps": 1.0}"#,
                ),
            ],
            reference: actor_loss,
            #[cfg(feature = "torch")]
            torch: of_torch::actor_loss,
        },
        Self {
            id: "kl.estimate",
            summary: "k1 = d, abs = |d|, k2 = d^2 / 2, k3 = exp(-d) + d - 1;  d = logp - logp_ref",
            source: "Schulman, Approximating KL divergence; DeepSeekMath Eq. 4; 003_grpo_trainer_guide.md",
            clauses: &[
                "kl.estimate",
                "kl.estimate.stop",
                "kl.estimate.straight-through",
                "kl.estimate.clamp",
            ],
            inputs: &[
                Input::differentiable("logp", &["B", "T"], Role::Logp),
                Input::constant("logp_ref", &["B", "T"], Role::LogpOther),
            ],
            options: &[
                OptionField::new(
                    "kl_penalty",
                    "k1, abs, k2, k3, and each with +",
                    r#"["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]"#,
                    "the estimator; with +, its value with the gradient of k2",
                ),
                OptionField::new(
                    "input_clamp",
                    "null or above 0",
                    "[null, 20.0, 0.5]",
                    "d is clamped to [-c, c] first",
                ),
                OptionField::new(
                    "output_clamp",
                    "null or above 0",
                    "[null, 10.0, 0.25]",
                    "the estimate is clamped to [-c, c] last",
                ),
            ],
            defaults: || fields(&KlEstimate::k3()),
            outputs: &[Output::new("kl", &["B", "T"])],
            rivals: &[
                Rival::new("k1", r#"{"kl_penalty": "k1"}"#),
                Rival::new("abs", r#"{"kl_penalty": "abs"}"#),
                Rival::new("k2", r#"{"kl_penalty": "k2"}"#),
                Rival::new("k3", r#"{"kl_penalty": "k3"}"#),
                Rival::new("clamped as verl does", r#"{"input_clamp": 20.0, "output_clamp": 10.0}"#),
                Rival::new("not clamped", r#"{"input_clamp": null, "output_clamp": null}"#),
            ],
            reference: kl_estimate,
            #[cfg(feature = "torch")]
            torch: of_torch::kl_estimate,
        },
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
                    "counts of the micro-batch",
                    r#"{"batch_num_tokens": null, "global_batch_size": null}"#,
                ),
                Rival::new("the padded width as the constant length", r#"{"loss_scale_factor": null}"#),
                Rival::new("dp_size forgotten", r#"{"dp_size": 1.0}"#),
            ],
            reference: aggregate_loss,
            #[cfg(feature = "torch")]
            torch: of_torch::aggregate_loss,
        },
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
            torch: of_torch::policy_metrics,
        },
        Self {
            id: "reward.gsm8k",
            summary: "1 if the number after the last #### (strict) or the last number (flexible) is the answer, else 0",
            source: "GSM8K (arXiv 2110.14168); verl reward_score/gsm8k; 002_cs336_notes.md",
            clauses: &[
                "reward.gsm8k",
                "reward.gsm8k.answer",
                "reward.gsm8k.strict",
                "reward.gsm8k.flexible",
                "reward.gsm8k.number",
            ],
            inputs: &[
                Input::data("response", Kind::Text, &[], Role::Response),
                Input::data("answer", Kind::Text, &[], Role::Answer),
            ],
            options: &[OptionField::new(
                "method",
                "strict, flexible",
                r#"["strict", "flexible"]"#,
                "whether the marker #### is required",
            )],
            defaults: || fields(&Gsm8k::strict()),
            outputs: &[Output::new("reward", &[])],
            rivals: &[
                Rival::new("flexible extraction", r#"{"method": "flexible"}"#),
                Rival::new("strict extraction", r#"{"method": "strict"}"#),
            ],
            reference: gsm8k,
            #[cfg(feature = "torch")]
            torch: of_torch::gsm8k,
        },
    ];
}

const CLIP_INPUTS: &[Input] = &[
    Input::differentiable("logp", &["B", "T"], Role::Logp),
    Input::constant("logp_old", &["B", "T"], Role::LogpOther),
    Input::constant("advantages", &["B", "T"], Role::Advantage),
    Input::data("response_mask", Kind::Mask, &["B", "T"], Role::Mask),
];

const CLIP_OPTIONS: &[OptionField] = &[CLIP_RATIO_LOW, CLIP_RATIO_HIGH, CLIP_RATIO_C, LOG_RATIO_CLAMP];
const CLIP_RATIO_LOW: OptionField = OptionField::new(
    "clip_ratio_low",
    "in [0, 1]",
    "[0.2, 0.0, 0.1, 1.0]",
    "the ratio is clipped from below at 1 - this",
);
const CLIP_RATIO_HIGH: OptionField = OptionField::new(
    "clip_ratio_high",
    "at least 0",
    "[0.2, 0.28, 0.0, 4.0]",
    "the ratio is clipped from above at 1 + this",
);
const CLIP_RATIO_C: OptionField = OptionField::new(
    "clip_ratio_c",
    "null or above 1",
    "[null, 3.0, 1.5]",
    "dual clip: the loss is at most -c A where A < 0",
);
const LOG_RATIO_CLAMP: OptionField = OptionField::new(
    "log_ratio_clamp",
    "null or above 0",
    "[null, 20.0, 0.5]",
    "the log-ratio is clamped to [-c, c] first",
);

const CLIP_RIVALS: &[Rival] = &[
    Rival::new("dual clip off", r#"{"clip_ratio_c": null}"#),
    Rival::new("dual clip at 3", r#"{"clip_ratio_c": 3.0}"#),
    Rival::new("clip-higher ignored", r#"{"clip_ratio_high": 0.2}"#),
    Rival::new("clipped at 0.1 both ways", r#"{"clip_ratio_low": 0.1, "clip_ratio_high": 0.1}"#),
    Rival::new("log-ratio not clamped", r#"{"log_ratio_clamp": null}"#),
    Rival::new("log-ratio clamped at 20", r#"{"log_ratio_clamp": 20.0}"#),
];

const AGGREGATE_OPTIONS: &[OptionField] =
    &[LOSS_AGG_MODE, LOSS_SCALE_FACTOR, BATCH_NUM_TOKENS, GLOBAL_BATCH_SIZE, DP_SIZE];
const LOSS_AGG_MODE: OptionField = OptionField::new(
    "loss_agg_mode",
    "token-mean, token-sum, seq-mean-token-sum, seq-mean-token-mean, seq-mean-token-sum-norm",
    r#"["token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]"#,
    "how the tokens' losses become one number",
);
const LOSS_SCALE_FACTOR: OptionField = OptionField::new(
    "loss_scale_factor",
    "null or above 0",
    "[null, 512.0, 3.0]",
    "the constant length of seq-mean-token-sum-norm; null is the padded width T",
);
const BATCH_NUM_TOKENS: OptionField = OptionField::new(
    "batch_num_tokens",
    "null or above 0",
    "[null, 11.0]",
    "the denominator of token-mean; null counts the kept tokens",
);
const GLOBAL_BATCH_SIZE: OptionField = OptionField::new(
    "global_batch_size",
    "null or above 0",
    "[null, 7.0]",
    "the denominator of the seq-mean modes; null counts the sequences with a kept token",
);
const DP_SIZE: OptionField =
    OptionField::new("dp_size", "above 0", "[1.0, 4.0]", "the loss is multiplied by it");

const ACTOR_LOSS_OPTIONS: &[OptionField] = &[
    CLIP_RATIO_LOW,
    CLIP_RATIO_HIGH,
    CLIP_RATIO_C,
    LOG_RATIO_CLAMP,
    OptionField::new(
        "kl_loss_type",
        "k1, abs, k2, k3, and each with +",
        r#"["k1", "abs", "k2", "k3", "k1+", "abs+", "k2+", "k3+"]"#,
        "the KL estimator",
    ),
    OptionField::new(
        "kl_input_clamp",
        "null or above 0",
        "[null, 20.0, 0.5]",
        "as input_clamp of kl.estimate",
    ),
    OptionField::new(
        "kl_output_clamp",
        "null or above 0",
        "[null, 10.0, 0.25]",
        "as output_clamp of kl.estimate",
    ),
    OptionField::new(
        "kl_loss_coef",
        "a number",
        "[0.0, 0.04, 1.0]",
        "the weight of the KL term; 0 leaves it out",
    ),
    OptionField::new(
        "entropy_coeff",
        "a number",
        "[0.0, 0.01, -1.0]",
        "the weight of the entropy bonus; 0 leaves it out",
    ),
    LOSS_AGG_MODE,
    LOSS_SCALE_FACTOR,
    BATCH_NUM_TOKENS,
    GLOBAL_BATCH_SIZE,
    DP_SIZE,
    OptionField::new("gradient_accumulation_steps", "at least 1", "[1.0, 3.0]", "the loss is divided by it"),
];

/// The options' fields as JSON, by name.
fn fields<O: serde::Serialize>(options: &O) -> Map<String, Value> {
    match serde_json::to_value(options) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    }
}

/// The candidate that is spelled most like `name`, if any is close.
pub(crate) fn nearest<'a>(name: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|candidate| (strsim::jaro_winkler(name, candidate), candidate))
        .filter(|&(likeness, _)| likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn scalar<R: Real>(value: R) -> ArrayD<R> {
    Array0::from_elem((), value).into_dyn()
}

// Each row's two adapters: names to arguments, and back.

fn mask_mean<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let mean = reference::mask::mean(
        &args.real::<IxDyn>("values")?,
        &args.mask::<IxDyn>("mask")?,
        &args.options()?,
    )?;
    Ok(vec![("mean", mean)])
}

fn group_norm<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (rewards, group) = (args.real::<Ix1>("rewards")?, args.integer::<Ix1>("group")?);
    let advantages = reference::advantage::group_norm(&rewards, &group, &args.options()?)?;
    Ok(vec![("advantages", advantages.into_dyn())])
}

fn token<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logits, tokens) = (args.real::<Ix3>("logits")?, args.integer::<Ix2>("tokens")?);
    let token = reference::logprob::token(&logits, &tokens, &args.options()?)?;
    Ok(vec![("logp", token.logp.into_dyn()), ("entropy", token.entropy.into_dyn())])
}

fn ratio<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let ratio = reference::logprob::ratio(
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_old")?,
        &args.options()?,
    )?;
    Ok(vec![("ratio", ratio.into_dyn())])
}

fn clip<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let options = args.options()?;
    let loss = reference::objective::clip(&logp, &logp_old, &advantages, &mask, &options)?;
    let metrics = reference::metrics::policy(&logp, &logp_old, &advantages, &mask, &options)?;
    Ok(vec![
        ("loss", loss.into_dyn()),
        ("clip_fraction", scalar(metrics.clip_fraction)),
        ("clip_fraction_lower", scalar(metrics.clip_fraction_lower)),
        ("ppo_kl", scalar(metrics.ppo_kl)),
    ])
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

fn actor_loss<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let (logp, logp_old) = (args.real::<Ix2>("logp")?, args.real::<Ix2>("logp_old")?);
    let (logp_ref, entropy) = (args.optional_real::<Ix2>("logp_ref")?, args.optional_real::<Ix2>("entropy")?);
    let (advantages, mask) =
        (args.per_token("advantages", logp.ncols())?, args.mask::<Ix2>("response_mask")?);
    let output = reference::objective::actor_loss(
        &logp,
        &logp_old,
        logp_ref.as_deref(),
        &advantages,
        &mask,
        entropy.as_deref(),
        &args.options()?,
    )?;
    Ok(vec![
        ("loss", scalar(output.loss)),
        ("policy_loss", scalar(output.policy_loss)),
        ("kl_loss", scalar(output.kl_loss)),
        ("entropy_loss", scalar(output.entropy_loss)),
    ])
}

fn kl_estimate<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let kl = reference::kl::estimate(
        &args.real::<Ix2>("logp")?,
        &args.real::<Ix2>("logp_ref")?,
        &args.options()?,
    )?;
    Ok(vec![("kl", kl.into_dyn())])
}

fn aggregate_loss<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let loss = reference::aggregate::loss(
        &args.real::<Ix2>("loss")?,
        &args.mask::<Ix2>("response_mask")?,
        &args.options()?,
    )?;
    Ok(vec![("loss", scalar(loss))])
}

fn gsm8k<R: Real>(args: &Args<'_, R>) -> Result<Outputs<R>> {
    let options = args.options()?;
    let rewards = text_pairs(args.text("response")?, args.text("answer")?, |response, answer| {
        reference::reward::gsm8k(response, answer, &options)
    })?;
    Ok(vec![("reward", rewards.mapv(R::constant))])
}

/// `f` over pairs of texts of equal shape.
fn text_pairs(
    response: ArrayD<String>,
    answer: ArrayD<String>,
    f: impl Fn(&str, &str) -> Result<f64>,
) -> Result<ArrayD<f64>> {
    Axes::default().bind_any("response", response.shape())?.bind_any("answer", answer.shape())?;
    let results: Result<Vec<f64>> = response.iter().zip(&answer).map(|(a, b)| f(a, b)).collect();
    crate::value::array_d(response.shape(), results?)
}

#[cfg(feature = "torch")]
mod of_torch {
    //! The libtorch adapters, in the order of the table.

    use tch::{Kind, Tensor};

    use super::{TorchOutputs as Outputs, text_pairs};
    use crate::Result;
    use crate::arguments::TorchArgs;
    use crate::torch;

    pub(super) fn mask_mean(args: &TorchArgs<'_>) -> Result<Outputs> {
        let mean = torch::mask::mean(args.tensor("values")?, args.tensor("mask")?, &args.options()?)?;
        Ok(vec![("mean", mean)])
    }

    pub(super) fn group_norm(args: &TorchArgs<'_>) -> Result<Outputs> {
        let advantages =
            torch::advantage::group_norm(args.tensor("rewards")?, args.tensor("group")?, &args.options()?)?;
        Ok(vec![("advantages", advantages)])
    }

    pub(super) fn token(args: &TorchArgs<'_>) -> Result<Outputs> {
        let token = torch::logprob::token(args.tensor("logits")?, args.tensor("tokens")?, &args.options()?)?;
        Ok(vec![("logp", token.logp), ("entropy", token.entropy)])
    }

    pub(super) fn ratio(args: &TorchArgs<'_>) -> Result<Outputs> {
        let ratio = torch::logprob::ratio(args.tensor("logp")?, args.tensor("logp_old")?, &args.options()?)?;
        Ok(vec![("ratio", ratio)])
    }

    pub(super) fn clip(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let advantages = args.per_token("advantages", logp)?;
        let options = args.options()?;
        let loss = torch::objective::clip(logp, logp_old, &advantages, mask, &options)?;
        let metrics = torch::metrics::policy(logp, logp_old, &advantages, mask, &options)?;
        Ok(vec![
            ("loss", loss),
            ("clip_fraction", metrics.clip_fraction),
            ("clip_fraction_lower", metrics.clip_fraction_lower),
            ("ppo_kl", metrics.ppo_kl),
        ])
    }

    pub(super) fn actor_loss(args: &TorchArgs<'_>) -> Result<Outputs> {
        let (logp, logp_old, mask) =
            (args.tensor("logp")?, args.tensor("logp_old")?, args.tensor("response_mask")?);
        let output = torch::objective::actor_loss(
            logp,
            logp_old,
            args.optional_tensor("logp_ref"),
            &args.per_token("advantages", logp)?,
            mask,
            args.optional_tensor("entropy"),
            &args.options()?,
        )?;
        Ok(vec![
            ("loss", output.loss),
            ("policy_loss", output.policy_loss),
            ("kl_loss", output.kl_loss),
            ("entropy_loss", output.entropy_loss),
        ])
    }

    pub(super) fn kl_estimate(args: &TorchArgs<'_>) -> Result<Outputs> {
        let kl = torch::kl::estimate(args.tensor("logp")?, args.tensor("logp_ref")?, &args.options()?)?;
        Ok(vec![("kl", kl)])
    }

    pub(super) fn aggregate_loss(args: &TorchArgs<'_>) -> Result<Outputs> {
        let loss =
            torch::aggregate::loss(args.tensor("loss")?, args.tensor("response_mask")?, &args.options()?)?;
        Ok(vec![("loss", loss)])
    }

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

    pub(super) fn gsm8k(args: &TorchArgs<'_>) -> Result<Outputs> {
        let options = args.options()?;
        let rewards = text_pairs(args.text("response")?, args.text("answer")?, |response, answer| {
            torch::reward::gsm8k(response, answer, &options)
        })?;
        let shape: Vec<i64> = rewards.shape().iter().map(|&axis| axis as i64).collect();
        let rewards: Vec<f64> = rewards.iter().copied().collect();
        Ok(vec![("reward", Tensor::from_slice(&rewards).to_kind(Kind::Double).reshape(shape.as_slice()))])
    }
}
