"""TRL 1.16.0 as an adapter: the loss of its GRPO and GMPO trainers, and the lines of their methods that compute
advantages and weights, on inputs of our choice. No GPU is needed.

    python3 -m venv /tmp/trl && /tmp/trl/bin/pip install torch==2.11.0
    /tmp/trl/bin/pip install --no-deps -r examples/adapters/requirements-trl.txt
    grpo-oracle verify --adapter "/tmp/trl/bin/python examples/adapters/trl_adapter.py"

TRL gives one number for a batch, so losses by token come out of its loss one token (for GSPO and GMPO, one sequence) at
a time, each of them its own call with everything else masked. Groups are of one size and stand together there: others
are `unsupported`.
"""

import inspect
import math
import os
import textwrap
from importlib.metadata import version
from types import SimpleNamespace

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled functions run as they are written

import torch
import torch_arrays
from adapter import Unsupported, formula
from stand_ins import load
from torch_arrays import bound

grpo, rloo_trainer = load("trl.trainer.grpo_trainer"), load("trl.trainer.rloo_trainer")
gmpo_trainer = load("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer
utils = load("trl.trainer.utils")
overlong_punishment = load("trl.rewards.other_rewards").get_soft_overlong_punishment


def between(function, first, last, also=0):
    """The lines of a method from the one that holds `first` to the one that holds `last`, or so many more."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i >= start and last in line)
    return compile(textwrap.dedent("\n".join(lines[start : end + 1 + also])), function.__qualname__, "exec")


SCORING = grpo.GRPOTrainer._generate_and_score_completions
ADVANTAGES = between(SCORING, "unscorable_mask =", "torch.nan_to_num(advantages")
WEIGHTS = between(SCORING, "per_token_logps_diff = (old_per_token_logps", "Unknown vLLM importance", also=1)
RLOO = between(rloo_trainer.RLOOTrainer._generate_and_score_completions, "grouped_rewards =", "torch.nan_to_num(adv")


def kept(values, mask):
    return torch.where(mask.bool(), values, 0.0)


# Advantages


def of_groups(lines, rewards, group, singleton, together=False, **itself):
    """One call a group, as if its batch had no other: TRL's groups are of one size and stand together."""
    parts = [(group == label).nonzero().squeeze(-1) for label in group.unique()]
    if singleton != "zero" and any(len(part) == 1 for part in parts):
        raise Unsupported(f"a group of one always gets 0 here, never `{singleton}`")
    if together:  # the statistics are the batch's
        if len({len(part) for part in parts}) > 1:
            raise Unsupported("groups are of one size here")
        parts = [torch.cat(parts)] if parts else []
    advantages, size = torch.zeros_like(rewards), max([len(group) // max(1, len(group.unique())), 1])
    for part in parts:
        own = rewards.detach()[part]
        names = {"self": SimpleNamespace(**itself), "rewards": own, "rewards_per_func": own[:, None], "device": "cpu",
                 "num_generations": size if together else len(part), "torch": torch, "nanstd": utils.nanstd}
        exec(lines, names)
        advantages[part] = names["advantages"]
    return {"advantages": advantages}


@formula("advantage.group_norm", only={"eps_mode": "add"})
def group_norm(rewards, group, *, std="sample", std_scope="group", eps=1e-4, singleton="zero"):
    if std == "population" or std_scope == "leave_one_out":
        raise Unsupported(f"there is no such deviation here: {std}, {std_scope}")
    if std != "none" and eps != 1e-4:
        raise Unsupported(f"eps is always 1e-4 here, never {eps}")
    scale = "none" if std == "none" else std_scope
    return of_groups(
        ADVANTAGES, rewards, group, singleton, together=scale == "batch", scale_rewards=scale, reward_funcs=[None],
        multi_objective_aggregation="sum_then_normalize", reward_weights=torch.ones(1, dtype=rewards.dtype))


@formula("advantage.rloo")
def rloo(rewards, group, *, singleton="zero"):
    return of_groups(RLOO, rewards, group, singleton, normalize_advantages=False)


# The loss


class Metrics(dict):
    """What a trainer logs."""

    def __missing__(self, key):
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def compute(kind, logp, logp_old, advantages, mask, reference=None, entropies=None, trainer=grpo.GRPOTrainer, **own):
    """`_compute_loss` of a trainer that has everything but a model; what it logs comes with the loss."""
    arguments = {"delta": None, "use_bias_correction_kl": True, "sapo_temperature_pos": 1.0,
                 "sapo_temperature_neg": 1.05, "steps_per_generation": 1}
    settings = {"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0,
                "current_gradient_accumulation_steps": 1, "max_completion_length": 16, "entropy_coef": 0.0}
    arguments.update({key: value for key, value in own.items() if key in arguments})
    settings.update({key: value for key, value in own.items() if key in settings})
    entropies = torch.zeros_like(logp) if entropies is None else entropies
    accelerator = SimpleNamespace(process_index=0, num_processes=1, sync_gradients=True, gather=lambda x: x,
                                  reduce=lambda x, reduction: x)
    itself = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, entropies, None), aux_loss_enabled=False,
        top_entropy_quantile=1.0, off_policy_mask_threshold=None, loss_type=kind, use_vllm=False,
        vllm_importance_sampling_correction=False, accelerator=accelerator, _metrics=Metrics(),
        model=SimpleNamespace(training=True), _entropy_bonus_enabled=settings["entropy_coef"] != 0.0,
        use_adaptive_entropy=False, args=SimpleNamespace(**arguments), **settings)
    ids = torch.zeros_like(mask)
    loss = trainer._compute_loss(itself, None, {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask,
        "advantages": advantages.detach(), "old_per_token_logps": logp_old.detach(),
        "num_items_in_batch": own.get("items", mask.sum()), "ref_per_token_logps": reference})
    return loss, itself._metrics["train"]


def one_by_one(kind, logp, logp_old, advantages, mask, **own):
    """The loss of each token: that of the batch in which it alone is kept, and counted as one."""
    losses = []
    for i, t in mask.nonzero().tolist():
        alone = torch.zeros_like(mask)
        alone[i, t] = 1
        losses.append(compute(kind, logp, logp_old, advantages, alone, **own)[0] * (len(mask) if kind == "sapo" else 1))
    empty = torch.zeros_like(logp)
    return empty.masked_scatter(mask.bool(), torch.stack(losses)) if losses else empty


def two_sided(clip_ratio_c, clip_ratio_high):
    """`delta` caps the ratio before the minimum; above the upper bound that is dual clip."""
    if clip_ratio_c is not None and clip_ratio_c < 1 + clip_ratio_high:
        raise Unsupported("below 1 + clip_ratio_high a dual clip is another formula here")
    return clip_ratio_c


def drift_bound(asked, logp, logp_old, mask):
    bound("log_ratio_clamp", asked, None, (logp - logp_old)[mask.bool()])


@formula("objective.clip")
def clip(
    logp, logp_old, advantages, response_mask, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=None, log_ratio_clamp=None,
):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    bounds = {"epsilon_low": clip_ratio_low, "epsilon_high": clip_ratio_high,
              "delta": two_sided(clip_ratio_c, clip_ratio_high)}
    metrics = compute("dapo", logp, logp_old, advantages, response_mask, **bounds)[1]
    return {"loss": one_by_one("dapo", logp, logp_old, advantages, response_mask, **bounds),
            "clip_fraction": metrics["clip_ratio/region_mean"][0]}


@formula("metrics.policy")
def policy_metrics(
    logp, logp_old, advantages, response_mask, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=None, log_ratio_clamp=None,
):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    metrics = compute("dapo", logp, logp_old, advantages, response_mask, epsilon_low=clip_ratio_low,
                      epsilon_high=clip_ratio_high, delta=two_sided(clip_ratio_c, clip_ratio_high))[1]
    return {"clip_fraction": metrics["clip_ratio/region_mean"][0]}


@formula("objective.cispo", only={"cispo_bound": "absolute", "clip_ratio_low": None})
def cispo(logp, logp_old, advantages, response_mask, *, clip_ratio_high=0.2, log_ratio_clamp=None):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    return {"loss": one_by_one("cispo", logp, logp_old, advantages, response_mask, epsilon_high=clip_ratio_high)}


@formula("objective.sapo")
def sapo(logp, logp_old, advantages, response_mask, *, tau_pos=1.0, tau_neg=1.05, log_ratio_clamp=None):
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    return {"loss": one_by_one("sapo", logp, logp_old, advantages, response_mask, sapo_temperature_pos=tau_pos,
                               sapo_temperature_neg=tau_neg)}


@formula("objective.gspo", only={"importance_sampling_level": "sequence"})
def gspo(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.2, clip_ratio_high=0.2, log_ratio_max=None):
    """The loss of a token is that of its sequence, of which each is a call, over its tokens."""
    mask = response_mask
    means = kept(logp - logp_old, mask).sum(1) / mask.sum(1).clamp(min=1)
    bound("log_ratio_max", log_ratio_max, None, means.clamp(min=0))  # from above only
    if advantages.dim() == 2:
        raise Unsupported("there is one advantage a sequence here")
    losses = [compute("grpo", logp[i], logp_old[i], advantages[i], mask[i], importance_sampling_level="sequence",
                      epsilon_low=clip_ratio_low, epsilon_high=clip_ratio_high)[0]
              for i in (slice(i, i + 1) for i in range(len(logp)))]
    return {"loss": torch.stack(losses)[:, None] * mask}


@formula("objective.gmpo")
def gmpo(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.4, clip_ratio_high=0.4):
    losses = [compute("grpo", logp[i : i + 1], logp_old[i : i + 1], advantages[i : i + 1], response_mask[i : i + 1],
                      trainer=gmpo_trainer, epsilon_low=clip_ratio_low, epsilon_high=clip_ratio_high)[0]
              for i in range(len(logp))]
    return {"loss": torch.stack(losses)}


MODES = {"token-mean": "dapo", "seq-mean-token-mean": "grpo", "seq-mean-token-sum-norm": "dr_grpo"}


def reduction(mode, mask, loss_scale_factor, batch_num_tokens, global_batch_size):
    """The loss type that aggregates so, and its settings."""
    if mode not in MODES:
        raise Unsupported(f"no loss type aggregates by {mode} here")
    counted = global_batch_size or int((mask.sum(1) > 0).sum())
    if mode != "token-mean" and counted != len(mask):
        raise Unsupported("the mean is over all sequences here, empty ones included")
    length = loss_scale_factor or mask.shape[1]
    return MODES[mode], {"items": torch.tensor(batch_num_tokens or int(mask.sum())), "max_completion_length": length}


@formula("aggregate.loss", only={"dp_size": 1.0})
def aggregate(
    loss, response_mask, *,
    loss_agg_mode="token-mean", loss_scale_factor=None, batch_num_tokens=None, global_batch_size=None,
):
    """With a ratio of 1 the loss of a token is minus its advantage, to which there is no gradient to give."""
    kind, own = reduction(loss_agg_mode, response_mask, loss_scale_factor, batch_num_tokens, global_batch_size)
    same = torch.zeros_like(loss)
    return {"loss": float(compute(kind, same, same, -loss, response_mask, **own)[0])}


@formula("objective.actor_loss", only={
    "kl_loss_type": "k3", "kl_input_clamp": None, "kl_output_clamp": None, "dp_size": 1.0})
def actor_loss(
    logp, logp_old, advantages, response_mask, logp_ref=None, entropy=None, group_endpoints=None, *,
    clip_ratio_low=0.2, clip_ratio_high=0.2, clip_ratio_c=None, log_ratio_clamp=None, kl_ratio_weight=True, kl_loss_coef=0.0, entropy_coeff=0.0,
    loss_agg_mode="token-mean", loss_scale_factor=None, batch_num_tokens=None, global_batch_size=None,
    gradient_accumulation_steps=1.0,
):
    if group_endpoints is not None:
        raise Unsupported("there are no endpoints here")
    drift_bound(log_ratio_clamp, logp, logp_old, response_mask)
    if entropy_coeff != 0 and (loss_agg_mode != "token-mean" or batch_num_tokens):
        raise Unsupported("the entropy is always a mean over this micro-batch's tokens here")
    kind, own = reduction(loss_agg_mode, response_mask, loss_scale_factor, batch_num_tokens, global_batch_size)
    loss, metrics = compute(
        kind, logp, logp_old, advantages, response_mask, reference=None if logp_ref is None else logp_ref.detach(),
        entropies=entropy, delta=two_sided(clip_ratio_c, clip_ratio_high), epsilon_low=clip_ratio_low, epsilon_high=clip_ratio_high, beta=kl_loss_coef,
        use_bias_correction_kl=kl_ratio_weight, entropy_coef=entropy_coeff,
        current_gradient_accumulation_steps=gradient_accumulation_steps, **own)
    return {"loss": loss, **({"kl_loss": metrics["kl"][0]} if kl_loss_coef and kind == "dapo" else {})}


@formula("kl.estimate", only={"kl_penalty": "k3", "input_clamp": None, "output_clamp": None})
def kl_estimate(logp, logp_ref):
    """An advantage of 0 leaves the KL alone."""
    mask = torch.ones_like(logp, dtype=torch.long)
    return {"kl": one_by_one("dapo", logp, logp, torch.zeros(len(logp), dtype=logp.dtype), mask,
                             reference=logp_ref.detach(), beta=1.0, use_bias_correction_kl=False)}


# The rest


@formula("rollout.weights", only={"batch_normalize": False})
def weights(
    logp_old, logp_rollout, response_mask, *,
    rollout_is="sequence", rollout_is_mode="mask", rollout_is_threshold=3.0, rollout_is_threshold_lower=None,
    safety_bound=None,
):
    drift = kept(logp_old - logp_rollout, response_mask)
    bound("safety_bound", safety_bound, None, drift if rollout_is == "token" else drift.sum(1))
    itself = SimpleNamespace(vllm_importance_sampling_mode=f"{rollout_is}_{rollout_is_mode}",
                             vllm_importance_sampling_clip_min=rollout_is_threshold_lower,
                             vllm_importance_sampling_clip_max=rollout_is_threshold)
    names = {"self": itself, "old_per_token_logps": logp_old.detach(), "mask": response_mask, "torch": torch,
             "sampling_per_token_logps": logp_rollout.detach(), "math": math}
    exec(WEIGHTS, names)
    return {"weights": kept(names["vllm_importance_sampling_ratio"].expand_as(response_mask), response_mask)}


@formula("logprob.token")
def token(logits, tokens, *, temperature=1.0):
    scaled = logits / temperature
    return {"logp": utils.selective_log_softmax(scaled, tokens), "entropy": utils.entropy_from_logits(scaled)}


@formula("logprob.entropy")
def entropy_of(logits, *, temperature=1.0):
    return {"entropy": utils.entropy_from_logits(logits / temperature)}


@formula("reward.overlong", only={"penalty_factor": 1.0, "floor": -1.0})
def overlong(lengths, *, max_response_length=20480.0, buffer=4096.0):
    punish = overlong_punishment(max_response_length, buffer)
    return {"penalty": [float(x) for x in punish([[0] * int(length) for length in lengths])]}


if __name__ == "__main__":
    torch_arrays.serve("trl", version("trl"), dtypes=("f32", "f64"))
