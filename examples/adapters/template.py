"""A GRPO implementation in plain Python, as an adapter: copy this file and adapter.py, and put your own in its place.

    grpo-oracle verify --adapter "python template.py"

Python 3.9 or later, nothing else. Two formulas are worked out, each with the options of the specification's default and
no others; `grpo-oracle explain advantage.group_norm` shows what a formula takes and gives. What stands behind the colons
says what is right input; leave it out and the refusals are your own.
"""

from math import exp, sqrt

from adapter import Unsupported, formula, gradient, serve


@formula("advantage.group_norm", only={"std": "sample", "std_scope": "group", "eps_mode": "add"})
def group_norm(rewards: "B", group: "label B", *, eps: "[0, inf)" = 1e-6, singleton="raw"):
    if singleton != "raw":  # what cannot be told by `only` alone
        raise Unsupported("a group of one keeps its reward here")
    advantages = []
    for reward, label in zip(rewards, group):
        members = [r for r, other in zip(rewards, group) if other == label]
        if len(members) == 1:
            advantages.append(reward)
        elif len(set(members)) == 1:
            advantages.append(0.0)
        else:
            mean = sum(members) / len(members)
            std = sqrt(sum((r - mean) ** 2 for r in members) / (len(members) - 1))
            advantages.append((reward - mean) / (std + eps))
    return {"advantages": advantages}


@formula("objective.clip", only={"clip_ratio_c": None, "log_ratio_clamp": None})
def clip(logp: "BT", logp_old: "BT", advantages: "B|BT", response_mask: "mask BT", *,
         clip_ratio_low: "[0, 1]" = 0.2, clip_ratio_high: "[0, inf)" = 0.2):
    """The loss of every token. The formula's other outputs, which are metrics, are not given."""

    def loss(i, t):
        if not response_mask[i][t]:
            return 0.0  # whatever stands in a masked slot is not read
        ratio, a = exp(logp[i][t] - logp_old[i][t]), advantage(advantages, i, t)
        return -min(ratio * a, min(max(ratio, 1 - clip_ratio_low), 1 + clip_ratio_high) * a)

    return {"loss": [[loss(i, t) for t in range(len(row))] for i, row in enumerate(logp)]}


@gradient("objective.clip")
def clip_gradient(logp, logp_old, advantages, response_mask, *, clip_ratio_low=0.2, clip_ratio_high=0.2):
    """Of the sum of the losses, by logp; by the other inputs it is 0, since they are held constant."""

    def slope(i, t):
        if not response_mask[i][t]:
            return 0.0
        ratio, a = exp(logp[i][t] - logp_old[i][t]), advantage(advantages, i, t)
        flat = ratio > 1 + clip_ratio_high if a > 0 else ratio < 1 - clip_ratio_low
        return 0.0 if flat else -ratio * a

    return {"logp": [[slope(i, t) for t in range(len(row))] for i, row in enumerate(logp)]}


def advantage(advantages, i, t):
    """One a sequence, or one a token."""
    return advantages[i][t] if isinstance(advantages[i], list) else advantages[i]


if __name__ == "__main__":
    serve(name="my-grpo", version="0.1")
