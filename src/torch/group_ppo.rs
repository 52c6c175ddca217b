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

/// The longest runs that are found from every token at once.
const LONGEST_AT_ONCE: u64 = 64;

/// Endpoints by Algorithm 2, with their advantages and returns. See [`crate::reference::group_ppo::group_ppo`].
///
/// For every token at once it is found where a run that starts there would end, in as many steps over `[B, T]` as
/// `group_max_size` says; the runs that do start are then those reached from the first token by following the ends, in
/// as many steps as the logarithm of T. Where runs may have more than 64 tokens, where they end depends on all that came
/// before, and that costs T steps over `[B]`.
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
    let one_step = &rewards - &values;
    let needs_gae = options.group_adv == GroupAdv::Gae || options.endpoint_return == EndpointReturn::Gae;
    let gae = if needs_gae {
        gae(&rewards, &values, response_mask, &options.gae())?.advantages
    } else {
        one_step.zeros_like()
    };
    let estimate = match options.group_adv {
        GroupAdv::OneStep => &one_step,
        GroupAdv::Gae => &gae,
    };
    let size = size(constant(logp) - constant(logp_old), options.group_g);
    let front = Front::of(response_mask);
    let tokens = Tokens::of(&front, response_mask, [&rewards, estimate, &size], options.group_score);
    let ends = Ends::of(&tokens, options);
    let is_endpoint = front.back(&ends.closes).logical_and(response_mask);
    let advantages = match options.endpoint_return {
        EndpointReturn::Segment => front.back(&ends.reward) - &values,
        EndpointReturn::Prefix => rewards.cumsum(1, rewards.kind()) - &values,
        EndpointReturn::Gae => gae,
    };
    let advantages = select(&advantages, &is_endpoint);
    Ok(GroupPpoOutput {
        returns: &advantages + values,
        advantages,
        threshold: ends.next_threshold(options),
        metrics: metrics(&is_endpoint, response_mask, rewards.kind()),
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
    /// What r_ppo adds up.
    ppo_term: Tensor,
    /// The product of "gp2", over the response up to the token.
    product: Tensor,
    /// The token's number, from 1; `[T]`.
    place: Tensor,
    /// The number of tokens of each row; `[B, 1]`.
    count: Tensor,
}

impl Tokens {
    fn of(front: &Front, mask: &Tensor, [reward, estimate, size]: [&Tensor; 3], score: GroupScore) -> Self {
        let (estimate, size) = (front.of_kept(estimate), front.of_kept(size));
        let squares = size.square();
        let factors = Tensor::cat(&[squares.slice(1, None, 1, 1), squares.slice(1, 1, None, 1) + 1.0], 1);
        Self {
            reward: front.of_kept(reward),
            ppo_term: match score {
                GroupScore::Paper => &estimate * &size,
                GroupScore::Gp2 => squares * estimate.square(),
            },
            product: factors.cumprod(1, factors.kind()),
            place: Tensor::arange_start(1, mask.size()[1] + 1, (Kind::Int64, mask.device())),
            count: mask.sum_dim_intlist(1, true, Kind::Int64),
            estimate,
            size,
        }
    }

    fn rows(&self) -> i64 {
        self.count.size()[0]
    }

    fn width(&self) -> i64 {
        self.place.size()[0]
    }

    /// Some of the tokens, side by side.
    fn part(&self, start: i64, length: i64) -> Self {
        let part = |of_tokens: &Tensor| of_tokens.narrow(-1, start, length);
        Self {
            reward: part(&self.reward),
            estimate: part(&self.estimate),
            size: part(&self.size),
            ppo_term: part(&self.ppo_term),
            product: part(&self.product),
            place: part(&self.place),
            count: self.count.shallow_clone(),
        }
    }
}

/// The sums over open runs, one at each of some places of every row.
struct OpenRuns {
    reward: Tensor,
    size: Tensor,
    ppo: Tensor,
    /// How many tokens they have; one number where that is the same.
    length: Tensor,
}

impl OpenRuns {
    fn empty(rows: i64, runs: i64, lengths: i64, like: &Tensor) -> Self {
        let zeros = |shape: [i64; 2]| like.new_zeros(shape, (like.kind(), like.device()));
        let sums = || zeros([rows, runs]);
        Self { reward: sums(), size: sums(), ppo: sums(), length: zeros([lengths, 1]) }
    }

    /// Views of the first of them, which have one length.
    fn first(&self, count: i64) -> Self {
        let first = |sums: &Tensor| sums.narrow(1, 0, count);
        Self {
            reward: first(&self.reward),
            size: first(&self.size),
            ppo: first(&self.ppo),
            length: self.length.shallow_clone(),
        }
    }

    /// Each run has one more token.
    fn add(&mut self, tokens: &Tokens) {
        self.reward += &tokens.reward;
        self.size += &tokens.size;
        self.ppo += &tokens.ppo_term;
        self.length += 1.0;
    }

    /// Those that are closed start anew.
    fn restart(&mut self, closes: &Tensor) {
        for sums in [&mut self.reward, &mut self.size, &mut self.ppo, &mut self.length] {
            _ = sums.masked_fill_(closes, 0.0);
        }
    }

    /// What becomes of the runs at these, their last tokens so far.
    fn ends(&self, last: &Tokens, options: &GroupPpo) -> Ends {
        let kind = self.ppo.kind();
        let (ppo, grpo) = match options.group_score {
            GroupScore::Paper => (self.ppo.square(), (&self.size * &last.estimate).square()),
            GroupScore::Gp2 => (self.ppo.shallow_clone(), &last.product * last.estimate.square()),
        };
        let (ppo, grpo) = (ppo / &last.count, grpo / &last.count);
        let is_same = match options.group_score {
            GroupScore::Paper => self.length.eq(1.0),
            GroupScore::Gp2 => last.place.eq(1),
        };
        let n = match options.group_counter {
            GroupCounter::Group => self.length.shallow_clone(),
            GroupCounter::Sequence => last.place.to_kind(kind),
        };
        let threshold = options.group_variance_threshold;
        // Where the scores are the same number, it stays one number.
        let of_one = (n.to_kind(Kind::Double) - threshold).to_kind(kind) * &ppo;
        let of_two = &ppo * &n - &grpo * threshold;
        let surplus = of_one.where_self(&is_same, &of_two) + n * options.group_epsilon;
        let is_scored = ppo.gt(options.group_gate).logical_and(&surplus.ge(0.0));
        let quotient = ppo.where_self(&is_same, &grpo) / (ppo + options.group_epsilon);

        let is_last = last.place.eq_tensor(&last.count);
        let mut closes = is_scored.logical_or(&is_last);
        if let Some(size) = options.group_max_size {
            closes = closes.logical_or(&self.length.eq(size as f64));
        }
        Ends { closes, reward: self.reward.copy(), is_scored, quotient }
    }
}

/// What becomes of the open run at each token. The rest counts where it is closed; behind the last token nothing does.
struct Ends {
    closes: Tensor,
    /// The sum of the run's rewards.
    reward: Tensor,
    /// Whether the scores close it, and not only its size or the end of the response.
    is_scored: Tensor,
    /// r_grpo / (r_ppo + eps).
    quotient: Tensor,
}

impl Ends {
    fn of(tokens: &Tokens, options: &GroupPpo) -> Self {
        match options.group_max_size {
            Some(longest) if longest <= LONGEST_AT_ONCE => Self::at_once(tokens, longest as i64, options),
            _ if tokens.width() == 0 => Self::at_once(tokens, 0, options),
            _ => Self::one_by_one(tokens, options),
        }
    }

    fn one_by_one(tokens: &Tokens, options: &GroupPpo) -> Self {
        let mut open = OpenRuns::empty(tokens.rows(), 1, tokens.rows(), &tokens.reward);
        let ends: Vec<Self> = (0..tokens.width())
            .map(|t| {
                let last = tokens.part(t, 1);
                open.add(&last);
                let ends = open.ends(&last, options);
                open.restart(&ends.closes);
                ends
            })
            .collect();
        let joined = |of: fn(&Self) -> &Tensor| Tensor::cat(&ends.iter().map(of).collect::<Vec<_>>(), 1);
        Self {
            closes: joined(|ends| &ends.closes),
            reward: joined(|ends| &ends.reward),
            is_scored: joined(|ends| &ends.is_scored),
            quotient: joined(|ends| &ends.quotient),
        }
    }

    fn at_once(tokens: &Tokens, longest: i64, options: &GroupPpo) -> Self {
        let width = tokens.width();
        let open = OpenRuns::empty(tokens.rows(), width, 1, &tokens.reward);
        // By a run's first token.
        let still_open = tokens.place.le_tensor(&tokens.count);
        let next = tokens.place.full_like(width).expand_as(&still_open).copy();
        let found = Self {
            closes: still_open.zeros_like(),
            reward: tokens.reward.zeros_like(),
            is_scored: still_open.zeros_like(),
            quotient: tokens.reward.zeros_like(),
        };
        for n in 1..=longest.min(width) {
            let starts = width + 1 - n;
            let last = tokens.part(n - 1, starts);
            let mut open = open.first(starts);
            open.add(&last);
            let ends = open.ends(&last, options);
            let mut still_open = still_open.narrow(1, 0, starts);
            let closes = ends.closes.logical_and(&still_open);
            for (found, new) in [
                (&next, &last.place),
                (&found.reward, &ends.reward),
                (&found.is_scored, &ends.is_scored),
                (&found.quotient, &ends.quotient),
            ] {
                let mut found = found.narrow(1, 0, starts);
                let both = new.where_self(&closes, &found);
                found.copy_(&both);
            }
            _ = still_open.logical_and_(&closes.logical_not());
        }
        found.at_ends(&next)
    }

    /// What was found by the runs' first tokens, `next` the place behind the run, by their last.
    fn at_ends(&self, next: &Tensor) -> Self {
        let width = next.size()[1];
        let is_start = starts(next);
        let place = (next - 1).masked_fill(&is_start.narrow(1, 0, width).logical_not(), width);
        Self {
            closes: is_start.narrow(1, 1, width),
            reward: placed(&self.reward, &place),
            is_scored: placed(&self.is_scored, &place),
            quotient: placed(&self.quotient, &place),
        }
    }

    /// clip(threshold + threshold_lr (mean quotient - threshold), min, max); unchanged if no scores closed a run.
    fn next_threshold(&self, options: &GroupPpo) -> Tensor {
        let (threshold, kind) = (options.group_variance_threshold, self.quotient.kind());
        let count = self.is_scored.sum(kind);
        if !options.adaptive_threshold {
            return count.full_like(threshold);
        }
        let mean = select(&self.quotient, &self.is_scored).sum(kind) / count.clamp_min(1.0);
        let moved = (mean - threshold) * options.threshold_lr + threshold;
        moved.clamp(options.min_threshold, options.max_threshold).masked_fill(&count.eq(0.0), threshold)
    }
}

/// `[B, T + 1]`: whether a run starts there, the first at the row's first place and every other behind the one before.
///
/// After k rounds the first 2^k places are right.
fn starts(next: &Tensor) -> Tensor {
    let width = next.size()[1];
    let mut jump = next.constant_pad_nd([0, 1]);
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

fn metrics(is_endpoint: &Tensor, response_mask: &Tensor, kind: Kind) -> GroupMetrics {
    let (endpoints, tokens) = (is_endpoint.sum(kind), response_mask.sum(kind));
    let is_empty = tokens.eq(0.0);
    let compression = (1.0_f64 - &endpoints / tokens.clamp_min(1.0)).masked_fill(&is_empty, 0.0);
    GroupMetrics {
        efficiency_gain: (&tokens / endpoints.clamp_min(1.0)).masked_fill(&is_empty, 1.0),
        algorithm_effectiveness: (&compression - 0.1).clamp_min(0.0) / 0.9,
        compression_ratio: compression,
        sparse: (&endpoints * 2.0).lt_tensor(&tokens).to_kind(kind),
        total_endpoints: endpoints,
    }
}
