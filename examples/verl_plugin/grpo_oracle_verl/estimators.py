"""The two estimators as verl calls them: `token_level_rewards`, `response_mask`, `config`, `index`; two tensors back."""

import inspect
from dataclasses import fields, replace

import torch

from . import filtering, group_ppo as endpoints
from .marks import marked


def group_ppo(token_level_rewards, response_mask, config=None, index=None, **given):
    """`algorithm.adv_estimator=group_ppo`. Wants a critic: `critic.enable=True`.

    The policy has not moved yet when verl asks for advantages, so that its log-probabilities are the old ones unless
    a caller gives others as `log_probs`.
    """
    batch = given or batch_of_caller()
    if "values" not in batch:
        raise ValueError("group_ppo needs a critic's values: set critic.enable=True")
    logp_old = batch["old_log_probs"] if "old_log_probs" in batch else torch.zeros_like(batch["values"])
    logp = given.get("log_probs", logp_old)
    parameters = GROUP.next(parameters_of(config))
    cuts = endpoints.group_ppo(
        token_level_rewards, batch["values"], logp, logp_old, response_mask, parameters)
    GROUP.threshold, GROUP.endpoints = cuts.threshold, cuts.endpoints
    sparse_below = (option(config, "group_params") or {}).get("sparse_below", 0.5)
    kept = response_mask.bool()
    share = float((cuts.advantages != 0).sum() / kept.sum().clamp(min=1))
    trained_on = cuts.endpoints.bool() if share < sparse_below else kept
    kind = token_level_rewards.dtype
    return marked(cuts.advantages.to(kind), trained_on), cuts.returns.to(kind)


class Carried:
    """GROUP-PPO's threshold goes on from batch to batch. The driver's process keeps it; checkpoints do not. The last
    batch's endpoints stay to be looked at."""

    def __init__(self):
        self.started = self.threshold = self.endpoints = None

    def next(self, parameters):
        """The parameters with the threshold that the last batch left, if they are those of the last batch."""
        if parameters != self.started:
            self.started, self.threshold = parameters, parameters.group_variance_threshold
        return replace(parameters, group_variance_threshold=self.threshold)


GROUP = Carried()


def parameters_of(config):
    """`algorithm.group_params`, and `algorithm.gamma` and `algorithm.lam`. The reward stands at the last token: only
    GAE's return tells earlier endpoints of it."""
    params = dict(option(config, "group_params") or {})
    params.pop("sparse_below", None)
    unknown = set(params) - {field.name for field in fields(endpoints.Parameters)}
    if unknown:
        raise ValueError(f"algorithm.group_params has no {', '.join(sorted(unknown))}")
    gamma, lam = option(config, "gamma", 1.0), option(config, "lam", 1.0)
    return endpoints.Parameters(**{"endpoint_return": "gae", "gamma": gamma, "lam": lam, **params})


def compute_new_adv(token_level_rewards, response_mask, config=None, index=None, **given):
    """`algorithm.adv_estimator=compute_new_adv`. A filtered response has the advantage -0.0 at every token."""
    kept = response_mask.bool()
    rewards = torch.where(kept, token_level_rewards, 0.0).double().sum(1)
    parameters = filtering.Parameters(
        keep_pos_ratio=option(config, "keep_pos_ratio", 1.0), keep_neg_ratio=option(config, "keep_neg_ratio", 1.0),
        compute_new_adv=option(config, "compute_new_adv", False))
    advantages, _, stays = filtering.filter_samples(rewards.tolist(), list(index), parameters)
    of_tokens = token_level_rewards.new_tensor(advantages)[:, None].expand_as(kept)
    trained_on = torch.tensor(stays, device=kept.device).bool()[:, None] & kept
    advantages = marked(of_tokens, trained_on)
    return advantages, advantages


def option(config, name, default=None):
    """A key of `algorithm`, which is a configuration of hydra or verl's dataclass, and may lack ours."""
    value = None if config is None else config.get(name, None)
    return default if value is None else value


def batch_of_caller():
    """The batch that verl is asking about. verl hands an estimator neither the critic's values nor log-probabilities;
    they stand in the batch of the `compute_advantage` that calls it."""
    frame = inspect.currentframe()
    while frame is not None:
        data = frame.f_locals.get("data")
        if frame.f_code.co_name == "compute_advantage" and hasattr(data, "batch"):
            return data.batch
        frame = frame.f_back
    raise ValueError("group_ppo needs `values` and `old_log_probs`: by name, or from verl's compute_advantage")
