//! The loss of tokens from their log-probabilities in one pass over plain slices: value, gradient, figures.
//!
//! The tokens are taken some thousand at a time, which stay in the cache while every term of the loss
//! ([`terms`](super::terms)) goes over them.

use std::ops::{Add, Div, Mul, Neg, Range, Sub};

use super::exp;
use super::memory::vectorised;
use super::terms::{
    Abs, Bounds, Cispo, EntropyTerm, Estimated, Gain, Given, Gpg, K1, K2, K3, Kl, KlTerm, LANES, Lanes,
    PolicyTerm, Sapo,
};
use crate::options::{KlPenalty, LossOptions, Objective};

/// How many tokens go together, in whole blocks: enough that what a term begins with costs little, and few enough that they
/// stay in the second cache; measured from 2,048 to 32,768.
const TOGETHER: usize = 32 * LANES;

/// What the loss is computed in: `f32` or `f64`.
pub(super) trait Real:
    Copy
    + PartialOrd
    + Neg<Output = Self>
    + Add<Output = Self>
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
{
    fn of(number: f64) -> Self;
    fn wide(self) -> f64;
    fn exp(self) -> Self;
    /// The same of many powers, which are put away, too; faster.
    fn exp_all<const N: usize>(power: impl Fn(usize) -> Self, powers: &mut [Self; N], values: &mut [Self; N]);
    fn sqrt(self) -> Self;
    fn abs(self) -> Self;
    /// With the other sign if this number is negative.
    fn flipped_by(self, other: Self) -> Self;
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
    fn exp_all<const N: usize>(
        power: impl Fn(usize) -> Self,
        powers: &mut [Self; N],
        values: &mut [Self; N],
    ) {
        exp::exp_all(power, powers, values);
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn flipped_by(self, other: Self) -> Self {
        Self::from_bits(self.to_bits() ^ (other.to_bits() & (1 << 31)))
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
    fn exp_all<const N: usize>(
        power: impl Fn(usize) -> Self,
        powers: &mut [Self; N],
        values: &mut [Self; N],
    ) {
        for i in 0..N {
            powers[i] = power(i);
            values[i] = powers[i].exp();
        }
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
    }
    #[inline(always)]
    fn abs(self) -> Self {
        self.abs()
    }
    #[inline(always)]
    fn flipped_by(self, other: Self) -> Self {
        Self::from_bits(self.to_bits() ^ (other.to_bits() & (1 << 63)))
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
    pub(super) weights: Weights<'a, F>,
    /// Which of those that the weights are of is the first here.
    pub(super) first: usize,
}

impl<'a, F: Copy> Tokens<'a, F> {
    /// Some of them; what they weigh stays with all of them.
    fn part(&self, own: Range<usize>) -> Self {
        let of = |numbers: &'a [F]| &numbers[own.clone()];
        Self {
            logp: of(self.logp),
            logp_old: of(self.logp_old),
            logp_ref: self.logp_ref.map(of),
            advantages: of(self.advantages),
            entropy: self.entropy.map(of),
            mask: &self.mask[own.clone()],
            weights: self.weights,
            first: self.first + own.start,
        }
    }
}

/// What tokens weigh.
#[derive(Debug, Clone, Copy)]
pub(super) enum Weights<'a, F> {
    OfTokens(&'a [F]),
    /// Of rows of so many tokens each.
    OfRows {
        of_rows: &'a [F],
        width: usize,
    },
}

impl<F: Real> Weights<'_, F> {
    /// That of a token.
    #[inline(always)]
    pub(super) fn of(&self, token: usize) -> F {
        match *self {
            Self::OfTokens(weights) => weights[token],
            Self::OfRows { of_rows, width } => of_rows[token / width],
        }
    }

    /// Those of the tokens from `first` on, as far as there are any. Returns until which token the others have the same, if
    /// these all have.
    #[inline(always)]
    pub(super) fn read(&self, first: usize, to: &mut Lanes<F>) -> usize {
        match *self {
            Self::OfTokens(weights) => {
                let own = &weights[first..weights.len().min(first + LANES)];
                to[..own.len()].copy_from_slice(own);
                first
            }
            Self::OfRows { of_rows, width } if first % width + LANES <= width => {
                *to = [of_rows[first / width]; LANES];
                first - first % width + width
            }
            Self::OfRows { of_rows, width } => {
                let mut done = 0;
                while let Some(weight) = of_rows.get((first + done) / width) {
                    let end = LANES.min(done + width - (first + done) % width);
                    to[done..end].fill(*weight);
                    done = end;
                    if done == LANES {
                        break;
                    }
                }
                first
            }
        }
    }
}

/// What is found out about them, an entry each; 0 where the mask keeps nothing. Every entry is written, whatever stood there.
#[derive(Debug)]
pub(super) struct Found<'a, F> {
    /// The gradient of the whole loss by `logp`. Of [`Policy::Given`], the policy's part of it stands here already.
    pub(super) grad_logp: &'a mut [F],
    pub(super) grad_entropy: Option<&'a mut [F]>,
    /// The token's policy loss, for whoever wants to see it.
    pub(super) losses: Option<&'a mut [F]>,
}

impl<F> Found<'_, F> {
    fn part(&mut self, own: Range<usize>) -> Found<'_, F> {
        Found {
            grad_logp: &mut self.grad_logp[own.clone()],
            grad_entropy: self.grad_entropy.as_mut().map(|entries| &mut entries[own.clone()]),
            losses: self.losses.as_mut().map(|entries| &mut entries[own.clone()]),
        }
    }
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

    /// The other way.
    pub(super) fn from_array(sums: [f64; Self::COUNT]) -> Self {
        let [policy, kl, entropy, clipped, lowered, log_ratio, ratio, plain_kl, plain_entropy, tokens] = sums;
        Self { policy, kl, entropy, clipped, lowered, log_ratio, ratio, plain_kl, plain_entropy, tokens }
    }
}

impl Add for Sums {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        let (mut sums, others) = (self.to_array(), other.to_array());
        for (sum, other) in sums.iter_mut().zip(others) {
            *sum += other;
        }
        Self::from_array(sums)
    }
}

/// The options as the pass needs them; an absent limit is an infinite one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan<F> {
    policy: Policy<F>,
    /// What the clip's figures are told by, and the limit of the log-ratio that they are told of.
    pub(super) told: Bounds<F>,
    pub(super) told_limit: F,
    kl: Option<Kl<F>>,
    entropy_coeff: F,
    /// 1 over the steps that the gradient is accumulated over.
    pub(super) per_step: F,
}

/// What is made of the ratio and the advantage of a token.
#[derive(Debug, Clone, Copy)]
enum Policy<F> {
    /// With the bounds and the limit that are told.
    Clip,
    Gradient,
    Cispo(Cispo<F>),
    Sapo(Sapo<F>),
    /// Nothing: it was made of whole sequences before.
    Given,
}

pub(super) fn limit<F: Real>(limit: Option<f64>) -> F {
    F::of(limit.unwrap_or(f64::INFINITY))
}

impl<F: Real> Plan<F> {
    pub(super) fn of(options: &LossOptions) -> Self {
        let (terms, told) = (&options.terms, options.clip());
        let policy = match &options.objective {
            Objective::Vanilla => Policy::Clip,
            Objective::Gpg => Policy::Gradient,
            Objective::Cispo(cispo) => Policy::Cispo(Cispo {
                limit: limit(cispo.log_ratio_clamp),
                low: F::of(cispo.clip_ratio_low.map_or(f64::NEG_INFINITY, |low| 1.0 - low)),
                high: F::of(cispo.upper_bound()),
            }),
            Objective::Sapo(sapo) => Policy::Sapo(Sapo {
                limit: limit(sapo.log_ratio_clamp),
                tau_pos: F::of(sapo.tau_pos),
                tau_neg: F::of(sapo.tau_neg),
            }),
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
pub(super) fn sweep<F: Real>(tokens: &Tokens<'_, F>, plan: &Plan<F>, mut found: Found<'_, F>) -> Sums {
    let mut sums = Sums::default();
    let count = tokens.logp.len();
    let whole = count - count % LANES;
    for first in (0..whole).step_by(TOGETHER) {
        let own = first..whole.min(first + TOGETHER);
        pass(&tokens.part(own.clone()), plan, &mut found.part(own), &mut sums);
    }
    if whole < count {
        rest(tokens, whole, plan, &mut found, &mut sums);
    }
    sums
}

/// All terms of tokens that fill whole blocks.
fn pass<F: Real>(tokens: &Tokens<'_, F>, plan: &Plan<F>, found: &mut Found<'_, F>, sums: &mut Sums) {
    let tokens = *tokens;
    match plan.policy {
        Policy::Clip => policy_term(tokens, plan, plan.told, found, sums),
        Policy::Gradient => policy_term(tokens, plan, Gpg, found, sums),
        Policy::Cispo(cispo) => policy_term(tokens, plan, cispo, found, sums),
        Policy::Sapo(sapo) => policy_term(tokens, plan, sapo, found, sums),
        Policy::Given => policy_term(tokens, plan, Given, found, sums),
    }
    if let (Some(kl), Some(logp_ref)) = (&plan.kl, tokens.logp_ref) {
        let (per_step, gradient) = (plan.per_step, &mut *found.grad_logp);
        let term = KlTerm { tokens, logp_ref, kl, per_step, gradient };
        let [weighted, plain] = match kl.penalty {
            KlPenalty::K1 | KlPenalty::K1Plus => vectorised(Estimated(term, K1)),
            KlPenalty::Abs | KlPenalty::AbsPlus => vectorised(Estimated(term, Abs)),
            KlPenalty::K2 | KlPenalty::K2Plus => vectorised(Estimated(term, K2)),
            KlPenalty::K3 | KlPenalty::K3Plus => vectorised(Estimated(term, K3)),
        };
        sums.kl += weighted;
        sums.plain_kl += plain;
    }
    if let Some(entropy) = tokens.entropy {
        let coef = plan.per_step * plan.entropy_coeff;
        let gradient = found.grad_entropy.as_deref_mut();
        let [weighted, plain] = vectorised(EntropyTerm { tokens, entropy, coef, gradient });
        sums.entropy += weighted;
        sums.plain_entropy += plain;
    }
}

fn policy_term<F: Real, G: Gain<F>>(
    tokens: Tokens<'_, F>,
    plan: &Plan<F>,
    gain: G,
    found: &mut Found<'_, F>,
    sums: &mut Sums,
) {
    let (gradient, losses) = (&mut *found.grad_logp, found.losses.as_deref_mut());
    let [gains, clipped, lowered, log_ratio, ratio, kept] =
        vectorised(PolicyTerm { tokens, plan, gain, gradient, losses });
    sums.policy -= gains;
    sums.clipped += clipped;
    sums.lowered += lowered;
    sums.log_ratio += log_ratio;
    sums.ratio += ratio;
    sums.tokens += kept;
}

/// The tokens behind the last whole block: a block of copies, the end of which is masked.
fn rest<F: Real>(
    tokens: &Tokens<'_, F>,
    first: usize,
    plan: &Plan<F>,
    found: &mut Found<'_, F>,
    sums: &mut Sums,
) {
    let zero = F::of(0.0);
    let padded = |numbers: &[F]| padded(&numbers[first..], zero);
    let count = tokens.logp.len() - first;
    let (logp, logp_old, advantages) =
        (padded(tokens.logp), padded(tokens.logp_old), padded(tokens.advantages));
    let (logp_ref, entropy) = (tokens.logp_ref.map(padded), tokens.entropy.map(padded));
    let copies = Tokens {
        logp: &logp,
        logp_old: &logp_old,
        logp_ref: logp_ref.as_ref().map(|numbers| numbers.as_slice()),
        advantages: &advantages,
        entropy: entropy.as_ref().map(|numbers| numbers.as_slice()),
        mask: &self::padded(&tokens.mask[first..], 0),
        weights: tokens.weights,
        first: tokens.first + first,
    };
    let (mut grad_logp, mut grad_entropy, mut losses) =
        (padded(found.grad_logp), [zero; LANES], [zero; LANES]);
    let mut of_copies = Found {
        grad_logp: &mut grad_logp,
        grad_entropy: found.grad_entropy.is_some().then_some(&mut grad_entropy),
        losses: found.losses.is_some().then_some(&mut losses),
    };
    pass(&copies, plan, &mut of_copies, sums);
    found.grad_logp[first..].copy_from_slice(&grad_logp[..count]);
    if let Some(own) = &mut found.grad_entropy {
        own[first..].copy_from_slice(&grad_entropy[..count]);
    }
    if let Some(own) = &mut found.losses {
        own[first..].copy_from_slice(&losses[..count]);
    }
}

/// These, and fillers behind them.
fn padded<T: Copy>(numbers: &[T], filler: T) -> [T; LANES] {
    let mut lanes = [filler; LANES];
    lanes[..numbers.len()].copy_from_slice(numbers);
    lanes
}
