//! The fast paths against what they stand for: the trainer's own composition of the loss, for every objective with every
//! other term, and the errors of both.

use grpo_oracle::fused::loss::{FusedLoss, Numbers, Tokens, loss, sweep, weights};
use grpo_oracle::options::{
    ActorLoss, Aggregate, Cispo, Clip, Gmpo, Gspo, ImportanceLevel, LossAggMode, LossOptions, Objective, Sapo,
};
use grpo_oracle::torch::metrics;
use grpo_oracle::train::loss::{self as composed, LossInputs};
use tch::{Kind, Tensor};

use crate::laws::aggregate::MODES;
use crate::laws::kl::PENALTIES;

/// Numbers in [0, 1) that are the same in every run.
pub(crate) struct Stream(pub(crate) u64);

impl Stream {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn numbers(&mut self, shape: [i64; 2], of: impl Fn(f64) -> f64) -> Tensor {
        let numbers: Vec<f64> = (0..shape[0] * shape[1]).map(|_| of(self.next())).collect();
        Tensor::from_slice(&numbers).reshape(shape)
    }
}

/// A batch with ratios near and far from 1, advantages of both signs and of 0, and nothing kept in its last row.
pub(crate) struct Batch {
    pub(crate) inputs: LossInputs,
    endpoints: Tensor,
}

impl Batch {
    pub(crate) fn drawn(stream: &mut Stream, shape: [i64; 2], kind: Kind) -> Self {
        let mut draw = |of: fn(f64) -> f64| stream.numbers(shape, of).to_kind(kind);
        let logp = draw(|x| -3.0 * x);
        let near = |x: f64| if x < 0.2 { 0.0 } else { 3.0 * (x - 0.6).powi(3) * 8.0 };
        let (logp_old, logp_ref) = (&logp + draw(near), &logp + draw(near));
        let advantages = draw(|x| if x < 0.2 { 0.0 } else { 3.0 * (x - 0.6) });
        let entropy = draw(|x| 2.0 * x);
        let mask = draw(|x| x).lt(0.7);
        let _ = mask.select(0, shape[0] - 1).fill_(0);
        let endpoints = draw(|x| x).lt(0.6);
        let inputs =
            LossInputs { logp, logp_old, logp_ref: Some(logp_ref), advantages, mask, entropy: Some(entropy) };
        Self { inputs, endpoints }
    }

    /// NaN wherever nothing is kept.
    pub(crate) fn poisoned(mut self) -> Self {
        let masked = self.inputs.mask.logical_not();
        let nan = |tensor: &Tensor| tensor.masked_fill(&masked, f64::NAN);
        let LossInputs { logp, logp_old, logp_ref, advantages, entropy, .. } = &mut self.inputs;
        for tensor in [logp, logp_old, advantages].into_iter().chain(logp_ref).chain(entropy) {
            *tensor = nan(tensor);
        }
        self
    }
}

pub(crate) fn objectives() -> Vec<Objective> {
    let gspo = |importance_sampling_level| {
        let bounds = Gspo { clip_ratio_low: 0.1, clip_ratio_high: 0.1, ..Gspo::verl() };
        Objective::Gspo(Gspo { importance_sampling_level, ..bounds })
    };
    vec![
        Objective::Vanilla,
        Objective::Gpg,
        gspo(ImportanceLevel::Sequence),
        gspo(ImportanceLevel::SequenceToken),
        Objective::Gspo(Gspo { log_ratio_max: Some(0.2), ..Gspo::trl_rloo() }),
        Objective::Cispo(Cispo { log_ratio_clamp: Some(0.6), ..Cispo::verl() }),
        Objective::Cispo(Cispo::trl()),
        Objective::GeoMean(Gmpo::paper()),
        Objective::Sapo(Sapo::verl()),
        Objective::Sapo(Sapo { log_ratio_clamp: Some(0.3), ..Sapo::paper() }),
    ]
}

/// Every clip with every KL term, one of each aggregation with entropy or without, some with given counts.
pub(crate) fn terms() -> Vec<ActorLoss> {
    let mut kls = vec![ActorLoss::grpo()];
    for kl_loss_type in PENALTIES {
        for (kl_input_clamp, kl_output_clamp) in [(None, None), (Some(0.4), None), (Some(0.9), Some(0.1))] {
            for kl_ratio_weight in [false, true] {
                let clamped = ActorLoss { kl_input_clamp, kl_output_clamp, ..ActorLoss::grpo() };
                kls.push(ActorLoss { kl_loss_type, kl_ratio_weight, kl_loss_coef: 0.3, ..clamped });
            }
        }
    }
    let clips = [Clip::eq29(), Clip { clip_ratio_c: Some(1.3), log_ratio_clamp: Some(0.7), ..Clip::dapo() }];
    let mut all = Vec::new();
    for kl in kls {
        for mode in MODES {
            for entropy_coeff in [0.0, 0.2] {
                let clip = clips[all.len() % 2];
                let mut aggregate = Aggregate::local(mode);
                if all.len() % 3 == 0 {
                    let counts = (Some(11.0), Some(13.0), Some(5.0));
                    (aggregate.loss_scale_factor, aggregate.batch_num_tokens, aggregate.global_batch_size) =
                        counts;
                    aggregate.dp_size = 2.0;
                }
                let gradient_accumulation_steps = if all.len() % 4 == 0 { 3.0 } else { 1.0 };
                all.push(ActorLoss { clip, entropy_coeff, aggregate, gradient_accumulation_steps, ..kl });
            }
        }
    }
    all
}

pub(crate) fn fused(inputs: &LossInputs, endpoints: Option<&Tensor>, options: &LossOptions) -> FusedLoss {
    let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = inputs;
    let (logp_ref, entropy) = (logp_ref.as_ref(), entropy.as_ref());
    loss(logp, logp_old, logp_ref, advantages, mask, endpoints, entropy, options).unwrap()
}

pub(crate) fn values(tensor: &Tensor) -> Vec<f64> {
    Vec::try_from(tensor.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// Each number is as near as rounding allows, of numbers of about this size.
pub(crate) fn agree(what: &str, size: f64, kind: Kind, got: &[f64], expected: &[f64]) {
    let unit = if kind == Kind::Double { f64::EPSILON } else { f64::from(f32::EPSILON) };
    assert_eq!(got.len(), expected.len(), "{what}");
    for (got, expected) in got.iter().zip(expected) {
        let allowed = 64.0 * unit * expected.abs().max(size);
        assert!(
            got == expected || (got - expected).abs() <= allowed,
            "{what}: {got} where {expected} is expected"
        );
    }
}

/// Holds value, terms, gradients and figures to the composition's.
fn hold(batch: &Batch, with_endpoints: bool, options: &LossOptions, kind: Kind) {
    let Batch { inputs, endpoints } = batch;
    let with = LossInputs {
        logp: inputs.logp.copy().set_requires_grad(true),
        logp_old: inputs.logp_old.shallow_clone(),
        logp_ref: inputs.logp_ref.as_ref().map(Tensor::shallow_clone),
        advantages: inputs.advantages.shallow_clone(),
        mask: inputs.mask.shallow_clone(),
        entropy: inputs.entropy.as_ref().map(|entropy| entropy.copy().set_requires_grad(true)),
    };
    let fused = fused(&with, with_endpoints.then_some(endpoints), options);
    let Numbers { loss, policy_loss, kl_loss, entropy_loss, metrics: figures } = fused.numbers();
    assert!(!fused.grad_logp.requires_grad());

    let mask = if with_endpoints { inputs.mask.logical_and(endpoints) } else { inputs.mask.shallow_clone() };
    let with = LossInputs { mask, ..with };
    let composed = composed::loss(&with, options).unwrap();
    composed.loss.backward();
    let number = |tensor: &Tensor| [tensor.double_value(&[])];
    let what = |of: &str| format!("{of} of {kind:?}, endpoints {with_endpoints}, {options:?}");
    let size = number(&composed.policy_loss)[0].abs().max(1.0);
    agree(&what("loss"), size, kind, &[loss], &number(&composed.loss));
    agree(&what("policy_loss"), size, kind, &[policy_loss], &number(&composed.policy_loss));
    agree(&what("kl_loss"), size, kind, &[kl_loss], &number(&composed.kl_loss));
    let largest = |values: &[f64]| values.iter().fold(1e-3, |most: f64, value| most.max(value.abs()));
    let gradient = values(&with.logp.grad());
    agree(&what("grad_logp"), largest(&gradient), kind, &values(&fused.grad_logp), &gradient);

    let kept = |tensor: &Tensor| tensor.masked_fill(&with.mask.logical_not(), 0.0).detach();
    let entropy = with.entropy.as_ref().unwrap();
    let entropy_sum = number(&kept(entropy).sum(Kind::Double))[0];
    agree(&what("entropy_sum"), 30.0, kind, &[figures.entropy_sum], &[entropy_sum]);
    if options.terms.entropy_coeff != 0.0 {
        let grad_entropy = values(fused.grad_entropy.as_ref().unwrap());
        agree(&what("grad_entropy"), 1e-3, kind, &grad_entropy, &values(&entropy.grad()));
        let steps = options.terms.gradient_accumulation_steps;
        let terms =
            policy_loss + options.terms.kl_loss_coef * kl_loss - options.terms.entropy_coeff * entropy_loss;
        agree(&what("entropy_loss"), size, kind, &[terms / steps], &number(&composed.loss));
    } else {
        assert!(fused.grad_entropy.is_none() && entropy_loss == 0.0);
    }

    let expected =
        metrics::policy(&with.logp, &with.logp_old, &with.advantages, &with.mask, &options.clip()).unwrap();
    let got = [figures.clip_fraction, figures.clip_fraction_lower, figures.ppo_kl, figures.ratio_mean];
    let expected =
        [expected.clip_fraction, expected.clip_fraction_lower, expected.ppo_kl, expected.ratio_mean];
    agree(&what("figures"), 10.0, kind, &got, &expected.map(|figure| number(&figure)[0]));
    assert_eq!(figures.tokens, number(&with.mask.sum(Kind::Int64))[0]);
}

#[test]
fn the_loss_is_the_trainers_for_every_objective_with_every_other_term() {
    let mut stream = Stream(7);
    let terms = terms();
    for objective in objectives() {
        for (index, &terms) in terms.iter().enumerate() {
            let options = LossOptions { objective, terms };
            let kind = if index % 5 == 0 { Kind::Float } else { Kind::Double };
            let width = 1 + (index % 9) as i64 * 11;
            let batch = Batch::drawn(&mut stream, [4, width], kind).poisoned();
            hold(&batch, index % 2 == 0, &options, kind);
        }
    }
}

#[test]
fn rows_longer_and_shorter_than_what_goes_together_are_the_same() {
    let mut stream = Stream(11);
    for shape in [[3, 4099], [2, 8192], [190, 47]] {
        for objective in objectives() {
            for kind in [Kind::Float, Kind::Double] {
                let options = LossOptions { objective, terms: *terms().last().unwrap() };
                let batch = Batch::drawn(&mut stream, shape, kind).poisoned();
                hold(&batch, false, &options, kind);
            }
        }
    }
}

#[test]
fn nothing_kept_is_no_loss_and_no_gradient() {
    for objective in objectives() {
        let terms = ActorLoss { kl_loss_coef: 0.1, entropy_coeff: 0.1, ..ActorLoss::grpo() };
        for shape in [[2, 3], [0, 3], [2, 0]] {
            let mut batch = Batch::drawn(&mut Stream(3), [2, 3], Kind::Float);
            let cut = |tensor: &Tensor| tensor.narrow(0, 0, shape[0]).narrow(1, 0, shape[1]);
            let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = &mut batch.inputs;
            *mask = mask.zeros_like();
            for tensor in [logp, logp_old, advantages, mask].into_iter().chain(logp_ref).chain(entropy) {
                *tensor = cut(tensor);
            }
            let out = fused(&batch.poisoned().inputs, None, &LossOptions { objective, terms });
            let numbers = out.numbers();
            assert_eq!((numbers.loss, numbers.metrics.ratio_mean), (0.0, 0.0), "{objective:?}, {shape:?}");
            assert!(values(&out.grad_logp).iter().all(|&entry| entry == 0.0));
            assert_eq!(out.grad_logp.size(), shape);
        }
    }
}

/// What bounds the ratio bounds it beside the other terms, too.
#[test]
fn an_overflowing_ratio_leaves_the_other_terms_alone() {
    let objectives = [Objective::Cispo(Cispo::minimax()), Objective::Sapo(Sapo::paper()), Objective::Gpg];
    let terms = ActorLoss { kl_loss_coef: 0.3, entropy_coeff: 0.2, ..ActorLoss::grpo() };
    for objective in objectives {
        let mut batch = Batch::drawn(&mut Stream(5), [2, 5], Kind::Double);
        batch.inputs.logp_old = &batch.inputs.logp - 1000.0;
        hold(&batch, false, &LossOptions { objective, terms }, Kind::Double);
    }
}

/// Overflowing ratios, ties at the clip's edges, no advantage: the gradient is that of the clauses, not NaN.
#[test]
fn corners_have_the_specified_gradients() {
    let logp = Tensor::from_slice(&[800.0_f64, 800.0, 0.5, 0.5, 0.0, -800.0]).unsqueeze(0);
    let advantages = Tensor::from_slice(&[1.0_f64, -1.0, 0.0, 1.0, 2.0, 1.0]).unsqueeze(0);
    let every = advantages.ones_like().to_kind(Kind::Bool);
    let terms = ActorLoss { aggregate: Aggregate::local(LossAggMode::TokenSum), ..ActorLoss::grpo() };
    let edge = 0.5_f64.exp() - 1.0;
    let clip = Clip { clip_ratio_high: edge, clip_ratio_c: Some(3.0), ..Clip::eq29() };
    let gradient = |objective, clip| {
        let options = LossOptions { objective, terms: ActorLoss { clip, ..terms } };
        let out = loss(&logp, &logp.zeros_like(), None, &advantages, &every, None, None, &options).unwrap();
        values(&out.grad_logp)
    };
    let at_edge = -0.5_f64.exp();
    let expected = [0.0, 0.0, 0.0, at_edge, -2.0, 0.0];
    agree("clip", 1e-9, Kind::Double, &gradient(Objective::Vanilla, clip), &expected);
    let sapo = gradient(Objective::Sapo(Sapo::paper()), clip);
    assert!(sapo[..3].iter().all(|&entry| entry == 0.0) && sapo[4] == -2.0, "{sapo:?}");
    // Without dual clip an overflowing loss has an infinite gradient.
    assert_eq!(gradient(Objective::Vanilla, Clip::eq29())[1], f64::INFINITY);
}

#[test]
fn a_batch_may_be_taken_in_pieces() {
    let mut stream = Stream(11);
    for objective in objectives() {
        for terms in terms().into_iter().step_by(7) {
            let options = LossOptions { objective, terms };
            let Batch { inputs, .. } = Batch::drawn(&mut stream, [5, 37], Kind::Double);
            let of_rows = weights(&inputs.mask, &terms.aggregate).unwrap();
            let packed = |tensor: &Tensor| tensor.masked_select(&inputs.mask);
            let weights = packed(&of_rows.unsqueeze(1).expand_as(&inputs.mask));
            let all = [&inputs.logp, &inputs.logp_old, &inputs.advantages].map(packed);
            let (logp_ref, entropy) =
                (inputs.logp_ref.as_ref().map(packed), inputs.entropy.as_ref().map(packed));
            let whole = fused(&inputs, None, &options);
            let (mut gradients, mut sums) = (Vec::new(), None);
            for first in (0..weights.numel() as i64).step_by(29) {
                let piece =
                    |tensor: &Tensor| tensor.narrow(0, first, (weights.numel() as i64 - first).min(29));
                let [logp, logp_old, advantages] = all.each_ref().map(piece);
                let (logp_ref, entropy) = (logp_ref.as_ref().map(piece), entropy.as_ref().map(piece));
                let tokens = Tokens {
                    logp: &logp,
                    logp_old: &logp_old,
                    logp_ref: logp_ref.as_ref(),
                    advantages: &advantages,
                    entropy: entropy.as_ref(),
                    weights: &piece(&weights),
                };
                let swept = sweep(&tokens, &options);
                if !options.is_per_token() {
                    assert_eq!(swept.unwrap_err().code(), "unsupported");
                    continue;
                }
                let swept = swept.unwrap();
                gradients.push(swept.grad_logp);
                match &mut sums {
                    None => sums = Some(swept.sums),
                    Some(sums) => sums.add(&swept.sums),
                }
            }
            let Some(sums) = sums else { continue };
            assert_eq!(values(&Tensor::cat(&gradients, 0)), values(&packed(&whole.grad_logp)));
            let (got, expected) = (sums.numbers(&options), whole.numbers());
            let own = |numbers: &Numbers| [numbers.loss, numbers.kl_loss, numbers.metrics.ratio_mean];
            agree("in pieces", 1.0, Kind::Double, &own(&got), &own(&expected));
        }
    }
}

/// Makes something wrong with inputs.
type Spoil = fn(&mut LossInputs);

#[test]
fn wrong_inputs_are_the_same_errors() {
    for objective in objectives() {
        let terms = ActorLoss { kl_loss_coef: 0.1, entropy_coeff: 0.1, ..ActorLoss::grpo() };
        let options = LossOptions { objective, terms };
        let spoiled: [(&str, Spoil); 8] = [
            ("shape", |inputs| inputs.logp = inputs.logp.narrow(1, 0, 2)),
            ("shape", |inputs| inputs.mask = inputs.mask.narrow(1, 0, 2)),
            ("shape", |inputs| inputs.entropy = Some(inputs.advantages.narrow(0, 0, 1))),
            ("shape", |inputs| inputs.logp_ref = Some(inputs.advantages.narrow(0, 0, 1))),
            ("rank", |inputs| inputs.advantages = inputs.advantages.unsqueeze(0)),
            ("input", |inputs| inputs.mask = inputs.mask.to_kind(Kind::Float)),
            ("input", |inputs| inputs.logp_ref = None),
            ("input", |inputs| inputs.entropy = None),
        ];
        for (index, (code, spoil)) in spoiled.into_iter().enumerate() {
            let mut inputs = Batch::drawn(&mut Stream(5), [2, 3], Kind::Float).inputs;
            spoil(&mut inputs);
            let composed = composed::loss(&inputs, &options).unwrap_err();
            let LossInputs { logp, logp_old, logp_ref, advantages, mask, entropy } = &inputs;
            let (logp_ref, entropy) = (logp_ref.as_ref(), entropy.as_ref());
            let error =
                loss(logp, logp_old, logp_ref, advantages, mask, None, entropy, &options).unwrap_err();
            assert_eq!((error.code(), composed.code()), (code, code), "{objective:?}, {index}: {error}");
        }
        let wrong = LossOptions { objective, terms: ActorLoss { kl_loss_coef: f64::NAN, ..terms } };
        let inputs = Batch::drawn(&mut Stream(5), [2, 3], Kind::Float).inputs;
        let LossInputs { logp, logp_old, advantages, mask, .. } = &inputs;
        let error = loss(logp, logp_old, None, advantages, mask, None, None, &wrong).unwrap_err();
        assert_eq!(error.code(), "option");
        let narrow = mask.narrow(1, 0, 2);
        let error = loss(logp, logp_old, None, advantages, mask, Some(&narrow), None, &options).unwrap_err();
        assert_eq!(error.code(), "shape");
    }
}

#[test]
fn half_precision_is_read_as_single() {
    let inputs = Batch::drawn(&mut Stream(9), [3, 5], Kind::BFloat16).inputs;
    let options = LossOptions { objective: Objective::Vanilla, terms: ActorLoss::grpo() };
    let half = fused(&inputs, None, &options);
    assert_eq!(half.grad_logp.kind(), Kind::Float);
    let LossInputs { logp, logp_old, advantages, mask, .. } = &inputs;
    let [logp, logp_old, advantages] = [logp, logp_old, advantages].map(|half| half.to_kind(Kind::Float));
    let single = loss(&logp, &logp_old, None, &advantages, mask, None, None, &options).unwrap();
    assert_eq!(values(&half.grad_logp), values(&single.grad_logp));
    assert_eq!(half.numbers().loss, single.numbers().loss);
}
