//! GROUP-PPO: a response is cut into runs of tokens, and only a run's last token carries an advantage.

use tch::{Kind, Tensor};

use super::gae::{Front, gae, placed};
use super::{at_least_f32, of_kind, select};
use crate::Result;
use crate::axes::Axes;
use crate::options::{EndpointReturn, GroupAdv, GroupCounter, GroupPpo, GroupScore, GroupSize};

/// What [`group_ppo`] gives.
#[derive(Debug)]
pub struct GroupPpoOutput {
    /// 1 at the last token of every run, else 0; `[B, T]`.
    pub endpoints: Tensor,
    /// The endpoints' advantages, 0 elsewhere; `[B, T]`.
    pub advantages: Tensor,
    /// The advantages plus the values, 0 in masked slots; `[B, T]`.
    pub returns: Tensor,
    /// The threshold for the next batch, without axes.
    pub threshold: Tensor,
    /// What the endpoints come to.
    pub metrics: GroupMetrics,
}

/// How much a batch's endpoints leave out, each without axes.
#[derive(Debug)]
pub struct GroupMetrics {
    /// 1 - endpoints / tokens.
    pub compression_ratio: Tensor,
    /// tokens / endpoints.
    pub efficiency_gain: Tensor,
    /// max(0, compression - 0.1) / 0.9.
    pub algorithm_effectiveness: Tensor,
    /// The number of endpoints.
    pub total_endpoints: Tensor,
    /// 1 if fewer than half of the tokens are endpoints, else 0.
    pub sparse: Tensor,
}

/// Endpoints by Algorithm 2, with their advantages and returns. See [`crate::reference::group_ppo::group_ppo`].
///
/// For every token at once it is found where a run that starts there would end: as many steps over `[B, T]` as the
/// longest run may have tokens, all T of them without a `group_max_size`. The runs that do start are then those reached
/// from the first token by following the ends, in as many steps as the logarithm of T.
///
/// # Errors
/// `shape` if the shapes differ, `option` if one is outside its domain, `input` if `response_mask` is not boolean.
pub fn group_ppo(
    rewards: &Tensor,
    values: &Tensor,
    logp: &Tensor,
    logp_old: &Tensor,
    response_mask: &Tensor,
    options: &GroupPpo,
) -> Result<GroupPpoOutput> {
    options.check()?;
    Axes::default()
        .bind("rewards", &["B", "T"], &rewards.size())?
        .bind("values", &["B", "T"], &values.size())?
        .bind("logp", &["B", "T"], &logp.size())?
        .bind("logp_old", &["B", "T"], &logp_old.size())?
        .bind("response_mask", &["B", "T"], &response_mask.size())?;
    of_kind("response_mask", response_mask, Kind::Bool)?;
    let constant = |tensor: &Tensor| select(&at_least_f32(tensor).detach(), response_mask);
    let (rewards, values) = (constant(rewards), constant(values));
    let needs_gae = options.group_adv == GroupAdv::Gae || options.endpoint_return == EndpointReturn::Gae;
    let one_step = &rewards - &values;
    let gae = if needs_gae {
        gae(&rewards, &values, response_mask, &options.gae())?.advantages
    } else {
        one_step.zeros_like()
    };
    let front = Front::of(response_mask);
    let tokens = Tokens {
        reward: front.of_kept(&rewards),
        estimate: front.of_kept(match options.group_adv {
            GroupAdv::OneStep => &one_step,
            GroupAdv::Gae => &gae,
        }),
        size: front.of_kept(&size(constant(logp) - constant(logp_old), options.group_g)),
        count: response_mask.sum_dim_intlist(1, true, rewards.kind()),
    };
    let runs = Runs::from_everywhere(&tokens, options);
    let is_start = runs.starts();
    let is_endpoint = front.back(&is_start.slice(1, 1, None, 1)).logical_and(response_mask);
    let advantages = match options.endpoint_return {
        EndpointReturn::Segment => front.back(&runs.at_ends(&is_start)) - &values,
        EndpointReturn::Prefix => rewards.cumsum(1, rewards.kind()) - &values,
        EndpointReturn::Gae => gae,
    };
    let advantages = select(&advantages, &is_endpoint);
    Ok(GroupPpoOutput {
        returns: &advantages + values,
        advantages,
        threshold: runs.next_threshold(&is_start, options),
        metrics: metrics(&is_endpoint, &tokens.count),
        endpoints: is_endpoint.to_kind(rewards.kind()),
    })
}

/// g, what stands for the size of a token's policy gradient.
fn size(log_ratio: Tensor, group_g: GroupSize) -> Tensor {
    match group_g {
        GroupSize::LogRatio => log_ratio,
        GroupSize::RatioMinusOne => log_ratio.exp() - 1.0,
    }
}

/// The kept tokens at the front of their rows, `[B, T]`.
struct Tokens {
    reward: Tensor,
    /// a, the advantage as the scores see it.
    estimate: Tensor,
    /// g, what stands for the size of the policy gradient.
    size: Tensor,
    /// The number of tokens of each row, `[B, 1]`.
    count: Tensor,
}

/// For every token, what becomes of a run that starts there, `[B, T]`.
struct Runs {
    /// The place behind the run; T for what is no token.
    next: Tensor,
    /// The sum of its rewards.
    reward: Tensor,
    /// Whether the scores close it, and not only its size or the end of the response.
    is_scored: Tensor,
    /// r_grpo / (r_ppo + eps) where they do.
    quotient: Tensor,
}

impl Runs {
    fn from_everywhere(tokens: &Tokens, options: &GroupPpo) -> Self {
        let width = tokens.reward.size()[1];
        let longest = options.group_max_size.map_or(width, |size| size.min(width as u64) as i64);
        let places = Tensor::arange_start(1, width + 1, (Kind::Int64, tokens.reward.device()));
        let is_open = places.le_tensor(&tokens.count);
        let runs = Self {
            next: places.full_like(width).expand_as(&is_open).copy(),
            reward: tokens.reward.zeros_like(),
            is_scored: is_open.zeros_like(),
            quotient: tokens.reward.zeros_like(),
        };
        let mut scores = Scores::of(tokens, options.group_score);
        let reward_so_far = tokens.reward.zeros_like();
        for n in 1..=longest {
            let span = Span { n, width };
            add_in_place(&span.starts(&reward_so_far), &span.ends(&tokens.reward));
            let place = span.ends(&places);
            let (is_scored, quotient) = scores.of_spans(&span, &place, tokens, options);
            let is_full = options.group_max_size == Some(n as u64);
            let mut closes = span.starts(&is_open);
            if !is_full {
                closes = closes.logical_and(&is_scored.logical_or(&place.eq_tensor(&tokens.count)));
            }
            let keep = |found: &Tensor, here: &Tensor| {
                let found = span.starts(found);
                found.shallow_clone().copy_(&here.where_self(&closes, &found));
            };
            keep(&runs.next, &place);
            keep(&runs.reward, &span.starts(&reward_so_far));
            keep(&runs.is_scored, &is_scored);
            keep(&runs.quotient, &quotient);
            let still_open = span.starts(&is_open).logical_and(&closes.logical_not());
            span.starts(&is_open).copy_(&still_open);
        }
        runs
    }

    /// `[B, T + 1]`: whether a run starts there, the first at the row's first place and each other behind the one before.
    /// The last starts behind the last token.
    ///
    /// After k rounds the first 2^k places are right.
    fn starts(&self) -> Tensor {
        let width = self.next.size()[1];
        let mut jump = self.next.constant_pad_nd([0, 1]);
        _ = jump.narrow(1, width, 1).fill_(width);
        let mut visits = jump.zeros_like();
        _ = visits.narrow(1, 0, 1).fill_(1);
        let mut right = 1;
        while right <= width {
            visits = visits.scatter_add(1, &jump, &visits);
            jump = jump.gather(1, &jump, false);
            right *= 2;
        }
        visits.gt(0)
    }

    /// The rewards of the runs that do start, at their last tokens.
    fn at_ends(&self, is_start: &Tensor) -> Tensor {
        let width = self.next.size()[1];
        let is_run = is_start.narrow(1, 0, width);
        let place = (&self.next - 1).masked_fill(&is_run.logical_not(), width);
        placed(&self.reward, &place)
    }

    /// clip(threshold + threshold_lr (mean quotient - threshold), min, max); unchanged if no scores closed a run.
    fn next_threshold(&self, is_start: &Tensor, options: &GroupPpo) -> Tensor {
        let (threshold, kind) = (options.group_variance_threshold, self.quotient.kind());
        let is_counted = is_start.narrow(1, 0, self.next.size()[1]).logical_and(&self.is_scored);
        let count = is_counted.sum(kind);
        if !options.adaptive_threshold {
            return count.full_like(threshold);
        }
        let mean = select(&self.quotient, &is_counted).sum(kind) / count.clamp_min(1.0);
        let moved = (mean - threshold) * options.threshold_lr + threshold;
        moved.clamp(options.min_threshold, options.max_threshold).masked_fill(&count.eq(0.0), threshold)
    }
}

/// The spans of n tokens of every row.
struct Span {
    n: i64,
    width: i64,
}

impl Span {
    /// A view of the entries at the spans' first tokens.
    fn starts(&self, of_tokens: &Tensor) -> Tensor {
        of_tokens.narrow(-1, 0, self.width + 1 - self.n)
    }

    /// A view of the entries at the spans' last tokens.
    fn ends(&self, of_tokens: &Tensor) -> Tensor {
        of_tokens.narrow(-1, self.n - 1, self.width + 1 - self.n)
    }
}

/// What the scores of growing spans are made of.
struct Scores {
    /// What r_ppo adds up, and its sum so far by the span's first token.
    ppo_terms: Tensor,
    ppo_sum: Tensor,
    /// "paper": the sum of g so far by the span's first token.
    size_sum: Tensor,
    /// "gp2": the product over the response up to the span's last token.
    product: Tensor,
}

impl Scores {
    fn of(tokens: &Tokens, score: GroupScore) -> Self {
        let squares = tokens.size.square();
        let ppo_terms = match score {
            GroupScore::Paper => &tokens.estimate * &tokens.size,
            GroupScore::Gp2 => &squares * tokens.estimate.square(),
        };
        let factors = Tensor::cat(&[squares.slice(1, None, 1, 1), squares.slice(1, 1, None, 1) + 1.0], 1);
        Self {
            ppo_sum: ppo_terms.zeros_like(),
            size_sum: ppo_terms.zeros_like(),
            product: factors.cumprod(1, factors.kind()),
            ppo_terms,
        }
    }

    /// Of the spans one token longer than before: whether the scores close them, and r_grpo / (r_ppo + eps).
    fn of_spans(
        &mut self,
        span: &Span,
        place: &Tensor,
        tokens: &Tokens,
        options: &GroupPpo,
    ) -> (Tensor, Tensor) {
        let (ppo_sum, estimate) = (span.starts(&self.ppo_sum), span.ends(&tokens.estimate));
        add_in_place(&ppo_sum, &span.ends(&self.ppo_terms));
        let (ppo, mut grpo, is_same) = match options.group_score {
            GroupScore::Paper => {
                let size_sum = span.starts(&self.size_sum);
                add_in_place(&size_sum, &span.ends(&tokens.size));
                (ppo_sum.square(), (size_sum * estimate).square(), place.ge(1))
            }
            GroupScore::Gp2 => (ppo_sum, span.ends(&self.product) * estimate.square(), place.eq(1)),
        };
        let (ppo, threshold) = (ppo / &tokens.count, options.group_variance_threshold);
        grpo /= &tokens.count;
        let counted = match options.group_counter {
            GroupCounter::Group => place.full_like(span.n),
            GroupCounter::Sequence => place.shallow_clone(),
        }
        .to_kind(ppo.kind());
        let mut surplus = &ppo * &counted - &grpo * threshold;
        if span.n == 1 {
            // Where the scores are the same number, it stays one number.
            surplus = (&ppo * (&counted - threshold)).where_self(&is_same, &surplus);
            grpo = ppo.where_self(&is_same, &grpo);
        }
        let surplus = surplus + counted * options.group_epsilon;
        let closes = ppo.gt(options.group_gate).logical_and(&surplus.ge(0.0));
        (closes, grpo / (ppo + options.group_epsilon))
    }
}

fn add_in_place(to: &Tensor, added: &Tensor) {
    _ = to.shallow_clone().g_add_(added);
}

fn metrics(is_endpoint: &Tensor, counts: &Tensor) -> GroupMetrics {
    let (endpoints, tokens) = (is_endpoint.sum(counts.kind()), counts.sum(counts.kind()));
    let is_empty = tokens.eq(0.0);
    let compression = (1.0_f64 - &endpoints / tokens.clamp_min(1.0)).masked_fill(&is_empty, 0.0);
    GroupMetrics {
        efficiency_gain: (&tokens / endpoints.clamp_min(1.0)).masked_fill(&is_empty, 1.0),
        algorithm_effectiveness: (&compression - 0.1).clamp_min(0.0) / 0.9,
        compression_ratio: compression,
        sparse: (&endpoints * 2.0).lt_tensor(&tokens).to_kind(counts.kind()),
        total_endpoints: endpoints,
    }
}
