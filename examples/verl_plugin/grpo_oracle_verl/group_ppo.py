"""GROUP-PPO: a response is cut into runs of tokens, and only a run's last token, its endpoint, carries an advantage.

The rules are those of `spec/group_ppo.md`, whose clauses the comments name. PyTorch only.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Parameters:
    """`algorithm.group_params`, then what only the specification names."""

    group_variance_threshold: float = 1.0
    group_max_size: int | None = 16
    group_epsilon: float = 1e-6
    adaptive_threshold: bool = True
    threshold_lr: float = 0.01
    min_threshold: float = 0.1
    max_threshold: float = 10.0
    group_score: str = "paper"
    group_g: str = "log_ratio"
    group_gate: float = 1e-8
    group_counter: str = "group"
    group_adv: str = "one_step"
    endpoint_return: str = "segment"
    gamma: float = 1.0
    lam: float = 1.0

    def __post_init__(self):
        require("group_variance_threshold", 0 < self.group_variance_threshold < float("inf"))
        require("group_max_size", self.group_max_size is None or self.group_max_size >= 2)
        require("group_epsilon", 0 <= self.group_epsilon < float("inf"))
        require("threshold_lr", 0 <= self.threshold_lr <= 1)
        require("min_threshold", 0 < self.min_threshold < float("inf"))
        require("max_threshold", self.min_threshold <= self.max_threshold < float("inf"))
        require("group_score", self.group_score in ("paper", "gp2"))
        require("group_g", self.group_g in ("log_ratio", "ratio_minus_one"))
        require("group_gate", 0 <= self.group_gate < float("inf"))
        require("group_counter", self.group_counter in ("group", "sequence"))
        require("group_adv", self.group_adv in ("one_step", "gae"))
        require("endpoint_return", self.endpoint_return in ("segment", "prefix", "gae"))
        require("gamma", 0 <= self.gamma <= 1)
        require("lam", 0 <= self.lam <= 1)


def require(name, holds):
    if not holds:
        raise ValueError(f"{name} is outside its domain; see grpo-oracle explain advantage.group_ppo")


@dataclass
class Cuts:
    """What `group_ppo` gives. Double precision, `[B, T]` but for the threshold."""

    endpoints: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    threshold: float


def group_ppo(rewards, values, logp, logp_old, response_mask, parameters):
    """Endpoints, and their advantages and returns; all `[B, T]`. The threshold is the next batch's."""
    kept = response_mask.bool()
    # Selected, never multiplied: what stands in a masked slot may be NaN.
    rewards, values, logp, logp_old = (
        torch.where(kept, x.double(), 0.0) for x in (rewards, values, logp, logp_old))
    later = gae(rewards, values, kept, parameters.gamma, parameters.lam)
    estimates = later if parameters.group_adv == "gae" else rewards - values
    log_ratios = logp - logp_old
    sizes = torch.expm1(log_ratios) if parameters.group_g == "ratio_minus_one" else log_ratios
    endpoints, quotients = cut(estimates, sizes, kept, parameters)
    if parameters.endpoint_return == "gae":
        advantages = later
    else:
        advantages = returns_so_far(rewards, endpoints, parameters.endpoint_return) - values
    advantages = torch.where(endpoints, advantages, 0.0)
    returns = torch.where(kept, advantages + values, 0.0)
    return Cuts(endpoints.double(), advantages, returns, next_threshold(quotients, parameters))


def cut(estimates, sizes, kept, parameters):
    """The endpoints, and r_grpo / (r_ppo + eps) wherever the scores asked for one. All responses at once, token by
    token; what belongs to the open run starts anew behind each endpoint."""
    endpoints = torch.zeros_like(kept)
    quotients = []
    length = kept.sum(1)
    seen = torch.zeros_like(length)
    product = torch.ones_like(estimates[:, 0]) if kept.shape[1] else None
    in_run, sum_ag, sum_g, squares = (torch.zeros_like(length, dtype=torch.float64) for _ in range(4))
    for t in range(kept.shape[1]):
        here, a, g = kept[:, t], estimates[:, t], sizes[:, t]
        seen, in_run = seen + here, in_run + here
        sum_ag, sum_g, squares = sum_ag + a * g, sum_g + g, squares + (a * g) ** 2
        product = product * torch.where(seen == 1, g**2, 1 + g**2).where(here, torch.ones_like(g))
        if parameters.group_score == "paper":  # group-ppo.score
            ppo, grpo, same = sum_ag**2 / length, sum_g**2 * a**2 / length, in_run == 1
        else:
            ppo, grpo, same = squares / length, product * a**2 / length, seen == 1
        by_scores, quotient = closed_by_scores(ppo, grpo, same, in_run, seen, parameters)
        by_scores &= here
        quotients.append(quotient[by_scores])
        full = in_run >= (parameters.group_max_size or torch.inf)
        closes = here & (by_scores | full | (seen == length))
        endpoints[:, t] = closes
        in_run, sum_ag, sum_g, squares = (x.masked_fill(closes, 0.0) for x in (in_run, sum_ag, sum_g, squares))
    return endpoints, torch.cat(quotients) if quotients else estimates.new_zeros(0)


def closed_by_scores(ppo, grpo, same, in_run, seen, parameters):
    """group-ppo.close: r_ppo > gate and n (r_ppo + eps) >= threshold r_grpo; group-ppo.same-score: where both scores
    are one expression they are one number, so that no rounding decides."""
    threshold, eps = parameters.group_variance_threshold, parameters.group_epsilon
    n = in_run if parameters.group_counter == "group" else seen.double()
    surplus = torch.where(same, (n - threshold) * ppo, n * ppo - threshold * grpo) + n * eps
    quotient = torch.where(same, ppo, grpo) / (ppo + eps)
    return (ppo > parameters.group_gate) & (surplus >= 0), quotient


def gae(rewards, values, kept, gamma, lam):
    """Advantages by GAE, carried over masked slots, not whitened."""
    advantages = torch.zeros_like(rewards)
    next_value = next_advantage = torch.zeros_like(rewards.sum(1))
    for t in reversed(range(rewards.shape[1])):
        here = kept[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        advantages[:, t] = torch.where(here, advantage, 0.0)
        next_value = torch.where(here, values[:, t], next_value)
        next_advantage = torch.where(here, advantage, next_advantage)
    return advantages


def returns_so_far(rewards, endpoints, endpoint_return):
    """group-ppo.return: the rewards of the run up to a token, or of the response."""
    total = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards.sum(1))
    for t in range(rewards.shape[1]):
        running = running + rewards[:, t]
        total[:, t] = running
        if endpoint_return == "segment":
            running = running.masked_fill(endpoints[:, t], 0.0)
    return total


def next_threshold(quotients, parameters):
    threshold = parameters.group_variance_threshold
    if not parameters.adaptive_threshold:
        return threshold
    if len(quotients) == 0:
        return threshold
    step = parameters.threshold_lr * (float(quotients.mean()) - threshold)
    return min(max(threshold + step, parameters.min_threshold), parameters.max_threshold)
