"""GRPO in plain PyTorch, as one writes it in a trainer, judged as an adapter: gradients are autograd's.

    pip install torch                                       # 2.x; a CPU does
    grpo-oracle verify --adapter "python examples/adapters/torch_eager.py --dtype f32"     # or f64, or bf16

Worth looking at: what a mask leaves out is emptied *before* the arithmetic (`masked_fill`, never a multiplication,
since 0 * NaN is NaN); constants of a formula are detached; whether rewards are equal is asked of the rewards.
"""

import math

import torch
import torch_arrays
from adapter import Refused, formula

COUNT, RATE = "null (0, inf)", "[0, inf)"
MODES = ("token-mean", "token-sum", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
KLS = tuple(name + plus for name in ("k1", "abs", "k2", "k3", "kl", "mse", "low_var_kl") for plus in ("", "+"))


def all_equal(values):
    return bool((values == values[:1]).all())


def refuse_if(condition, kind, message):
    if condition:
        raise Refused(kind, message)


def needed(name, array, mask=None):
    """An input that some options leave unread: where it is read, it must be there and finite."""
    refuse_if(array is None, "input", f"{name} is missing")
    kept = array if mask is None else array[mask.bool()]
    refuse_if(not bool(kept.isfinite().all()), "non-finite", f"{name} is not finite")


# Masks ----------------------------------------------------------------------------------------------------------------


def masked_sum(values, mask, axis=None):
    refuse_if(axis is not None and axis >= values.dim(), "option", f"there is no axis {axis}")
    kept = values.masked_fill(~mask.bool(), 0)
    return kept.sum() if axis is None else kept.sum(axis)


def masked_mean(values, mask, axis=None):
    total = masked_sum(values, mask, axis)
    return total / (mask.sum() if axis is None else mask.sum(axis)).clamp(min=1)


@formula("mask.sum")
def mask_sum(values: "...", mask: "mask ...", *, axis: "null whole [0, inf)" = None):
    return {"sum": masked_sum(values, mask, axis)}


@formula("mask.mean")
def mask_mean(values: "...", mask: "mask ...", *, axis: "null whole [0, inf)" = None, empty: ("zero", "nan") = "zero"):
    mean = masked_mean(values, mask, axis)
    count = mask.sum() if axis is None else mask.sum(axis)
    return {"mean": mean.masked_fill(count == 0, math.nan) if empty == "nan" else mean}


@formula("mask.normalize")
def mask_normalize(
    values: "...", mask: "mask ...", *, axis: "null whole [0, inf)" = None, constant: "(0, inf)" = 1.0
):
    return {"normalized": masked_sum(values, mask, axis) / constant}


def variance(kept, ddof):
    refuse_if(kept.numel() <= ddof or not kept.numel(), "too-few", f"{kept.numel()} entries are kept")
    return kept.sum() * 0 if all_equal(kept) else kept.var(correction=ddof)


def whiten(values, mask, ddof=1, eps=1e-8, eps_mode="add", shift_mean=True):
    mask = mask.bool()
    kept = values[mask]
    spread, mean = variance(kept, ddof), kept.mean()
    if all_equal(kept):
        shifted = kept * 0
    else:
        floor = spread + eps if eps_mode == "add" else torch.where(spread >= eps, spread, eps)
        shifted = (kept - mean) / floor.sqrt()
    return torch.zeros_like(values).masked_scatter(mask, shifted if shift_mean else shifted + mean)


@formula("mask.variance")
def mask_variance(values: "...", mask: "mask ...", *, ddof: (0, 1) = 1):
    return {"variance": variance(values[mask.bool()], ddof)}


@formula("mask.whiten")
def mask_whiten(
    values: "...", mask: "mask ...", *,
    ddof: (0, 1) = 1, eps: RATE = 1e-8, eps_mode: ("add", "clamp") = "add", shift_mean: bool = True,
):
    return {"whitened": whiten(values, mask, ddof, eps, eps_mode, shift_mean)}


# Advantages -----------------------------------------------------------------------------------------------------------


def members(group):
    return [(group == label).nonzero().squeeze(-1) for label in group.unique()]


def single(reward, singleton):
    refuse_if(singleton == "error", "group-size", "a group of one")
    return reward if singleton == "raw" else torch.zeros_like(reward)


def scaled(centred, std, eps, eps_mode):
    if eps_mode == "threshold":
        return torch.zeros_like(centred) if std < eps else centred / std
    if eps_mode == "floor_variance":
        std = std.square().clamp(min=eps).sqrt()
    return centred / (std + eps)


@formula("advantage.group_norm")
def group_norm(
    rewards: "B", group: "label B", *,
    std: ("sample", "population", "none") = "sample", std_scope: ("group", "batch", "leave_one_out") = "group",
    eps: RATE = 1e-6, eps_mode: ("add", "threshold", "floor_variance") = "add",
    singleton: ("raw", "unit_std", "zero", "error") = "raw",
):
    advantages, ddof = torch.zeros_like(rewards), int(std == "sample")
    for index in members(group):
        r = rewards[index]
        if len(r) == 1:
            divided = singleton == "unit_std" and std != "none" and eps_mode != "threshold"
            kind = "raw" if singleton == "unit_std" else singleton
            advantages[index] = single(r, kind) / (1 + eps if divided else 1)
        elif all_equal(r):
            advantages[index] = 0
        elif std_scope == "leave_one_out":
            for i in range(len(r)):
                others = torch.cat([r[:i], r[i + 1 :]])
                centred = r[i] - others.mean()
                plain = std == "none" or all_equal(others)
                advantages[index[i]] = centred if plain else scaled(centred, others.std(correction=ddof), eps, eps_mode)
        else:
            centred = r - r.mean()
            about = rewards if std_scope == "batch" else r
            advantages[index] = (
                centred if std == "none" else scaled(centred, about.std(correction=ddof), eps, eps_mode)
            )
    return {"advantages": advantages}


@formula("advantage.relative")
def relative(rewards: "B", group: "label B"):
    baseline = torch.zeros_like(rewards)
    for index in members(group):
        r = rewards[index]
        baseline[index] = r[0] if all_equal(r) else r.mean()
    return {"relative": rewards - baseline, "baseline": baseline}


@formula("advantage.rloo")
def rloo(rewards: "B", group: "label B", *, singleton: ("raw", "zero", "error") = "raw"):
    advantages = torch.zeros_like(rewards)
    for index in members(group):
        r = rewards[index]
        if len(r) == 1:
            advantages[index] = single(r, singleton)
        elif not all_equal(r):
            advantages[index] = r - (r.sum() - r) / (len(r) - 1)
    return {"advantages": advantages}


def following(mask, mask_mode):
    """For each token from the last: its column, its mask, and whether it is a step of the recursion."""
    for t in reversed(range(mask.shape[1])):
        keep = mask[:, t].bool()
        yield t, keep, keep if mask_mode == "carry" else torch.ones_like(keep)


@formula("advantage.gae")
def gae(
    rewards: "BT", values: "BT", response_mask: "mask BT", *,
    gamma: "[0, 1]" = 1.0, lam: "[0, 1]" = 1.0, mask_mode: ("carry", "none") = "carry",
    whiten: bool = False, whiten_ddof: (0, 1) = 1, whiten_eps: RATE = 1e-8, whiten_eps_mode: ("add", "clamp") = "add",
):
    mask = response_mask.bool()
    rewards, values = (x.detach().masked_fill(~mask, 0) for x in (rewards, values))
    advantages = torch.zeros_like(values)
    next_value = next_advantage = torch.zeros(len(values), dtype=values.dtype)
    for t, keep, step in following(mask, mask_mode):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = delta + gamma * lam * next_advantage
        next_advantage = torch.where(step, advantage, next_advantage)
        next_value = torch.where(step, values[:, t], next_value)
        advantages[:, t] = advantage.masked_fill(~keep, 0)
    returns = advantages + values
    if whiten:
        advantages = globals()["whiten"](advantages, mask, whiten_ddof, whiten_eps, whiten_eps_mode)
    return {"advantages": advantages, "returns": returns}


@formula("advantage.td_error")
def td_error(
    rewards: "BT", values: "BT", response_mask: "mask BT", *,
    gamma: "[0, 1]" = 1.0, mask_mode: ("carry", "none") = "carry",
):
    deltas = gae(rewards, values, response_mask, gamma=gamma, lam=0.0, mask_mode=mask_mode)
    return {"td_error": deltas["advantages"]}


ESTIMATORS = ("gae", "rloo", "reinforce_plus_plus", "remax")


@formula("advantage.filter")
def sample_filter(
    rewards: "B", group: "label B", *,
    keep_pos_ratio: "[0, 1]" = 1.0, keep_neg_ratio: "[0, 1]" = 1.0, compute_new_adv: bool = False, eps: RATE = 1e-6,
    singleton: ("raw", "zero", "error") = "raw", adv_estimator: ("grpo", *ESTIMATORS) = "grpo",
):
    refuse_if(adv_estimator != "grpo", "unsupported", "only GRPO's advantages are filtered")
    normal = {"std": "sample", "eps": eps, "eps_mode": "threshold"}
    original = group_norm(rewards, group, **normal, singleton=singleton)["advantages"]
    kept, advantages = torch.ones(len(rewards), dtype=torch.long), original.clone()
    for index in members(group):
        r = rewards[index]
        sign = torch.sign(original[index]) if len(r) == 1 else torch.sign(len(r) * r - r.sum())
        if len(r) > 1 and (all_equal(r) or r.std() < eps):
            sign = torch.zeros_like(sign)
        for side, ratio in ((1, keep_pos_ratio), (-1, keep_neg_ratio)):
            of_side = index[sign == side]
            order = torch.sort(side * rewards[of_side], descending=True, stable=True).indices
            number = min(len(of_side), max(1, math.floor(len(of_side) * ratio))) if ratio > 0 else 0
            kept[of_side[order[number:]]] = 0
        stay = index[kept[index] == 1]
        if compute_new_adv and len(stay) > 1 and (keep_pos_ratio < 1 or keep_neg_ratio < 1):
            advantages[stay] = group_norm(rewards[stay], group[stay], **normal)["advantages"]
    return {"advantages": advantages * kept, "advantages_original": original, "kept": kept}


# Log-probabilities ----------------------------------------------------------------------------------------------------


def log_softmax(logits, temperature=1.0):
    refuse_if(logits.shape[-1] == 0 or bool((logits == -math.inf).all(-1).any()), "input", "every token is ruled out")
    return torch.log_softmax(logits / temperature, -1)


def entropy_of(log_probs):
    ruled_out = log_probs == -math.inf
    return -(log_probs.exp() * log_probs.masked_fill(ruled_out, 0)).sum(-1)


@formula("logprob.token")
def token_logprob(logits: "logit BTV", tokens: "token BT", *, temperature: "(0, inf)" = 1.0):
    log_probs, tokens = log_softmax(logits, temperature), tokens.long()
    refuse_if(bool(((tokens < 0) | (tokens >= logits.shape[-1])).any()), "index", "a token outside the vocabulary")
    return {"logp": log_probs.gather(-1, tokens[..., None]).squeeze(-1), "entropy": entropy_of(log_probs)}


@formula("logprob.entropy")
def entropy(logits: "logit BTV", *, temperature: "(0, inf)" = 1.0):
    return {"entropy": entropy_of(log_softmax(logits, temperature))}


def within(x, bound):
    return x if bound is None else x.clamp(-bound, bound)


def ratio_of(logp, logp_old, log_ratio_clamp=None):
    return within(logp - logp_old.detach(), log_ratio_clamp).exp()


@formula("logprob.ratio")
def ratio(logp: "BT", logp_old: "BT", *, log_ratio_clamp: COUNT = None):
    return {"ratio": ratio_of(logp, logp_old, log_ratio_clamp)}


def sequence_log_ratio(logp, logp_old, mask, mean):
    drift = (logp - logp_old.detach()).masked_fill(~mask.bool(), 0).sum(1)
    return drift / mask.sum(1).clamp(min=1) if mean else drift


@formula("logprob.sequence_ratio")
def sequence_ratio(
    logp: "BT", logp_old: "BT", response_mask: "mask BT", *,
    level: ("mean", "sum") = "mean", log_ratio_clamp: COUNT = None,
):
    drift = sequence_log_ratio(logp, logp_old, response_mask, level == "mean")
    return {"ratio": within(drift, log_ratio_clamp).exp()}


# Objectives -----------------------------------------------------------------------------------------------------------


def per_token(advantages, logp):
    """Constants, one a token."""
    return (advantages if advantages.dim() == 2 else advantages[:, None].expand_as(logp)).detach()


def emptied(mask, *arrays):
    return [array.masked_fill(~mask.bool(), 0) for array in arrays]


@formula("objective.policy_gradient")
def policy_gradient(logp: "BT", advantages: "B|BT"):
    return {"loss": -per_token(advantages, logp) * logp}


@formula("objective.reinforce_with_baseline")
def reinforce_with_baseline(logp: "BT", rewards: "B", baselines: "B"):
    return {"loss": -(rewards - baselines).detach()[:, None] * logp}


@formula("objective.off_policy")
def off_policy(logp: "BT", logp_old: "BT", advantages: "B|BT", *, log_ratio_clamp: COUNT = None):
    return {"loss": -ratio_of(logp, logp_old, log_ratio_clamp) * per_token(advantages, logp)}


@formula("metrics.policy")
def policy_metrics(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", *,
    clip_ratio_low: "[0, 1]" = 0.2, clip_ratio_high: RATE = 0.2, clip_ratio_c: "null (1, inf)" = None,
    log_ratio_clamp: COUNT = None,
):
    logp, logp_old, a = emptied(response_mask, logp.detach(), logp_old.detach(), per_token(advantages, logp))
    drift = within(logp - logp_old, log_ratio_clamp)
    ratio = drift.exp()
    clipped = ((a > 0) & (ratio > 1 + clip_ratio_high)) | ((a < 0) & (ratio < 1 - clip_ratio_low))
    loss = -torch.min(ratio * a, ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high) * a)
    lowered = (a < 0) & (loss > -clip_ratio_c * a) if clip_ratio_c else torch.zeros_like(clipped)
    shares = {"clip_fraction": clipped.to(a), "clip_fraction_lower": lowered.to(a), "ppo_kl": -drift}
    return {name: masked_mean(x, response_mask) for name, x in {**shares, "ratio_mean": ratio}.items()}


@formula("objective.clip")
def clip(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", *,
    clip_ratio_low: "[0, 1]" = 0.2, clip_ratio_high: RATE = 0.2, clip_ratio_c: "null (1, inf)" = None,
    log_ratio_clamp: COUNT = None,
):
    given = (logp, logp_old, advantages, response_mask)
    logp, logp_old, a = emptied(response_mask, logp, logp_old, per_token(advantages, logp))
    ratio = ratio_of(logp, logp_old, log_ratio_clamp)
    loss = -torch.min(ratio * a, ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high) * a)
    if clip_ratio_c is not None:
        lower = -clip_ratio_c * a
        loss = torch.where((a < 0) & (loss > lower), lower, loss)
    metrics = policy_metrics(
        *given, clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high, clip_ratio_c=clip_ratio_c,
        log_ratio_clamp=log_ratio_clamp,
    )
    return {"loss": loss.masked_fill(~response_mask.bool(), 0), **metrics}


@formula("objective.dispatch")
def dispatch(
    logp: "BT", logp_old: "any BT" = None, raw_rewards: "any B" = None, advantages: "any B|BT" = None, *,
    loss_type: ("no_baseline", "reinforce_with_baseline", "grpo_clip") = "grpo_clip", cliprange: "[0, 1]" = 0.2,
):
    weights = raw_rewards if loss_type == "no_baseline" else advantages
    needed("raw_rewards or advantages", weights)
    if loss_type == "grpo_clip":
        needed("logp_old", logp_old)
        kept = torch.ones_like(logp, dtype=torch.long)
        return clip(logp, logp_old, advantages, kept, clip_ratio_low=cliprange, clip_ratio_high=cliprange)
    return {**policy_gradient(logp, weights), "clip_fraction": torch.zeros((), dtype=logp.dtype)}


@formula("objective.gspo")
def gspo(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", *,
    clip_ratio_low: "[0, 1]" = 0.0003, clip_ratio_high: RATE = 0.0004, log_ratio_max: COUNT = None,
    importance_sampling_level: ("sequence", "sequence_token", "sequence_sum") = "sequence",
):
    mask = response_mask.bool()
    logp, logp_old, a = emptied(mask, logp, logp_old, per_token(advantages, logp))
    drift = sequence_log_ratio(logp, logp_old, mask, importance_sampling_level != "sequence_sum")[:, None]
    if importance_sampling_level == "sequence_token":
        drift = drift.detach() + logp - logp.detach()
    drift = (drift if log_ratio_max is None else drift.clamp(max=log_ratio_max)).expand_as(logp)
    ratio = drift.exp()
    loss = -torch.min(ratio * a, ratio.clamp(1 - clip_ratio_low, 1 + clip_ratio_high) * a)
    clipped = ((a > 0) & (ratio > 1 + clip_ratio_high)) | ((a < 0) & (ratio < 1 - clip_ratio_low))
    by_sequence = ratio[:, 0] if logp.shape[1] else torch.ones(len(logp), dtype=logp.dtype)
    return {
        "loss": loss.masked_fill(~mask, 0),
        "ratio": by_sequence,
        "clip_fraction": masked_mean(clipped.to(logp), mask),
    }


@formula("objective.cispo")
def cispo(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", *,
    clip_ratio_low: "null [0, 1]" = None, clip_ratio_high: RATE = 0.2,
    cispo_bound: ("one_plus_eps", "absolute") = "one_plus_eps", log_ratio_clamp: COUNT = None,
):
    logp, logp_old, a = emptied(response_mask, logp, logp_old, per_token(advantages, logp))
    upper = clip_ratio_high + (cispo_bound == "one_plus_eps")
    lower = None if clip_ratio_low is None else 1 - clip_ratio_low
    weight = ratio_of(logp, logp_old, log_ratio_clamp).clamp(min=lower, max=upper).detach()
    return {"loss": -weight * a * logp}


@formula("objective.gmpo")
def gmpo(
    logp: "BT", logp_old: "BT", advantages: "B", response_mask: "mask BT", *,
    clip_ratio_low: RATE = 0.4, clip_ratio_high: RATE = 0.4,
):
    mask = response_mask.bool()
    a = advantages.detach().masked_fill(~mask.any(1), 0)
    drift = (logp - logp_old.detach()).masked_fill(~mask, 0)
    gain = torch.where(a[:, None] > 0, drift.clamp(max=clip_ratio_high), drift.clamp(min=-clip_ratio_low))
    gain = gain.masked_fill(a[:, None] == 0, 0)
    return {"loss": -a * (gain.sum(1) / mask.sum(1).clamp(min=1)).exp()}


@formula("objective.sapo")
def sapo(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", *,
    tau_pos: "(0, inf)" = 1.0, tau_neg: "(0, inf)" = 1.05, log_ratio_clamp: COUNT = None,
):
    logp, logp_old, a = emptied(response_mask, logp, logp_old, per_token(advantages, logp))
    tau = torch.where(a > 0, torch.full_like(a, tau_pos), torch.full_like(a, tau_neg))
    return {"loss": -torch.sigmoid(tau * (ratio_of(logp, logp_old, log_ratio_clamp) - 1)) * 4 / tau * a}


# KL -------------------------------------------------------------------------------------------------------------------


def estimate(logp, logp_ref, kl_penalty="k3", input_clamp=None, output_clamp=None):
    drift = logp - logp_ref.detach()
    name = {"kl": "k1", "mse": "k2", "low_var_kl": "k3"}.get(kl_penalty.rstrip("+"), kl_penalty.rstrip("+"))
    x = within(drift, input_clamp)
    kl = {"k1": lambda: x, "abs": x.abs, "k2": lambda: x.square() / 2, "k3": lambda: torch.expm1(-x) + x}[name]()
    kl = within(kl, output_clamp)
    # Straight through: the value as it is, the gradient of drift^2 / 2.
    return kl.detach() + drift.detach() * (drift - drift.detach()) if kl_penalty.endswith("+") else kl


@formula("kl.estimate")
def kl_estimate(
    logp: "BT", logp_ref: "BT", *, kl_penalty: KLS = "k3", input_clamp: COUNT = None, output_clamp: COUNT = None
):
    return {"kl": estimate(logp, logp_ref, kl_penalty, input_clamp, output_clamp)}


@formula("kl.full")
def kl_full(logits: "logit BTV", logits_ref: "logit BTV"):
    ours, theirs = log_softmax(logits), log_softmax(logits_ref.detach())
    ruled_out = logits == -math.inf
    refuse_if(bool((~ruled_out & (logits_ref == -math.inf)).any()), "input", "only the reference rules a token out")
    return {"kl": (ours.exp() * (ours - theirs).masked_fill(ruled_out, 0)).sum(-1)}


@formula("kl.in_reward")
def kl_in_reward(
    scores: "BT", logp: "BT", logp_ref: "BT", response_mask: "mask BT", *,
    kl_coef: "(-inf, inf)" = 0.001, kl_penalty: KLS = "k1", input_clamp: COUNT = None, output_clamp: COUNT = None,
):
    scores, logp, logp_ref = emptied(response_mask, scores.detach(), logp.detach(), logp_ref)
    kl = estimate(logp, logp_ref, kl_penalty, input_clamp, output_clamp)
    rows = masked_mean(kl, response_mask, 1) if kl.shape[1] else torch.zeros(len(kl), dtype=kl.dtype)
    rewards = (scores - kl_coef * kl).masked_fill(~response_mask.bool(), 0)
    return {"rewards": rewards, "current_kl": masked_mean(rows, response_mask.bool().any(1))}


@formula("kl.controller")
def kl_controller(
    kl_coef: "scalar", current_kl: "scalar" = None, *,
    type: ("fixed", "adaptive") = "fixed", target_kl: "(0, inf)" = 0.1, horizon: "(0, inf)" = 10000.0,
    n_steps: "(0, inf)" = 1.0,
):
    refuse_if(type == "adaptive" and current_kl is None, "input", "current_kl is missing")
    if type == "fixed":
        return {"kl_coef": kl_coef}
    return {"kl_coef": kl_coef * (1 + (current_kl / target_kl - 1).clamp(-0.2, 0.2) * n_steps / horizon)}


# Aggregation ----------------------------------------------------------------------------------------------------------


def aggregated(
    loss, mask, loss_agg_mode="token-mean", loss_scale_factor=None, batch_num_tokens=None, global_batch_size=None,
    dp_size=1.0,
):
    sums, counts = masked_sum(loss, mask, 1), mask.sum(1)
    tokens = batch_num_tokens or counts.sum().clamp(min=1)
    sequences = global_batch_size or (counts > 0).sum().clamp(min=1)
    total = {
        "token-mean": lambda: sums.sum() / tokens,
        "token-sum": sums.sum,
        "seq-mean-token-sum": lambda: sums.sum() / sequences,
        "seq-mean-token-mean": lambda: (sums / counts.clamp(min=1)).sum() / sequences,
        "seq-mean-token-sum-norm": lambda: sums.sum() / sequences / (loss_scale_factor or max(loss.shape[1], 1)),
    }
    return total[loss_agg_mode]() * dp_size


@formula("aggregate.loss")
def aggregate_loss(
    loss: "BT", response_mask: "mask BT", *,
    loss_agg_mode: MODES = "token-mean", loss_scale_factor: COUNT = None, batch_num_tokens: COUNT = None,
    global_batch_size: COUNT = None, dp_size: "(0, inf)" = 1.0,
):
    counts = (loss_scale_factor, batch_num_tokens, global_batch_size, dp_size)
    return {"loss": aggregated(loss, response_mask.long(), loss_agg_mode, *counts)}


@formula("aggregate.micro_batches")
def micro_batches(
    loss: "BT", response_mask: "mask BT", micro_batch: "label B", *,
    loss_agg_mode: MODES = "token-mean", loss_scale_factor: COUNT = None, batch_num_tokens: COUNT = None,
    global_batch_size: COUNT = None, dp_size: "(0, inf)" = 1.0,
    micro_batch_scaling: ("whole", "equal", "sequences") = "whole",
):
    mask = response_mask.long()
    if micro_batch_scaling == "whole":
        batch_num_tokens = batch_num_tokens or int(mask.sum()) or None
        global_batch_size = global_batch_size or int((mask.sum(1) > 0).sum()) or None
    labels, parts = list(dict.fromkeys(micro_batch.tolist())), []
    for label in labels:
        own = micro_batch == label
        part = aggregated(
            loss[own], mask[own], loss_agg_mode, loss_scale_factor, batch_num_tokens, global_batch_size, dp_size)
        share = {"whole": 1, "equal": 1 / len(labels), "sequences": int(own.sum()) / len(loss)}[micro_batch_scaling]
        parts.append(part * share)
    parts = torch.stack(parts) if parts else loss.sum(1)
    return {"loss": parts.sum(), "parts": parts}


@formula("objective.actor_loss")
def actor_loss(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", logp_ref: "any BT" = None,
    group_endpoints: "any BT" = None, entropy: "any BT" = None, *,
    clip_ratio_low: "[0, 1]" = 0.2, clip_ratio_high: RATE = 0.2, clip_ratio_c: "null (1, inf)" = None,
    log_ratio_clamp: COUNT = None, kl_ratio_weight: bool = False, kl_loss_type: KLS = "k3",
    kl_input_clamp: COUNT = None, kl_output_clamp: COUNT = None, kl_loss_coef: "(-inf, inf)" = 0.0,
    entropy_coeff: "(-inf, inf)" = 0.0, loss_agg_mode: MODES = "token-mean", loss_scale_factor: COUNT = None,
    batch_num_tokens: COUNT = None, global_batch_size: COUNT = None, dp_size: "(0, inf)" = 1.0,
    gradient_accumulation_steps: "[1, inf)" = 1.0,
):
    mask = response_mask.long() if group_endpoints is None else response_mask * group_endpoints
    counts = (loss_agg_mode, loss_scale_factor, batch_num_tokens, global_batch_size, dp_size)
    clipped = clip(
        logp, logp_old, advantages, mask, clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high,
        clip_ratio_c=clip_ratio_c, log_ratio_clamp=log_ratio_clamp)["loss"]
    policy_loss = aggregated(clipped, mask, *counts)
    kl_loss = entropy_loss = torch.zeros_like(policy_loss)
    if kl_loss_coef != 0:
        needed("logp_ref", logp_ref, response_mask)
        ours, old, ref = emptied(mask, logp, logp_old, logp_ref)
        kl = estimate(ours, ref, kl_loss_type, kl_input_clamp, kl_output_clamp)
        kl_loss = aggregated(kl * ratio_of(ours, old, log_ratio_clamp) if kl_ratio_weight else kl, mask, *counts)
    if entropy_coeff != 0:
        needed("entropy", entropy, response_mask)
        entropy_loss = aggregated(entropy, mask, *counts)
    loss = (policy_loss + kl_loss_coef * kl_loss - entropy_coeff * entropy_loss) / gradient_accumulation_steps
    return {"loss": loss, "policy_loss": policy_loss, "kl_loss": kl_loss, "entropy_loss": entropy_loss}


# Critic, optimiser, metrics -------------------------------------------------------------------------------------------


@formula("value.clipped")
def value_clipped(
    values: "BT", values_old: "BT", returns: "BT", response_mask: "mask BT", *,
    cliprange_value: COUNT = 0.5, half: bool = True, loss_agg_mode: MODES = "token-mean",
    loss_scale_factor: COUNT = None, batch_num_tokens: COUNT = None, global_batch_size: COUNT = None,
    dp_size: "(0, inf)" = 1.0,
):
    values, old, returns = emptied(response_mask, values, values_old.detach(), returns.detach())
    loss, clipped = (values - returns).square(), torch.zeros_like(values)
    if cliprange_value is not None:
        near = torch.max(torch.min(values, old + cliprange_value), old - cliprange_value)
        other = (near - returns).square()
        clipped = (other > loss).to(values)
        loss = torch.where(other > loss, other, loss)
    counts = (loss_scale_factor, batch_num_tokens, global_batch_size, dp_size)
    total = aggregated(loss * (0.5 if half else 1.0), response_mask.long(), loss_agg_mode, *counts)
    return {"loss": total, "clip_fraction": masked_mean(clipped, response_mask)}


@formula("optim.adamw")
def adamw(
    param: "...", grad: "...", m: "...", v: "...", step: "scalar", *,
    lr: RATE = 1e-3, beta1: "[0, 1)" = 0.9, beta2: "[0, 1)" = 0.999, eps: RATE = 1e-8, weight_decay: RATE = 0.01,
):
    refuse_if(float(step) != int(step) or step < 1, "input", "step must be a whole number from 1")
    refuse_if(bool((v < 0).any()), "input", "v is negative")
    weight = torch.nn.Parameter(param.detach().clone())
    weight.grad = grad.detach()
    optimizer = torch.optim.AdamW([weight], lr, (beta1, beta2), eps, weight_decay)
    state = {"step": step.detach() - 1, "exp_avg": m.detach().clone(), "exp_avg_sq": v.detach().clone()}
    optimizer.state[weight] = state
    optimizer.step()
    return {"param": weight, "m": state["exp_avg"], "v": state["exp_avg_sq"]}


@formula("optim.clip_grad_norm", only={"eps": 1e-6})
def clip_grad_norm(grad: "...", *, max_norm: "(0, inf)" = 1.0):
    weight = torch.nn.Parameter(torch.zeros_like(grad))
    weight.grad = grad.detach().clone()
    norm = torch.nn.utils.clip_grad_norm_([weight], max_norm)
    return {"grad": weight.grad, "norm": norm}


@formula("metrics.rewards")
def rewards_metrics(rewards: "B"):
    zero = torch.zeros((), dtype=rewards.dtype)
    if not len(rewards):
        return {"mean": zero, "std": zero, "max": zero, "min": zero}
    std = zero if all_equal(rewards) else rewards.std()
    return {"mean": rewards.mean(), "std": std, "max": rewards.max(), "min": rewards.min()}


if __name__ == "__main__":
    torch_arrays.serve("torch-eager", torch.__version__.split("+")[0], dtypes=("f32", "f64", "bf16"))
