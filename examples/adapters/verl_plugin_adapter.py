"""The verl plug-in (`examples/verl_plugin`) as an adapter: its functions as verl's registries hold them, no GPU.

    python3 -m venv /tmp/verl && /tmp/verl/bin/pip install torch==2.11.0
    /tmp/verl/bin/pip install --no-deps -r examples/adapters/requirements-verl.txt
    grpo-oracle verify --adapter "/tmp/verl/bin/python examples/adapters/verl_plugin_adapter.py"

The whole actor loss is asked about with endpoints alone: without them it is verl's own.
"""

import os
import sys
from pathlib import Path

os.environ["TORCHDYNAMO_DISABLE"] = "1"

import torch
import torch_arrays
from adapter import Refused, Unsupported, formula
from stand_ins import load
from torch_arrays import bound

core = load("verl.trainer.ppo.core_algos")
ActorConfig = load("verl.workers.config").ActorConfig
sys.path.insert(0, str(Path(__file__).parent.parent / "verl_plugin"))
plugin = load("grpo_oracle_verl")
estimate = core.get_adv_estimator_fn("group_ppo")
policy_loss = core.get_policy_loss_fn("group_ppo")
OFF = 1e30  # a bound that is never reached
COMPUTE_NEW_ADV = core.get_adv_estimator_fn("compute_new_adv")


def refused(function, *arguments, **named):
    """The plug-in's own refusals under the specification's names."""
    try:
        return function(*arguments, **named)
    except ValueError as why:
        raise Refused("group-size" if "group of one" in str(why) else "option", str(why)) from why


@formula("advantage.group_ppo")
def group_ppo(
    rewards: "BT", values: "BT", logp: "BT", logp_old: "BT", response_mask: "mask BT", *,
    group_variance_threshold: "(0, inf)" = 1.0, group_max_size: "null whole [2, inf)" = 16,
    group_epsilon: "[0, inf)" = 1e-6, adaptive_threshold: bool = True, threshold_lr: "[0, 1]" = 0.01,
    min_threshold: "(0, inf)" = 0.1, max_threshold: "(0, inf)" = 10.0, group_score: ("paper", "gp2") = "paper",
    group_g: ("log_ratio", "ratio_minus_one") = "log_ratio", group_gate: "[0, inf)" = 1e-8,
    group_counter: ("group", "sequence") = "group", group_adv: ("one_step", "gae") = "one_step",
    endpoint_return: ("segment", "prefix", "gae") = "segment", gamma: "[0, 1]" = 1.0, lam: "[0, 1]" = 1.0,
):
    params = {name: value for name, value in locals().items() if name in PARAMETERS}
    # Every question starts from its own threshold; in training it goes on from batch to batch.
    plugin.estimators.GROUP = plugin.estimators.Carried()
    config = {"group_params": {**params, "sparse_below": 2.0}, "gamma": gamma, "lam": lam}
    advantages, returns = refused(
        estimate, token_level_rewards=rewards.detach(), response_mask=response_mask, config=config,
        values=values.detach(), old_log_probs=logp_old.detach(), log_probs=logp.detach())
    endpoints = (plugin.marks.trained_on(advantages) & response_mask.bool()).double()
    total, count = float(response_mask.sum()), float(endpoints.sum())
    compression = 1 - count / total if total else 0.0
    return {
        "endpoints": endpoints, "advantages": advantages, "returns": returns,
        "threshold": plugin.estimators.GROUP.threshold, "total_endpoints": count,
        "compression_ratio": compression, "efficiency_gain": total / count if count else 1.0,
        "algorithm_effectiveness": max(0.0, compression - 0.1) / 0.9, "sparse": float(2 * count < total),
    }


PARAMETERS = {name for name in group_ppo.__kwdefaults__ if name not in ("gamma", "lam")}


@formula("advantage.filter")
def filter_samples(
    rewards: "B", group: "label B", *, keep_pos_ratio: "[0, 1]" = 1.0, keep_neg_ratio: "[0, 1]" = 1.0,
    compute_new_adv: bool = False, eps: "[0, inf)" = 1e-6, singleton: ("raw", "zero", "error") = "raw",
    adv_estimator="grpo",
):
    if adv_estimator != "grpo":
        known = ("gae", "rloo", "reinforce_plus_plus", "remax")
        raise Refused("unsupported" if adv_estimator in known else "option", f"{adv_estimator} has no filter")
    options = plugin.filtering.Parameters(keep_pos_ratio, keep_neg_ratio, compute_new_adv, eps, singleton)
    groups = group.tolist()
    before = refused(plugin.filtering.filter_samples, rewards.tolist(), groups, options)
    if (eps, singleton) != (1e-6, "raw"):  # verl's configuration has no keys for these two
        return dict(zip(("advantages", "advantages_original", "kept"), before))
    config = {"keep_pos_ratio": keep_pos_ratio, "keep_neg_ratio": keep_neg_ratio, "compute_new_adv": compute_new_adv}
    advantages = COMPUTE_NEW_ADV(
        token_level_rewards=rewards.detach()[:, None], response_mask=torch.ones(len(rewards), 1), config=config,
        index=groups)[0][:, 0]
    return {"advantages": advantages, "advantages_original": before[1],
            "kept": plugin.marks.trained_on(advantages).double()}


@formula("objective.actor_loss", only={"kl_ratio_weight": False})
def actor_loss(
    logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", logp_ref: "BT" = None,
    entropy: "BT" = None, group_endpoints: "mask BT" = None, *, clip_ratio_low: "[0, 1]" = 0.2,
    clip_ratio_high: "[0, inf)" = 0.2, clip_ratio_c: "null (1, inf)" = 3.0, log_ratio_clamp: "null (0, inf)" = 20.0,
    kl_loss_type="low_var_kl", kl_input_clamp: "null (0, inf)" = 20.0, kl_output_clamp: "null (0, inf)" = 10.0,
    kl_loss_coef: "[0, inf)" = 0.0, entropy_coeff: "(-inf, inf)" = 0.0, loss_agg_mode="token-mean",
    loss_scale_factor: "null (0, inf)" = None, batch_num_tokens: "null (0, inf)" = None,
    global_batch_size: "null (0, inf)" = None, dp_size: "(0, inf)" = 1, gradient_accumulation_steps: "(0, inf)" = 1.0,
):
    if group_endpoints is None:
        raise Unsupported("without endpoints it is verl's own loss")
    if kl_loss_coef or entropy_coeff:
        raise Unsupported("KL and entropy are not the policy loss's: verl takes them over all tokens")
    mask = response_mask.bool() & group_endpoints.bool()
    bound("log_ratio_clamp", log_ratio_clamp, 20.0, (logp - logp_old)[mask].detach())
    config = ActorConfig(
        strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, loss_agg_mode=loss_agg_mode, clip_ratio_low=clip_ratio_low,
        clip_ratio_high=clip_ratio_high, clip_ratio_c=clip_ratio_c or OFF)
    config.global_batch_info.update(
        dp_size=dp_size, batch_num_tokens=batch_num_tokens, global_batch_size=global_batch_size,
        loss_scale_factor=loss_scale_factor)
    of_tokens = advantages if advantages.dim() == 2 else advantages[:, None].expand_as(logp)
    marked = plugin.marks.marked(of_tokens.detach(), group_endpoints.bool())
    loss, _ = policy_loss(logp_old.detach(), logp, marked, response_mask, loss_agg_mode, config)
    zero = torch.zeros_like(loss)
    return {"loss": loss / gradient_accumulation_steps, "policy_loss": loss, "kl_loss": zero, "entropy_loss": zero}


if __name__ == "__main__":
    torch_arrays.serve("grpo-oracle-verl", plugin.VERSION, dtypes=("f32", "f64"))
