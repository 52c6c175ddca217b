//! The loss of tokens from their log-probabilities in one pass over plain slices: value, gradient, figures.
//!
//! A block of tokens at a time, in a few loops that the compiler turns into vector instructions: what the options decide
//! is decided once for the block, and what a token decides is a choice between two numbers that are both there, never a
//! branch (so `&` where one would write `&&`). A masked token is emptied as it is read, so that nothing that stood there
//! is computed with.

use std::ops::{Add, Div, Mul, Neg, Sub};

use super::exp;
use crate::options::{Clip, KlPenalty, LossOptions, Objective};

/// How many tokens go together: enough that what a loop over them begins with costs little, and few enough that what is
/// worked out stays close; measured from 32 to 256.
const LANES: usize = 128;
/// Numbers of as many tokens.
type Lanes<F> = [F; LANES];

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
    /// The same of many at once, which is faster.
    fn exp_all(powers: &Lanes<Self>, to: &mut Lanes<Self>);
    fn sqrt(self) -> Self;
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
    fn exp_all(powers: &Lanes<Self>, to: &mut Lanes<Self>) {
        exp::exp_all(powers, to);
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
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
    fn exp_all(powers: &Lanes<Self>, to: &mut Lanes<Self>) {
        fill(to, |i| powers[i].exp());
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        self.sqrt()
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

    /// Those of the tokens from `first` on, as far as there are any.
    #[inline(always)]
    fn read(&self, first: usize, lanes: &mut Lanes<F>) {
        match *self {
            Self::OfTokens(weights) => {
                let own = &weights[first..weights.len().min(first + LANES)];
                lanes[..own.len()].copy_from_slice(own);
            }
            Self::OfRows { of_rows, width } if first / width == (first + LANES - 1) / width => {
                *lanes = [of_rows[first / width]; LANES];
            }
            Self::OfRows { of_rows, width } => {
                for (i, lane) in lanes.iter_mut().enumerate() {
                    *lane = of_rows.get((first + i) / width).copied().unwrap_or(F::of(0.0));
                }
            }
        }
    }
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
    /// With the bounds and the limit that are told.
    Clip,
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
            Objective::Vanilla => Policy::Clip,
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
    let (mut desk, mut running) = (Desk::empty(), Running::none());
    let blocks = tokens.logp.len() / LANES;
    for block in 0..blocks {
        let mut weights = [F::of(0.0); LANES];
        tokens.weights.read(block * LANES, &mut weights);
        let mut out = Out {
            gradient: &mut found.grad_logp.as_chunks_mut().0[block],
            grad_entropy: found.grad_entropy.as_mut().map(|entries| &mut entries.as_chunks_mut().0[block]),
            losses: found.losses.as_mut().map(|entries| &mut entries.as_chunks_mut().0[block]),
        };
        step(&Block::of(tokens, block, &weights), plan, &mut out, &mut desk, &mut running);
    }
    let first = blocks * LANES;
    if first < tokens.logp.len() {
        rest(tokens, first, plan, found, &mut desk, &mut running);
    }
    running.total()
}

/// The tokens behind the last whole block: a block of copies, the end of which is masked.
#[inline(always)]
fn rest<F: Real>(
    tokens: &Tokens<'_, F>,
    first: usize,
    plan: &Plan<F>,
    found: &mut Found<'_, F>,
    desk: &mut Desk<F>,
    running: &mut Running,
) {
    let zero = F::of(0.0);
    let mut weights = [zero; LANES];
    tokens.weights.read(first, &mut weights);
    let logp_ref = tokens.logp_ref.map(|numbers| padded(&numbers[first..], zero));
    let entropy = tokens.entropy.map(|numbers| padded(&numbers[first..], zero));
    let block = Block {
        mask: &padded(&tokens.mask[first..], 0),
        logp: &padded(&tokens.logp[first..], zero),
        logp_old: &padded(&tokens.logp_old[first..], zero),
        logp_ref: logp_ref.as_ref(),
        advantages: &padded(&tokens.advantages[first..], zero),
        entropy: entropy.as_ref(),
        weights: &weights,
    };
    let own = &mut found.grad_logp[first..];
    let (mut gradient, mut grad_entropy, mut losses) = (padded(own, zero), [zero; LANES], [zero; LANES]);
    let mut out = Out {
        gradient: &mut gradient,
        grad_entropy: found.grad_entropy.is_some().then_some(&mut grad_entropy),
        losses: found.losses.is_some().then_some(&mut losses),
    };
    step(&block, plan, &mut out, desk, running);
    let count = own.len();
    own.copy_from_slice(&gradient[..count]);
    if let Some(own) = &mut found.grad_entropy {
        own[first..].copy_from_slice(&grad_entropy[..count]);
    }
    if let Some(own) = &mut found.losses {
        own[first..].copy_from_slice(&losses[..count]);
    }
}

/// These, and fillers behind them.
#[inline(always)]
fn padded<T: Copy>(numbers: &[T], filler: T) -> [T; LANES] {
    let mut lanes = [filler; LANES];
    lanes[..numbers.len()].copy_from_slice(numbers);
    lanes
}

/// Some tokens. Where the mask keeps nothing, anything may stand in the others.
struct Block<'a, F> {
    mask: &'a [u8; LANES],
    logp: &'a Lanes<F>,
    logp_old: &'a Lanes<F>,
    logp_ref: Option<&'a Lanes<F>>,
    advantages: &'a Lanes<F>,
    entropy: Option<&'a Lanes<F>>,
    weights: &'a Lanes<F>,
}

impl<'a, F: Real> Block<'a, F> {
    #[inline(always)]
    fn of(tokens: &Tokens<'a, F>, block: usize, weights: &'a Lanes<F>) -> Self {
        Self {
            mask: &tokens.mask.as_chunks().0[block],
            logp: &tokens.logp.as_chunks().0[block],
            logp_old: &tokens.logp_old.as_chunks().0[block],
            logp_ref: tokens.logp_ref.map(|numbers| &numbers.as_chunks().0[block]),
            advantages: &tokens.advantages.as_chunks().0[block],
            entropy: tokens.entropy.map(|numbers| &numbers.as_chunks().0[block]),
            weights,
        }
    }

    /// The number if the mask keeps the token, 0 otherwise.
    #[inline(always)]
    fn kept(&self, i: usize, number: F) -> F {
        choose(self.mask[i] != 0, number, F::of(0.0))
    }
}

/// Where a block's entries of [`Found`] go.
struct Out<'a, F> {
    gradient: &'a mut Lanes<F>,
    grad_entropy: Option<&'a mut Lanes<F>>,
    losses: Option<&'a mut Lanes<F>>,
}

/// What is worked out for a block, in place of the last one's.
struct Desk<F> {
    /// The ratios that the figures tell of.
    told: Ratio<F>,
    /// Those of the objective or of the KL's weight, where their limit is another.
    other: Ratio<F>,
    policy: Term<F>,
    kl: Term<F>,
    /// 1 where the gain is clipped, and where the dual clip lowers it.
    clipped: Lanes<F>,
    lowered: Lanes<F>,
}

impl<F: Real> Desk<F> {
    fn empty() -> Self {
        let none = [F::of(0.0); LANES];
        Self {
            told: Ratio::empty(),
            other: Ratio::empty(),
            policy: Term::empty(),
            kl: Term::empty(),
            clipped: none,
            lowered: none,
        }
    }
}

/// What some tokens add to the sums and to the gradients.
#[inline(always)]
fn step<F: Real>(
    block: &Block<'_, F>,
    plan: &Plan<F>,
    out: &mut Out<'_, F>,
    desk: &mut Desk<F>,
    running: &mut Running,
) {
    let Desk { told, other, policy, kl, clipped, lowered } = desk;
    let (zero, one, weights) = (F::of(0.0), F::of(1.0), block.weights);
    told.fill(block, plan.told_limit);
    policy_term(block, plan, told, other, policy);
    if let Some(losses) = &mut out.losses {
        **losses = policy.loss;
    }
    // What a masked token weighs is chosen away: infinities would turn 0 into NaN.
    add(&mut running.policy, |i| block.kept(i, weights[i] * policy.loss[i]));
    // So far; of what was given, the policy's part stands there already.
    let gradient = match plan.policy {
        Policy::Given => *out.gradient,
        _ => each(|i| weights[i] * plan.per_step * policy.slope[i]),
    };
    match (&plan.kl, block.logp_ref) {
        (Some(of), Some(logp_ref)) => {
            kl_term(block, logp_ref, of, kl);
            if let Some(limit) = of.weight_limit {
                kl.weigh(told.or_in(other, block, plan.told_limit, limit));
            }
            let coef = plan.per_step * of.coef;
            fill(out.gradient, |i| block.kept(i, gradient[i] + weights[i] * coef * kl.slope[i]));
            add(&mut running.kl, |i| block.kept(i, weights[i] * kl.loss[i]));
            add(&mut running.plain_kl, |i| kl.loss[i]);
        }
        _ => fill(out.gradient, |i| block.kept(i, gradient[i])),
    }
    if let Some(entropy) = block.entropy {
        add(&mut running.entropy, |i| block.kept(i, weights[i] * entropy[i]));
        add(&mut running.plain_entropy, |i| block.kept(i, entropy[i]));
    }
    if let Some(grad_entropy) = &mut out.grad_entropy {
        let coef = plan.per_step * plan.entropy_coeff;
        fill(grad_entropy, |i| block.kept(i, zero - weights[i] * coef));
    }

    let (bounds, ratio) = (&plan.told, &told.ratio);
    for i in 0..LANES {
        let (ratio, advantage) = (ratio[i], block.kept(i, block.advantages[i]));
        clipped[i] = choose(gain_is_clipped(ratio, advantage, bounds), one, zero);
        lowered[i] = choose(is_lowered(ratio, advantage, bounds), one, zero);
    }
    add(&mut running.clipped, |i| clipped[i]);
    add(&mut running.lowered, |i| lowered[i]);
    add(&mut running.tokens, |i| block.kept(i, one));
    add(&mut running.log_ratio, |i| told.log[i]);
    add(&mut running.ratio, |i| block.kept(i, ratio[i]));
}

/// Losses of tokens and their derivatives, each by the token's own log-probability.
struct Term<F> {
    loss: Lanes<F>,
    slope: Lanes<F>,
}

impl<F: Real> Term<F> {
    fn empty() -> Self {
        Self { loss: [F::of(0.0); LANES], slope: [F::of(0.0); LANES] }
    }

    #[inline(always)]
    fn fill(&mut self, of: impl Fn(usize) -> (F, F)) {
        for i in 0..LANES {
            (self.loss[i], self.slope[i]) = of(i);
        }
    }

    /// Both times the ratio, by which the loss has a derivative, too.
    #[inline(always)]
    fn weigh(&mut self, by: &Ratio<F>) {
        for i in 0..LANES {
            let (loss, slope, zero) = (self.loss[i], self.slope[i], F::of(0.0));
            let of_ratio = choose(by.slope[i] == zero, zero, loss * by.slope[i]);
            (self.loss[i], self.slope[i]) = (loss * by.ratio[i], slope * by.ratio[i] + of_ratio);
        }
    }
}

/// The policy's term, before it is weighed.
#[inline(always)]
fn policy_term<F: Real>(
    block: &Block<'_, F>,
    plan: &Plan<F>,
    told: &Ratio<F>,
    other: &mut Ratio<F>,
    term: &mut Term<F>,
) {
    let advantage = |i| block.kept(i, block.advantages[i]);
    let logp = |i| block.kept(i, block.logp[i]);
    match plan.policy {
        Policy::Clip => term.fill(|i| clip(told.ratio[i], told.slope[i], advantage(i), &plan.told)),
        Policy::Gradient => term.fill(|i| (-(advantage(i) * logp(i)), -advantage(i))),
        Policy::Cispo { limit, low, high } => {
            let own = told.or_in(other, block, plan.told_limit, limit);
            term.fill(|i| {
                let slope = -(clamp(own.ratio[i], low, high) * advantage(i));
                (slope * logp(i), slope)
            });
        }
        Policy::Sapo { limit, tau_pos, tau_neg } => {
            let own = told.or_in(other, block, plan.told_limit, limit);
            term.fill(|i| {
                let tau = choose(advantage(i) > F::of(0.0), tau_pos, tau_neg);
                sapo(own.ratio[i], own.slope[i], advantage(i), tau)
            });
        }
        Policy::Given => term.fill(|_| (F::of(0.0), F::of(0.0))),
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
    let of_other_sign = one / (one + small);
    let (gate, closed) = (choose(x < F::of(0.0), small, one), choose(x < F::of(0.0), one, small));
    let (gate, closed) = (gate * of_other_sign, closed * of_other_sign);
    // The derivative of the gate is tau gate (1 - gate), and tau cancels. The gate is closed where the ratio overflows.
    let slope = choose(ratio < F::of(f64::INFINITY), gate * closed * slope, F::of(0.0));
    let four = F::of(4.0);
    (-(gate * (four * (one / tau)) * advantage), -(slope * four * advantage))
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

/// The KL's term, before it is weighed.
#[inline(always)]
fn kl_term<F: Real>(block: &Block<'_, F>, logp_ref: &Lanes<F>, kl: &Kl<F>, term: &mut Term<F>) {
    let (zero, one, half) = (F::of(0.0), F::of(1.0), F::of(0.5));
    let from_ref = each(|i| block.kept(i, block.logp[i] - logp_ref[i]));
    match kl.penalty {
        KlPenalty::K1 | KlPenalty::K1Plus => kl_of(&from_ref, kl, term, |_, d| (d, one)),
        KlPenalty::Abs | KlPenalty::AbsPlus => kl_of(&from_ref, kl, term, |_, d| {
            let sign = choose(d > zero, one, choose(d < zero, -one, zero));
            (choose(d < zero, -d, d), sign)
        }),
        KlPenalty::K2 | KlPenalty::K2Plus => kl_of(&from_ref, kl, term, |_, d| (d * d * half, d)),
        KlPenalty::K3 | KlPenalty::K3Plus => {
            let powers = each(|i| -clamp(from_ref[i], -kl.input_limit, kl.input_limit));
            let mut exp = [zero; LANES];
            F::exp_all(&powers, &mut exp);
            kl_of(&from_ref, kl, term, |i, d| (exp[i] + d - one, one - exp[i]));
        }
    }
    if kl.penalty.straight_through() {
        term.slope = from_ref;
    }
}

/// The term of an estimate, given with its derivative for a token and its log-ratio, of the log-ratios within their limits.
#[inline(always)]
fn kl_of<F: Real>(
    from_ref: &Lanes<F>,
    kl: &Kl<F>,
    term: &mut Term<F>,
    estimate: impl Fn(usize, F) -> (F, F),
) {
    term.fill(|i| {
        let within = clamp(from_ref[i], -kl.input_limit, kl.input_limit);
        let (loss, slope) = estimate(i, within);
        let bounded = clamp(loss, -kl.output_limit, kl.output_limit);
        // A clamp lets the gradient pass where it changes nothing, so at its edges, too.
        (bounded, choose((within == from_ref[i]) & (bounded == loss), slope, F::of(0.0)))
    });
}

/// Importance ratios.
struct Ratio<F> {
    /// The log-ratio within its limit.
    log: Lanes<F>,
    /// Its exponential.
    ratio: Lanes<F>,
    /// The derivative of that by the log-probability: itself, and 0 beyond the limit.
    slope: Lanes<F>,
}

impl<F: Real> Ratio<F> {
    fn empty() -> Self {
        let none = [F::of(0.0); LANES];
        Self { log: none, ratio: none, slope: none }
    }

    #[inline(always)]
    fn fill(&mut self, block: &Block<'_, F>, limit: F) {
        let difference = each(|i| block.kept(i, block.logp[i] - block.logp_old[i]));
        fill(&mut self.log, |i| clamp(difference[i], -limit, limit));
        F::exp_all(&self.log, &mut self.ratio);
        let (log, ratio) = (&self.log, &self.ratio);
        fill(&mut self.slope, |i| choose(log[i] == difference[i], ratio[i], F::of(0.0)));
    }

    /// These, which have one limit, or those with another, worked out in `other`.
    #[inline(always)]
    fn or_in<'a>(&'a self, other: &'a mut Self, block: &Block<'_, F>, limit: F, wanted: F) -> &'a Self {
        if limit == wanted {
            return self;
        }
        other.fill(block, wanted);
        other
    }
}

/// Sums that are being taken, several side by side each.
struct Running {
    policy: Partial,
    kl: Partial,
    entropy: Partial,
    clipped: Partial,
    lowered: Partial,
    log_ratio: Partial,
    ratio: Partial,
    plain_kl: Partial,
    plain_entropy: Partial,
    tokens: Partial,
}

/// Sums that one number is the sum of.
type Partial = [f64; PARTS];
const PARTS: usize = 16;

impl Running {
    fn none() -> Self {
        let none = [0.0; PARTS];
        Self {
            policy: none,
            kl: none,
            entropy: none,
            clipped: none,
            lowered: none,
            log_ratio: none,
            ratio: none,
            plain_kl: none,
            plain_entropy: none,
            tokens: none,
        }
    }

    fn total(&self) -> Sums {
        let all = |sums: &Partial| sums.iter().sum();
        Sums {
            policy: all(&self.policy),
            kl: all(&self.kl),
            entropy: all(&self.entropy),
            clipped: all(&self.clipped),
            lowered: all(&self.lowered),
            log_ratio: all(&self.log_ratio),
            ratio: all(&self.ratio),
            plain_kl: all(&self.plain_kl),
            plain_entropy: all(&self.plain_entropy),
            tokens: all(&self.tokens),
        }
    }
}

/// Adds a term of every token: the few that go to the same part as they are, and their sum in double precision.
#[inline(always)]
fn add<F: Real>(sums: &mut Partial, term: impl Fn(usize) -> F) {
    for (part, sum) in sums.iter_mut().enumerate() {
        let mut own = term(part);
        for next in 1..LANES / PARTS {
            own = own + term(part + next * PARTS);
        }
        *sum += own.wide();
    }
}

#[inline(always)]
fn each<F: Real>(of: impl Fn(usize) -> F) -> Lanes<F> {
    let mut lanes = [F::of(0.0); LANES];
    fill(&mut lanes, of);
    lanes
}

#[inline(always)]
fn fill<F: Real>(lanes: &mut Lanes<F>, of: impl Fn(usize) -> F) {
    for (i, lane) in lanes.iter_mut().enumerate() {
        *lane = of(i);
    }
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
