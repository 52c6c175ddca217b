//! The loss of tokens from their log-probabilities in one pass over plain slices: value, gradient, figures.
//!
//! A block of tokens at a time, in arrays that the compiler turns into vector instructions: what the options decide is
//! decided once for the block, and what a token decides is a choice between two numbers that are both there, never a
//! branch (so `&` where one would write `&&`). A masked token is emptied as it is read, so that nothing that stood there
//! is computed with.

use std::ops::{Add, Mul, Neg, Sub};

use super::exp;
use crate::options::{Clip, KlPenalty, LossOptions, Objective};

/// How many tokens go together: enough that the loops over them are vectorised one by one, measured against 16 and 32.
const LANES: usize = 64;
/// Numbers of as many tokens.
type Lanes<F> = [F; LANES];

/// What the loss is computed in: `f32` or `f64`.
pub(super) trait Real:
    Copy + PartialOrd + Neg<Output = Self> + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
{
    fn of(number: f64) -> Self;
    fn wide(self) -> f64;
    fn exp(self) -> Self;
    fn reciprocal(self) -> Self;
}

impl Real for f32 {
    #[inline(always)]
    fn of(number: f64) -> Self {
        number as Self
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn exp(self) -> Self {
        exp::exp(self)
    }
    #[inline(always)]
    fn reciprocal(self) -> Self {
        1.0 / self
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(number: f64) -> Self {
        number
    }
    #[inline(always)]
    fn wide(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp(self) -> Self {
        self.exp()
    }
    #[inline(always)]
    fn reciprocal(self) -> Self {
        1.0 / self
    }
}

/// What is known of some tokens, an entry each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tokens<'a, F> {
    pub(super) logp: &'a [F],
    pub(super) logp_old: &'a [F],
    /// `None` without a KL term.
    pub(super) logp_ref: Option<&'a [F]>,
    pub(super) advantages: &'a [F],
    /// `None` if there is neither an entropy term nor anyone who asks.
    pub(super) entropy: Option<&'a [F]>,
    /// A token counts unless this is 0.
    pub(super) mask: &'a [u8],
    /// What a token's loss weighs in the loss of the batch.
    pub(super) weights: &'a [F],
}

/// What is found out about them, an entry each; 0 where the mask keeps nothing.
#[derive(Debug)]
pub(super) struct Found<'a, F> {
    /// The gradient of the whole loss by `logp`. Of [`Policy::Given`], the policy's part of it stands here already.
    pub(super) grad_logp: &'a mut [F],
    pub(super) grad_entropy: Option<&'a mut [F]>,
    /// The token's policy loss, for whoever wants to see it.
    pub(super) losses: Option<&'a mut [F]>,
}

/// Sums over the tokens that count.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Sums {
    /// Of the weighted losses, by term.
    pub(super) policy: f64,
    pub(super) kl: f64,
    pub(super) entropy: f64,
    /// How many tokens' gains were clipped, and how many the dual clip lowered.
    pub(super) clipped: f64,
    pub(super) lowered: f64,
    pub(super) log_ratio: f64,
    pub(super) ratio: f64,
    /// The KL term and the entropy, not weighted.
    pub(super) plain_kl: f64,
    pub(super) plain_entropy: f64,
    pub(super) tokens: f64,
}

impl Sums {
    /// How many numbers they are.
    pub(super) const COUNT: usize = 10;

    pub(super) fn to_array(self) -> [f64; Self::COUNT] {
        let Self { policy, kl, entropy, clipped, lowered, log_ratio, ratio, plain_kl, plain_entropy, tokens } =
            self;
        [policy, kl, entropy, clipped, lowered, log_ratio, ratio, plain_kl, plain_entropy, tokens]
    }

    pub(super) fn from_array(sums: [f64; Self::COUNT]) -> Self {
        let [policy, kl, entropy, clipped, lowered, log_ratio, ratio, plain_kl, plain_entropy, tokens] = sums;
        Self { policy, kl, entropy, clipped, lowered, log_ratio, ratio, plain_kl, plain_entropy, tokens }
    }
}

/// The options as the pass needs them; an absent limit is an infinite one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<F> {
    policy: Policy<F>,
    /// What the clip's figures are told by, and the limit of the log-ratio that they are told of.
    told: Bounds<F>,
    told_limit: F,
    kl: Option<Kl<F>>,
    entropy_coeff: F,
    /// 1 over the steps that the gradient is accumulated over.
    per_step: F,
}

/// What is made of the ratio and the advantage of a token.
#[derive(Debug, Clone, Copy)]
enum Policy<F> {
    Clip {
        limit: F,
        bounds: Bounds<F>,
    },
    Gradient,
    Cispo {
        limit: F,
        low: F,
        high: F,
    },
    Sapo {
        limit: F,
        tau_pos: F,
        tau_neg: F,
    },
    /// Nothing: it was made of whole sequences before.
    Given,
}

/// The ratio's bounds, and dual clip's c.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<F> {
    low: F,
    high: F,
    c: F,
}

impl<F: Real> Bounds<F> {
    pub(super) fn of(clip: &Clip) -> Self {
        Self {
            low: F::of(1.0 - clip.clip_ratio_low),
            high: F::of(1.0 + clip.clip_ratio_high),
            c: limit(clip.clip_ratio_c),
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Kl<F> {
    penalty: KlPenalty,
    input_limit: F,
    output_limit: F,
    /// The limit of the log-ratio whose ratio weighs the estimate, if one does.
    weight_limit: Option<F>,
    coef: F,
}

fn limit<F: Real>(limit: Option<f64>) -> F {
    F::of(limit.unwrap_or(f64::INFINITY))
}

impl<F: Real> Plan<F> {
    pub(super) fn of(options: &LossOptions) -> Self {
        let (terms, told) = (&options.terms, options.clip());
        let policy = match &options.objective {
            Objective::Vanilla => {
                Policy::Clip { limit: limit(terms.clip.log_ratio_clamp), bounds: Bounds::of(&terms.clip) }
            }
            Objective::Gpg => Policy::Gradient,
            Objective::Cispo(cispo) => Policy::Cispo {
                limit: limit(cispo.log_ratio_clamp),
                low: F::of(cispo.clip_ratio_low.map_or(f64::NEG_INFINITY, |low| 1.0 - low)),
                high: F::of(cispo.upper_bound()),
            },
            Objective::Sapo(sapo) => Policy::Sapo {
                limit: limit(sapo.log_ratio_clamp),
                tau_pos: F::of(sapo.tau_pos),
                tau_neg: F::of(sapo.tau_neg),
            },
            Objective::Gspo(_) | Objective::GeoMean(_) => Policy::Given,
        };
        let kl = (terms.kl_loss_coef != 0.0).then(|| Kl {
            penalty: terms.kl_loss_type,
            input_limit: limit(terms.kl_input_clamp),
            output_limit: limit(terms.kl_output_clamp),
            weight_limit: terms.kl_ratio_weight.then(|| limit(terms.clip.log_ratio_clamp)),
            coef: F::of(terms.kl_loss_coef),
        });
        Self {
            policy,
            told: Bounds::of(&told),
            told_limit: limit(told.log_ratio_clamp),
            kl,
            entropy_coeff: F::of(terms.entropy_coeff),
            per_step: F::of(1.0 / terms.gradient_accumulation_steps),
        }
    }
}

/// Goes over the tokens once. All slices have the length of `tokens.logp`, which the caller has made sure of.
#[inline(always)]
pub(super) fn sweep<F: Real>(tokens: &Tokens<'_, F>, plan: &Plan<F>, found: &mut Found<'_, F>) -> Sums {
    let mut running = Running::none();
    let count = tokens.logp.len();
    let whole = count - count % LANES;
    for first in (0..whole).step_by(LANES) {
        let block = Block::read(tokens, first, LANES);
        step(&block, plan, found, first, LANES, &mut running);
    }
    if whole < count {
        let block = Block::read(tokens, whole, count - whole);
        step(&block, plan, found, whole, count - whole, &mut running);
    }
    running.total()
}

/// Some tokens, emptied where the mask keeps nothing.
struct Block<F> {
    keep: [bool; LANES],
    logp: Lanes<F>,
    logp_old: Lanes<F>,
    logp_ref: Lanes<F>,
    advantages: Lanes<F>,
    entropy: Lanes<F>,
    has_entropy: bool,
    weights: Lanes<F>,
}

impl<F: Real> Block<F> {
    /// So many tokens from `first` on; behind them nothing is kept.
    #[inline(always)]
    fn read(tokens: &Tokens<'_, F>, first: usize, count: usize) -> Self {
        let mut keep = [false; LANES];
        for (keep, &mask) in keep.iter_mut().zip(&tokens.mask[first..first + count]) {
            *keep = mask != 0;
        }
        Self {
            keep,
            logp: read(Some(tokens.logp), first, count, &keep),
            logp_old: read(Some(tokens.logp_old), first, count, &keep),
            logp_ref: read(tokens.logp_ref, first, count, &keep),
            advantages: read(Some(tokens.advantages), first, count, &keep),
            entropy: read(tokens.entropy, first, count, &keep),
            has_entropy: tokens.entropy.is_some(),
            weights: read(Some(tokens.weights), first, count, &keep),
        }
    }
}

/// What some tokens add to the sums and to the gradients.
#[inline(always)]
fn step<F: Real>(
    block: &Block<F>,
    plan: &Plan<F>,
    found: &mut Found<'_, F>,
    first: usize,
    count: usize,
    running: &mut Running,
) {
    let Block { keep, logp, logp_old, advantages, weights, has_entropy, .. } = block;
    let zero = F::of(0.0);
    let own = first..first + count;
    let difference = each(|i| logp[i] - logp_old[i]);
    let told = Ratio::of(&difference, plan.told_limit);

    let policy = of_policy(block, &difference, &told, plan);
    let scale = each(|i| weights[i] * plan.per_step);
    let mut gradient = match plan.policy {
        Policy::Given => read_back(&found.grad_logp[own.clone()]),
        _ => each(|i| scale[i] * policy.slope[i]),
    };
    if let Some(losses) = &mut found.losses {
        losses[own.clone()].copy_from_slice(&policy.loss[..count]);
    }
    add(&mut running.policy, &each(|i| weights[i] * policy.loss[i]));

    if let Some(kl) = &plan.kl {
        let of_kl = of_kl(block, &difference, &told, plan, kl);
        gradient = each(|i| gradient[i] + scale[i] * kl.coef * of_kl.slope[i]);
        add(&mut running.kl, &each(|i| weights[i] * of_kl.loss[i]));
        add(&mut running.plain_kl, &of_kl.loss);
    }
    // What is weighed by 0 is chosen away: infinities would turn it into NaN.
    found.grad_logp[own.clone()].copy_from_slice(&each(|i| choose(keep[i], gradient[i], zero))[..count]);

    if *has_entropy {
        add(&mut running.entropy, &each(|i| weights[i] * block.entropy[i]));
        add(&mut running.plain_entropy, &block.entropy);
    }
    if let Some(grad_entropy) = &mut found.grad_entropy {
        grad_entropy[own].copy_from_slice(&each(|i| zero - scale[i] * plan.entropy_coeff)[..count]);
    }

    let bounds = &plan.told;
    count_if(&mut running.clipped, |i| gain_is_clipped(told.ratio[i], advantages[i], bounds));
    count_if(&mut running.lowered, |i| is_lowered(told.ratio[i], advantages[i], bounds));
    count_if(&mut running.tokens, |i| keep[i]);
    add(&mut running.log_ratio, &told.log);
    add(&mut running.ratio, &each(|i| choose(keep[i], told.ratio[i], zero)));
}

/// Losses of tokens and their derivatives, each by the token's own log-probability.
struct Term<F> {
    loss: Lanes<F>,
    slope: Lanes<F>,
}

/// The policy's term, before it is weighed.
#[inline(always)]
fn of_policy<F: Real>(block: &Block<F>, difference: &Lanes<F>, told: &Ratio<F>, plan: &Plan<F>) -> Term<F> {
    let advantages = &block.advantages;
    match plan.policy {
        Policy::Clip { limit, bounds } => {
            let ratio = told.or_of(difference, plan.told_limit, limit);
            both(|i| clip(ratio.ratio[i], ratio.slope[i], advantages[i], &bounds))
        }
        Policy::Gradient => both(|i| (-(advantages[i] * block.logp[i]), -advantages[i])),
        Policy::Cispo { limit, low, high } => {
            let ratio = told.or_of(difference, plan.told_limit, limit);
            both(|i| {
                let slope = -(clamp(ratio.ratio[i], low, high) * advantages[i]);
                (slope * block.logp[i], slope)
            })
        }
        Policy::Sapo { limit, tau_pos, tau_neg } => {
            let ratio = told.or_of(difference, plan.told_limit, limit);
            both(|i| {
                let tau = choose(advantages[i] > F::of(0.0), tau_pos, tau_neg);
                sapo(ratio.ratio[i], ratio.slope[i], advantages[i], tau)
            })
        }
        Policy::Given => both(|_| (F::of(0.0), F::of(0.0))),
    }
}

/// -min(ratio A, clip(ratio) A), at most -c A where A < 0. `slope` is the derivative of the ratio.
#[inline(always)]
pub(super) fn clip<F: Real>(ratio: F, slope: F, advantage: F, bounds: &Bounds<F>) -> (F, F) {
    let zero = F::of(0.0);
    let (free, bound) = (ratio * advantage, clamp(ratio, bounds.low, bounds.high) * advantage);
    // On a tie, at a clip edge too, the gradient is that of the unclipped one; a bound has none.
    let is_bound = free > bound;
    let loss = -choose(is_bound, bound, free);
    let cap = -bounds.c * advantage;
    let is_capped = (advantage < zero) & (loss > cap);
    (choose(is_capped, cap, loss), choose(is_bound | is_capped, zero, -(slope * advantage)))
}

/// -sigmoid(tau (ratio - 1)) (4 / tau) A
#[inline(always)]
fn sapo<F: Real>(ratio: F, slope: F, advantage: F, tau: F) -> (F, F) {
    let one = F::of(1.0);
    let x = tau * (ratio - one);
    // In the form whose exponential cannot overflow.
    let small = choose(x < F::of(0.0), x, -x).exp();
    let of_other_sign = (one + small).reciprocal();
    let (gate, closed) = (choose(x < F::of(0.0), small, one), choose(x < F::of(0.0), one, small));
    let (gate, closed) = (gate * of_other_sign, closed * of_other_sign);
    // The derivative of the gate is tau gate (1 - gate), and tau cancels. The gate is closed where the ratio overflows.
    let slope = choose(ratio < F::of(f64::INFINITY), gate * closed * slope, F::of(0.0));
    let four = F::of(4.0);
    (-(gate * (four * tau.reciprocal()) * advantage), -(slope * four * advantage))
}

/// Whether the ratio is above its upper bound with A > 0, or below the lower one with A < 0.
#[inline(always)]
pub(super) fn gain_is_clipped<F: Real>(ratio: F, advantage: F, bounds: &Bounds<F>) -> bool {
    let zero = F::of(0.0);
    ((advantage > zero) & (ratio > bounds.high)) | ((advantage < zero) & (ratio < bounds.low))
}

/// Whether the dual clip lowers the loss.
#[inline(always)]
fn is_lowered<F: Real>(ratio: F, advantage: F, bounds: &Bounds<F>) -> bool {
    let (free, bound) = (ratio * advantage, clamp(ratio, bounds.low, bounds.high) * advantage);
    let loss = -choose(free > bound, bound, free);
    (advantage < F::of(0.0)) & (loss > -bounds.c * advantage)
}

/// The KL's term, before it is weighed by more than the ratio.
#[inline(always)]
fn of_kl<F: Real>(
    block: &Block<F>,
    difference: &Lanes<F>,
    told: &Ratio<F>,
    plan: &Plan<F>,
    kl: &Kl<F>,
) -> Term<F> {
    let (zero, one, half) = (F::of(0.0), F::of(1.0), F::of(0.5));
    let from_ref = each(|i| block.logp[i] - block.logp_ref[i]);
    let d = each(|i| clamp(from_ref[i], -kl.input_limit, kl.input_limit));
    let estimate: Term<F> = match kl.penalty {
        KlPenalty::K1 | KlPenalty::K1Plus => both(|i| (d[i], one)),
        KlPenalty::Abs | KlPenalty::AbsPlus => both(|i| {
            let sign = choose(d[i] > zero, one, choose(d[i] < zero, -one, zero));
            (choose(d[i] < zero, -d[i], d[i]), sign)
        }),
        KlPenalty::K2 | KlPenalty::K2Plus => both(|i| (d[i] * d[i] * half, d[i])),
        KlPenalty::K3 | KlPenalty::K3Plus => both(|i| {
            let exp = (-d[i]).exp();
            (exp + d[i] - one, one - exp)
        }),
    };
    let value = each(|i| clamp(estimate.loss[i], -kl.output_limit, kl.output_limit));
    let slope = if kl.penalty.straight_through() {
        from_ref
    } else {
        each(|i| {
            let passes =
                is_within(from_ref[i], kl.input_limit) & is_within(estimate.loss[i], kl.output_limit);
            choose(passes, estimate.slope[i], zero)
        })
    };
    let Some(limit) = kl.weight_limit else { return Term { loss: value, slope } };
    let weight = told.or_of(difference, plan.told_limit, limit);
    both(|i| {
        let of_weight = choose(is_within(difference[i], limit), value[i] * weight.ratio[i], zero);
        (value[i] * weight.ratio[i], slope[i] * weight.ratio[i] + of_weight)
    })
}

/// Importance ratios.
#[derive(Clone, Copy)]
struct Ratio<F> {
    /// The log-ratio within its limit.
    log: Lanes<F>,
    /// Its exponential.
    ratio: Lanes<F>,
    /// The derivative of that by the log-probability: itself, and 0 beyond the limit.
    slope: Lanes<F>,
}

impl<F: Real> Ratio<F> {
    #[inline(always)]
    fn of(difference: &Lanes<F>, limit: F) -> Self {
        let log = each(|i| clamp(difference[i], -limit, limit));
        let ratio = each(|i| log[i].exp());
        let slope = each(|i| choose(is_within(difference[i], limit), ratio[i], F::of(0.0)));
        Self { log, ratio, slope }
    }

    /// This one, which has one limit, or another with another.
    #[inline(always)]
    fn or_of(&self, difference: &Lanes<F>, limit: F, other: F) -> Self {
        if limit == other { *self } else { Self::of(difference, other) }
    }
}

/// Sums that are being taken, four side by side each.
struct Running {
    policy: [f64; 4],
    kl: [f64; 4],
    entropy: [f64; 4],
    clipped: [u32; LANES],
    lowered: [u32; LANES],
    log_ratio: [f64; 4],
    ratio: [f64; 4],
    plain_kl: [f64; 4],
    plain_entropy: [f64; 4],
    tokens: [u32; LANES],
}

impl Running {
    fn none() -> Self {
        let (none, never) = ([0.0; 4], [0; LANES]);
        Self {
            policy: none,
            kl: none,
            entropy: none,
            clipped: never,
            lowered: never,
            log_ratio: none,
            ratio: none,
            plain_kl: none,
            plain_entropy: none,
            tokens: never,
        }
    }

    fn total(&self) -> Sums {
        let all = |sums: &[f64; 4]| sums.iter().sum();
        let count = |counts: &[u32; LANES]| counts.iter().map(|&count| f64::from(count)).sum();
        Sums {
            policy: all(&self.policy),
            kl: all(&self.kl),
            entropy: all(&self.entropy),
            clipped: count(&self.clipped),
            lowered: count(&self.lowered),
            log_ratio: all(&self.log_ratio),
            ratio: all(&self.ratio),
            plain_kl: all(&self.plain_kl),
            plain_entropy: all(&self.plain_entropy),
            tokens: count(&self.tokens),
        }
    }
}

/// Counts lane by lane, which 4 billion tokens a lane do not overflow.
#[inline(always)]
fn count_if(counts: &mut [u32; LANES], holds: impl Fn(usize) -> bool) {
    for (i, count) in counts.iter_mut().enumerate() {
        *count += u32::from(holds(i));
    }
}

#[inline(always)]
fn add<F: Real>(sums: &mut [f64; 4], terms: &Lanes<F>) {
    let mut own = [0.0; 8];
    for terms in terms.chunks_exact(8) {
        for i in 0..8 {
            own[i] += terms[i].wide();
        }
    }
    for i in 0..4 {
        sums[i] += own[i] + own[i + 4];
    }
}

/// So many numbers from `first` on, 0 where nothing is kept and behind them.
#[inline(always)]
fn read<F: Real>(numbers: Option<&[F]>, first: usize, count: usize, keep: &[bool; LANES]) -> Lanes<F> {
    let zero = F::of(0.0);
    let Some(numbers) = numbers else { return [zero; LANES] };
    let mut lanes = [zero; LANES];
    if count == LANES {
        lanes.copy_from_slice(&numbers[first..first + LANES]);
    } else {
        lanes[..count].copy_from_slice(&numbers[first..first + count]);
    }
    each(|i| choose(keep[i], lanes[i], zero))
}

/// The entries of a slice, and 0 behind them.
#[inline(always)]
fn read_back<F: Real>(numbers: &[F]) -> Lanes<F> {
    let mut lanes = [F::of(0.0); LANES];
    lanes[..numbers.len()].copy_from_slice(numbers);
    lanes
}

#[inline(always)]
fn each<F: Real>(of: impl Fn(usize) -> F) -> Lanes<F> {
    let mut lanes = [F::of(0.0); LANES];
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = of(i);
    }
    lanes
}

#[inline(always)]
fn both<F: Real>(of: impl Fn(usize) -> (F, F)) -> Term<F> {
    let mut term = Term { loss: [F::of(0.0); LANES], slope: [F::of(0.0); LANES] };
    for i in 0..LANES {
        (term.loss[i], term.slope[i]) = of(i);
    }
    term
}

#[inline(always)]
pub(super) fn choose<F>(condition: bool, then: F, otherwise: F) -> F {
    if condition { then } else { otherwise }
}

/// Within [low, high]; NaN stays NaN.
#[inline(always)]
fn clamp<F: Real>(x: F, low: F, high: F) -> F {
    let from_below = choose(x < low, low, x);
    choose(from_below > high, high, from_below)
}

/// Whether a clamp to [-limit, limit] lets the gradient pass, as it does at its edges.
#[inline(always)]
fn is_within<F: Real>(x: F, limit: F) -> bool {
    (x >= -limit) & (x <= limit)
}
