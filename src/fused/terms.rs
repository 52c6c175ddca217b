//! The terms of the loss, each over blocks of tokens: what it adds to the sums and to the gradient.
//!
//! A block is gone over in loops that the compiler turns into vector instructions: first the exponentials, then one loop for
//! all the rest, so that what is shared is worked out once and nothing is put away in between. What the options decide is
//! decided outside, and each combination is a function of its own, small enough for the compiler to keep the sums in
//! registers. What a token decides is a choice between two numbers that are both there, never a branch (so `&` where one
//! would write `&&`). A masked token is emptied as it is read, so that nothing that stood there is computed with.

use super::memory::Work;
use super::sweep::{Plan, Real, Tokens, Weights, limit};
use crate::options::{Clip, KlPenalty};

/// How many tokens make a block: enough that what a loop over them begins with costs little, and few enough that what is
/// worked out stays close; measured from 64 to 512.
pub(super) const LANES: usize = 256;
/// Numbers of as many tokens.
pub(super) type Lanes<F> = [F; LANES];
/// The sums that one number is the sum of: so many are taken side by side.
const PARTS: usize = 16;

impl<'a, F: Real> Tokens<'a, F> {
    /// How many blocks they fill.
    fn blocks(&self) -> usize {
        self.logp.len() / LANES
    }

    #[inline(always)]
    fn block<'b>(&self, index: usize, weights: &'b mut BlockWeights<F>) -> Block<'b, F>
    where
        'a: 'b,
    {
        weights.read(&self.weights, self.first + index * LANES);
        Block {
            mask: &self.mask.as_chunks().0[index],
            logp: &self.logp.as_chunks().0[index],
            logp_old: &self.logp_old.as_chunks().0[index],
            advantages: &self.advantages.as_chunks().0[index],
            weights: &weights.plain,
            scaled_weights: &weights.scaled,
        }
    }
}

/// What the tokens of a block weigh.
#[repr(C, align(64))]
struct BlockWeights<F> {
    plain: Lanes<F>,
    /// Times a factor.
    scaled: Lanes<F>,
    factor: F,
    /// Blocks that end before this token, or with it, have these.
    end: usize,
}

impl<F: Real> BlockWeights<F> {
    fn times(factor: F) -> Self {
        let none = [F::of(0.0); LANES];
        Self { plain: none, scaled: none, factor, end: 0 }
    }

    #[inline(always)]
    fn read(&mut self, weights: &Weights<'_, F>, first: usize) {
        if first + LANES <= self.end {
            return;
        }
        self.end = weights.read(first, &mut self.plain);
        for (scaled, plain) in self.scaled.iter_mut().zip(&self.plain) {
            *scaled = *plain * self.factor;
        }
    }
}

/// The ratio's bounds, and dual clip's c, negative.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds<F> {
    low: F,
    high: F,
    minus_c: F,
}

impl<F: Real> Bounds<F> {
    pub(super) fn of(clip: &Clip) -> Self {
        Self {
            low: F::of(1.0 - clip.clip_ratio_low),
            high: F::of(1.0 + clip.clip_ratio_high),
            minus_c: -limit::<F>(clip.clip_ratio_c),
        }
    }
}

/// A token as an objective sees it, emptied where the mask keeps nothing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Token<F> {
    logp: F,
    advantage: F,
    ratio: F,
    /// Whether the log-ratio is within its limit: its derivative by `logp` is 1, and 0 otherwise.
    is_within: bool,
}

/// What an objective makes of a token. Implementations are `#[inline(always)]`, so that they become part of the loop.
pub(super) trait Gain<F: Real>: Copy {
    /// Whether the gradient stands already where it is wanted.
    const IS_GIVEN: bool = false;

    /// The limit of the log-ratio, unless it is the one of the figures.
    #[inline(always)]
    fn limit(self) -> Option<F> {
        None
    }

    /// The bounds of the figures: those that are told, or its own, which are the same, so that the compiler sees that
    /// they are and works out once what both make of them.
    #[inline(always)]
    fn bounds(self, told: Bounds<F>) -> Bounds<F> {
        told
    }

    /// The gain, which is the loss with the other sign, and its derivative by `logp`, before they are weighed.
    fn of(self, token: Token<F>) -> (F, F);
}

/// The clipped objective, with the bounds and the limit of the figures.
impl<F: Real> Gain<F> for Bounds<F> {
    #[inline(always)]
    fn bounds(self, _: Self) -> Self {
        self
    }

    #[inline(always)]
    fn of(self, token: Token<F>) -> (F, F) {
        clip(token.ratio, token.is_within, token.advantage, &self)
    }
}

/// The naive policy gradient.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gpg;

impl<F: Real> Gain<F> for Gpg {
    #[inline(always)]
    fn of(self, token: Token<F>) -> (F, F) {
        (token.advantage * token.logp, token.advantage)
    }
}

/// The bounded ratio as a constant weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cispo<F> {
    pub(super) limit: F,
    pub(super) low: F,
    pub(super) high: F,
}

impl<F: Real> Gain<F> for Cispo<F> {
    #[inline(always)]
    fn limit(self) -> Option<F> {
        Some(self.limit)
    }

    #[inline(always)]
    fn of(self, token: Token<F>) -> (F, F) {
        let slope = clamp(token.ratio, self.low, self.high) * token.advantage;
        (slope * token.logp, slope)
    }
}

/// The soft gate in the place of the clip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sapo<F> {
    pub(super) limit: F,
    pub(super) tau_pos: F,
    pub(super) tau_neg: F,
}

impl<F: Real> Gain<F> for Sapo<F> {
    #[inline(always)]
    fn limit(self) -> Option<F> {
        Some(self.limit)
    }

    /// sigmoid(tau (ratio - 1)) (4 / tau) A
    #[inline(always)]
    fn of(self, token: Token<F>) -> (F, F) {
        let Token { ratio, is_within, advantage, .. } = token;
        let (zero, one, four) = (F::of(0.0), F::of(1.0), F::of(4.0));
        let tau = choose(advantage > zero, self.tau_pos, self.tau_neg);
        let x = tau * (ratio - one);
        // In the form whose exponential cannot overflow.
        let small = choose(x < zero, x, -x).exp();
        let of_other_sign = one / (one + small);
        let (gate, closed) = (choose(x < zero, small, one), choose(x < zero, one, small));
        let (gate, closed) = (gate * of_other_sign, closed * of_other_sign);
        // The derivative of the gate is tau gate (1 - gate), and tau cancels. The gate is closed where the ratio overflows.
        let moves = is_within & (ratio < F::of(f64::INFINITY));
        let slope = choose(moves, gate * closed * ratio, zero);
        (gate * (four * (one / tau)) * advantage, slope * four * advantage)
    }
}

/// An objective that was made of whole sequences before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Given;

impl<F: Real> Gain<F> for Given {
    const IS_GIVEN: bool = true;

    #[inline(always)]
    fn of(self, _: Token<F>) -> (F, F) {
        (F::of(0.0), F::of(0.0))
    }
}

/// min(ratio A, clip(ratio) A), and its derivative by the log-ratio, which is within its limit or not. At least -c |A|:
/// with A > 0 it is never that low.
#[inline(always)]
pub(super) fn clip<F: Real>(ratio: F, is_within: bool, advantage: F, bounds: &Bounds<F>) -> (F, F) {
    let (free, bound) = free_and_bound(ratio, advantage, bounds);
    // On a tie, at a clip edge too, the gradient is that of the unclipped one; a bound has none.
    let is_bound = free > bound;
    let (gain, floor) = (choose(is_bound, bound, free), bounds.minus_c * advantage.abs());
    let is_lowered = gain < floor;
    (choose(is_lowered, floor, gain), choose(is_within & !is_bound & !is_lowered, free, F::of(0.0)))
}

/// ratio A and clip(ratio) A
#[inline(always)]
fn free_and_bound<F: Real>(ratio: F, advantage: F, bounds: &Bounds<F>) -> (F, F) {
    (ratio * advantage, clamp(ratio, bounds.low, bounds.high) * advantage)
}

/// Whether the ratio is above its upper bound with A > 0, or below the lower one with A < 0.
#[inline(always)]
pub(super) fn gain_is_clipped<F: Real>(ratio: F, advantage: F, bounds: &Bounds<F>) -> bool {
    let zero = F::of(0.0);
    let beyond = ratio - clamp(ratio, bounds.low, bounds.high);
    (beyond.flipped_by(advantage) > zero) & (advantage != zero)
}

/// Whether the dual clip lowers the loss.
#[inline(always)]
fn is_lowered<F: Real>(ratio: F, advantage: F, bounds: &Bounds<F>) -> bool {
    let (free, bound) = free_and_bound(ratio, advantage, bounds);
    choose(free > bound, bound, free) < bounds.minus_c * advantage.abs()
}

/// The policy's term, and the figures of the ratio.
#[derive(Debug)]
pub(super) struct PolicyTerm<'a, F, G> {
    /// As many as whole blocks have.
    pub(super) tokens: Tokens<'a, F>,
    pub(super) plan: &'a Plan<F>,
    pub(super) gain: G,
    pub(super) gradient: &'a mut [F],
    pub(super) losses: Option<&'a mut [F]>,
}

impl<F: Real, G: Gain<F>> Work for PolicyTerm<'_, F, G> {
    /// Of the weighted gains, of the tokens that are clipped and lowered, of log-ratios, ratios and tokens.
    type Output = [f64; 6];

    #[inline(always)]
    fn run(self) -> [f64; 6] {
        let Self { tokens, plan, gain, gradient, mut losses } = self;
        let mut sums = [[0.0; PARTS]; 6];
        let (mut told, mut other) = (Ratio::empty(), Ratio::empty());
        let (mut weights, mut slopes) = (BlockWeights::times(-plan.per_step), Scratch([F::of(0.0); LANES]));
        for index in 0..tokens.blocks() {
            let block = tokens.block(index, &mut weights);
            told.fill(&block, plan.told_limit);
            let own = match gain.limit() {
                None => &told,
                Some(limit) => {
                    other.fill(&block, limit);
                    &other
                }
            };
            policy_block(&block, plan, gain, &told, own, &mut slopes.0, &mut sums);
            if !G::IS_GIVEN {
                gradient.as_chunks_mut().0[index] = slopes.0;
            }
            if let Some(losses) = &mut losses {
                for (i, out) in losses[index * LANES..][..LANES].iter_mut().enumerate() {
                    *out = -gain.of(token(&block, own, i)).0;
                }
            }
        }
        totals(&sums)
    }
}

/// The gradient is not put where it belongs yet: between stores that might be to anywhere the compiler would not keep the
/// sums in registers.
#[inline(always)]
fn policy_block<F: Real, G: Gain<F>>(
    block: &Block<'_, F>,
    plan: &Plan<F>,
    gain: G,
    told: &Ratio<F>,
    own: &Ratio<F>,
    gradient: &mut Lanes<F>,
    sums: &mut [[f64; PARTS]; 6],
) {
    let (zero, one, none) = (F::of(0.0), F::of(1.0), [F::of(0.0); PARTS]);
    let (mut policy, mut clipped, mut lowered) = (none, none, none);
    let (mut log_ratio, mut ratio, mut tokens) = (none, none, none);
    let bounds = gain.bounds(plan.told);
    for few in 0..LANES / PARTS {
        for part in 0..PARTS {
            let i = few * PARTS + part;
            let token = token(block, own, i);
            let (gain, slope) = gain.of(token);
            let is_clipped = gain_is_clipped(told.ratio(i), token.advantage, &bounds);
            let is_lowered = is_lowered(told.ratio(i), token.advantage, &bounds);
            // What a masked token weighs is chosen away: infinities would turn 0 into NaN.
            policy[part] = policy[part] + block.kept(i, block.weights[i] * gain);
            clipped[part] = clipped[part] + choose(is_clipped, one, zero);
            lowered[part] = lowered[part] + choose(is_lowered, one, zero);
            log_ratio[part] = log_ratio[part] + told.log(i);
            ratio[part] = ratio[part] + block.kept(i, told.ratio(i));
            tokens[part] = tokens[part] + block.kept(i, one);
            gradient[i] = block.kept(i, block.scaled_weights[i] * slope);
        }
    }
    add(&mut sums[0], &policy);
    add(&mut sums[1], &clipped);
    add(&mut sums[2], &lowered);
    add(&mut sums[3], &log_ratio);
    add(&mut sums[4], &ratio);
    add(&mut sums[5], &tokens);
}

#[inline(always)]
fn token<F: Real>(block: &Block<'_, F>, own: &Ratio<F>, i: usize) -> Token<F> {
    Token {
        logp: block.kept(i, block.logp[i]),
        advantage: block.kept(i, block.advantages[i]),
        ratio: own.ratio(i),
        is_within: own.is_within(block, i),
    }
}

/// The KL's options as its term needs them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kl<F> {
    pub(super) penalty: KlPenalty,
    pub(super) input_limit: F,
    pub(super) output_limit: F,
    /// The limit of the log-ratio whose ratio weighs the estimate, if one does.
    pub(super) weight_limit: Option<F>,
    pub(super) coef: F,
}

/// What an estimate makes of a log-ratio d. Implementations are `#[inline(always)]`.
pub(super) trait Estimate<F: Real>: Copy {
    /// Whether it takes the exponential of -d.
    const TAKES_EXP: bool = false;

    /// The loss and its derivative by d.
    fn of(self, d: F, exp: F) -> (F, F);
}

/// d
#[derive(Debug, Clone, Copy)]
pub(super) struct K1;

impl<F: Real> Estimate<F> for K1 {
    #[inline(always)]
    fn of(self, d: F, _: F) -> (F, F) {
        (d, F::of(1.0))
    }
}

/// |d|
#[derive(Debug, Clone, Copy)]
pub(super) struct Abs;

impl<F: Real> Estimate<F> for Abs {
    #[inline(always)]
    fn of(self, d: F, _: F) -> (F, F) {
        let (zero, one) = (F::of(0.0), F::of(1.0));
        (choose(d < zero, -d, d), choose(d > zero, one, choose(d < zero, -one, zero)))
    }
}

/// d^2 / 2
#[derive(Debug, Clone, Copy)]
pub(super) struct K2;

impl<F: Real> Estimate<F> for K2 {
    #[inline(always)]
    fn of(self, d: F, _: F) -> (F, F) {
        (d * d * F::of(0.5), d)
    }
}

/// exp(-d) + d - 1
#[derive(Debug, Clone, Copy)]
pub(super) struct K3;

impl<F: Real> Estimate<F> for K3 {
    const TAKES_EXP: bool = true;

    #[inline(always)]
    fn of(self, d: F, exp: F) -> (F, F) {
        (exp + d - F::of(1.0), F::of(1.0) - exp)
    }
}

/// The KL's term; its part is added to the gradient.
#[derive(Debug)]
pub(super) struct KlTerm<'a, F> {
    /// As many as whole blocks have.
    pub(super) tokens: Tokens<'a, F>,
    pub(super) logp_ref: &'a [F],
    pub(super) kl: &'a Kl<F>,
    pub(super) per_step: F,
    pub(super) gradient: &'a mut [F],
}

/// The same with an estimate.
#[derive(Debug)]
pub(super) struct Estimated<'a, F, E>(pub(super) KlTerm<'a, F>, pub(super) E);

impl<F: Real, E: Estimate<F>> Work for Estimated<'_, F, E> {
    /// Of the losses, weighted and plain.
    type Output = [f64; 2];

    #[inline(always)]
    fn run(self) -> [f64; 2] {
        let Self(KlTerm { tokens, logp_ref, kl, per_step, gradient }, estimate) = self;
        let mut sums = [[0.0; PARTS]; 2];
        let (mut by, mut exp) = (Ratio::empty(), Exponentials::empty());
        let (mut weights, mut whole) =
            (BlockWeights::times(per_step * kl.coef), Scratch([F::of(0.0); LANES]));
        for index in 0..tokens.blocks() {
            let block = tokens.block(index, &mut weights);
            let of = KlBlock { block: &block, logp_ref: &logp_ref.as_chunks().0[index], kl };
            if E::TAKES_EXP {
                exp.fill(|i| -of.within(i));
            }
            if let Some(limit) = kl.weight_limit {
                by.fill(&block, limit);
            }
            let gradient = &mut gradient.as_chunks_mut().0[index];
            let before = &*gradient;
            match (kl.penalty.straight_through(), kl.weight_limit.is_some()) {
                (false, false) => {
                    of.added::<E, false, false>(estimate, &exp, &by, before, &mut whole.0, &mut sums)
                }
                (false, true) => {
                    of.added::<E, false, true>(estimate, &exp, &by, before, &mut whole.0, &mut sums)
                }
                (true, false) => {
                    of.added::<E, true, false>(estimate, &exp, &by, before, &mut whole.0, &mut sums)
                }
                (true, true) => {
                    of.added::<E, true, true>(estimate, &exp, &by, before, &mut whole.0, &mut sums)
                }
            }
            *gradient = whole.0;
        }
        totals(&sums)
    }
}

struct KlBlock<'a, F> {
    block: &'a Block<'a, F>,
    logp_ref: &'a Lanes<F>,
    kl: &'a Kl<F>,
}

impl<F: Real> KlBlock<'_, F> {
    #[inline(always)]
    fn log_ratio(&self, i: usize) -> F {
        self.block.kept(i, self.block.logp[i] - self.logp_ref[i])
    }

    /// The log-ratio within its limit.
    #[inline(always)]
    fn within(&self, i: usize) -> F {
        clamp(self.log_ratio(i), -self.kl.input_limit, self.kl.input_limit)
    }

    /// The gradient with the term's part, which is put away as the policy's is. Whether the gradient goes straight through
    /// to the log-ratio, and whether a ratio weighs the loss, is known to the compiler.
    #[inline(always)]
    fn added<E: Estimate<F>, const STRAIGHT: bool, const WEIGHED: bool>(
        &self,
        estimate: E,
        exp: &Exponentials<F>,
        by: &Ratio<F>,
        before: &Lanes<F>,
        whole: &mut Lanes<F>,
        sums: &mut [[f64; PARTS]; 2],
    ) {
        let (block, zero, none) = (self.block, F::of(0.0), [F::of(0.0); PARTS]);
        let (mut weighted, mut plain) = (none, none);
        for few in 0..LANES / PARTS {
            for part in 0..PARTS {
                let i = few * PARTS + part;
                let log_ratio = self.log_ratio(i);
                let within = if E::TAKES_EXP { -exp.powers[i] } else { self.within(i) };
                let (estimated, slope) = estimate.of(within, exp.values[i]);
                let mut loss = clamp(estimated, -self.kl.output_limit, self.kl.output_limit);
                // A clamp lets the gradient pass where it changes nothing, so at its edges, too.
                let passes = (within == log_ratio) & (loss == estimated);
                let mut slope = if STRAIGHT { log_ratio } else { choose(passes, slope, zero) };
                if WEIGHED {
                    let moves = choose(by.is_within(block, i), by.ratio(i), zero);
                    (loss, slope) = weighed((loss, slope), by.ratio(i), moves);
                }
                let weight = block.weights[i];
                weighted[part] = weighted[part] + block.kept(i, weight * loss);
                plain[part] = plain[part] + loss;
                whole[i] = block.kept(i, before[i] + block.scaled_weights[i] * slope);
            }
        }
        add(&mut sums[0], &weighted);
        add(&mut sums[1], &plain);
    }
}

/// A term times the ratio, by which the loss has a derivative, too.
#[inline(always)]
fn weighed<F: Real>((loss, slope): (F, F), ratio: F, ratio_slope: F) -> (F, F) {
    let of_ratio = choose(ratio_slope == F::of(0.0), F::of(0.0), loss * ratio_slope);
    (loss * ratio, slope * ratio + of_ratio)
}

/// The entropy's term, with its gradient if one is wanted.
#[derive(Debug)]
pub(super) struct EntropyTerm<'a, F> {
    /// As many as whole blocks have.
    pub(super) tokens: Tokens<'a, F>,
    pub(super) entropy: &'a [F],
    pub(super) coef: F,
    pub(super) gradient: Option<&'a mut [F]>,
}

impl<F: Real> Work for EntropyTerm<'_, F> {
    /// Of the entropies, weighted and plain.
    type Output = [f64; 2];

    #[inline(always)]
    fn run(self) -> [f64; 2] {
        let Self { tokens, entropy, coef, mut gradient } = self;
        let mut sums = [[0.0; PARTS]; 2];
        let (mut weights, mut slopes) = (BlockWeights::times(coef), Scratch([F::of(0.0); LANES]));
        for index in 0..tokens.blocks() {
            let block = tokens.block(index, &mut weights);
            let entropy: &Lanes<F> = &entropy.as_chunks().0[index];
            let (mut weighted, mut plain) = ([F::of(0.0); PARTS], [F::of(0.0); PARTS]);
            for few in 0..LANES / PARTS {
                for part in 0..PARTS {
                    let i = few * PARTS + part;
                    weighted[part] = weighted[part] + block.kept(i, block.weights[i] * entropy[i]);
                    plain[part] = plain[part] + block.kept(i, entropy[i]);
                    slopes.0[i] = block.kept(i, F::of(0.0) - block.scaled_weights[i]);
                }
            }
            add(&mut sums[0], &weighted);
            add(&mut sums[1], &plain);
            if let Some(gradient) = &mut gradient {
                gradient.as_chunks_mut().0[index] = slopes.0;
            }
        }
        totals(&sums)
    }
}

/// A block of tokens. Where the mask keeps nothing, anything may stand in the others.
struct Block<'a, F> {
    mask: &'a [u8; LANES],
    logp: &'a Lanes<F>,
    logp_old: &'a Lanes<F>,
    advantages: &'a Lanes<F>,
    weights: &'a Lanes<F>,
    scaled_weights: &'a Lanes<F>,
}

impl<F: Real> Block<'_, F> {
    /// The number if the mask keeps the token, 0 otherwise.
    #[inline(always)]
    fn kept(&self, i: usize, number: F) -> F {
        choose(self.mask[i] != 0, number, F::of(0.0))
    }

    #[inline(always)]
    fn log_ratio(&self, i: usize) -> F {
        self.kept(i, self.logp[i] - self.logp_old[i])
    }
}

/// Exponentials of a block.
#[repr(C, align(64))]
struct Exponentials<F> {
    powers: Lanes<F>,
    values: Lanes<F>,
}

impl<F: Real> Exponentials<F> {
    fn empty() -> Self {
        let none = [F::of(0.0); LANES];
        Self { powers: none, values: none }
    }

    #[inline(always)]
    fn fill(&mut self, power: impl Fn(usize) -> F) {
        F::exp_all(power, &mut self.powers, &mut self.values);
    }
}

/// What goes elsewhere later.
#[repr(align(64))]
struct Scratch<F>(Lanes<F>);

/// Importance ratios: the exponentials of the log-ratios within their limit.
struct Ratio<F>(Exponentials<F>);

impl<F: Real> Ratio<F> {
    fn empty() -> Self {
        Self(Exponentials::empty())
    }

    #[inline(always)]
    fn fill(&mut self, block: &Block<'_, F>, limit: F) {
        self.0.fill(|i| clamp(block.log_ratio(i), -limit, limit));
    }

    #[inline(always)]
    fn log(&self, i: usize) -> F {
        self.0.powers[i]
    }

    #[inline(always)]
    fn ratio(&self, i: usize) -> F {
        self.0.values[i]
    }

    #[inline(always)]
    fn is_within(&self, block: &Block<'_, F>, i: usize) -> bool {
        self.log(i) == block.log_ratio(i)
    }
}

/// Adds a block's sums, in double precision.
#[inline(always)]
fn add<F: Real>(to: &mut [f64; PARTS], sums: &[F; PARTS]) {
    for part in 0..PARTS {
        to[part] += sums[part].wide();
    }
}

#[inline(always)]
fn totals<const N: usize>(sums: &[[f64; PARTS]; N]) -> [f64; N] {
    let mut totals = [0.0; N];
    for (total, parts) in totals.iter_mut().zip(sums) {
        for part in parts {
            *total += part;
        }
    }
    totals
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

#[cfg(test)]
mod tests {
    use super::{Bounds, Estimated, K3, Kl, KlTerm, LANES, PolicyTerm};
    use crate::fused::memory::Work;
    use crate::fused::memory::tests::each_way;
    use crate::fused::sweep::{Plan, Tokens, Weights};
    use crate::options::{ActorLoss, Clip, KlPenalty, LossOptions, Objective};

    /// The clipped objective with k3 over two blocks of tokens.
    #[derive(Clone)]
    struct Both {
        logp: Vec<f32>,
        logp_old: Vec<f32>,
        advantages: Vec<f32>,
        mask: Vec<u8>,
        plan: Plan<f32>,
    }

    impl Work for Both {
        type Output = ([f64; 8], Vec<u32>);

        #[inline(always)]
        fn run(self) -> ([f64; 8], Vec<u32>) {
            let Self { logp, logp_old, advantages, mask, plan } = self;
            let weights = Weights::OfRows { of_rows: &[0.01, 0.03], width: LANES + 7 };
            let tokens = Tokens {
                logp: &logp,
                logp_old: &logp_old,
                logp_ref: None,
                advantages: &advantages,
                entropy: None,
                mask: &mask,
                weights,
                first: 0,
            };
            let mut gradient = vec![0.0; logp.len()];
            let gain = Bounds::of(&Clip::dapo());
            let policy = PolicyTerm { tokens, plan: &plan, gain, gradient: &mut gradient, losses: None };
            let [a, b, c, d, e, f] = policy.run();
            let kl = Kl {
                penalty: KlPenalty::K3,
                input_limit: f32::INFINITY,
                output_limit: 10.0,
                weight_limit: Some(20.0),
                coef: 0.04,
            };
            let term =
                KlTerm { tokens, logp_ref: &logp_old, kl: &kl, per_step: 1.0, gradient: &mut gradient };
            let [g, h] = Estimated(term, K3).run();
            ([a, b, c, d, e, f, g, h], gradient.into_iter().map(f32::to_bits).collect())
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let number = |i: usize, by: usize| (i * by % 1009) as f32 / 1009.0;
        let tokens = 0..2 * LANES;
        let terms = ActorLoss { clip: Clip::dapo(), ..ActorLoss::grpo() };
        let mut both = Both {
            logp: tokens.clone().map(|i| -3.0 * number(i, 7)).collect(),
            logp_old: tokens.clone().map(|i| -3.0 * number(i, 7) + 0.8 * number(i, 11) - 0.4).collect(),
            advantages: tokens.clone().map(|i| 2.0 * number(i, 13) - 1.0).collect(),
            mask: tokens.map(|i| u8::from(i % 5 != 0)).collect(),
            plan: Plan::of(&LossOptions { objective: Objective::Vanilla, terms }),
        };
        // Once with every power near 0, and once with some that are not.
        for far in [0.0, 95.0] {
            both.logp[LANES + 1] -= far;
            let outputs = each_way(&both);
            assert!(outputs[0].0[1] > 0.0 && outputs[0].1.iter().any(|&bits| bits != 0));
            assert!(outputs.windows(2).all(|pair| pair[0] == pair[1]), "{outputs:?}");
        }
    }
}
