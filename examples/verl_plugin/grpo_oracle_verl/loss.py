"""The policy loss over the tokens that an estimator has marked: GROUP-PPO's endpoints, the responses that a filter
keeps."""

import torch
from verl.trainer.ppo.core_algos import get_policy_loss_fn

from .marks import trained_on


def marked_tokens(old_log_prob, log_prob, advantages, response_mask, loss_agg_mode="token-mean", config=None,
                  rollout_is_weights=None):
    """verl's own clipped loss, aggregation and metrics, as if the marked tokens alone were the response."""
    mask = response_mask.bool() & trained_on(advantages)
    # Selected first: verl's aggregation multiplies by the mask, and NaN times 0 is NaN.
    old_log_prob, log_prob, advantages = (
        torch.where(mask, x, 0.0) for x in (old_log_prob, log_prob, advantages))
    return get_policy_loss_fn("vanilla")(
        old_log_prob=old_log_prob, log_prob=log_prob, advantages=advantages, response_mask=mask,
        loss_agg_mode=loss_agg_mode, config=config, rollout_is_weights=rollout_is_weights)
