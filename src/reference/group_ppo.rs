//! GROUP-PPO: a response is cut into runs of tokens, and only a run's last token carries an advantage.

use ndarray::{Array2, ArrayRef2};

use super::Real;
use super::gae::gae;
use super::mask::mean_of;
use crate::Result;
use crate::axes::Axes;
use crate::options::{EmptyMean, EndpointReturn, GroupAdv, GroupCounter, GroupPpo, GroupScore, GroupSize};

/// What [`group_ppo`] gives.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupPpoOutput<R> {
    /// 1 at the last token of every run, else 0; `[B, T]`.
    pub endpoints: Array2<R>,
    /// The endpoints' advantages, 0 elsewhere; `[B, T]`.
    pub advantages: Array2<R>,
    /// The advantages plus the values, 0 in masked slots; `[B, T]`.
    pub returns: Array2<R>,
    /// The threshold for the next batch.
    pub threshold: R,
    /// What the endpoints come to.
    pub metrics: GroupMetrics<R>,
}

/// How much a batch's endpoints leave out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupMetrics<R> {
    /// 1 - endpoints / tokens.
    pub compression_ratio: R,
    /// tokens / endpoints.
    pub efficiency_gain: R,
    /// max(0, compression - 0.1) / 0.9.
    pub algorithm_effectiveness: R,
    /// The number of endpoints.
    pub total_endpoints: R,
    /// 1 if fewer than half of the tokens are endpoints, else 0.
    pub sparse: R,
}

/// Endpoints by Algorithm 2, with their advantages and returns.
///
/// ```text
/// r_ppo  = (sum over the open run of a_n g_n)^2 / N
/// r_grpo = (sum over the open run of g_n)^2 a_t^2 / N
/// close the run at its n-th token t if   r_ppo > gate  and  n (r_ppo + eps) >= threshold r_grpo,
///                                   or   n = group_max_size,  or  t is the response's last token
/// A_t    = (sum over the run of rewards) - V_t   at a run's last token, 0 elsewhere
/// ```
///
/// Clauses `group-ppo.close` and below, `mask.select`. `001_group_ppo.md`, which names the parameters and no rule for
/// most of them; the rules are this specification's own.
///
/// * `rewards`: `[B, T]`, one a token; constants, no gradient flows to any input
/// * `values`: `[B, T]`, the critic's
/// * `logp`, `logp_old`: `[B, T]`, nats; equal ones make every score 0
/// * `response_mask`: `[B, T]`, true keeps
///
/// Masked slots get 0 and are passed over: a run goes on behind them. A response without a kept token has no endpoint.
/// Without any kept token nothing is compressed: ratio 0, gain 1.
///
/// # Errors
/// `shape` if the shapes differ, `option` if one is outside its domain.
///
/// # Example
/// ```
/// use grpo_oracle::{options::GroupPpo, reference::group_ppo};
/// use ndarray::array;
/// let (rewards, values) = (array![[0.0, 0.0, 0.0, 1.0]], array![[0.5, 0.5, 0.5, 0.5]]);
/// let logp = array![[-1.0, -2.0, -1.0, -3.0]]; // on policy, so that no score closes a run
/// let options = GroupPpo { group_max_size: Some(2), ..GroupPpo::algorithm2() };
/// let mask = array![[true, true, true, true]];
/// let output = group_ppo::group_ppo(&rewards, &values, &logp, &logp, &mask, &options)?;
/// assert_eq!(output.endpoints, array![[0.0, 1.0, 0.0, 1.0]]);
/// assert_eq!(output.advantages, array![[0.0, -0.5, 0.0, 0.5]]);
/// assert_eq!(output.metrics.efficiency_gain, 2.0);
/// # Ok::<(), grpo_oracle::Error>(())
/// ```
pub fn group_ppo<R: Real>(
    rewards: &ArrayRef2<R>,
    values: &ArrayRef2<R>,
    logp: &ArrayRef2<R>,
    logp_old: &ArrayRef2<R>,
    response_mask: &ArrayRef2<bool>,
    options: &GroupPpo,
) -> Result<GroupPpoOutput<R>> {
    options.check()?;
    Axes::default()
        .bind("rewards", &["B", "T"], rewards.shape())?
        .bind("values", &["B", "T"], values.shape())?
        .bind("logp", &["B", "T"], logp.shape())?
        .bind("logp_old", &["B", "T"], logp_old.shape())?
        .bind("response_mask", &["B", "T"], response_mask.shape())?;
    let gae = gae(rewards, values, response_mask, &options.gae())?.advantages;
    let zero = Array2::from_elem(rewards.raw_dim(), R::constant(0.0));
    let (mut endpoints, mut advantages, mut returns) = (zero.clone(), zero.clone(), zero);
    let mut cuts = Vec::new();
    let token = |at: [usize; 2]| Token {
        at,
        reward: rewards[at],
        estimate: match options.group_adv {
            GroupAdv::OneStep => rewards[at] - values[at],
            GroupAdv::Gae => gae[at],
        },
        size: size(logp[at] - logp_old[at], options.group_g),
    };
    for (row, mask) in response_mask.rows().into_iter().enumerate() {
        let tokens: Vec<Token<R>> = (0..mask.len()).filter(|&t| mask[t]).map(|t| token([row, t])).collect();
        for (last, cut) in cuts_of(&tokens, options).into_iter().enumerate() {
            let at = tokens[last].at;
            let advantage = match options.endpoint_return {
                _ if !cut.closes => R::constant(0.0),
                EndpointReturn::Segment => rewards_of(&tokens[cut.start..=last]) - values[at],
                EndpointReturn::Prefix => rewards_of(&tokens[..=last]) - values[at],
                EndpointReturn::Gae => gae[at],
            };
            endpoints[at] = decided(R::constant(f64::from(u8::from(cut.closes))), cut.decisions);
            advantages[at] = decided(advantage, cut.decisions);
            returns[at] = advantages[at] + values[at];
            cuts.push(cut);
        }
    }
    let (threshold, metrics) = (next_threshold(&cuts, options), metrics(&cuts));
    Ok(GroupPpoOutput { endpoints, advantages, returns, threshold, metrics })
}

/// A kept token.
struct Token<R> {
    at: [usize; 2],
    reward: R,
    /// a, its advantage as the scores see it.
    estimate: R,
    /// g, what stands for the size of its policy gradient.
    size: R,
}

fn size<R: Real>(log_ratio: R, group_g: GroupSize) -> R {
    match group_g {
        GroupSize::LogRatio => log_ratio,
        GroupSize::RatioMinusOne => log_ratio.exp() - R::constant(1.0),
    }
}

/// What becomes of the open run at a token.
#[derive(Clone, Copy)]
struct Cut<R> {
    /// The run's first token.
    start: usize,
    closes: bool,
    /// r_grpo / (r_ppo + eps), if the scores ask for the run to be closed.
    quotient: Option<R>,
    /// 1, remembering every comparison that led to this cut.
    decisions: R,
    /// 1, remembering the comparison of the scores, which counts for the quotient even where the run closes anyway.
    of_scores: R,
}

/// The response cut into runs, token by token.
fn cuts_of<R: Real>(tokens: &[Token<R>], options: &GroupPpo) -> Vec<Cut<R>> {
    let (mut start, mut decisions) = (0, R::constant(1.0));
    let mut cuts = Vec::new();
    for end in 0..tokens.len() {
        let (quotient, of_scores) = closed_by_scores(tokens, start, end, options);
        let length = end + 1 - start;
        let is_full = options.group_max_size.is_some_and(|size| length as u64 >= size);
        let must_close = is_full || end + 1 == tokens.len();
        if !must_close {
            decisions = decided(decisions, of_scores);
        }
        let closes = must_close || quotient.is_some();
        cuts.push(Cut { start, closes, quotient, decisions, of_scores: decided(of_scores, decisions) });
        if closes {
            start = end + 1;
        }
    }
    cuts
}

/// The quotient of the scores where they close the run from `start` to `end`, and 1, remembering the comparison.
fn closed_by_scores<R: Real>(
    tokens: &[Token<R>],
    start: usize,
    end: usize,
    options: &GroupPpo,
) -> (Option<R>, R) {
    let (zero, eps) = (R::constant(0.0), R::constant(options.group_epsilon));
    let (gate, threshold) = (R::constant(options.group_gate), options.group_variance_threshold);
    let counted_from = match options.group_counter {
        GroupCounter::Group => start,
        GroupCounter::Sequence => 0,
    };
    let n = (end + 1 - counted_from) as f64;
    let (ppo, grpo) = scores(tokens, start, end, options.group_score);
    let not_above = ppo.value() <= gate.value();
    let decision = R::constant(1.0).chosen_by(gate, ppo);
    if not_above {
        return (None, decision);
    }
    // n (r_ppo + eps) - threshold r_grpo; where the scores are the same number, it stays one number.
    let surplus = match grpo {
        None => R::constant(n - threshold) * ppo,
        Some(grpo) => R::constant(n) * ppo - R::constant(threshold) * grpo,
    } + R::constant(n) * eps;
    let quotient = grpo.unwrap_or(ppo) / (ppo + eps);
    ((surplus.value() >= 0.0).then_some(quotient), decision.chosen_by(surplus, zero))
}

/// r_ppo and r_grpo of the run from `start` to `end`; the second is `None` where it is the first.
fn scores<R: Real>(tokens: &[Token<R>], start: usize, end: usize, score: GroupScore) -> (R, Option<R>) {
    let (run, length, estimate) =
        (&tokens[start..=end], R::constant(tokens.len() as f64), tokens[end].estimate);
    let square = |x: R| x * x;
    match score {
        GroupScore::Paper => {
            let ppo = square(sum_of(run, |token| token.estimate * token.size)) / length;
            let grpo = || square(sum_of(run, |token| token.size) * estimate) / length;
            (ppo, (run.len() > 1).then(grpo))
        }
        GroupScore::Gp2 => {
            let ppo = sum_of(run, |token| square(token.size) * square(token.estimate)) / length;
            let growth = |c: R, token: &Token<R>| c * (R::constant(1.0) + square(token.size));
            let grpo =
                || tokens[1..=end].iter().fold(square(tokens[0].size), growth) * square(estimate) / length;
            (ppo, (end > 0).then(grpo))
        }
    }
}

fn rewards_of<R: Real>(tokens: &[Token<R>]) -> R {
    sum_of(tokens, |token| token.reward)
}

fn sum_of<R: Real>(tokens: &[Token<R>], of: impl Fn(&Token<R>) -> R) -> R {
    R::sum(tokens.iter().map(of))
}

/// The value, remembering what another exact number remembers.
fn decided<R: Real>(value: R, decisions: R) -> R {
    value.chosen_by(decisions, decisions)
}

/// clip(threshold + threshold_lr (mean quotient - threshold), min, max); unchanged if no scores closed a run.
fn next_threshold<R: Real>(cuts: &[Cut<R>], options: &GroupPpo) -> R {
    let threshold = R::constant(options.group_variance_threshold);
    if !options.adaptive_threshold {
        return threshold;
    }
    let quotients: Vec<R> = cuts.iter().filter_map(|cut| cut.quotient).collect();
    let next = if quotients.is_empty() {
        threshold
    } else {
        let step = R::constant(options.threshold_lr) * (mean_of(quotients, EmptyMean::Zero) - threshold);
        (threshold + step).clamp(R::constant(options.min_threshold), R::constant(options.max_threshold))
    };
    cuts.iter().fold(next, |next, cut| decided(next, cut.of_scores))
}

fn metrics<R: Real>(cuts: &[Cut<R>]) -> GroupMetrics<R> {
    let (zero, one) = (R::constant(0.0), R::constant(1.0));
    let count = cuts.iter().filter(|cut| cut.closes).count();
    let is_sparse = 2 * count < cuts.len();
    let decisions = cuts.iter().fold(one, |decisions, cut| decided(decisions, cut.decisions));
    let endpoints = decided(R::constant(count as f64), decisions);
    let tokens = R::constant(cuts.len() as f64);
    let compression = if cuts.is_empty() { zero } else { one - endpoints / tokens };
    let effectiveness = (compression - R::constant(0.1)).max(zero) / R::constant(0.9);
    GroupMetrics {
        compression_ratio: compression,
        efficiency_gain: if cuts.is_empty() { one } else { tokens / endpoints },
        algorithm_effectiveness: decided(effectiveness, decisions),
        total_endpoints: endpoints,
        sparse: decided(if is_sparse { one } else { zero }, decisions),
    }
}
