"""OpenRLHF 0.11.2 as an adapter: its losses, its KL, and its experience maker's advantages. No GPU is needed.

    python3 -m venv /tmp/openrlhf && /tmp/openrlhf/bin/pip install torch==2.11.0
    /tmp/openrlhf/bin/pip install --no-deps -r examples/adapters/requirements-openrlhf.txt
    grpo-oracle verify --adapter "/tmp/openrlhf/bin/python examples/adapters/openrlhf_adapter.py"

What is read only under a mask is judged only there: masked slots of outputs are set to 0. A bound that OpenRLHF always
has counts as any other on a question on which neither bites. Losses by token are what it hands to `aggregate_loss`; the
tokens' rewards are handed to its experience maker as a KL of coefficient 1.
"""

import os
import sys
from importlib.metadata import version
from types import SimpleNamespace

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled functions run as they are written

import torch
import torch_arrays
from adapter import Unsupported, formula
from stand_ins import load
from torch_arrays import bound

losses, utils = load("openrlhf.models.loss"), load("openrlhf.models.utils")
making = load("openrlhf.trainer.ppo_utils.experience_maker")
length_penalty = load("openrlhf.trainer.ppo_utils.length_penalty")
controllers = load("openrlhf.trainer.ppo_utils.kl_controller")
Maker = next(one for one in vars(making).values() if isinstance(one, type) and hasattr(one, "compute_advantages_and_returns"))
making.apply_length_penalties = lambda experiences, args: None
sys.modules["flash_attn.ops.triton.cross_entropy"] = None  # not installed: its own way without it
WHITENED = {"whiten": True, "whiten_ddof": 0, "whiten_eps": 1e-8, "whiten_eps_mode": "clamp"}


def kept(values, mask):
    return torch.where(mask.bool(), values, 0.0)


# Masks


@formula("mask.mean")
def mask_mean(values, mask, *, axis=None, empty="nan"):
    count = mask.sum() if axis is None else mask.sum(axis)
    if empty == "zero" and bool((count == 0).any()):
        raise Unsupported("the mean of nothing is always NaN here")
    return {"mean": utils.masked_mean(values, mask, dim=axis)}


@formula("mask.whiten", only={"ddof": 0, "eps_mode": "clamp", "shift_mean": True})
def mask_whiten(values, mask, *, eps=1e-8):
    flat = utils.masked_normalize(values.reshape(1, -1), mask.reshape(1, -1), eps=eps)  # row by row there
    return {"whitened": flat.reshape(values.shape)}


# Advantages


def estimate(estimator, rewards, mask, n=1, gamma=1.0, lam=1.0, tokens=None, values=None):
    """`compute_advantages_and_returns` of an experience maker that has nothing else."""
    advantage = SimpleNamespace(estimator=estimator, gamma=gamma, lambd=lam, no_std_norm=False)
    args = SimpleNamespace(rollout=SimpleNamespace(n_samples_per_prompt=n), reward=SimpleNamespace(clip_range=None),
                           algo=SimpleNamespace(advantage=advantage))
    kl = torch.zeros(mask.shape, dtype=rewards.dtype) if tokens is None else -tokens
    experience = SimpleNamespace(index=list(range(len(rewards))), rewards=rewards, kl=kl, values=values,
                                 action_mask=mask, info={})
    itself = SimpleNamespace(strategy=SimpleNamespace(args=args), advantage_estimator=estimator,
                             kl_ctl=SimpleNamespace(value=0.0 if tokens is None else 1.0))
    itself.get_advantages_and_returns = Maker.get_advantages_and_returns.__get__(itself)
    itself.get_cumulative_returns = Maker.get_cumulative_returns.__get__(itself)
    Maker.compute_advantages_and_returns(itself, [experience])
    return {"advantages": kept(experience.advantages, mask), "returns": kept(experience.returns, mask)}


def of_groups(estimator, rewards, group, singleton):
    """One call a group, as if its batch had no other: groups are of one size there."""
    advantages = torch.zeros_like(rewards)
    for label in group.unique():
        part = (group == label).nonzero().squeeze(-1)
        if len(part) == 1:
            raise Unsupported(f"a group of one is refused by the command line here, never `{singleton}`")
        mask = torch.ones(len(part), 1, dtype=torch.long)
        advantages[part] = estimate(estimator, rewards.detach()[part], mask, n=len(part))["advantages"][:, 0]
    return {"advantages": advantages}


@formula("advantage.group_norm", only={"std_scope": "group", "eps_mode": "add"})
def group_norm(rewards, group, *, std="sample", eps=1e-9, singleton="error"):
    if std == "population" or (std == "sample" and eps != 1e-9):
        raise Unsupported(f"always the sample deviation and 1e-9 here, never {std} and {eps}")
    return of_groups("dr_grpo" if std == "none" else "group_norm", rewards, group, singleton)


@formula("advantage.rloo")
def rloo(rewards, group, *, singleton="error"):
    return of_groups("rloo", rewards, group, singleton)


@formula("advantage.reinforce_plus_plus_baseline", only=WHITENED)
def reinforce_plus_plus_baseline(rewards, group, response_mask, *, singleton="zero"):
    parts = [(group == label).nonzero().squeeze(-1) for label in group.unique()]
    sizes = {len(part) for part in parts}
    if len(sizes) != 1 or (sizes == {1} and singleton != "zero"):
        raise Unsupported("groups are of one size here, and one alone gets 0")
    order = torch.cat(parts)
    found = estimate("reinforce_baseline", rewards.detach()[order], response_mask[order], n=sizes.pop())["advantages"]
    return {"advantages": found[order.argsort()]}


@formula("advantage.reinforce_plus_plus", only=WHITENED)
def reinforce_plus_plus(rewards, response_mask, *, gamma=1.0, mask_mode=None):
    """A masked token between kept ones is a step with a discount: neither `mask_mode`, unless there is no such token."""
    padded = bool((response_mask[:, 1:] <= response_mask[:, :-1]).all())
    if mask_mode is not None and not padded and (mask_mode == "reset" or gamma != 1):
        raise Unsupported(f"masked tokens between kept ones are not treated by `{mask_mode}` here")
    tokens = kept(rewards.detach(), response_mask)
    zero = torch.zeros(len(rewards), dtype=rewards.dtype)
    return estimate("reinforce", zero, response_mask, gamma=gamma, tokens=tokens)


@formula("advantage.gae", only={"mask_mode": "none", **WHITENED})
def gae(rewards, values, response_mask, *, gamma=1.0, lam=1.0):
    zero = torch.zeros(len(rewards), dtype=rewards.dtype)
    tokens = kept(rewards.detach(), response_mask)
    return estimate("gae", zero, response_mask, gamma=gamma, lam=lam, tokens=tokens, values=values.detach())


# Log-probabilities


@formula("logprob.token")
def token(logits, tokens, *, temperature=1.0):
    scaled = logits / temperature
    return {"logp": utils.log_probs_from_logits(scaled, tokens), "entropy": utils.compute_entropy(scaled)}


@formula("logprob.entropy")
def entropy_of(logits, *, temperature=1.0):
    return {"entropy": utils.compute_entropy(logits / temperature)}


# Objectives


def drift_bound(asked, logp, logp_old, mask, own=20.0):
    bound("log_ratio_clamp", asked, own, (logp - logp_old)[mask.bool()])


def per_token(advantages, logp):
    return (advantages if advantages.dim() == 2 else advantages[:, None].expand_as(logp)).detach()


def by_token(loss, logp, logp_old, advantages, mask, rollout=None):
    """The losses by token that PolicyLoss hands to `aggregate_loss`, and the metrics."""
    taken, own = [], losses.aggregate_loss
    losses.aggregate_loss = lambda values, *args, **kwargs: taken.append(values) or values.sum()
    try:
        _, share, ppo_kl, _, _ = loss(
            logp, logp_old.detach(), per_token(advantages, logp), mask, rollout_log_probs=rollout)
    finally:
        losses.aggregate_loss = own
    return {"loss": kept(taken[0], mask)}, {"clip_fraction": share, "ppo_kl": ppo_kl}


@formula("objective.clip")
def clip(
    logp, logp_old, advantages, response_mask, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=None, log_ratio_clamp=20.0,
):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    loss = losses.PolicyLoss(clip_ratio_low, clip_ratio_high, clip_ratio_c)
    loss, metrics = by_token(loss, logp, logp_old, advantages, response_mask)
    return {**loss, **metrics}


@formula("metrics.policy")
def policy_metrics(
    logp, logp_old, advantages, response_mask, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=None, log_ratio_clamp=None,
):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask, own=None)
    loss = losses.PolicyLoss(clip_ratio_low, clip_ratio_high, clip_ratio_c)
    return by_token(loss, logp, logp_old, advantages, response_mask)[1]


@formula("objective.gspo", only={"importance_sampling_level": "sequence"})
def gspo(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.2, clip_ratio_high=0.2, log_ratio_max=None):
    means = kept(logp - logp_old, response_mask).sum(1) / response_mask.sum(1).clamp(min=1)
    bound("log_ratio_max", log_ratio_max, None, means.clamp(min=0))  # from above only
    loss = losses.PolicyLoss(clip_ratio_low, clip_ratio_high, policy_loss_type="gspo")
    loss, metrics = by_token(loss, logp, logp_old, advantages, response_mask)
    return {**loss, "clip_fraction": metrics["clip_fraction"]}


def by_mode(loss_agg_mode):
    if loss_agg_mode not in ("token-mean", "seq-mean-token-mean"):
        raise Unsupported(f"losses are never aggregated by {loss_agg_mode} here")
    return loss_agg_mode == "token-mean"


def counts_of(dp_size, by_token, batch_num_tokens, global_batch_size):
    if dp_size != 1 and (batch_num_tokens if by_token else global_batch_size) is None:
        raise Unsupported("dp_size has no effect without the batch's counts here")
    return {"dp_size": dp_size, "batch_num_tokens": batch_num_tokens, "global_batch_size": global_batch_size}


@formula("objective.actor_loss", only={"kl_ratio_weight": False, "loss_scale_factor": None})
def actor_loss(
    logp, logp_old, advantages, response_mask, logp_ref=None, entropy=None, group_endpoints=None, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=None, log_ratio_clamp=20.0, kl_loss_type="k1",
    kl_input_clamp=None, kl_output_clamp=10.0, kl_loss_coef=0.0, entropy_coeff=0.0, loss_agg_mode="token-mean",
    batch_num_tokens=None, global_batch_size=None, dp_size=1, gradient_accumulation_steps=1.0,
):
    """The parts added up as the actor does."""
    if group_endpoints is not None:
        raise Unsupported("there are no endpoints here")
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    by_token = by_mode(loss_agg_mode)
    counts = counts_of(dp_size, by_token, batch_num_tokens, global_batch_size)
    policy = losses.PolicyLoss(clip_ratio_low, clip_ratio_high, clip_ratio_c, token_level_loss=by_token)(
        logp, logp_old.detach(), per_token(advantages, logp), response_mask, **counts)[0]
    loss, divergence, bonus = policy, torch.zeros_like(policy), torch.zeros_like(policy)
    if kl_loss_coef != 0:
        kl = penalty(logp, logp_ref, response_mask, kl_loss_type, kl_input_clamp, kl_output_clamp)
        divergence = losses.aggregate_loss(kl, response_mask, by_token, **counts)
        loss = loss + kl_loss_coef * divergence
    if entropy_coeff != 0:
        bonus = losses.aggregate_loss(entropy, response_mask, by_token, **counts)
        loss = loss - entropy_coeff * bonus
    loss = loss / gradient_accumulation_steps
    return {"loss": loss, "policy_loss": policy, "kl_loss": divergence, "entropy_loss": bonus}


# KL


def penalty(logp, logp_ref, mask, kind, input_clamp, output_clamp):
    kind = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}.get(kind, kind)
    if kind not in ("k1", "k2", "k3"):
        raise Unsupported(f"there is no {kind} here")
    drift = (logp - logp_ref)[mask.bool()].detach()
    bound("input_clamp", input_clamp, None, drift)
    unclamped = {"k1": drift, "k2": drift**2 / 2, "k3": torch.expm1(-drift) + drift}[kind]
    bound("output_clamp", output_clamp, 10.0, unclamped)
    return utils.compute_approx_kl(logp, logp_ref.detach(), kl_estimator=kind)


@formula("kl.estimate")
def kl_estimate(logp, logp_ref, *, kl_penalty="k1", input_clamp=None, output_clamp=10.0):
    return {"kl": penalty(logp, logp_ref, torch.ones_like(logp), kl_penalty, input_clamp, output_clamp)}


@formula("kl.in_reward")
def kl_in_reward(
    scores, logp, logp_ref, response_mask, *, kl_coef=0.001, kl_penalty="k1", input_clamp=None, output_clamp=10.0
):
    """The score of a response is one number, which is put at its last token."""
    own = kept(scores.detach(), response_mask)
    last = response_mask.shape[1] - 1 - response_mask.flip(1).argmax(1)
    if bool((own.scatter(1, last[:, None], 0.0) != 0).any()) or kl_coef < 0:
        raise Unsupported("a score stands at the last token here, and the coefficient is not negative")
    kl = penalty(logp.detach(), logp_ref, response_mask, kl_penalty, input_clamp, output_clamp)
    return {"rewards": kept(utils.compute_reward(own.sum(1), kl_coef, kl, response_mask), response_mask)}


@formula("kl.controller")
def kl_controller(kl_coef, current_kl=None, *, type="fixed", target_kl=0.1, horizon=10000.0, n_steps=1.0):
    controller = controllers.AdaptiveKLController(float(kl_coef), target_kl, horizon)
    if type == "fixed":
        controller = controllers.FixedKLController(float(kl_coef))
    controller.update(None if current_kl is None else float(current_kl), n_steps)
    return {"kl_coef": float(controller.value)}


# Aggregation, the critic and the rest


@formula("aggregate.loss", only={"loss_scale_factor": None})
def aggregate(
    loss, response_mask, *, loss_agg_mode="token-mean", batch_num_tokens=None, global_batch_size=None, dp_size=1
):
    by_token = by_mode(loss_agg_mode)
    counts = counts_of(dp_size, by_token, batch_num_tokens, global_batch_size)
    return {"loss": losses.aggregate_loss(loss, response_mask, by_token, **counts)}


@formula("value.clipped", only={"half": True, "loss_scale_factor": None})
def value_clipped(
    values, values_old, returns, response_mask, *, cliprange_value=0.5, loss_agg_mode="token-mean",
    batch_num_tokens=None, global_batch_size=None, dp_size=1,
):
    by_token = by_mode(loss_agg_mode)
    counts = counts_of(dp_size, by_token, batch_num_tokens, global_batch_size)
    loss = losses.ValueLoss(cliprange_value, by_token)
    return {"loss": loss(values, values_old.detach(), returns.detach(), response_mask, **counts)}


@formula("rollout.weights", only={"batch_normalize": False, "rollout_is": "token"})
def weights(
    logp_old, logp_rollout, response_mask, *, rollout_is_mode="mask", rollout_is_threshold=5.0,
    rollout_is_threshold_lower=0.5, safety_bound=None,
):
    """A ratio of 1 and an advantage of -1 leave the weight alone."""
    bound("safety_bound", safety_bound, None, kept(logp_old - logp_rollout, response_mask))
    loss = losses.PolicyLoss(
        is_correction_level="token", is_correction_mode={"truncate": "clip"}.get(rollout_is_mode, rollout_is_mode),
        is_correction_threshold=[rollout_is_threshold_lower or 0.0, rollout_is_threshold])
    ones = -torch.ones_like(logp_old)
    return {"weights": by_token(loss, logp_old, logp_old, ones, response_mask, logp_rollout.detach())[0]["loss"].detach()}


@formula("reward.overlong")
def overlong(lengths, *, max_response_length=20480.0, buffer=4096.0, penalty_factor=1.0, floor=-1.0):
    if floor != -penalty_factor:
        raise Unsupported("the penalty stops at its factor here")
    experience = SimpleNamespace(response_length=lengths.detach(), rewards=torch.zeros_like(lengths).detach())
    length_penalty.apply_overlong_penalty([experience], max_response_length, buffer, penalty_factor)
    return {"penalty": experience.rewards}


if __name__ == "__main__":
    torch_arrays.serve("openrlhf", version("openrlhf"), dtypes=("f32", "f64"))
