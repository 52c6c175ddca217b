//! The objectives that look at whole sequences, row by row over plain slices: GSPO and GMPO. They leave the policy's
//! part of the gradient where [`sweep`](super::sweep) goes on from it.

use super::sweep::{Real, Tokens};
use super::terms::{Bounds, choose, clip, gain_is_clipped};
use crate::options::{Gmpo, Gspo, ImportanceLevel};

/// What a pass over the rows writes, an entry a token; 0 where the mask keeps nothing.
#[derive(Debug)]
pub(super) struct Rows<'a, F> {
    /// Of the weighted policy loss by `logp`, over the accumulation steps.
    pub(super) grad_logp: &'a mut [F],
    /// The tokens' losses (GMPO: the row's at each of its tokens), for whoever wants to see them.
    pub(super) losses: Option<&'a mut [F]>,
}

/// What GSPO finds out beside its gradient.
#[derive(Debug, Default)]
pub(super) struct GspoSums<F> {
    /// The weighted loss.
    pub(super) policy: f64,
    /// The ratio of every sequence.
    pub(super) ratios: Vec<F>,
    /// How many tokens' gains were clipped.
    pub(super) clipped: usize,
}

/// GSPO over rows of `width` tokens.
#[inline(always)]
pub(super) fn gspo<F: Real>(
    tokens: &Tokens<'_, F>,
    width: usize,
    options: &Gspo,
    steps: f64,
    out: &mut Rows<'_, F>,
) -> GspoSums<F> {
    let bounds = Bounds::of(&options.clip());
    let level = options.importance_sampling_level;
    let mut sums = GspoSums { policy: 0.0, ratios: Vec::new(), clipped: 0 };
    for first in rows(tokens.logp.len(), width) {
        let own = first..first + width;
        let (mask, advantages) = (&tokens.mask[own.clone()], &tokens.advantages[own.clone()]);
        let difference = |t: usize| tokens.logp[first + t] - tokens.logp_old[first + t];
        let (sum, count) = kept_sum(mask, |t| difference(t).wide());
        let mean_over = if level == ImportanceLevel::SequenceSum { 1.0 } else { count.max(1.0) };
        let log_ratio = F::of(sum / mean_over);
        let max = F::of(options.log_ratio_max.unwrap_or(f64::INFINITY));
        let passes = log_ratio <= max;
        let ratio = choose(passes, log_ratio, max).exp();

        let mut of_row = 0.0;
        for t in 0..width {
            let keep = mask[t] != 0;
            let advantage = choose(keep, advantages[t], F::of(0.0));
            let (gain, slope) = clip(ratio, passes, advantage, &bounds);
            let (loss, slope) = (choose(keep, -gain, F::of(0.0)), choose(keep, -slope, F::of(0.0)));
            let weight = choose(keep, tokens.weights.of(first + t), F::of(0.0));
            sums.policy += choose(keep, weight.wide() * loss.wide(), 0.0);
            sums.clipped += usize::from(gain_is_clipped(ratio, advantage, &bounds));
            let gradient = choose(keep, weight.wide() * slope.wide() / steps, 0.0);
            of_row += gradient;
            out.grad_logp[first + t] = F::of(gradient);
            if let Some(losses) = &mut out.losses {
                losses[first + t] = loss;
            }
        }
        if level != ImportanceLevel::SequenceToken {
            let of_every_token = F::of(of_row / mean_over);
            for (gradient, &keep) in out.grad_logp[own].iter_mut().zip(mask) {
                *gradient = choose(keep != 0, of_every_token, F::of(0.0));
            }
        }
        sums.ratios.push(ratio);
    }
    sums
}

/// GMPO over rows of `width` tokens, each with its advantage; their one loss has a weight, and the gradient is
/// taken over some accumulation steps.
#[inline(always)]
pub(super) fn gmpo<F: Real>(
    tokens: &Tokens<'_, F>,
    width: usize,
    of_rows: &[F],
    [weight, steps]: [f64; 2],
    options: &Gmpo,
    out: &mut Rows<'_, F>,
) -> GmpoSums<F> {
    let zero = F::of(0.0);
    let (high, low) = (F::of(options.clip_ratio_high), F::of(-options.clip_ratio_low));
    let mut sums = GmpoSums { policy: 0.0, losses: Vec::new() };
    for (first, &advantage) in rows(tokens.logp.len(), width).zip(of_rows) {
        let own = first..first + width;
        let mask = &tokens.mask[own.clone()];
        let advantage = choose(mask.iter().any(|&keep| keep != 0), advantage, zero);
        let is_bound =
            |difference: F| (advantage > zero && difference > high) || (advantage < zero && difference < low);
        let bound = choose(advantage > zero, high, low);
        let difference = |t: usize| tokens.logp[first + t] - tokens.logp_old[first + t];
        let one_sided = |t: usize| choose(is_bound(difference(t)), bound, difference(t));
        let (sum, count) = kept_sum(mask, |t| one_sided(t).wide());
        // Without an advantage no log-ratio counts, not even one that overflows.
        let mean = F::of(if advantage.wide() == 0.0 { 0.0 } else { sum / count.max(1.0) });
        let loss = -(advantage * mean.exp());
        sums.losses.push(loss);
        sums.policy += choose(count > 0.0, weight * loss.wide(), 0.0);
        let slope = F::of(weight * loss.wide() / count.max(1.0) / steps);
        let is_flat = advantage.wide() == 0.0;
        for (t, &keep) in mask.iter().enumerate() {
            let moves = keep != 0 && !is_flat && !is_bound(difference(t));
            out.grad_logp[first + t] = choose(moves, slope, zero);
        }
    }
    sums
}

/// What GMPO finds out beside its gradient.
#[derive(Debug, Default)]
pub(super) struct GmpoSums<F> {
    /// The weighted loss.
    pub(super) policy: f64,
    /// The loss of every sequence.
    pub(super) losses: Vec<F>,
}

/// Where the rows begin.
fn rows(count: usize, width: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by(width.max(1))
}

/// The sum of some number of each kept token, and how many are kept.
#[inline(always)]
pub(super) fn kept_sum(mask: &[u8], number: impl Fn(usize) -> f64) -> (f64, f64) {
    let (mut sums, mut counts) = ([0.0; 4], [0.0; 4]);
    let whole = mask.len() - mask.len() % 4;
    for first in (0..whole).step_by(4) {
        for i in 0..4 {
            let keep = mask[first + i] != 0;
            sums[i] += choose(keep, number(first + i), 0.0);
            counts[i] += choose(keep, 1.0, 0.0);
        }
    }
    for (t, &keep) in mask.iter().enumerate().skip(whole) {
        sums[0] += choose(keep != 0, number(t), 0.0);
        counts[0] += choose(keep != 0, 1.0, 0.0);
    }
    (sums.iter().sum(), counts.iter().sum())
}
