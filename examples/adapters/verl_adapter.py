"""verl 0.9.1 as an adapter: its own functions, called as its trainer and its workers call them. No GPU is needed.

    python3 -m venv /tmp/verl && /tmp/verl/bin/pip install torch==2.11.0
    /tmp/verl/bin/pip install --no-deps -r examples/adapters/requirements-verl.txt
    grpo-oracle verify --adapter "/tmp/verl/bin/python examples/adapters/verl_adapter.py"

What is read only under a mask is judged only there: masked slots of outputs are set to 0. A bound that verl always has,
such as +-20 on log-ratios, counts as any other bound on a question on which neither bites. Losses by token are what verl
hands to `agg_loss`. What its trainer computes without gradient is given without.
"""

import os
from importlib.metadata import version
from types import SimpleNamespace

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled functions run as they are written

import numpy as np
import torch
import torch_arrays
from adapter import Unsupported, formula
from stand_ins import load
from torch_arrays import bound

ray_trainer = load("verl.trainer.ppo.ray_trainer")
core = load("verl.trainer.ppo.core_algos")
tf = load("verl.utils.torch_functional")
correction = load("verl.trainer.ppo.rollout_corr_helper")
ActorConfig = load("verl.workers.config").ActorConfig
DataProto = load("verl.protocol").DataProto
gsm8k_score = load("verl.utils.reward_score.gsm8k").compute_score
OFF = 1e30  # a bound that is never reached
WHITENED = {"whiten_ddof": 1, "whiten_eps": 1e-8, "whiten_eps_mode": "add"}


def kept(values, mask):
    return torch.where(mask.bool(), values, 0.0)


def drift_bound(asked, logp, logp_old, mask, own=20.0):
    bound("log_ratio_clamp", asked, own, (logp - logp_old)[mask.bool()].detach())


def per_token(advantages, logp):
    return (advantages if advantages.dim() == 2 else advantages[:, None].expand_as(logp)).detach()


def actor(**options):
    return ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, **options)


# Masks


@formula("mask.sum")
def mask_sum(values, mask, *, axis=None):
    return {"sum": tf.masked_sum(values, mask, axis)}


@formula("mask.mean", only={"empty": "zero"})
def mask_mean(values, mask, *, axis=None):
    return {"mean": tf.masked_mean(values, mask, axis)}


@formula("mask.variance")
def mask_variance(values, mask, *, ddof=1):
    return {"variance": tf.masked_var(values, mask, unbiased=ddof == 1)}


@formula("mask.whiten", only={"ddof": 1, "eps": 1e-8, "eps_mode": "add"})
def mask_whiten(values, mask, *, shift_mean=True):
    return {"whitened": kept(tf.masked_whiten(values, mask, shift_mean), mask)}


# Advantages


def outcome(estimator, rewards, group, **options):
    """An estimator of one advantage a response, on responses of one token."""
    mask = torch.ones(len(rewards), 1, dtype=torch.long)
    scores = rewards.detach()[:, None].clone()
    return {"advantages": estimator(scores, mask, index=np.array(group.tolist()), **options)[0][:, 0]}


def alone(group, singleton, own):
    if singleton not in (None, own) and (torch.unique(group, return_counts=True)[1] == 1).any():
        raise Unsupported(f"a group of one is always `{own}` here, never `{singleton}`")


@formula("advantage.group_norm", only={"std_scope": "group", "eps_mode": "add"})
def group_norm(rewards, group, *, std="sample", eps=1e-6, singleton=None):
    alone(group, singleton, "unit_std")
    if std == "population":
        raise Unsupported("there is no population deviation here")
    by_std = std == "sample"
    return outcome(core.compute_grpo_outcome_advantage, rewards, group, epsilon=eps, norm_adv_by_std_in_grpo=by_std)


@formula("advantage.rloo")
def rloo(rewards, group, *, singleton="raw"):
    vectorized = singleton == "zero"
    alone(group, singleton, singleton if singleton in ("raw", "zero") else "raw or zero")
    name = "compute_rloo_vectorized_outcome_advantage" if vectorized else "compute_rloo_outcome_advantage"
    return outcome(getattr(core, name), rewards, group)


@formula("advantage.gpg", only={"alpha": "nonzero_rewards"})
def gpg(rewards, group, *, f_norm=1.0, singleton=None):
    alone(group, singleton, "raw")
    return outcome(core.compute_gpg_outcome_advantage, rewards, group, f_norm=f_norm)


@formula("advantage.pass_at_k")
def pass_at_k(rewards, group, *, std="sample", eps=1e-6):
    if std == "population":
        raise Unsupported("there is no population deviation here")
    config = {"norm_adv_by_std_in_grpo": std == "sample"}
    return outcome(core.compute_grpo_passk_outcome_advantage, rewards, group, epsilon=eps, config=config)


@formula("advantage.opo")
def opo(rewards, group, lengths, *, singleton=None):
    alone(group, singleton, "raw")
    if bool((lengths == 0).any()):
        raise Unsupported("a response without a token has no slot for its advantage here")
    mask = (torch.arange(max(1, int(lengths.max()))) < lengths[:, None]).long()
    scores = torch.zeros(mask.shape, dtype=rewards.dtype)
    scores[:, 0] = rewards.detach()
    return {"advantages": core.compute_opo_outcome_advantage(scores, mask, np.array(group.tolist()))[0][:, 0]}


@formula("advantage.reinforce_plus_plus", only={"mask_mode": "carry", "whiten": True, **WHITENED})
def reinforce_plus_plus(rewards, response_mask, *, gamma=1.0):
    advantages, returns = core.compute_reinforce_plus_plus_outcome_advantage(
        rewards.detach(), response_mask, config=SimpleNamespace(gamma=gamma))
    return {"advantages": kept(advantages, response_mask), "returns": kept(returns, response_mask)}


@formula("advantage.reinforce_plus_plus_baseline", only={"whiten": True, **WHITENED})
def reinforce_plus_plus_baseline(rewards, group, response_mask, *, singleton=None):
    alone(group, singleton, "raw")
    scores = torch.zeros(response_mask.shape, dtype=rewards.dtype)
    scores[:, 0] = rewards.detach()
    advantages, _ = core.compute_reinforce_plus_plus_baseline_outcome_advantage(
        scores, response_mask, index=np.array(group.tolist()))
    return {"advantages": kept(advantages, response_mask)}


@formula("advantage.remax")
def remax(rewards, baselines, response_mask):
    advantages, returns = core.compute_remax_outcome_advantage(rewards.detach(), baselines.detach(), response_mask)
    return {"advantages": kept(advantages, response_mask), "returns": kept(returns, response_mask)}


@formula("advantage.gae", only={"mask_mode": "carry", "whiten": True, **WHITENED})
def gae(rewards, values, response_mask, *, gamma=1.0, lam=1.0):
    advantages, returns = core.compute_gae_advantage_return(rewards, values, response_mask, gamma, lam)
    return {"advantages": kept(advantages, response_mask), "returns": kept(returns, response_mask)}


# Log-probabilities


@formula("logprob.token")
def token(logits, tokens, *, temperature=1.0):
    scaled = logits / temperature
    return {"logp": tf.logprobs_from_logits_v2(scaled, tokens), "entropy": tf.entropy_from_logits(scaled)}


@formula("logprob.entropy")
def entropy(logits, *, temperature=1.0):
    return {"entropy": tf.entropy_from_logits(logits / temperature)}


# Objectives


def by_token(function, logp, logp_old, advantages, mask, **options):
    """The losses by token that a policy loss hands to `agg_loss`, and its metrics."""
    taken, own = [], core.agg_loss
    core.agg_loss = lambda loss_mat, loss_mask, loss_agg_mode, **counts: taken.append(loss_mat) or loss_mat.sum()
    try:
        _, metrics = function(logp_old.detach(), logp, per_token(advantages, logp), mask, config=actor(**options))
    finally:
        core.agg_loss = own
    return {"loss": kept(taken[0], mask)}, metrics


def shares(metrics):
    return {
        "clip_fraction": metrics["actor/pg_clipfrac"],
        "clip_fraction_lower": metrics["actor/pg_clipfrac_lower"],
        "ppo_kl": metrics["actor/ppo_kl"],
    }


@formula("objective.policy_gradient")
def policy_gradient(logp, advantages):
    mask = torch.ones_like(logp, dtype=torch.long)
    return by_token(core.compute_policy_loss_gpg, logp, logp, advantages, mask)[0]


@formula("objective.clip")
def clip(
    logp, logp_old, advantages, response_mask, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0, log_ratio_clamp=20.0,
):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    loss, metrics = by_token(
        core.compute_policy_loss_vanilla, logp, logp_old, advantages, response_mask,
        clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high, clip_ratio_c=clip_ratio_c or OFF)
    return {**loss, **shares(metrics)}


@formula("metrics.policy")
def policy_metrics(
    logp, logp_old, advantages, response_mask, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0, log_ratio_clamp=20.0,
):
    answer = clip(
        logp.detach(), logp_old, advantages, response_mask, clip_ratio_low=clip_ratio_low,
        clip_ratio_high=clip_ratio_high, clip_ratio_c=clip_ratio_c, log_ratio_clamp=log_ratio_clamp)
    return {name: answer[name] for name in ("clip_fraction", "clip_fraction_lower", "ppo_kl")}


@formula("objective.gspo", only={"importance_sampling_level": "sequence_token"})
def gspo(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.2, clip_ratio_high=0.2, log_ratio_max=10.0):
    means = (kept(logp - logp_old, response_mask).sum(1) / response_mask.sum(1).clamp(min=1)).detach()
    bound("log_ratio_max", log_ratio_max, 10.0, means.clamp(min=0))  # from above only
    loss, metrics = by_token(
        core.compute_policy_loss_gspo, logp, logp_old, advantages, response_mask,
        clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high)
    return {**loss, "clip_fraction": metrics["actor/pg_clipfrac"]}


@formula("objective.cispo", only={"cispo_bound": "one_plus_eps"})
def cispo(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.2, clip_ratio_high=0.2, log_ratio_clamp=20.0):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    low = 1.0 if clip_ratio_low is None else clip_ratio_low  # a ratio is never below 0
    return by_token(core.compute_policy_loss_cispo, logp, logp_old, advantages, response_mask,
                    clip_ratio_low=low, clip_ratio_high=clip_ratio_high)[0]


@formula("objective.sapo")
def sapo(logp, logp_old, advantages, response_mask, *, tau_pos=1.0, tau_neg=1.05, log_ratio_clamp=20.0):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    return by_token(core.compute_policy_loss_sapo, logp, logp_old, advantages, response_mask,
                    tau_pos=tau_pos, tau_neg=tau_neg)[0]


@formula("objective.gmpo")
def gmpo(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.2, clip_ratio_high=0.2):
    """One call a sequence; verl's loss of a batch is their plain mean."""
    config = actor(clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high)
    rows = [slice(i, i + 1) for i in range(len(logp))]
    a = per_token(advantages, logp)
    return {"loss": torch.stack([core.compute_policy_loss_geo_mean(
        logp_old.detach()[i], logp[i], a[i], response_mask[i], config=config)[0] for i in rows])}


@formula("objective.actor_loss", only={"kl_ratio_weight": False})
def actor_loss(
    logp, logp_old, advantages, response_mask, logp_ref=None, entropy=None, group_endpoints=None, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=3.0, log_ratio_clamp=20.0, kl_loss_type="low_var_kl",
    kl_input_clamp=20.0, kl_output_clamp=10.0, kl_loss_coef=0.0, entropy_coeff=0.0, loss_agg_mode="token-mean",
    loss_scale_factor=None, batch_num_tokens=None, global_batch_size=None, dp_size=1,
    gradient_accumulation_steps=1.0,
):
    """The parts added up as verl's workers do."""
    if group_endpoints is not None:
        raise Unsupported("there are no endpoints here")
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    config = actor(clip_ratio_low=clip_ratio_low, clip_ratio_high=clip_ratio_high, clip_ratio_c=clip_ratio_c or OFF)
    counts = {"dp_size": dp_size, "batch_num_tokens": batch_num_tokens, "global_batch_size": global_batch_size,
              "loss_scale_factor": loss_scale_factor}
    config.global_batch_info.update(counts)
    policy = core.compute_policy_loss_vanilla(
        logp_old.detach(), logp, per_token(advantages, logp), response_mask, loss_agg_mode, config)[0]
    loss, divergence, bonus = policy, torch.zeros_like(policy), torch.zeros_like(policy)
    if entropy_coeff != 0:
        bonus = core.agg_loss(entropy, response_mask, loss_agg_mode, **counts)
        loss = loss - entropy_coeff * bonus
    if kl_loss_coef != 0:
        kl = penalty(logp, logp_ref, response_mask, kl_loss_type, kl_input_clamp, kl_output_clamp)
        divergence = core.agg_loss(kl, response_mask, loss_agg_mode, **counts)
        loss = loss + kl_loss_coef * divergence
    loss = loss / gradient_accumulation_steps
    return {"loss": loss, "policy_loss": policy, "kl_loss": divergence, "entropy_loss": bonus}


# KL


def penalty(logp, logp_ref, mask, kind, input_clamp, output_clamp):
    """Only k3 is clamped, at 20 and 10."""
    clamped = kind.rstrip("+") in ("k3", "low_var_kl")
    drift = (logp - logp_ref)[mask.bool()].detach()
    exact = {"k1": drift, "kl": drift, "abs": drift, "k2": drift**2 / 2, "mse": drift**2 / 2}
    bound("input_clamp", input_clamp, 20.0 if clamped else None, drift)
    unclamped = exact.get(kind.rstrip("+"), torch.expm1(-drift) + drift)
    bound("output_clamp", output_clamp, 10.0 if clamped else None, unclamped)
    return core.kl_penalty(logp, logp_ref.detach(), kind)


@formula("kl.estimate")
def kl_estimate(logp, logp_ref, *, kl_penalty="low_var_kl", input_clamp=20.0, output_clamp=10.0):
    return {"kl": penalty(logp, logp_ref, torch.ones_like(logp), kl_penalty, input_clamp, output_clamp)}


@formula("kl.in_reward")
def kl_in_reward(
    scores, logp, logp_ref, response_mask, *, kl_coef=0.001, kl_penalty="kl", input_clamp=None, output_clamp=None
):
    penalty(logp.detach(), logp_ref, response_mask, kl_penalty, input_clamp, output_clamp)
    data = DataProto.from_dict(tensors={
        "response_mask": response_mask, "token_level_scores": scores.detach(), "old_log_probs": logp.detach(),
        "ref_log_prob": logp_ref.detach()})
    data, metrics = ray_trainer.apply_kl_penalty(data, core.FixedKLController(kl_coef), kl_penalty)
    rewards = kept(data.batch["token_level_rewards"], response_mask)
    return {"rewards": rewards, "current_kl": metrics["actor/reward_kl_penalty"]}


@formula("kl.controller")
def kl_controller(kl_coef, current_kl=None, *, type="fixed", target_kl=0.1, horizon=10000.0, n_steps=1.0):
    controller = core.AdaptiveKLController(float(kl_coef), target_kl, horizon)
    if type == "fixed":
        controller = core.FixedKLController(float(kl_coef))
    controller.update(None if current_kl is None else float(current_kl), n_steps)
    return {"kl_coef": float(controller.value)}


# Aggregation and the critic


@formula("aggregate.loss")
def aggregate(
    loss, response_mask, *, loss_agg_mode="token-mean", loss_scale_factor=None, batch_num_tokens=None,
    global_batch_size=None, dp_size=1,
):
    return {"loss": core.agg_loss(
        loss, response_mask, loss_agg_mode, dp_size, batch_num_tokens, global_batch_size, loss_scale_factor)}


@formula("value.clipped", only={"half": True})
def value_clipped(
    values, values_old, returns, response_mask, *, cliprange_value=0.5, loss_agg_mode="token-mean",
    loss_scale_factor=None, batch_num_tokens=None, global_batch_size=None, dp_size=1,
):
    loss, share = core.compute_value_loss(
        values, returns.detach(), values_old.detach(), response_mask, cliprange_value or OFF, loss_agg_mode, dp_size,
        batch_num_tokens, global_batch_size, loss_scale_factor)
    return {"loss": loss, "clip_fraction": share}


# Rollout correction and rewards


@formula("rollout.weights")
def weights(
    logp_old, logp_rollout, response_mask, *, rollout_is="token", rollout_is_mode="truncate", rollout_is_threshold=2.0,
    rollout_is_threshold_lower=None, safety_bound=20.0, batch_normalize=False,
):
    drift = (logp_old - logp_rollout).detach()
    inside = kept(drift, response_mask)
    bound("safety_bound", safety_bound, 20.0, inside if rollout_is == "token" else inside.sum(1))
    threshold = rollout_is_threshold
    if rollout_is_mode == "mask":
        threshold = f"{rollout_is_threshold_lower or 1 / OFF}_{rollout_is_threshold}"
    elif rollout_is_threshold_lower is not None:
        raise Unsupported("weights are truncated from above only here")
    found, _ = correction.compute_rollout_correction_weights(
        drift, response_mask, rollout_is, threshold, batch_normalize)
    return {"weights": found}


@formula("rollout.rejection", only={"rs_k1_orientation": "inverse"})
def rejection(
    logp_old, logp_rollout, response_mask, *, rollout_rs_level="token", rollout_rs_estimator="k1",
    rollout_rs_threshold=2.0, rollout_rs_threshold_lower=None, safety_bound=20.0,
):
    drift = (logp_old - logp_rollout).detach()
    bound("safety_bound", safety_bound, 20.0, kept(drift, response_mask))
    threshold = rollout_rs_threshold
    if rollout_rs_threshold_lower is not None:
        threshold = f"{rollout_rs_threshold_lower}_{rollout_rs_threshold}"
    mask, metrics = correction.compute_rollout_rejection_mask(
        drift, response_mask, f"{rollout_rs_level}_{rollout_rs_estimator}", threshold)
    return {"response_mask": mask, "rejected_fraction": metrics["rollout_rs_masked_fraction"]}


@formula("reward.gsm8k", only={"compare": "text", "occurrence": "last"})
def gsm8k(response, answer, *, method="strict", tail_chars=300):
    texts = [response] if isinstance(response, str) else response
    answers = [answer] if isinstance(answer, str) else answer
    answers = [text.split("####")[-1].strip().replace(",", "") for text in answers]  # as its data is prepared
    if tail_chars != 300 and any(len(text) > min(300, tail_chars or 300) for text in texts):
        raise Unsupported("the last 300 characters are always looked at here")
    found = [float(gsm8k_score(text, right, method=method)) for text, right in zip(texts, answers)]
    return {"reward": found[0] if isinstance(response, str) else found}


if __name__ == "__main__":
    torch_arrays.serve("verl", version("verl"), dtypes=("f32", "f64"))
