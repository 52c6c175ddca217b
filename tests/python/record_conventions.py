"""Records what public packages compute on small inputs, for tests/it/conventions.rs to compare with.

    python3 -m venv /tmp/verl && /tmp/verl/bin/pip install torch==2.11.0 numpy tensordict omegaconf transformers accelerate
    /tmp/verl/bin/pip install --no-deps verl==0.9.1
    /tmp/verl/bin/python tests/python/record_conventions.py verl-0.9.1

writes tests/it/conventions/verl-0.9.1.json; likewise verl-0.7.0 (verl==0.7.0), trl-1.16 (trl==1.16.0, and datasets)
and openrlhf-0.11 (openrlhf==0.11.2), each with an environment of its own. No GPU is needed. Modules that are not
installed (ray, vllm, flash_attn, deepspeed) are replaced by empty stand-ins: nothing that is recorded calls them.

A recorded call says which function ran, which formula it is compared with, under which options beside the
convention's own, on which inputs (the formula's), and what came out (the formula's outputs, and the gradient of their
first one's sum). Where a function returns less than the formula, only that is recorded. `tolerance` is relative to
the largest number of the array; it is loose where the source computes in single precision or adds 1e-8 to a
denominator, and the entry says so. Nothing is rounded.
"""

import datetime
import inspect
import json
import math
import os
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import MagicMock

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # compiled functions run as they are written

import numpy as np
import torch
import transformers

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples/adapters"))
from stand_ins import load

transformers.AutoModelForVision2Seq = transformers.AutoModel  # verl 0.7.0 imports it; it is gone since

SINGLE = 2e-6  # the source computes in single precision
ADDED = 1e-7  # the source adds 1e-8 to a denominator


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def plain(value):
    if isinstance(value, torch.Tensor):
        value = value.detach().tolist()
    elif isinstance(value, np.ndarray):
        value = value.tolist()
    return value


def kept(values, mask):
    """The values with 0 in the masked slots, as every formula gives them."""
    return torch.where(mask.bool(), values, torch.zeros_like(values))


class Recording:
    def __init__(self, convention, package, version):
        self.convention, self.package, self.version, self.calls = convention, package, version, []

    def add(self, name, function, formula, inputs, outputs, options=None, gradients=None, tolerance=1e-12, note=None):
        call = {"name": name, "function": function, "formula": formula, "options": options or {}}
        call["inputs"] = {key: plain(value) for key, value in inputs.items()}
        call["outputs"] = {key: plain(value) for key, value in outputs.items()}
        if gradients:
            call["gradients"] = {key: plain(value) for key, value in gradients.items()}
        call["tolerance"] = tolerance
        if note:
            call["note"] = note
        assert "NaN" not in json.dumps(call), name
        self.calls.append(call)

    def write(self):
        path = Path(__file__).parent.parent / "it" / "conventions" / f"{self.convention}.json"
        head = {
            "convention": self.convention,
            "package": self.package,
            "version": self.version,
            "torch": torch.__version__.split("+")[0],
            "recorded": datetime.date.today().isoformat(),
        }
        lines = ",\n  ".join(json.dumps(call) for call in self.calls)
        path.write_text(json.dumps(head)[:-1] + f', "calls": [\n  {lines}\n]}}\n')
        print(f"{path.name}: {len(self.calls)} calls")


# Inputs, all exact in single precision and bf16. The mask has a gap, padding and a whole row.
MASK = tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 1, 0, 0, 0]])
WITH_EMPTY = tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 1, 0, 0, 0]])
LOGP = -tensor(
    [
        [0.5, 1.25, 2.0, 0.25, 3.0],
        [0.75, 0.125, 1.5, 2.5, 0.5],
        [1.0, 0.5, 0.25, 1.75, 2.25],
        [3.0, 0.375, 1.125, 0.625, 0.875],
    ]
)
DRIFT = tensor(
    [
        [0.125, -0.5, 0.25, 9.0, -9.0],
        [0.0625, 1.5, -1.25, 0.0, -0.125],
        [-0.25, 7.0, 0.5, 1.0, 0.0],
        [1.25, -2.0, 3.0, 0.25, 0.5],
    ]
)  # policy less old policy
RUNAWAY = DRIFT.clone()
RUNAWAY[0, 0], RUNAWAY[1, 0], RUNAWAY[1, 2], RUNAWAY[3, 1] = 25.0, 25.0, -25.0, 25.0
HUGE = 1e12  # a bound above what the clamp of the log-ratio at 20 lets through, so that the clamp shows
REF_DRIFT = tensor(
    [
        [0.5, -0.25, 1.0, 4.0, -4.0],
        [-1.5, 0.25, 0.0, 2.0, -3.0],
        [0.75, 9.0, -0.125, 0.375, 0.5],
        [-2.5, 1.75, 5.0, 0.25, 1.0],
    ]
)
ADVANTAGES = tensor([1.0, -0.5, 0.75, -1.5])
TOKEN_ADVANTAGES = tensor(
    [
        [1.0, -0.5, 0.25, 2.0, 1.0],
        [-0.75, 0.5, -1.0, 0.25, 1.5],
        [0.5, 3.0, -0.25, 1.25, 0.75],
        [-1.5, 0.5, 2.0, 1.0, 0.25],
    ]
)
VALUES = tensor(
    [
        [0.5, 0.25, 0.75, 8.0, 8.0],
        [0.125, 0.5, -0.25, 1.0, 0.5],
        [0.25, 8.0, 0.625, -0.5, 8.0],
        [1.0, 0.5, 8.0, 8.0, 8.0],
    ]
)
TOKEN_REWARDS = tensor(
    [
        [0.25, -0.5, 1.0, 0.0, 0.0],
        [0.0, 0.125, 0.0, -0.25, 2.0],
        [0.5, 0.0, -0.75, 0.5, 0.0],
        [-1.0, 0.75, 0.0, 0.0, 0.0],
    ]
)
REWARDS = [1.0, 0.0, 0.25, 0.0, 2.0, 0.5, 0.75, 0.75, 0.75, 1.5]
GROUPS = [7, 7, 3, 7, 3, 3, 5, 5, 5, 1]  # groups of three, one of them constant, and one of one
EVEN_REWARDS = [1.0, 0.0, 0.0, 0.5, 0.25, 2.0, 0.25, 0.5, 0.75, 0.75, 0.75, 0.75]
EVEN_GROUPS = [0] * 4 + [1] * 4 + [2] * 4
LOGITS = tensor([[[0.5, -1.0, 2.0], [1.5, 0.25, 0.0]], [[3.0, -2.0, 0.125], [0.0, 0.0, 1.0]]])
TOKENS = torch.tensor([[2, 0], [1, 2]])


def outcome(rewards):
    """Token rewards with each response's reward at its last token, lengths 1 to 4, and their mask."""
    lengths = [1 + i % 4 for i in range(len(rewards))]
    mask = tensor([[1.0] * n + [0.0] * (4 - n) for n in lengths])
    scores = torch.zeros_like(mask)
    for i, n in enumerate(lengths):
        scores[i, n - 1] = rewards[i]
    return scores, mask, lengths


def by_response(advantages, mask):
    """One number a response, after looking that all of its tokens have it."""
    rows = []
    for row, keep in zip(advantages, mask.bool()):
        values = row[keep]
        assert (values == values[0]).all()
        rows.append(values[0].item())
    return rows


def verl(version):
    """verl.trainer.ppo.core_algos, verl.utils.torch_functional, the rollout correction, rewards."""
    old = version == "0.7.0"
    out = Recording(f"verl-{version}", "verl", version)
    trainer = load("verl.trainer.ppo.ray_trainer")
    core = load("verl.trainer.ppo.core_algos")
    config_module = load("verl.workers.config")
    tf = load("verl.utils.torch_functional")
    correction = load("verl.trainer.ppo.rollout_corr_helper")
    where = "verl.trainer.ppo.core_algos."
    if old:  # on a machine without a GPU it takes torch's module for its device, and fails
        own_statistics = core.group_mean_std
        core.group_mean_std = lambda *args, **kwargs: own_statistics(*args, device=torch.device("cpu"), **kwargs)

    def actor(**options):
        return config_module.ActorConfig(strategy="fsdp", rollout_n=1, use_dynamic_bsz=True, **options)

    # Masks
    for keep, name in [(MASK, "gaps"), (WITH_EMPTY, "an empty row")]:
        out.add(f"sum, {name}", "verl.utils.torch_functional.masked_sum", "mask.sum",
                {"values": VALUES, "mask": keep}, {"sum": tf.masked_sum(VALUES, keep)})
        out.add(f"mean, {name}", "verl.utils.torch_functional.masked_mean", "mask.mean",
                {"values": VALUES, "mask": keep}, {"mean": tf.masked_mean(VALUES, keep)}, tolerance=ADDED)
        out.add(f"mean of rows, {name}", "verl.utils.torch_functional.masked_mean", "mask.mean",
                {"values": VALUES, "mask": keep}, {"mean": tf.masked_mean(VALUES, keep, axis=1)},
                options={"axis": 1}, tolerance=ADDED)
    out.add("variance", "verl.utils.torch_functional.masked_var", "mask.variance",
            {"values": VALUES, "mask": MASK}, {"variance": tf.masked_var(VALUES, MASK)}, tolerance=ADDED)
    for shift in [True, False]:
        out.add(f"whitened, shift_mean {shift}", "verl.utils.torch_functional.masked_whiten", "mask.whiten",
                {"values": VALUES, "mask": MASK},
                {"whitened": kept(tf.masked_whiten(VALUES, MASK, shift_mean=shift), MASK)},
                options={"shift_mean": shift}, tolerance=ADDED, note="masked slots, which verl leaves, set to 0")

    # Advantages by response
    scores, mask, lengths = outcome(REWARDS)
    index = np.array(GROUPS)
    by_group = {"rewards": REWARDS, "group": GROUPS}

    def estimate(function, **options):
        return getattr(core, function)(scores.clone(), mask, index=index, **options)[0]

    for by_std in [True, False]:
        options = {} if by_std else {"std": "none"}
        advantages = estimate("compute_grpo_outcome_advantage", norm_adv_by_std_in_grpo=by_std)
        out.add(f"grpo, by std {by_std}", where + "compute_grpo_outcome_advantage", "advantage.group_norm",
                by_group, {"advantages": by_response(advantages, mask)}, options=options,
                tolerance=1e-7 if by_std else 1e-12,
                note="1 + eps of the group of one is taken in single precision" if by_std else None)
        options = dict(options, **({"eps_mode": "floor_variance"} if old and by_std else {}))
        advantages = estimate("compute_grpo_vectorized_outcome_advantage", norm_adv_by_std_in_grpo=by_std)
        out.add(f"grpo_vectorized, by std {by_std}", where + "compute_grpo_vectorized_outcome_advantage",
                "advantage.group_norm", by_group, {"advantages": by_response(advantages, mask)}, options=options,
                tolerance=SINGLE, note="group statistics are taken in single precision")
    near, near_mask, _ = outcome([0.0, 2.0**-13, 1.0, 1.0])
    near_index = np.array([0, 0, 1, 1])
    advantages = core.compute_grpo_vectorized_outcome_advantage(near, near_mask, near_index)[0]
    out.add("grpo_vectorized of nearly equal rewards", where + "compute_grpo_vectorized_outcome_advantage",
            "advantage.group_norm", {"rewards": [0.0, 2.0**-13, 1.0, 1.0], "group": [0, 0, 1, 1]},
            {"advantages": by_response(advantages, near_mask)},
            options={"eps_mode": "floor_variance"} if old else {}, tolerance=SINGLE)
    out.add("rloo", where + "compute_rloo_outcome_advantage", "advantage.rloo", by_group,
            {"advantages": by_response(estimate("compute_rloo_outcome_advantage"), mask)})
    out.add("rloo_vectorized", where + "compute_rloo_vectorized_outcome_advantage", "advantage.rloo", by_group,
            {"advantages": by_response(estimate("compute_rloo_vectorized_outcome_advantage"), mask)},
            options={"singleton": "zero"})
    out.add("opo", where + "compute_opo_outcome_advantage", "advantage.opo", dict(by_group, lengths=lengths),
            {"advantages": by_response(estimate("compute_opo_outcome_advantage"), mask)})
    out.add("gpg", where + "compute_gpg_outcome_advantage", "advantage.gpg", by_group,
            {"advantages": by_response(estimate("compute_gpg_outcome_advantage"), mask)}, tolerance=SINGLE,
            note="alpha is taken in single precision")
    out.add("gpg, f_norm 2", where + "compute_gpg_outcome_advantage", "advantage.gpg", by_group,
            {"advantages": by_response(estimate("compute_gpg_outcome_advantage", f_norm=2.0), mask)},
            options={"f_norm": 2.0}, tolerance=SINGLE, note="alpha is taken in single precision")
    advantages = estimate("compute_reinforce_plus_plus_baseline_outcome_advantage")
    out.add("reinforce_plus_plus_baseline", where + "compute_reinforce_plus_plus_baseline_outcome_advantage",
            "advantage.reinforce_plus_plus_baseline", dict(by_group, response_mask=mask), {"advantages": advantages},
            tolerance=ADDED)
    pairs, pairs_mask, _ = outcome(EVEN_REWARDS)
    for by_std in [True, False]:
        advantages = core.compute_grpo_passk_outcome_advantage(
            pairs.clone(), pairs_mask, np.array(EVEN_GROUPS), config={"norm_adv_by_std_in_grpo": by_std})[0]
        out.add(f"grpo_passk, by std {by_std}", where + "compute_grpo_passk_outcome_advantage",
                "advantage.pass_at_k", {"rewards": EVEN_REWARDS, "group": EVEN_GROUPS},
                {"advantages": by_response(advantages, pairs_mask)}, options={} if by_std else {"std": "none"})

    # Advantages by token
    for gamma, lam in [(1.0, 1.0), (0.5, 0.75)]:
        advantages, returns = core.compute_gae_advantage_return(TOKEN_REWARDS, VALUES, MASK, gamma, lam)
        out.add(f"gae, gamma {gamma}", where + "compute_gae_advantage_return", "advantage.gae",
                {"rewards": TOKEN_REWARDS, "values": VALUES, "response_mask": MASK},
                {"advantages": kept(advantages, MASK), "returns": kept(returns, MASK)},
                options={"gamma": gamma, "lam": lam}, tolerance=ADDED,
                note="masked slots, which verl leaves, set to 0")
        advantages, returns = core.compute_reinforce_plus_plus_outcome_advantage(
            TOKEN_REWARDS, MASK, config=SimpleNamespace(gamma=gamma))
        out.add(f"reinforce_plus_plus, gamma {gamma}", where + "compute_reinforce_plus_plus_outcome_advantage",
                "advantage.reinforce_plus_plus", {"rewards": TOKEN_REWARDS, "response_mask": MASK},
                {"advantages": kept(advantages, MASK), "returns": kept(returns, MASK)}, options={"gamma": gamma},
                tolerance=ADDED, note="masked slots, which verl leaves, set to 0" if old else None)
    advantages, returns = core.compute_remax_outcome_advantage(TOKEN_REWARDS, ADVANTAGES, MASK)
    out.add("remax", where + "compute_remax_outcome_advantage", "advantage.remax",
            {"rewards": TOKEN_REWARDS, "baselines": ADVANTAGES, "response_mask": MASK},
            {"advantages": kept(advantages, MASK), "returns": kept(returns, MASK)},
            note="the return between kept tokens, which verl leaves, set to 0")

    # Aggregation
    modes = ["token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm"]
    for mode in modes + ([] if old else ["token-sum"]):
        whole = {"global_batch_size": 1.0} if old and mode == "seq-mean-token-sum-norm" else {}
        for keep, name in [(MASK, "gaps"), (WITH_EMPTY, "an empty row")]:
            loss = VALUES.clone().requires_grad_()
            value = core.agg_loss(loss, keep, mode)
            value.backward()
            out.add(f"{mode}, {name}", where + "agg_loss", "aggregate.loss",
                    {"loss": VALUES, "response_mask": keep}, {"loss": value},
                    options=dict(whole, loss_agg_mode=mode), gradients={"loss": loss.grad}, tolerance=ADDED)
        counts = {"dp_size": 2, "batch_num_tokens": 20, "global_batch_size": 8, "loss_scale_factor": 16}
        value = core.agg_loss(VALUES, WITH_EMPTY, mode, **counts)
        options = dict({key: float(number) for key, number in counts.items()}, loss_agg_mode=mode, **whole)
        if whole:
            options["dp_size"] = 1.0  # neither counted nor multiplied there
        out.add(f"{mode}, global counts", where + "agg_loss", "aggregate.loss",
                {"loss": VALUES, "response_mask": WITH_EMPTY}, {"loss": value}, options=options, tolerance=ADDED)

    # Policy losses, aggregated
    old_logp = LOGP - DRIFT
    for mode in modes:
        if old and mode == "seq-mean-token-sum-norm":
            continue
        for options in [{}, {"clip_ratio_low": 0.1, "clip_ratio_high": 0.28, "clip_ratio_c": 1.5}]:
            logp = LOGP.clone().requires_grad_()
            returned = core.compute_policy_loss_vanilla(
                old_logp, logp, TOKEN_ADVANTAGES, MASK, loss_agg_mode=mode, config=actor(**options))
            returned[0].backward()
            out.add(f"vanilla, {mode}, {options or 'defaults'}", where + "compute_policy_loss_vanilla",
                    "objective.actor_loss",
                    {"logp": LOGP, "logp_old": old_logp, "advantages": TOKEN_ADVANTAGES, "response_mask": MASK},
                    {"loss": returned[0], "policy_loss": returned[0]}, options=dict(options, loss_agg_mode=mode),
                    gradients={"logp": logp.grad}, tolerance=ADDED)
            if mode == "token-mean":
                metrics = returned[1]
                shares = {"clip_fraction": metrics["actor/pg_clipfrac"], "ppo_kl": metrics["actor/ppo_kl"],
                          "clip_fraction_lower": metrics["actor/pg_clipfrac_lower"]}
                out.add(f"metrics of vanilla, {options or 'defaults'}", where + "compute_policy_loss_vanilla",
                        "metrics.policy",
                        {"logp": LOGP, "logp_old": old_logp, "advantages": TOKEN_ADVANTAGES, "response_mask": MASK},
                        shares, options=options, tolerance=SINGLE, note="shares are taken in single precision")

    # Policy losses by token: the aggregation is replaced by the plain sum, so that the losses show
    def losses(function, advantages, mode="token-mean", drift=DRIFT, **options):
        taken = []

        def aggregate(loss_mat, loss_mask, loss_agg_mode, **counts):
            taken.append((loss_mat, loss_agg_mode))
            return torch.where(loss_mask.bool(), loss_mat, 0.0).sum()

        own, core.agg_loss = core.agg_loss, aggregate
        try:
            logp = LOGP.clone().requires_grad_()
            getattr(core, function)(
                LOGP - drift, logp, advantages, MASK, loss_agg_mode=mode, config=actor(**options))[0].backward()
        finally:
            core.agg_loss = own
        return kept(taken[0][0], MASK), logp.grad, taken[0][1]

    policy = {"logp": LOGP, "logp_old": old_logp, "advantages": TOKEN_ADVANTAGES, "response_mask": MASK}
    narrow = {"clip_ratio_low": 0.1, "clip_ratio_high": 0.28}
    wide = {"clip_ratio_low": 0.5, "clip_ratio_high": 2.0}
    runs = [("vanilla", "objective.clip", {}), ("vanilla", "objective.clip", dict(narrow, clip_ratio_c=1.5)),
            ("gspo", "objective.gspo", {}), ("gspo", "objective.gspo", wide), ("sapo", "objective.sapo", {}),
            ("sapo", "objective.sapo", {"tau_pos": 2.0, "tau_neg": 0.5}), ("cispo", "objective.cispo", {}),
            ("cispo", "objective.cispo", wide)]
    for name, formula, options in runs:
        if f"compute_policy_loss_{name}" not in dir(core):
            continue
        for drift, tokens in [(DRIFT, "ordinary tokens"), (RUNAWAY, "runaway tokens")]:
            if drift is RUNAWAY:
                if options:
                    continue
                wider = {"vanilla": "clip_ratio_c", "cispo": "clip_ratio_high"}
                options = {wider[name]: HUGE} if name in wider else {}
            loss, gradient, _ = losses(f"compute_policy_loss_{name}", TOKEN_ADVANTAGES, drift=drift, **options)
            out.add(f"{name}, {options or 'defaults'}, {tokens}", where + f"compute_policy_loss_{name}", formula,
                    dict(policy, logp_old=LOGP - drift), {"loss": loss}, options=options,
                    gradients={"logp": gradient})
    logp = LOGP.clone().requires_grad_()
    returned = core.compute_policy_loss_vanilla(
        LOGP - RUNAWAY, logp, TOKEN_ADVANTAGES, MASK, config=actor(clip_ratio_c=HUGE))
    returned[0].backward()
    runaway = dict(policy, logp_old=LOGP - RUNAWAY)
    out.add("vanilla, runaway tokens", where + "compute_policy_loss_vanilla", "objective.actor_loss", runaway,
            {"loss": returned[0], "policy_loss": returned[0]}, options={"clip_ratio_c": HUGE},
            gradients={"logp": logp.grad}, tolerance=ADDED)
    out.add("metrics of vanilla, runaway tokens", where + "compute_policy_loss_vanilla", "metrics.policy", runaway,
            {"clip_fraction": returned[1]["actor/pg_clipfrac"], "ppo_kl": returned[1]["actor/ppo_kl"],
             "clip_fraction_lower": returned[1]["actor/pg_clipfrac_lower"]}, options={"clip_ratio_c": HUGE},
            tolerance=SINGLE)
    # The actor's loss as verl's workers add it up: policy, less the entropy's share, and the KL's
    logp, entropy = LOGP.clone().requires_grad_(), VALUES.clone().requires_grad_()
    loss = core.compute_policy_loss_vanilla(old_logp, logp, TOKEN_ADVANTAGES, MASK, config=actor())[0]
    divergence = core.agg_loss(core.kl_penalty(logp, LOGP - REF_DRIFT, "low_var_kl"), MASK, "token-mean")
    bonus = core.agg_loss(entropy, MASK, "token-mean")
    total = loss - 0.25 * bonus + 0.5 * divergence
    total.backward()
    out.add("policy, KL and entropy", "compute_policy_loss_vanilla, kl_penalty and agg_loss, added as the workers do",
            "objective.actor_loss", dict(policy, logp_ref=LOGP - REF_DRIFT, entropy=VALUES),
            {"loss": total, "kl_loss": divergence, "entropy_loss": bonus},
            options={"kl_loss_coef": 0.5, "entropy_coeff": 0.25},
            gradients={"logp": logp.grad, "entropy": entropy.grad}, tolerance=ADDED)
    forced = losses("compute_policy_loss_gspo", TOKEN_ADVANTAGES)[2]
    assert forced == ("seq-mean-token-mean" if old else "token-mean"), forced
    loss, gradient, _ = losses("compute_policy_loss_gpg", TOKEN_ADVANTAGES)
    out.add("gpg's loss", where + "compute_policy_loss_gpg", "objective.policy_gradient",
            {"logp": kept(LOGP, MASK), "advantages": kept(TOKEN_ADVANTAGES, MASK)}, {"loss": loss},
            gradients={"logp": gradient}, note="the formula has no mask: masked slots are set to 0 on both sides")
    for options in [{}, {"clip_ratio_low": 0.4, "clip_ratio_high": 0.4}]:
        logp = LOGP.clone().requires_grad_()
        mean = core.compute_policy_loss_geo_mean(
            old_logp, logp, ADVANTAGES[:, None].expand_as(MASK), MASK, config=actor(**options))[0]
        (mean * len(LOGP)).backward()
        parts = []
        for i in range(len(LOGP)):
            parts.append(core.compute_policy_loss_geo_mean(
                old_logp[i : i + 1], LOGP[i : i + 1], ADVANTAGES[i : i + 1, None].expand(1, 5), MASK[i : i + 1],
                config=actor(**options))[0].item())
        assert abs(sum(parts) / 4 - mean.item()) < 1e-12
        out.add(f"geo_mean, {options or 'defaults'}", where + "compute_policy_loss_geo_mean", "objective.gmpo",
                {"logp": LOGP, "logp_old": old_logp, "advantages": ADVANTAGES, "response_mask": MASK},
                {"loss": parts}, options=options, gradients={"logp": logp.grad}, tolerance=ADDED,
                note="one call a sequence; the whole batch is their plain mean")

    # KL
    for kind in ["kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3"] + ([] if old else ["k1+", "abs+", "k2+", "k3+"]):
        logp = LOGP.clone().requires_grad_()
        value = core.kl_penalty(logp, LOGP - REF_DRIFT, kind)
        value.sum().backward()
        clamps = {} if kind in ["low_var_kl", "k3", "k3+"] else {"input_clamp": None, "output_clamp": None}
        out.add(f"kl_penalty {kind}", where + "kl_penalty", "kl.estimate",
                {"logp": LOGP, "logp_ref": LOGP - REF_DRIFT}, {"kl": value}, options=dict(clamps, kl_penalty=kind),
                gradients={"logp": logp.grad})
    if old:
        for kind in ["k1+", "k3+"]:
            try:
                core.kl_penalty(LOGP, LOGP, kind)
            except NotImplementedError:
                continue
            raise AssertionError(kind)
    controller = core.AdaptiveKLController(0.25, 0.125, 1000)
    controller.update(current_kl=0.1875, n_steps=64)
    out.add("adaptive controller", where + "AdaptiveKLController.update", "kl.controller",
            {"kl_coef": 0.25, "current_kl": 0.1875}, {"kl_coef": float(controller.value)},
            options={"type": "adaptive", "target_kl": 0.125, "horizon": 1000.0, "n_steps": 64.0})
    protocol = load("verl.protocol")
    data = protocol.DataProto.from_dict(tensors={
        "response_mask": MASK, "token_level_scores": TOKEN_REWARDS * MASK, "old_log_probs": LOGP,
        "ref_log_prob": LOGP - REF_DRIFT})
    for kind in ["kl", "low_var_kl"]:
        clamps = {"input_clamp": 20.0, "output_clamp": 10.0} if kind == "low_var_kl" else {}
        rewarded, metrics = trainer.apply_kl_penalty(data, core.FixedKLController(0.25), kl_penalty=kind)
        out.add(f"KL in the reward, {kind}", "verl.trainer.ppo.ray_trainer.apply_kl_penalty", "kl.in_reward",
                {"scores": TOKEN_REWARDS, "logp": LOGP, "logp_ref": LOGP - REF_DRIFT, "response_mask": MASK},
                {"rewards": rewarded.batch["token_level_rewards"],
                 "current_kl": metrics["actor/reward_kl_penalty"]},
                options=dict(clamps, kl_penalty=kind, kl_coef=0.25), tolerance=ADDED)

    # The critic
    for mode in ["token-mean", "seq-mean-token-mean"]:
        values = VALUES.clone().requires_grad_()
        loss, share = core.compute_value_loss(values, TOKEN_REWARDS, ADVANTAGES[:, None] / 2, MASK, 0.5, mode)
        loss.backward()
        out.add(f"value loss, {mode}", where + "compute_value_loss", "value.clipped",
                {"values": VALUES, "values_old": (ADVANTAGES[:, None] / 2).expand_as(VALUES),
                 "returns": TOKEN_REWARDS, "response_mask": MASK},
                {"loss": loss, "clip_fraction": share}, options={"loss_agg_mode": mode, "cliprange_value": 0.5},
                gradients={"values": values.grad}, tolerance=SINGLE, note="the share is taken in single precision")

    # Log-probabilities
    logits = LOGITS.clone().requires_grad_()
    entropy = tf.entropy_from_logits(logits)
    entropy.sum().backward()
    out.add("entropy", "verl.utils.torch_functional.entropy_from_logits", "logprob.entropy", {"logits": LOGITS},
            {"entropy": entropy}, gradients={"logits": logits.grad})
    logits = LOGITS.clone().requires_grad_()
    logp = tf.logprobs_from_logits_v2(logits, TOKENS)
    logp.sum().backward()
    out.add("log-probabilities", "verl.utils.torch_functional.logprobs_from_logits_v2", "logprob.token",
            {"logits": LOGITS, "tokens": TOKENS}, {"logp": logp}, gradients={"logits": logits.grad})

    # Rollout correction
    engine = {"logp_old": LOGP, "logp_rollout": LOGP - DRIFT, "response_mask": MASK}
    module = "verl.trainer.ppo.rollout_corr_helper."
    if not old:
        for level in ["token", "sequence"]:
            for threshold, bounds in [(2.0, {}), ("0.5_5.0", {"rollout_is_mode": "mask",
                                                              "rollout_is_threshold_lower": 0.5})]:
                for normal in [False, True]:
                    weights, _ = correction.compute_rollout_correction_weights(
                        DRIFT, MASK, level, threshold, normal)
                    upper = 5.0 if bounds else 2.0
                    out.add(f"weights, {level}, {threshold}, normalised {normal}",
                            module + "compute_rollout_correction_weights", "rollout.weights", engine,
                            {"weights": weights},
                            options=dict(bounds, rollout_is=level, rollout_is_threshold=upper,
                                         batch_normalize=normal), tolerance=ADDED)
        for criterion, threshold in [("token_k1", "0.5_4.0"), ("token_k1", 2.0), ("token_k2", 0.5),
                                     ("token_k3", 0.25), ("seq_sum_k1", "0.75_3.0"), ("seq_sum_k2", 1.0),
                                     ("seq_mean_k1", 1.25), ("seq_mean_k2", 0.5), ("seq_mean_k3", 0.25),
                                     ("seq_max_k2", 0.5), ("seq_max_k3", 0.5)]:
            keep, metrics = correction.compute_rollout_rejection_mask(DRIFT, MASK, criterion, threshold)
            level, estimator = criterion.rsplit("_", 1)
            lower = float(threshold.split("_")[0]) if isinstance(threshold, str) else None
            upper = float(threshold.split("_")[1]) if isinstance(threshold, str) else threshold
            out.add(f"rejection, {criterion}, {threshold}", module + "compute_rollout_rejection_mask",
                    "rollout.rejection", engine,
                    {"response_mask": keep, "rejected_fraction": metrics["rollout_rs_masked_fraction"]},
                    options={"rollout_rs_level": level, "rollout_rs_estimator": estimator,
                             "rollout_rs_threshold": upper, "rollout_rs_threshold_lower": lower}, tolerance=ADDED)

    # Rewards
    gsm8k = load("verl.utils.reward_score.gsm8k")
    texts = ["so 6*7.\n#### 42", "#### 42.", "####42", "#### $42", "#### 1,000", "#### 5 and #### 42", "#### 42.0",
             "It is 42", "It is 42.", "", "#### 42" + " and so on" * 40, "42 or 5-3", "-42 #### -42"]
    answers = ["42"] * 4 + ["1000"] + ["42"] * 6 + ["-3", "-42"]
    for method in ["strict", "flexible"]:
        found = [float(gsm8k.compute_score(text, answer, method=method)) for text, answer in zip(texts, answers)]
        out.add(f"gsm8k {method}", "verl.utils.reward_score.gsm8k.compute_score", "reward.gsm8k",
                {"response": texts, "answer": answers}, {"reward": found}, options={"method": method})
    manager = load("verl.workers.reward_manager.dapo").DAPORewardManager
    penalties = []
    for length in [10, 12, 14, 16, 20]:
        item = SimpleNamespace(
            batch={"prompts": torch.zeros(2), "attention_mask": torch.ones(2 + length, dtype=torch.long),
                   "responses": torch.zeros(length)},
            non_tensor_batch={"reward_model": {"ground_truth": ""}, "data_source": ""})

        class Batch(list):
            batch = {"responses": torch.zeros(1, length)}

        own = manager(tokenizer=SimpleNamespace(decode=lambda *args, **kwargs: "", eos_token="<end>"), num_examine=0,
                      compute_score=lambda **kwargs: 0.0, max_resp_len=16,
                      overlong_buffer_cfg=SimpleNamespace(enable=True, len=4, penalty_factor=2.0, log=False))
        penalties.append(own(Batch([item])).sum().item())
    out.add("overlong", "verl.workers.reward_manager.dapo.DAPORewardManager.__call__", "reward.overlong",
            {"lengths": [10, 12, 14, 16, 20]}, {"penalty": penalties},
            options={"max_response_length": 16.0, "buffer": 4.0, "penalty_factor": 2.0}, tolerance=SINGLE)
    out.write()


def between(function, first, last, also=0):
    """The lines of a method's source from the one that holds `first` to the one that holds `last`, or so many more."""
    lines = inspect.getsource(function).splitlines()
    start = next(i for i, line in enumerate(lines) if first in line)
    end = next(i for i, line in enumerate(lines) if i >= start and last in line)
    return compile(textwrap.dedent("\n".join(lines[start : end + 1 + also])), function.__qualname__, "exec")


class Metrics(dict):
    """Swallows what a trainer logs, and keeps it."""

    def __missing__(self, key):
        self[key] = Metrics() if key in ("train", "eval") else []
        return self[key]


def trl():
    """TRL's GRPO and RLOO trainers: their loss, and the lines of their methods that compute advantages and weights."""
    out = Recording("trl-1.16", "trl", "1.16.0")
    grpo, rloo = load("trl.trainer.grpo_trainer"), load("trl.trainer.rloo_trainer")
    utils = load("trl.trainer.utils")
    accelerator = SimpleNamespace(process_index=0, num_processes=1, sync_gradients=True, gather=lambda x: x,
                                  reduce=lambda x, reduction: x)
    where = "trl.trainer.grpo_trainer.GRPOTrainer."

    # Advantages: the lines of _generate_and_score_completions
    lines = between(grpo.GRPOTrainer._generate_and_score_completions, "unscorable_mask =", "torch.nan_to_num(advantages")
    for rewards, groups, n in [(EVEN_REWARDS, EVEN_GROUPS, 4), (EVEN_REWARDS[:3], [0, 1, 2], 1)]:
        for scale in ["group", "batch", "none"]:
            if n == 1 and scale == "batch":
                continue  # the specification gives a group of one 0 whatever the batch is, as TRL does too
            itself = SimpleNamespace(multi_objective_aggregation="sum_then_normalize", scale_rewards=scale,
                                     reward_weights=tensor([1.0]), reward_funcs=[None])
            names = {"self": itself, "rewards_per_func": tensor(rewards)[:, None], "device": "cpu",
                     "num_generations": n, "torch": torch, "nanstd": utils.nanstd}
            exec(lines, names)
            options = {"group": {}, "batch": {"std_scope": "batch"}, "none": {"std": "none"}}[scale]
            out.add(f"advantages, {scale}, groups of {n}", where + "_generate_and_score_completions (its lines)",
                    "advantage.group_norm", {"rewards": rewards, "group": groups},
                    {"advantages": names["advantages"]}, options=options, tolerance=SINGLE,
                    note="n / (n - 1) is taken in single precision")

    # RLOO's
    lines = between(rloo.RLOOTrainer._generate_and_score_completions, "grouped_rewards =", "torch.nan_to_num(advantages")
    for rewards, groups, n in [(EVEN_REWARDS, EVEN_GROUPS, 4), (EVEN_REWARDS[:3], [0, 1, 2], 1)]:
        names = {"self": SimpleNamespace(normalize_advantages=False), "rewards": tensor(rewards),
                 "num_generations": n, "torch": torch, "nanstd": utils.nanstd}
        exec(lines, names)
        out.add(f"RLOO's advantages, groups of {n}",
                "trl.trainer.rloo_trainer.RLOOTrainer._generate_and_score_completions (its lines)", "advantage.rloo",
                {"rewards": rewards, "group": groups}, {"advantages": names["advantages"]})

    # The loss
    def compute(kind, advantages, entropies=None, reference=None, mask=MASK, drift=DRIFT, trainer=None, **options):
        logp = LOGP.clone().requires_grad_()
        arguments = {"delta": None, "use_bias_correction_kl": True, "sapo_temperature_pos": 1.0,
                     "sapo_temperature_neg": 1.05, "steps_per_generation": 1}
        settings = {"importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0,
                    "current_gradient_accumulation_steps": 1, "max_completion_length": 16, "entropy_coef": 0.0}
        arguments.update({key: value for key, value in options.items() if key in arguments})
        settings.update({key: value for key, value in options.items() if key in settings})
        assert all(key in arguments or key in settings for key in options)
        entropies = torch.zeros_like(LOGP) if entropies is None else entropies
        itself = SimpleNamespace(
            _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, entropies, None),
            aux_loss_enabled=False, top_entropy_quantile=1.0, off_policy_mask_threshold=None, loss_type=kind,
            use_vllm=False, vllm_importance_sampling_correction=False, accelerator=accelerator, _metrics=Metrics(),
            model=SimpleNamespace(training=True), _entropy_bonus_enabled=settings["entropy_coef"] != 0.0,
            use_adaptive_entropy=False, args=SimpleNamespace(**arguments), **settings)
        ids = torch.zeros_like(mask, dtype=torch.long)
        inputs = {"prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": mask,
                  "advantages": advantages, "old_per_token_logps": LOGP - drift,
                  "num_items_in_batch": mask.sum(), "ref_per_token_logps": reference}
        loss = (trainer or grpo.GRPOTrainer)._compute_loss(itself, None, inputs)
        loss.backward()
        return loss, logp.grad, itself._metrics["train"]

    policy = {"logp": LOGP, "logp_old": LOGP - DRIFT, "advantages": ADVANTAGES, "response_mask": MASK}
    function = where + "_compute_loss"
    for kind, options in [("dapo", {}), ("bnpo", {}), ("grpo", {"loss_agg_mode": "seq-mean-token-mean"}),
                          ("dr_grpo", {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 16.0,
                                       "global_batch_size": 4.0})]:
        for mask in [MASK, WITH_EMPTY]:
            if kind == "grpo":
                options = dict(options, global_batch_size=4.0)
            loss, gradient, metrics = compute(kind, ADVANTAGES, mask=mask)
            out.add(f"{kind}, {'gaps' if mask is MASK else 'an empty row'}", function, "objective.actor_loss",
                    dict(policy, response_mask=mask), {"loss": loss, "policy_loss": loss}, options=options,
                    gradients={"logp": gradient}, note="the mean is over all sequences, empty ones included: "
                    "global_batch_size" if kind in ("grpo", "dr_grpo") else None)
    loss, gradient, metrics = compute("dapo", ADVANTAGES)
    out.add("clip share", function, "metrics.policy", policy, {"clip_fraction": metrics["clip_ratio/region_mean"][0]},
            tolerance=SINGLE)
    loss, gradient, _ = compute("dapo", ADVANTAGES, epsilon_high=0.28)
    out.add("dapo, clip-higher", function, "objective.actor_loss", policy, {"loss": loss},
            options={"clip_ratio_high": 0.28}, gradients={"logp": gradient})
    for weighted in [True, False]:
        loss, gradient, metrics = compute("dapo", ADVANTAGES, reference=LOGP - REF_DRIFT, beta=0.25,
                                          use_bias_correction_kl=weighted)
        out.add(f"dapo with KL, use_bias_correction_kl {weighted}", function, "objective.actor_loss",
                dict(policy, logp_ref=LOGP - REF_DRIFT), {"loss": loss, "kl_loss": metrics["kl"][0]},
                options=dict({"kl_loss_coef": 0.25}, **({} if weighted else {"kl_ratio_weight": False})), gradients={"logp": gradient})
    loss, gradient, metrics = compute("dapo", ADVANTAGES, entropies=VALUES, entropy_coef=0.25)
    out.add("dapo with entropy", function, "objective.actor_loss", dict(policy, entropy=VALUES),
            {"loss": loss, "entropy_loss": metrics["entropy"][0]}, options={"entropy_coeff": 0.25},
            gradients={"logp": gradient})
    loss, gradient, _ = compute("bnpo", ADVANTAGES, current_gradient_accumulation_steps=4)
    out.add("bnpo, accumulated", function, "objective.actor_loss", policy, {"loss": loss},
            options={"gradient_accumulation_steps": 4.0}, gradients={"logp": gradient})

    # Losses by sum: with as many items as 1 the loss is the sum over the kept tokens
    def summed(kind, formula, name, options=None, note=None, **settings):
        count = MASK.sum()
        if kind in ("dapo", "cispo"):
            loss, gradient, _ = compute(kind, ADVANTAGES, **settings)
            loss, gradient = loss * count, gradient * count
            out.add(name, function, formula, policy, {"sum:loss": loss}, options=options,
                    gradients={"logp": gradient}, note=note)
        else:
            loss, gradient, _ = compute(kind, ADVANTAGES, **settings)
            out.add(name, function, formula, policy, {"seq-mean:loss": loss}, options=options, note=note,
                    tolerance=SINGLE)

    summed("dapo", "objective.clip", "clip")
    summed("dapo", "objective.clip", "clip-higher", options={"clip_ratio_high": 0.28}, epsilon_high=0.28)
    summed("dapo", "objective.gspo", "sequence level", importance_sampling_level="sequence")
    summed("dapo", "objective.gspo", "sequence level, wide", options={"clip_ratio_low": 0.5, "clip_ratio_high": 2.0},
           importance_sampling_level="sequence", epsilon_low=0.5, epsilon_high=2.0)
    summed("cispo", "objective.cispo", "cispo, 5", options={"clip_ratio_high": 5.0}, epsilon_high=5.0)
    summed("cispo", "objective.cispo", "cispo, 0.2")
    summed("sapo", "objective.sapo", "sapo", note="the temperatures are taken in single precision")

    # Advantages of 0 leave the KL alone, and a ratio of 1 leaves the advantages
    reference = kept(LOGP - REF_DRIFT, MASK) + LOGP * (1 - MASK)
    loss, gradient, _ = compute("dapo", 0 * ADVANTAGES, reference=reference, beta=1.0, use_bias_correction_kl=False)
    out.add("KL", function, "kl.estimate", {"logp": LOGP, "logp_ref": reference}, {"sum:kl": loss * MASK.sum()},
            gradients={"logp": gradient * MASK.sum()})
    for kind, options in [("dapo", {}), ("bnpo", {}), ("grpo", {"loss_agg_mode": "seq-mean-token-mean"}),
                          ("dr_grpo", {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": 16.0})]:
        for mask, name in [(MASK, "gaps"), (WITH_EMPTY, "an empty row")]:
            if kind in ("grpo", "dr_grpo"):
                options = dict(options, global_batch_size=4.0)
            loss, _, _ = compute(kind, -VALUES, mask=mask, drift=0 * DRIFT)
            out.add(f"aggregation, {kind}, {name}", function, "aggregate.loss", {"loss": VALUES, "response_mask": mask},
                    {"loss": loss}, options=options)

    # GMPO's loss
    gmpo = load("trl.experimental.gmpo.gmpo_trainer").GMPOTrainer
    for settings, options in [({}, {}), ({"epsilon_low": 0.2, "epsilon_high": 0.3},
                                         {"clip_ratio_low": 0.2, "clip_ratio_high": 0.3})]:
        loss, gradient, _ = compute("grpo", ADVANTAGES, trainer=gmpo, **dict(
            {"epsilon_low": 0.4, "epsilon_high": 0.4}, **settings))
        out.add(f"gmpo, {options or 'defaults'}", "trl.experimental.gmpo.gmpo_trainer.GMPOTrainer._compute_loss",
                "objective.gmpo", policy, {"sum:loss": loss * 4}, options=options, gradients={"logp": gradient * 4})

    # RLOO's loss
    logp = LOGP.clone().requires_grad_()
    itself = SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (logp, torch.zeros_like(LOGP), None),
        aux_loss_enabled=False, epsilon_low=0.5, epsilon_high=2.0, model=SimpleNamespace(training=True),
        _metrics=Metrics(), accelerator=accelerator)
    ids = torch.zeros_like(MASK, dtype=torch.long)
    old_logps = ((LOGP - DRIFT) * MASK).sum(1)
    loss = rloo.RLOOTrainer._compute_loss(itself, None, {
        "prompt_ids": ids, "prompt_mask": ids, "completion_ids": ids, "completion_mask": MASK,
        "old_logps": old_logps, "advantages": ADVANTAGES})
    out.add("RLOO's loss", "trl.trainer.rloo_trainer.RLOOTrainer._compute_loss", "objective.gspo", policy,
            {"seq-mean:loss": loss}, options={"importance_sampling_level": "sequence_sum", "clip_ratio_low": 0.5,
                                              "clip_ratio_high": 2.0})

    # Correction for the sampler's probabilities: the lines of _generate_and_score_completions
    lines = between(grpo.GRPOTrainer._generate_and_score_completions, "per_token_logps_diff = (old_per_token_logps",
                    "Unknown vLLM importance", also=1)
    for mode, options, drift in [("sequence_mask", {}, DRIFT),
                                 ("sequence_truncate", {"rollout_is_mode": "truncate"}, DRIFT),
                                 ("token_mask", {"rollout_is": "token"}, DRIFT),
                                 ("token_truncate", {"rollout_is": "token", "rollout_is_mode": "truncate"}, DRIFT),
                                 ("sequence_mask", {"rollout_is_threshold": HUGE}, RUNAWAY)]:
        names = {"self": SimpleNamespace(vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_min=None,
                                         vllm_importance_sampling_clip_max=options.get("rollout_is_threshold", 3.0)),
                 "old_per_token_logps": LOGP, "sampling_per_token_logps": LOGP - drift, "mask": MASK, "torch": torch,
                 "math": math}
        exec(lines, names)
        weights = names["vllm_importance_sampling_ratio"].expand_as(MASK)
        name = f"weights, {mode}" + (", runaway tokens" if drift is RUNAWAY else "")
        out.add(name, where + "_generate_and_score_completions (its lines)", "rollout.weights",
                {"logp_old": LOGP, "logp_rollout": LOGP - drift, "response_mask": MASK},
                {"weights": kept(weights, MASK)}, options=options, note="masked slots set to 0")

    # Log-probabilities, entropy, overlong
    logits = LOGITS.clone().requires_grad_()
    logp = utils.selective_log_softmax(logits, TOKENS)
    logp.sum().backward()
    out.add("log-probabilities", "trl.trainer.utils.selective_log_softmax", "logprob.token",
            {"logits": LOGITS, "tokens": TOKENS}, {"logp": logp}, gradients={"logits": logits.grad})
    logits = LOGITS.clone().requires_grad_()
    entropy = utils.entropy_from_logits(logits)
    entropy.sum().backward()
    out.add("entropy", "trl.trainer.utils.entropy_from_logits", "logprob.entropy", {"logits": LOGITS},
            {"entropy": entropy}, gradients={"logits": logits.grad})
    punish = load("trl.rewards.other_rewards").get_soft_overlong_punishment(16, 4)
    lengths = [10, 12, 14, 16, 20]
    out.add("overlong", "trl.rewards.get_soft_overlong_punishment", "reward.overlong", {"lengths": lengths},
            {"penalty": punish([[0] * n for n in lengths])}, options={"max_response_length": 16.0, "buffer": 4.0})
    out.write()


def openrlhf():
    """OpenRLHF's losses, KL, rewards, and its experience maker's advantages."""
    out = Recording("openrlhf-0.11", "openrlhf", "0.11.2")
    loss_module, utils = load("openrlhf.models.loss"), load("openrlhf.models.utils")
    maker_module = load("openrlhf.trainer.ppo_utils.experience_maker")
    maker = next(value for value in vars(maker_module).values()
                 if isinstance(value, type) and hasattr(value, "compute_advantages_and_returns"))
    where = "openrlhf.models.loss."
    policy = {"logp": LOGP, "logp_old": LOGP - DRIFT, "advantages": TOKEN_ADVANTAGES, "response_mask": MASK}

    def run(formula, name, options=None, note=None, gradients=True, tolerance=1e-12, mask=MASK, **settings):
        logp = LOGP.clone().requires_grad_()
        loss, share, kl, _, _ = loss_module.PolicyLoss(**settings)(logp, LOGP - DRIFT, TOKEN_ADVANTAGES, mask)
        loss.backward()
        inputs = dict(policy, response_mask=mask)
        if formula == "objective.actor_loss":
            out.add(name, where + "PolicyLoss", formula, inputs, {"loss": loss, "policy_loss": loss}, options=options,
                    gradients={"logp": logp.grad}, tolerance=tolerance, note=note)
            out.add(name + ", metrics", where + "PolicyLoss", "metrics.policy", inputs,
                    {"clip_fraction": share, "ppo_kl": kl},
                    options={key: value for key, value in (options or {}).items() if key.startswith("clip")},
                    tolerance=SINGLE)
        else:
            out.add(name, where + "PolicyLoss", formula, inputs, {"seq-mean:loss": loss}, options=options,
                    tolerance=tolerance, note=note)

    run("objective.actor_loss", "ppo")
    run("objective.actor_loss", "ppo, dual clip", options={"clip_ratio_c": 1.5}, dual_clip=1.5)
    run("objective.actor_loss", "ppo, by sample", options={"loss_agg_mode": "seq-mean-token-mean"},
        tolerance=SINGLE, token_level_loss=False, note="1e-8 is added, in single precision, to the counts")
    run("objective.actor_loss", "ppo, by sample, an empty row", options={"loss_agg_mode": "seq-mean-token-mean"},
        tolerance=SINGLE, token_level_loss=False, mask=WITH_EMPTY)
    run("objective.gspo", "gspo", policy_loss_type="gspo", tolerance=ADDED)
    run("objective.gspo", "gspo, wide", options={"clip_ratio_low": 0.5, "clip_ratio_high": 2.0},
        policy_loss_type="gspo", clip_eps_low=0.5, clip_eps_high=2.0, tolerance=ADDED)

    # Its weights, from the loss with them: a ratio of 1 and an advantage of -1 leave the weight alone
    for mode, options, drift, bounds in [("mask", {}, DRIFT, [0.5, 5.0]),
                                         ("clip", {"rollout_is_mode": "truncate"}, DRIFT, [0.5, 5.0]),
                                         ("mask", {"rollout_is_threshold": HUGE}, RUNAWAY, [0.5, HUGE])]:
        loss = loss_module.PolicyLoss(is_correction_level="token", is_correction_mode=mode,
                                      is_correction_threshold=bounds)
        own, weights = loss_module.aggregate_loss, []
        loss_module.aggregate_loss = lambda values, *args, **kwargs: weights.append(values) or values.sum()
        loss(LOGP, LOGP, -torch.ones_like(LOGP), MASK, rollout_log_probs=LOGP - drift)
        loss_module.aggregate_loss = own
        name = f"weights, {mode}" + (", runaway tokens" if drift is RUNAWAY else "")
        out.add(name, where + "PolicyLoss", "rollout.weights",
                {"logp_old": LOGP, "logp_rollout": LOGP - drift, "response_mask": MASK},
                {"weights": kept(weights[0], MASK)}, options=options, note="masked slots set to 0")
    apart = torch.zeros_like(DRIFT)
    apart[0, :3], apart[1], apart[2] = 1.25, -1.25, 0.25
    apart[3, 0], apart[3, 1] = 25.0, -20.5  # the mean is beyond the bounds, and would not be if tokens were clamped
    for drift, bounds, options in [
        (DRIFT, [0.75, 1.25], {"rollout_rs_threshold": 1.25, "rollout_rs_threshold_lower": 0.75}),
        (apart, [0.5, 5.0], {}),
    ]:
        loss = loss_module.PolicyLoss(is_correction_level="seq", is_correction_threshold=bounds)
        own, weights = loss_module.aggregate_loss, []
        loss_module.aggregate_loss = lambda values, *args, **kwargs: weights.append(values) or values.sum()
        loss(LOGP, LOGP, -torch.ones_like(LOGP), MASK, rollout_log_probs=LOGP - drift)
        loss_module.aggregate_loss = own
        stays = kept((weights[0] != 0).double(), MASK)
        out.add(f"rejection by sequence, {bounds}", where + "PolicyLoss", "rollout.rejection",
                {"logp_old": LOGP, "logp_rollout": LOGP - drift, "response_mask": MASK}, {"response_mask": stays},
                options=options)
    for settings, options, drift in [({}, {}, DRIFT), ({"dual_clip": 1.5}, {"clip_ratio_c": 1.5}, DRIFT),
                                     ({}, {}, RUNAWAY)]:
        own, taken = loss_module.aggregate_loss, []
        loss_module.aggregate_loss = lambda values, *args, **kwargs: taken.append(values) or (values * MASK).sum()
        logp = LOGP.clone().requires_grad_()
        loss_module.PolicyLoss(**settings)(logp, LOGP - drift, TOKEN_ADVANTAGES, MASK)[0].backward()
        loss_module.aggregate_loss = own
        tokens = "runaway tokens" if drift is RUNAWAY else "ordinary tokens"
        out.add(f"ppo by token, {options or 'defaults'}, {tokens}", where + "PolicyLoss", "objective.clip",
                dict(policy, logp_old=LOGP - drift),
                {"loss": kept(taken[0], MASK)}, options=options, gradients={"logp": logp.grad})
    for settings, options in [({}, {"cliprange_value": None}), ({"clip_eps": 0.25}, {"cliprange_value": 0.25})]:
        values = VALUES.clone().requires_grad_()
        before = (ADVANTAGES[:, None] / 2).expand_as(VALUES)
        loss = loss_module.ValueLoss(**settings)(values, before, TOKEN_REWARDS, MASK)
        loss.backward()
        out.add(f"value loss, {settings or 'defaults'}", where + "ValueLoss", "value.clipped",
                {"values": VALUES, "values_old": before, "returns": TOKEN_REWARDS, "response_mask": MASK},
                {"loss": loss}, options=options, gradients={"values": values.grad})

    for keep in [MASK, WITH_EMPTY]:
        for by_token, mode in [(True, "token-mean"), (False, "seq-mean-token-mean")]:
            value = loss_module.aggregate_loss(VALUES, keep, token_level_loss=by_token)
            out.add(f"{mode}, {'gaps' if keep is MASK else 'an empty row'}", where + "aggregate_loss",
                    "aggregate.loss", {"loss": VALUES, "response_mask": keep}, {"loss": value},
                    options={"loss_agg_mode": mode}, tolerance=ADDED)
            value = loss_module.aggregate_loss(VALUES, keep, token_level_loss=by_token, dp_size=2,
                                               batch_num_tokens=20.0, global_batch_size=8.0)
            out.add(f"{mode}, global counts, {'gaps' if keep is MASK else 'an empty row'}", where + "aggregate_loss",
                    "aggregate.loss", {"loss": VALUES, "response_mask": keep}, {"loss": value},
                    options={"loss_agg_mode": mode, "dp_size": 2.0, "batch_num_tokens": 20.0,
                             "global_batch_size": 8.0}, tolerance=ADDED)

    approximate = next(name for name, value in vars(utils).items()
                       if callable(value) and "kl_estimator" in getattr(getattr(value, "__code__", None), "co_varnames", ()))
    for kind in ["k1", "k2", "k3"]:
        drift = REF_DRIFT * 2
        logp = LOGP.clone().requires_grad_()
        value = getattr(utils, approximate)(logp, LOGP - drift, kl_estimator=kind)
        value.sum().backward()
        out.add(f"{approximate} {kind}", f"openrlhf.models.utils.{approximate}", "kl.estimate",
                {"logp": LOGP, "logp_ref": LOGP - drift}, {"kl": value}, options={} if kind == "k1" else {"kl_penalty": kind},
                gradients={"logp": logp.grad}, tolerance=SINGLE, note="in single precision")
    far = REF_DRIFT * 4
    logp = LOGP.clone().requires_grad_()
    loss = loss_module.PolicyLoss()(logp, LOGP - DRIFT, TOKEN_ADVANTAGES, MASK)[0]
    divergence = loss_module.aggregate_loss(getattr(utils, approximate)(logp, LOGP - far, kl_estimator="k1"), MASK)
    (loss + 0.5 * divergence).backward()
    out.add("policy and KL", f"PolicyLoss, {approximate} and aggregate_loss, added as the actor does",
            "objective.actor_loss", dict(policy, logp_ref=LOGP - far),
            {"loss": loss + 0.5 * divergence, "kl_loss": divergence}, options={"kl_loss_coef": 0.5},
            gradients={"logp": logp.grad}, tolerance=SINGLE)
    logp = LOGP.clone().requires_grad_()
    loss = loss_module.PolicyLoss()(logp, LOGP - RUNAWAY, TOKEN_ADVANTAGES, MASK)[0]
    loss.backward()
    out.add("ppo, runaway tokens", where + "PolicyLoss", "objective.actor_loss", dict(policy, logp_old=LOGP - RUNAWAY),
            {"loss": loss, "policy_loss": loss}, gradients={"logp": logp.grad})
    score = tensor([1.0, 0.5, -0.25, 2.0])
    divergence = getattr(utils, approximate)(LOGP, LOGP - far, kl_estimator="k1").double()
    reward = utils.compute_reward(score, 0.25, divergence, MASK)
    scores = torch.zeros_like(MASK)
    for i, keep in enumerate(MASK):
        scores[i, int(keep.nonzero()[-1])] = score[i]
    out.add("KL in the reward", "openrlhf.models.utils.compute_reward", "kl.in_reward",
            {"scores": scores, "logp": LOGP, "logp_ref": LOGP - far, "response_mask": MASK},
            {"rewards": kept(reward, MASK)}, options={"kl_coef": 0.25}, note="masked slots set to 0")
    logits = LOGITS.clone().requires_grad_()
    sys.modules["flash_attn.ops.triton.cross_entropy"] = None  # not installed: its own way without it
    logp = utils.log_probs_from_logits(logits * 1.0, TOKENS)
    logp.sum().backward()
    out.add("log-probabilities", "openrlhf.models.utils.log_probs_from_logits", "logprob.token",
            {"logits": LOGITS, "tokens": TOKENS}, {"logp": logp}, gradients={"logits": logits.grad})
    logits = LOGITS.clone().requires_grad_()
    entropy = utils.compute_entropy(logits)
    entropy.sum().backward()
    out.add("entropy", "openrlhf.models.utils.compute_entropy", "logprob.entropy", {"logits": LOGITS},
            {"entropy": entropy}, gradients={"logits": logits.grad})
    for axis in [None, 1]:
        out.add(f"mean, axis {axis}", "openrlhf.models.utils.masked_mean", "mask.mean",
                {"values": VALUES, "mask": MASK}, {"mean": utils.masked_mean(VALUES, MASK, dim=axis)},
                options={"axis": axis})
    for i in range(2):
        out.add(f"row {i} whitened", "openrlhf.models.utils.masked_normalize", "mask.whiten",
                {"values": VALUES[i], "mask": MASK[i]},
                {"whitened": utils.masked_normalize(VALUES[i : i + 1], MASK[i : i + 1])[0]})

    # Advantages
    def advantages(estimator, rewards, n, gamma=1.0, lam=1.0, tokens=None, values=None, mask=None):
        args = SimpleNamespace(
            rollout=SimpleNamespace(n_samples_per_prompt=n), reward=MagicMock(clip_range=None),
            algo=SimpleNamespace(advantage=SimpleNamespace(
                estimator=estimator, gamma=gamma, lambd=lam, no_std_norm=False)))
        maker_module.apply_length_penalties = lambda experiences, args: None
        kl = torch.zeros_like(mask) if tokens is None else -tokens
        experience = SimpleNamespace(index=list(range(len(rewards))), rewards=tensor(rewards), kl=kl, values=values,
                                     action_mask=mask, info={})
        itself = SimpleNamespace(strategy=SimpleNamespace(args=args), advantage_estimator=estimator,
                                 kl_ctl=SimpleNamespace(value=1.0 if tokens is not None else 0.0))
        itself.get_advantages_and_returns = maker.get_advantages_and_returns.__get__(itself)
        itself.get_cumulative_returns = maker.get_cumulative_returns.__get__(itself)
        maker.compute_advantages_and_returns(itself, [experience])
        return experience.advantages, experience.returns

    function = f"openrlhf.trainer.ppo_utils.experience_maker.{maker.__name__}.compute_advantages_and_returns"
    _, mask, _ = outcome(EVEN_REWARDS)
    by_group = {"rewards": EVEN_REWARDS, "group": EVEN_GROUPS}
    for estimator, formula, options in [("group_norm", "advantage.group_norm", {}),
                                        ("dr_grpo", "advantage.group_norm", {"std": "none"}),
                                        ("rloo", "advantage.rloo", {})]:
        found, _ = advantages(estimator, EVEN_REWARDS, 4, mask=mask)
        out.add(estimator, function, formula, by_group, {"advantages": by_response(found, mask)}, options=options)
    found, _ = advantages("reinforce_baseline", EVEN_REWARDS, 4, mask=mask)
    out.add("reinforce_baseline", function, "advantage.reinforce_plus_plus_baseline",
            dict(by_group, response_mask=mask), {"advantages": kept(found, mask)}, tolerance=SINGLE,
            note="whitened in single precision; masked slots, which OpenRLHF leaves, set to 0")
    zero = [0.0] * 4
    found, _ = advantages("reinforce_baseline", EVEN_REWARDS[:3], 1, mask=mask[:3])
    out.add("reinforce_baseline, groups of one", function, "advantage.reinforce_plus_plus_baseline",
            {"rewards": EVEN_REWARDS[:3], "group": [0, 1, 2], "response_mask": mask[:3]},
            {"advantages": kept(found, mask[:3])}, tolerance=SINGLE)
    small = 2.0**-14  # so that the variance is below its bound
    found, _ = advantages("reinforce_baseline", [reward * small for reward in EVEN_REWARDS], 4, mask=mask)
    out.add("reinforce_baseline, small", function, "advantage.reinforce_plus_plus_baseline",
            {"rewards": [reward * small for reward in EVEN_REWARDS], "group": EVEN_GROUPS, "response_mask": mask},
            {"advantages": kept(found, mask)}, tolerance=SINGLE)
    found, returns = advantages("reinforce", zero, 1, 1.0, 1.0, kept(TOKEN_REWARDS, MASK) * small, VALUES, MASK)
    out.add("reinforce, small", function, "advantage.reinforce_plus_plus",
            {"rewards": TOKEN_REWARDS * small, "response_mask": MASK},
            {"advantages": kept(found, MASK), "returns": kept(returns, MASK)}, tolerance=SINGLE)
    for gamma, lam, factor in [(1.0, 1.0, 1.0), (0.5, 0.75, 1.0), (1.0, 1.0, small)]:
        rewards, values = TOKEN_REWARDS * factor, VALUES * factor
        found, returns = advantages("gae", zero, 1, gamma, lam, rewards, values, MASK)
        out.add(f"gae, gamma {gamma}, times {factor}", function, "advantage.gae",
                {"rewards": rewards, "values": values, "response_mask": MASK},
                {"advantages": kept(found, MASK), "returns": kept(returns, MASK)},
                options={"gamma": gamma, "lam": lam}, tolerance=SINGLE,
                note="the tokens' rewards are given as a KL of coefficient 1; masked slots set to 0")
    for gamma, keep, name in [(1.0, MASK, "gaps"), (0.5, WITH_EMPTY, "no gaps, gamma 0.5")]:
        found, returns = advantages("reinforce", zero, 1, gamma, 1.0, kept(TOKEN_REWARDS, keep), VALUES, keep)
        out.add(f"reinforce, {name}", function, "advantage.reinforce_plus_plus",
                {"rewards": TOKEN_REWARDS, "response_mask": keep},
                {"advantages": kept(found, keep), "returns": kept(returns, keep)}, options={"gamma": gamma},
                tolerance=SINGLE, note="whitened in single precision; masked slots set to 0")
    penalty = load("openrlhf.trainer.ppo_utils.length_penalty")
    lengths = [10, 12, 14, 16, 20]
    experience = SimpleNamespace(response_length=torch.tensor(lengths), rewards=torch.zeros(5, dtype=torch.float64))
    penalty.apply_overlong_penalty([experience], 16, 4, 2.0)
    out.add("overlong", "openrlhf.trainer.ppo_utils.length_penalty.apply_overlong_penalty", "reward.overlong",
            {"lengths": lengths}, {"penalty": experience.rewards},
            options={"max_response_length": 16.0, "buffer": 4.0, "penalty_factor": 2.0, "floor": -2.0})
    controller = load("openrlhf.trainer.ppo_utils.kl_controller").AdaptiveKLController(0.25, 0.125, 1000)
    controller.update(0.1875, 64)
    out.add("adaptive controller", "openrlhf.trainer.ppo_utils.kl_controller.AdaptiveKLController.update",
            "kl.controller", {"kl_coef": 0.25, "current_kl": 0.1875}, {"kl_coef": float(controller.value)},
            options={"type": "adaptive", "target_kl": 0.125, "horizon": 1000.0, "n_steps": 64.0})
    out.write()


RECORDERS = {
    "verl-0.9.1": lambda: verl("0.9.1"),
    "verl-0.7.0": lambda: verl("0.7.0"),
    "trl-1.16": trl,
    "openrlhf-0.11": openrlhf,
}

if __name__ == "__main__":
    RECORDERS[sys.argv[1]]()
