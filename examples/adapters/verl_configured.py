"""verl as one configuration makes it: the adapter that `grpo-oracle certify-verl` asks. No GPU is needed.

A question brings one option, `overrides`: a list of overrides as `verl.trainer.main_ppo` takes them. They are composed with
verl's own tree, made into verl's own dataclasses, and what is asked goes the way that it goes in training: advantages through
`compute_advantage`, losses through `ppo_loss` to whatever `loss_mode` is registered as.

The counts of a mini-batch are those that verl's engines give: all tokens of the response mask, and all responses.
"""

import contextlib
import functools
import io
import os
import sys
import warnings
from importlib.metadata import version
from importlib.util import find_spec

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled functions run as they are written
warnings.filterwarnings("ignore")

import numpy as np
import torch
import torch_arrays
from adapter import FORMULAS, Unsupported
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf, open_dict
from stand_ins import STAND_INS, load

# What verl's imports name and no question needs; known here, verl is not imported anew for each of them.
UNUSED = ("ray", "transfer_queue", "torchdata", "codetiming", "fastapi", "uvicorn", "aiohttp", "cachetools")
STAND_INS.roots.update(name for name in UNUSED if find_spec(name) is None)
# Each missing package makes verl be imported anew; the second time nothing is missing, and all of it is one verl.
core, losses, ray_trainer, trainer, configs, workers, protocol, tensordict, imports = [
    [load(name) for name in (
        "verl.trainer.ppo.core_algos", "verl.workers.utils.losses", "verl.trainer.ppo.ray_trainer",
        "verl.trainer.ppo.v1.utils", "verl.utils.config", "verl.workers.config", "verl.protocol",
        "verl.utils.tensordict_utils", "verl.utils.import_utils")]
    for _ in range(2)][1]
DataProto = protocol.DataProto
TREE = os.path.join(find_spec("verl").submodule_search_locations[0], "trainer", "config")


@functools.lru_cache
def configuration(*overrides):
    """verl's whole configuration, and the actor's as a worker has it."""
    with contextlib.redirect_stdout(io.StringIO()), initialize_config_dir(TREE, version_base=None):
        config = compose("ppo_trainer", list(overrides))
    OmegaConf.resolve(config)
    # As the trainer's process and every worker do before anything is computed.
    imports.import_external_libs(config.actor_rollout_ref.model.external_lib)
    with open_dict(config):
        config.actor_rollout_ref.actor.rollout_n = config.actor_rollout_ref.rollout.n
    return config, configs.omega_conf_to_dataclass(config.actor_rollout_ref.actor)


def formula(name):
    """Like the adapters' own, for functions that look at no option but the overrides."""

    def register(function):
        def configured(*, overrides, **inputs):
            global CONFIG, ALGORITHM, ACTOR
            CONFIG, ACTOR = configuration(*overrides)
            ALGORITHM = CONFIG.algorithm
            return function(**inputs)

        FORMULAS[name] = (configured, {})
        return function

    return register


def kept(values, mask):
    return torch.where(mask.bool(), values, 0.0)


def per_token(advantages, like):
    return (advantages if advantages.dim() == 2 else advantages[:, None].expand_as(like)).detach()


def counts(mask, rows=None):
    """What an engine says of a mini-batch that is one micro-batch on one device."""
    rows = len(mask) if rows is None else rows
    return {"dp_size": 1, "batch_num_tokens": int(mask.sum()), "global_batch_size": rows}


# Advantages


def estimated(rewards, mask, group=None, **tensors):
    """Advantages and returns as the trainer's process computes them; `reward_baselines` reach the estimator in the older
    trainer alone."""
    group = range(len(rewards)) if group is None else group.tolist()
    uids = np.array([str(label) for label in group], dtype=object)
    tensors = {"token_level_rewards": rewards, "response_mask": mask, **tensors}
    data = DataProto.from_dict(
        tensors={name: tensor.detach().clone() for name, tensor in tensors.items()}, non_tensors={"uid": uids})
    data = trainer.compute_advantage_for_multi_trajectories(
        data, batch_keys=[f"{uid}_{i}_0" for i, uid in enumerate(uids)], adv_estimator=ALGORITHM.adv_estimator,
        gamma=ALGORITHM.gamma, lam=ALGORITHM.lam, num_repeat=CONFIG.actor_rollout_ref.rollout.n,
        norm_adv_by_std_in_grpo=ALGORITHM.get("norm_adv_by_std_in_grpo", True), config=ALGORITHM)
    return data.batch["advantages"], data.batch["returns"]


def outcome(rewards, group):
    """An estimator of one advantage a response, on responses of one token."""
    mask = torch.ones(len(rewards), 1, dtype=torch.long)
    return {"advantages": estimated(rewards[:, None], mask, group)[0][:, 0]}


@formula("advantage.group_norm")
def group_norm(rewards, group):
    return outcome(rewards, group)


@formula("advantage.rloo")
def rloo(rewards, group):
    return outcome(rewards, group)


@formula("advantage.gpg")
def gpg(rewards, group):
    return outcome(rewards, group)


@formula("advantage.filter")
def filtered(rewards, group):
    """`kept` is what the loss will train on."""
    advantages = outcome(rewards, group)["advantages"]
    return {"advantages": advantages, "kept": trained_on(advantages)}


@formula("advantage.opo")
def opo(rewards, group, lengths):
    if bool((lengths == 0).any()):
        raise Unsupported("a response without a token has no slot for its advantage here")
    mask = (torch.arange(max(1, int(lengths.max()))) < lengths[:, None]).long()
    scores = torch.zeros(mask.shape, dtype=rewards.dtype)
    scores[:, 0] = rewards.detach()
    return {"advantages": estimated(scores, mask, group)[0][:, 0]}


@formula("advantage.reinforce_plus_plus")
def reinforce_plus_plus(rewards, response_mask):
    advantages, returns = estimated(rewards, response_mask)
    return {"advantages": kept(advantages, response_mask), "returns": kept(returns, response_mask)}


@formula("advantage.reinforce_plus_plus_baseline")
def reinforce_plus_plus_baseline(rewards, group, response_mask):
    scores = torch.zeros(response_mask.shape, dtype=rewards.dtype)
    scores[:, 0] = rewards.detach()
    return {"advantages": kept(estimated(scores, response_mask, group)[0], response_mask)}


@formula("advantage.remax")
def remax(rewards, baselines, response_mask):
    advantages, returns = estimated(rewards, response_mask, reward_baselines=baselines)
    return {"advantages": kept(advantages, response_mask), "returns": kept(returns, response_mask)}


@formula("advantage.gae")
def gae(rewards, values, response_mask):
    advantages, returns = estimated(rewards, response_mask, values=values)
    return {"advantages": kept(advantages, response_mask), "returns": kept(returns, response_mask)}


@formula("advantage.group_ppo")
def group_ppo(rewards, values, logp, logp_old, response_mask):
    """The policy has not moved when the trainer's process asks: `logp` is nowhere to be had."""
    state = sys.modules["grpo_oracle_verl"].estimators.GROUP
    state.__init__()  # in training the threshold goes on from batch to batch
    advantages, returns = estimated(rewards, response_mask, values=values, old_log_probs=logp_old)
    return {"advantages": advantages, "returns": returns, "endpoints": state.endpoints, "threshold": state.threshold}


# The loss


def trained_on(advantages):
    """Which tokens the plug-in's estimators mark for its loss."""
    from grpo_oracle_verl import marks

    return marks.trained_on(advantages).double()


def token_losses(logp, logp_old, advantages, mask):
    """The losses of tokens that the configured objective hands to verl's aggregation."""
    taken, own = [], core.agg_loss
    core.agg_loss = lambda loss_mat, loss_mask, loss_agg_mode, **rest: taken.append(loss_mat) or loss_mat.sum()
    try:
        objective(logp, logp_old, per_token(advantages, logp), mask)
    finally:
        core.agg_loss = own
    if not taken:
        raise Unsupported("this objective aggregates by itself")
    return {"loss": kept(taken[0], mask)}


def objective(logp, logp_old, advantages, mask, rows=None):
    ACTOR.global_batch_info.update(counts(mask, rows), loss_scale_factor=ACTOR.loss_scale_factor)
    return core.get_policy_loss_fn(ACTOR.policy_loss.loss_mode)(
        old_log_prob=logp_old.detach(), log_prob=logp, advantages=advantages, response_mask=mask.bool(),
        loss_agg_mode=ACTOR.loss_agg_mode, config=ACTOR, rollout_is_weights=None)[0]


@formula("objective.policy_gradient")
def policy_gradient(logp, advantages):
    return token_losses(logp, logp, advantages, torch.ones_like(logp, dtype=torch.long))


@formula("objective.clip")
@formula("objective.gspo")
@formula("objective.cispo")
@formula("objective.sapo")
def with_ratio(logp, logp_old, advantages, response_mask):
    return token_losses(logp, logp_old, advantages, response_mask)


@formula("objective.gmpo")
def gmpo(logp, logp_old, advantages, response_mask):
    """One call a sequence: verl's loss of a batch is their plain mean."""
    a = per_token(advantages, logp)
    rows = [slice(i, i + 1) for i in range(len(logp))]
    return {"loss": torch.stack([objective(logp[i], logp_old[i], a[i], response_mask[i]) for i in rows])}


@formula("aggregate.loss")
def aggregate(loss, response_mask):
    """These losses in the place of those that the configured objective computes, on its way to verl's aggregation."""
    own, taken = core.agg_loss, []
    core.agg_loss = lambda loss_mat, **rest: taken.append(own(loss_mat=loss, **rest)) or taken[0]
    zero = torch.zeros_like(loss).detach()
    try:
        objective(zero, zero, zero, response_mask)
    finally:
        core.agg_loss = own
    if not taken:
        raise Unsupported("this objective aggregates by itself")
    return {"loss": taken[0]}


@formula("objective.actor_loss")
def actor_loss(logp, logp_old, advantages, response_mask, logp_ref=None, entropy=None, group_endpoints=None):
    """verl's whole loss, from its model's output to the number that it goes back from."""
    of_tokens = per_token(advantages, logp)
    if group_endpoints is not None:
        from grpo_oracle_verl import marks

        of_tokens = marks.marked(of_tokens, group_endpoints.bool())
    rows, width = logp.shape
    tensors = {"response_mask": response_mask, "old_log_probs": logp_old, "advantages": of_tokens,
               "prompts": torch.zeros(rows, 1), "responses": torch.zeros(rows, width),
               "attention_mask": torch.ones(rows, 1 + width, dtype=torch.long)}
    if logp_ref is not None:
        tensors["ref_log_prob"] = logp_ref
    data = DataProto.from_dict(tensors={name: tensor.detach() for name, tensor in tensors.items()}).to_tensordict()
    tensordict.assign_non_tensor(data, **counts(response_mask))
    output = {"log_probs": packed(logp)}
    if entropy is not None and ACTOR.entropy_coeff != 0:
        output["entropy"] = packed(entropy)
    loss, metrics = losses.ppo_loss(ACTOR, output, data)
    one = lambda name: metrics[name].values[0] if name in metrics else 0.0
    return {"loss": loss, "policy_loss": one("actor/pg_loss"), "kl_loss": one("kl_loss"),
            "entropy_loss": one("actor/entropy_loss")}


def packed(of_tokens):
    """A model's output: prompts of one token, each number one place before the token that it is about."""
    return torch.cat([of_tokens, of_tokens.new_zeros(len(of_tokens), 1)], 1).reshape(-1)


@formula("kl.estimate")
def kl_estimate(logp, logp_ref):
    return {"kl": core.kl_penalty(logp, logp_ref.detach(), ACTOR.kl_loss_type)}


# KL in the rewards, and the critic


@formula("kl.in_reward")
def kl_in_reward(scores, logp, logp_ref, response_mask):
    data = DataProto.from_dict(tensors={
        "response_mask": response_mask, "token_level_scores": scores.detach(), "old_log_probs": logp.detach(),
        "ref_log_prob": logp_ref.detach()})
    data, metrics = ray_trainer.apply_kl_penalty(data, core.get_kl_controller(ALGORITHM.kl_ctrl), ALGORITHM.kl_penalty)
    return {"rewards": kept(data.batch["token_level_rewards"], response_mask),
            "current_kl": metrics["actor/reward_kl_penalty"]}


@formula("value.clipped")
def value_clipped(values, values_old, returns, response_mask):
    critic = CONFIG.critic
    loss, share = core.compute_value_loss(
        values, returns.detach(), values_old.detach(), response_mask, critic.cliprange_value, critic.loss_agg_mode,
        **counts(response_mask), loss_scale_factor=critic.get("loss_scale_factor"))
    return {"loss": loss, "clip_fraction": share}


if __name__ == "__main__":
    torch_arrays.serve("verl", version("verl"), dtypes=("f32", "f64"))
