//! The fused head: the numbers and gradients of explicit logits, in less memory, and through a whole model.

use std::ops::Range;
use std::process::Command;

use grpo_oracle::fused;
use grpo_oracle::fused::head::{Head, Output, ScoreGradients, Scores};
use grpo_oracle::llm::{Llm, Lora, Model};
use grpo_oracle::options::{Clip, KlEstimate, LossOptions, Softmax};
use grpo_oracle::torch::{kl, logprob, objective};
use grpo_oracle::train::loss::{LossInputs, loss};
use grpo_oracle::train::score::{Responses, Scores as Scored};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use tch::{Device, Kind, Tensor, no_grad, with_grad};

use crate::laws::aggregate::MODES;
use crate::train::{objectives, ragged_responses, step_loss};

// ---- numbers and gradients ----

/// A head, hidden states, targets, and what a clipped loss with a KL and an entropy term has beside them.
#[derive(Debug)]
struct Case {
    weight: Tensor,
    hidden: Tensor,
    targets: Tensor,
    off_policy: Tensor,
    off_reference: Tensor,
    advantages: Tensor,
    options: Softmax,
}

/// Numbers of mean 0 that are the same everywhere: libtorch's generator is shared by tests that run at the same time.
pub(crate) fn noise(seed: u64, size: &[i64], scale: f64, kind: Kind) -> Tensor {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(1);
    let values: Vec<f32> = (0..size.iter().product::<i64>())
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    (Tensor::from_slice(&values).view(size) * scale).to_kind(kind)
}

impl Case {
    fn of(seed: u64, [tokens, hidden, vocabulary]: [i64; 3], temperature: f64, kind: Kind) -> Self {
        let targets = (noise(seed, &[tokens], 0.5, Kind::Double) + 0.5) * vocabulary as f64;
        Self {
            weight: noise(seed + 1, &[vocabulary, hidden], 1.0, kind),
            hidden: noise(seed + 2, &[tokens, hidden], 2.0, kind),
            targets: targets.floor().clamp(0.0, vocabulary as f64 - 1.0).to_kind(Kind::Int64),
            // In steps of 1/64, none of which is near the clip's corners.
            off_policy: (noise(seed + 3, &[tokens], 0.4, kind) * 64.0).round() / 64.0,
            off_reference: noise(seed + 4, &[tokens], 0.4, kind),
            advantages: noise(seed + 5, &[tokens], 2.0, kind),
            options: Softmax::at(temperature),
        }
    }

    /// Each token's loss, summed; the policy that drew the tokens and the reference are near `logp`.
    fn loss(&self, range: Range<i64>, logp: &Tensor, entropy: Option<&Tensor>) -> Tensor {
        let own = |all: &Tensor| all.narrow(0, range.start, range.end - range.start).unsqueeze(0);
        let rows = logp.unsqueeze(0);
        let (old, reference) =
            (&rows.detach() + own(&self.off_policy), &rows.detach() + own(&self.off_reference));
        let mask = rows.ones_like().to_kind(Kind::Bool);
        let clipped = objective::clip(&rows, &old, &own(&self.advantages), &mask, &Clip::verl()).unwrap();
        let sum = (clipped + kl::estimate(&rows, &reference, &KlEstimate::k3()).unwrap() * 0.1).sum(None);
        entropy.map_or_else(|| sum.shallow_clone(), |entropy| &sum - entropy.sum(None) * 0.05)
    }

    /// Scores and gradients by explicit logits and autograd.
    fn explicit(&self, with_entropy: bool) -> (Output, Tensor) {
        let [weight, hidden] =
            [&self.weight, &self.hidden].map(|t| t.detach().copy().set_requires_grad(true));
        let logits = hidden.matmul(&weight.tr()).unsqueeze(0);
        let token = logprob::token(&logits, &self.targets.unsqueeze(0), &self.options).unwrap();
        let (logp, entropy) = (token.logp.squeeze_dim(0), token.entropy.squeeze_dim(0));
        self.loss(0..self.hidden.size()[0], &logp, with_entropy.then_some(&entropy)).backward();
        let scores = Scores { logp: logp.detach(), entropy: entropy.detach() };
        (Output { scores, grad_hidden: hidden.grad() }, weight.grad())
    }

    /// The loss's gradient by the scores of some tokens.
    fn gradients(&self, range: Range<i64>, scores: &Scores, with_entropy: bool) -> ScoreGradients {
        let [logp, entropy] = [&scores.logp, &scores.entropy].map(|t| t.copy().set_requires_grad(true));
        with_grad(|| self.loss(range, &logp, with_entropy.then_some(&entropy)).backward());
        ScoreGradients { logp: logp.grad(), entropy: with_entropy.then(|| entropy.grad()) }
    }

    fn fused(&self, tokens: i64, with_entropy: bool) -> (Output, Tensor) {
        let head = Head::new(&self.weight, &self.options).unwrap().with_tokens(tokens);
        let mut grad_weight = Tensor::zeros(self.weight.size(), (head.kind(), Device::Cpu));
        let output =
            head.with_gradients(&self.hidden, &self.targets, Some(&mut grad_weight), |range, scores| {
                Ok(self.gradients(range, scores, with_entropy))
            });
        (output.unwrap(), grad_weight)
    }
}

fn largest(tensor: &Tensor) -> f64 {
    if tensor.numel() == 0 { 0.0 } else { tensor.to_kind(Kind::Double).abs().max().double_value(&[]) }
}

fn assert_near(name: &str, fused: &Tensor, explicit: &Tensor, relative: f64) {
    assert_eq!((fused.size(), fused.kind()), (explicit.size(), explicit.kind()), "{name}");
    let (difference, size) = (largest(&(fused - explicit)), largest(explicit));
    assert!(
        difference <= relative * size.max(1.0),
        "{name}: off by {difference:e} where the largest is {size:e}"
    );
}

#[test]
fn scores_and_gradients_are_those_of_explicit_logits() {
    let cases = (any::<u32>(), 1..40i64, 1..12i64, 1..70i64, 1..45i64, 0.3..3.0, any::<bool>());
    let mut runner =
        TestRunner::new(ProptestConfig { source_file: Some(file!()), ..ProptestConfig::with_cases(80) });
    let check = |(seed, tokens, hidden, vocabulary, chunk, temperature, with_entropy)| {
        for (kind, relative) in [(Kind::Double, 1e-12), (Kind::Float, 2e-5)] {
            let case = Case::of(u64::from(seed), [tokens, hidden, vocabulary], temperature, kind);
            let (explicit, explicit_weight) = case.explicit(with_entropy);
            let (fused, fused_weight) = case.fused(chunk, with_entropy);
            assert_near("logp", &fused.scores.logp, &explicit.scores.logp, relative);
            assert_near("entropy", &fused.scores.entropy, &explicit.scores.entropy, relative);
            assert_near("grad_hidden", &fused.grad_hidden, &explicit.grad_hidden, relative);
            assert_near("grad_weight", &fused_weight, &explicit_weight, relative);

            let head = Head::new(&case.weight, &case.options).unwrap().with_tokens(chunk);
            let scores = head.scores(&case.hidden, &case.targets).unwrap();
            assert_eq!((&scores.logp, &scores.entropy), (&fused.scores.logp, &fused.scores.entropy));
            let gradients = case.gradients(0..tokens, &scores, with_entropy);
            let again = head.gradients(&case.hidden, &case.targets, None, &gradients).unwrap();
            assert_near("grad_hidden of known gradients", &again, &fused.grad_hidden, relative);
        }
        Ok(())
    };
    runner.run(&cases, check).unwrap();
}

#[test]
fn a_chunk_of_any_size_gives_the_same() {
    let case = Case::of(7, [53, 8, 600], 0.7, Kind::Double);
    let (whole, whole_weight) = case.fused(53, true);
    for tokens in [1, 2, 7, 16, 52, 54, i64::MAX] {
        let (fused, weight) = case.fused(tokens, true);
        assert_near("logp", &fused.scores.logp, &whole.scores.logp, 1e-14);
        assert_near("grad_hidden", &fused.grad_hidden, &whole.grad_hidden, 1e-14);
        assert_near("grad_weight", &weight, &whole_weight, 1e-13);
    }
}

#[test]
fn the_gradient_by_the_weight_is_added() {
    let case = Case::of(8, [10, 4, 30], 1.0, Kind::Float);
    let head = Head::new(&case.weight, &case.options).unwrap().with_tokens(3);
    let gradients = ScoreGradients { logp: case.advantages.shallow_clone(), entropy: None };
    let of = |start: f64| {
        let mut grad_weight = case.weight.zeros_like() + start;
        let _ = head.gradients(&case.hidden, &case.targets, Some(&mut grad_weight), &gradients).unwrap();
        grad_weight
    };
    assert_near("grad_weight", &(of(8.0) - 8.0), &of(0.0), 1e-5);
}

/// Half-precision weights of SmolLM2's width with logits as large as trained models have, where a logit rounded to bf16
/// is off by 0.06.
#[test]
fn half_precision_weights_cost_no_accuracy() {
    let [tokens, hidden, vocabulary] = [16, 576, 20480]; // a weight that is widened in three pieces
    for (scale, kind) in [(0.08, Kind::BFloat16), (0.5, Kind::BFloat16), (0.5, Kind::Half)] {
        let mut case = Case::of(9, [tokens, hidden, vocabulary], 1.0, kind);
        case.hidden = noise(2, &[tokens, hidden], scale, kind);
        let [weight, states] = [&case.weight, &case.hidden].map(|t| t.to_kind(Kind::Double));
        let logits = states.matmul(&weight.tr());
        // Every other target is the likeliest token, as it mostly is for a trained model.
        let even = Tensor::arange(tokens, (Kind::Int64, Device::Cpu)).remainder(2).eq(0);
        case.targets = logits.argmax(-1, false).where_self(&even, &case.targets);
        let exact = logprob::token(&logits.unsqueeze(0), &case.targets.unsqueeze(0), &case.options).unwrap();

        let head = Head::new(&case.weight, &case.options).unwrap().with_tokens(10);
        let fused = head.scores(&case.hidden, &case.targets).unwrap();
        let error = largest(&(fused.logp.to_kind(Kind::Double) - exact.logp.squeeze_dim(0)));
        assert!(error < 5e-5, "{kind:?}: log-probabilities are off by {error:e}");
        let error = largest(&(fused.entropy.to_kind(Kind::Double) - exact.entropy.squeeze_dim(0)));
        assert!(error < 5e-5, "{kind:?}: entropies are off by {error:e}");

        let gradients = ScoreGradients { logp: case.advantages.shallow_clone(), entropy: None };
        let mut grad_weight = Tensor::zeros(weight.size(), (Kind::Float, Device::Cpu));
        let by_hidden =
            head.gradients(&case.hidden, &case.targets, Some(&mut grad_weight), &gradients).unwrap();
        let exact_head = Head::new(&weight, &case.options).unwrap();
        let mut exact_weight = weight.zeros_like();
        let exact =
            exact_head.gradients(&states, &case.targets, Some(&mut exact_weight), &gradients).unwrap();
        assert_near("grad_hidden", &by_hidden, &exact.to_kind(Kind::Float), 1e-5);
        assert_near("grad_weight", &grad_weight, &exact_weight.to_kind(Kind::Float), 1e-5);
    }
}

#[test]
fn a_token_that_the_loss_does_not_depend_on_reaches_nothing() {
    for with_entropy in [false, true] {
        let mut case = Case::of(3, [9, 4, 20], 0.8, Kind::Double);
        let keep = Tensor::from_slice(&[true, false, true, true, false, false, false, true, true]);
        let zero_where_dropped = |g: Tensor| g.masked_fill(&keep.logical_not(), 0.0);
        let of = |case: &Case, tokens: i64| {
            let head = Head::new(&case.weight, &case.options).unwrap().with_tokens(tokens);
            let mut grad_weight = case.weight.zeros_like();
            let gradients = ScoreGradients {
                logp: zero_where_dropped(case.advantages.shallow_clone()),
                entropy: with_entropy.then(|| zero_where_dropped(case.off_policy.shallow_clone())),
            };
            let by_hidden = head.gradients(&case.hidden, &case.targets, Some(&mut grad_weight), &gradients);
            (by_hidden.unwrap(), grad_weight)
        };
        let clean = of(&case, 3);
        for rubbish in [f64::NAN, f64::INFINITY] {
            case.hidden = case.hidden.masked_fill(&keep.logical_not().unsqueeze(1), rubbish);
            for tokens in [1, 3, 9] {
                let (by_hidden, by_weight) = of(&case, tokens);
                assert_near("grad_hidden", &by_hidden, &clean.0, 1e-14);
                assert_near("grad_weight", &by_weight, &clean.1, 1e-14);
            }
        }
    }
}

#[test]
fn states_that_are_not_finite_spoil_their_own_token_alone() {
    for rubbish in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, 1e38] {
        let mut case = Case::of(4, [5, 3, 11], 1.0, Kind::Float);
        let clean =
            Head::new(&case.weight, &case.options).unwrap().scores(&case.hidden, &case.targets).unwrap();
        let row = Tensor::from_slice(&[false, false, true, false, false]);
        case.hidden = case.hidden.masked_fill(&row.unsqueeze(1), rubbish);
        let (output, _) = case.fused(2, true);
        let others = row.logical_not();
        for (name, fused, clean) in
            [("logp", &output.scores.logp, &clean.logp), ("entropy", &output.scores.entropy, &clean.entropy)]
        {
            assert_near(name, &fused.masked_select(&others), &clean.masked_select(&others), 1e-6);
            if !rubbish.is_finite() {
                assert!(fused.double_value(&[2]).is_nan(), "{name} after {rubbish} is not NaN");
            }
        }
    }
}

#[test]
fn no_tokens_are_no_scores() {
    for kind in [Kind::Float, Kind::BFloat16] {
        for vocabulary in [0, 5] {
            let case = Case::of(5, [0, 3, vocabulary], 1.0, kind);
            let head = Head::new(&case.weight, &case.options).unwrap();
            let mut grad_weight = Tensor::zeros([vocabulary, 3], (Kind::Float, Device::Cpu));
            let output = head.with_gradients(&case.hidden, &case.targets, Some(&mut grad_weight), |_, _| {
                panic!("there is nothing to take a gradient of")
            });
            let output = output.unwrap();
            assert_eq!(output.scores.logp.size(), [0]);
            assert_eq!(output.grad_hidden.size(), [0, 3]);
            assert_eq!(largest(&grad_weight), 0.0);
        }
    }
}

#[test]
fn what_does_not_fit_is_refused_as_by_explicit_logits() {
    let case = Case::of(6, [4, 3, 7], 1.0, Kind::Float);
    let Case { weight, hidden, targets, .. } = &case;
    let plain = Softmax::plain();
    let code = |weight: &Tensor, hidden: &Tensor, targets: &Tensor, options: &Softmax| {
        let scores = Head::new(weight, options).and_then(|head| head.scores(hidden, targets));
        scores.map_or_else(|error| error.code(), |_| "none")
    };
    assert_eq!(code(weight, hidden, targets, &plain), "none");
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert_eq!(code(weight, hidden, targets, &Softmax::at(temperature)), "option");
    }
    assert_eq!(code(&weight.unsqueeze(0), hidden, targets, &plain), "rank");
    assert_eq!(code(weight, &hidden.unsqueeze(0), targets, &plain), "rank");
    assert_eq!(code(weight, &hidden.narrow(1, 0, 2), targets, &plain), "shape");
    assert_eq!(code(weight, hidden, &targets.narrow(0, 0, 2), &plain), "shape");
    assert_eq!(code(weight, &hidden.to_kind(Kind::Double), targets, &plain), "input");
    assert_eq!(code(&weight.to_kind(Kind::Int64), hidden, targets, &plain), "input");
    assert_eq!(code(weight, hidden, &targets.to_kind(Kind::Int), &plain), "input");
    assert_eq!(code(weight, hidden, &(targets - 7), &plain), "index");
    assert_eq!(code(weight, hidden, &targets.clamp_min(7), &plain), "index");
    assert_eq!(code(&weight.narrow(0, 0, 0), hidden, targets, &plain), "index");

    let head = Head::new(weight, &plain).unwrap();
    let given = |logp: Tensor, entropy: Option<Tensor>, mut grad_weight: Tensor| {
        let gradients = ScoreGradients { logp, entropy };
        let direct = head.gradients(hidden, targets, Some(&mut grad_weight), &gradients);
        let forward = head.with_gradients(hidden, targets, Some(&mut grad_weight), |_, _| {
            let ScoreGradients { logp, entropy } = &gradients;
            Ok(ScoreGradients {
                logp: logp.shallow_clone(),
                entropy: entropy.as_ref().map(Tensor::shallow_clone),
            })
        });
        let codes = [direct.err(), forward.err()].map(|error| error.map_or("none", |error| error.code()));
        assert_eq!(codes[0], codes[1]);
        codes[0]
    };
    let (ones, into) = (|| Tensor::ones([4], (Kind::Float, Device::Cpu)), || weight.zeros_like());
    assert_eq!(given(ones(), Some(ones()), into()), "none");
    assert_eq!(given(ones().narrow(0, 0, 3), None, into()), "shape");
    assert_eq!(given(ones().unsqueeze(1), None, into()), "rank");
    assert_eq!(given(ones(), Some(ones().narrow(0, 0, 3)), into()), "shape");
    assert_eq!(given(ones(), None, into().narrow(0, 0, 5)), "shape");
    assert_eq!(given(ones(), None, into().to_kind(Kind::Double)), "input");
}

#[test]
fn the_identity_as_a_head_answers_for_logits() {
    let logits = noise(11, &[2, 3, 6], 4.0, Kind::Double);
    let ruled_out = Tensor::from_slice(&[true, false, false, true, false, false]).expand_as(&logits);
    let logits = logits.masked_fill(&ruled_out, f64::NEG_INFINITY);
    let tokens = Tensor::from_slice(&[0i64, 1, 2, 3, 4, 5]).view([2, 3]);
    for temperature in [0.5, 1.0, 3.0] {
        let options = Softmax::at(temperature);
        let [ours, theirs] = [fused::logprob::token, logprob::token].map(|token| {
            let logits = logits.copy().set_requires_grad(true);
            let out = token(&logits, &tokens, &options).unwrap();
            // The entropy's own formula gives libtorch's autograd NaN where an entry is ruled out.
            let weights = noise(12, &[2, 3], 1.0, Kind::Double);
            (&out.logp * weights).sum(None).backward();
            (out, logits.grad())
        });
        assert_eq!(ours.0.logp.eq(f64::NEG_INFINITY), theirs.0.logp.eq(f64::NEG_INFINITY));
        let finite = theirs.0.logp.isfinite();
        assert!(finite.any().int64_value(&[]) != 0 && finite.all().int64_value(&[]) == 0);
        assert_near(
            "logp",
            &ours.0.logp.masked_select(&finite),
            &theirs.0.logp.masked_select(&finite),
            1e-14,
        );
        assert_near("entropy", &ours.0.entropy, &theirs.0.entropy, 1e-14);
        let alone = fused::logprob::entropy(&logits, &options).unwrap();
        assert_near("entropy alone", &alone, &ours.0.entropy.detach(), 1e-14);
        assert_near("gradient", &ours.1, &theirs.1, 1e-13);
    }
}

// ---- memory ----

/// What one process holds at most above what it held before, in MB: 1024 tokens of a vocabulary of 49152.
fn peak_of(path: &str) -> f64 {
    let status = |field: &str| -> f64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
    };
    let case = Case::of(1, [1024, 64, 49152], 1.0, Kind::Float);
    let small = Case::of(1, [8, 8, 8], 1.0, Kind::Float);
    let _ = (small.explicit(true), small.fused(3, true)); // what libtorch sets up once
    let before = status("VmRSS:");
    match path {
        "explicit" => _ = case.explicit(false),
        "fused" => _ = case.fused(256, false),
        _ => _ = case.fused(256, true),
    }
    status("VmHWM:") - before
}

#[test]
#[ignore = "started by the next one, which needs a process with no other test in it"]
fn one_process_for_memory() {
    let path = std::env::var("GRPO_ORACLE_TEST_HEAD").unwrap();
    println!("peak {}", peak_of(&path));
}

#[test]
#[cfg(target_os = "linux")]
fn the_logits_are_never_held() {
    let peak = |path: &str| -> f64 {
        let test = std::env::current_exe().unwrap();
        let mut child = Command::new(test);
        child.args(["head::one_process_for_memory", "--exact", "--ignored", "--nocapture"]);
        let output = child.env("GRPO_ORACLE_TEST_HEAD", path).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let line = text.lines().find_map(|line| line.split_once("peak ")).map(|(_, peak)| peak);
        line.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr))).parse().unwrap()
    };
    // All logits are 192 MB, a chunk's are 48, the gradient by the weight is 12; MKL has some of its own.
    let (explicit, fused, with_entropy) = (peak("explicit"), peak("fused"), peak("fused with entropy"));
    println!("explicit {explicit:.0} MB, fused {fused:.0} MB, with entropy {with_entropy:.0} MB");
    assert!(explicit > 400.0, "explicit logits took {explicit} MB: is this measured rightly?");
    for fused in [fused, with_entropy] {
        assert!(fused < 160.0, "the fused head took {fused} MB");
        assert!(
            fused < explicit / 4.0,
            "the fused head took {fused} MB where explicit logits take {explicit}"
        );
    }
}

// ---- the whole model ----

struct Policy {
    name: &'static str,
    model: Llm,
}

/// Tied and not, with a head trained or not.
fn policies(kind: Kind) -> Vec<Policy> {
    let load =
        |name: &str| Llm::load(&std::path::Path::new("fixtures/llm").join(name), Device::Cpu, kind).unwrap();
    let full = ["tiny-llama", "tiny-llama3", "tiny-qwen3"].map(|name| {
        let model = load(name);
        model.model.set_trainable(true);
        Policy { name, model }
    });
    let lora = ["tiny-llama", "tiny-llama3"].map(|name| {
        let mut model = load(name);
        let lora = Lora { rank: 2, alpha: 4.0, target_modules: vec!["all-linear".into()] };
        model.model.add_lora(&lora, 1).unwrap();
        // B is zero at first, and A would have no gradient.
        for (index, (_, mut adapter)) in model.model.adapters().into_iter().enumerate() {
            no_grad(|| adapter.copy_(&noise(index as u64, &adapter.size(), 0.3, adapter.kind())));
        }
        Policy { name, model }
    });
    full.into_iter().chain(lora).collect()
}

fn gradients(model: &Model) -> Vec<(String, Tensor)> {
    let of = |(name, parameter): (String, Tensor)| (name, parameter.grad().copy());
    model.trainable().into_iter().map(of).collect()
}

fn zero_gradients(model: &Model) {
    model.trainable().into_iter().for_each(|(_, mut parameter)| parameter.zero_grad());
}

fn inputs(scores: &Scored, responses: &Responses) -> LossInputs {
    let (logp, mask) = (&scores.logp, &responses.response_mask);
    let near = |seed: u64| noise(seed, &logp.size(), 0.3, Kind::Double);
    LossInputs {
        logp: logp.shallow_clone(),
        logp_old: logp.detach() + near(1),
        logp_ref: Some(logp.detach() + near(2)),
        advantages: near(3) * 3.0,
        mask: mask.shallow_clone(),
        entropy: Some(scores.entropy.shallow_clone()),
    }
}

fn explicit_gradients(policy: &Model, responses: &Responses, options: &LossOptions) -> Vec<(String, Tensor)> {
    let scored = responses.scored(policy, 0.8, false).unwrap();
    let out = loss(&inputs(&scored.scores, responses), options).unwrap();
    scored.backward(&out.loss).unwrap();
    gradients(policy)
}

/// The gradients of a loss by the scores, from autograd over `[b, T]`.
fn by_scores(scores: &Scored, responses: &Responses, options: &LossOptions) -> [Tensor; 2] {
    let leaves = Scored {
        logp: scores.logp.copy().set_requires_grad(true),
        entropy: scores.entropy.copy().set_requires_grad(true),
    };
    with_grad(|| loss(&inputs(&leaves, responses), options).unwrap().loss.backward());
    [leaves.logp.grad(), leaves.entropy.grad()]
}

fn assert_same(name: &str, fused: &[(String, Tensor)], explicit: &[(String, Tensor)], relative: f64) {
    assert_eq!(fused.len(), explicit.len());
    for ((parameter, fused), (_, explicit)) in fused.iter().zip(explicit) {
        let (difference, size) = (largest(&(fused - explicit)), largest(explicit));
        assert!(size > 0.0, "{name}, {parameter}: there is no gradient to compare");
        assert!(
            difference <= relative * size,
            "{name}, {parameter}: off by {difference:e} where the largest is {size:e}"
        );
    }
}

#[test]
fn a_models_gradients_are_those_of_explicit_logits() {
    let responses = ragged_responses(&[0, 0, 0, 1, 1, 2]);
    for (index, Policy { name, model: Llm { model, .. } }) in policies(Kind::Double).into_iter().enumerate() {
        for (objective, mode) in objectives().into_iter().zip(MODES.into_iter().cycle()) {
            let options = step_loss(objective, mode);
            let name = format!("{name} ({index}), {objective:?}, {mode:?}");
            zero_gradients(&model);
            let explicit = explicit_gradients(&model, &responses, &options);
            for checkpointing in [false, true] {
                zero_gradients(&model);
                let before = responses.before_head(&model, 0.8, checkpointing);
                let scores = before.scores().unwrap();
                let [by_logp, by_entropy] = by_scores(&scores, &responses, &options);
                before.backward_from(&by_logp, Some(&by_entropy)).unwrap();
                assert_same(&name, &gradients(&model), &explicit, 1e-9);

                zero_gradients(&model);
                let [by_logp, by_entropy] = [by_logp, by_entropy].map(|g| responses.gather(&g));
                let before = responses.before_head(&model, 0.8, checkpointing);
                let on_the_way = before.backward(|range, _| {
                    let own = |all: &Tensor| all.narrow(0, range.start, range.end - range.start);
                    Ok(ScoreGradients { logp: own(&by_logp), entropy: Some(own(&by_entropy)) })
                });
                let on_the_way = on_the_way.unwrap();
                assert_eq!((on_the_way.logp, on_the_way.entropy), (scores.logp, scores.entropy));
                assert_same(&name, &gradients(&model), &explicit, 1e-9);
            }
        }
    }
}

#[test]
fn gradients_are_added_to_what_was_there() {
    let responses = ragged_responses(&[0, 0, 0, 1, 1, 1]);
    for (kind, relative) in [(Kind::Double, 1e-9), (Kind::BFloat16, 0.03)] {
        for Policy { name, model: Llm { model, .. } } in policies(kind) {
            let backward = || {
                let before = responses.before_head(&model, 1.0, false);
                let scores = before.scores().unwrap();
                assert_eq!(scores.logp.kind(), if kind == Kind::Double { kind } else { Kind::Float });
                before.backward_from(&(&scores.logp * 0.0 + 0.5), None).unwrap();
                gradients(&model)
            };
            let undefined = model.trainable().iter().all(|(_, parameter)| !parameter.grad().defined());
            assert!(undefined, "{name}: the first pass finds no gradient");
            let once = backward();
            let twice = backward();
            let halves: Vec<_> = twice.into_iter().map(|(name, twice)| (name, twice * 0.5)).collect();
            assert_same(name, &halves, &once, relative);

            zero_gradients(&model);
            let explicit = responses.scored(&model, 1.0, false).unwrap();
            let loss = (&explicit.scores.logp * 0.5).sum(Kind::Float);
            explicit.backward(&loss).unwrap();
            assert_same(name, &once, &gradients(&model), relative);
        }
    }
}

#[test]
fn a_model_that_is_not_trained_has_no_gradient() {
    let responses = ragged_responses(&[0, 0, 0, 1, 1, 1]);
    let Policy { model: Llm { model, .. }, .. } = policies(Kind::Float).remove(0);
    model.set_trainable(false);
    let before = responses.before_head(&model, 1.0, false);
    let scores = before.scores().unwrap();
    let explicit = responses.score(&model, 1.0).unwrap();
    assert_near("logp", &scores.logp, &explicit.logp, 1e-5);
    assert_near("entropy", &scores.entropy, &explicit.entropy, 1e-5);
    let error = before.backward_from(&scores.logp, None).unwrap_err();
    assert_eq!(error.code(), "input");
    let trained = model.frozen_copy();
    trained.set_trainable(true);
    let before = responses.before_head(&trained, 1.0, true);
    assert_eq!(before.backward_from(&scores.logp.narrow(1, 0, 2), None).unwrap_err().code(), "shape");
}
