"""compute_new_adv: of each group the best of the good responses and the worst of the bad ones are trained on.

The rules are those of `spec/filter.md`. Plain Python: a batch has thousands of rewards, not millions.
"""

from dataclasses import dataclass
from math import inf
from statistics import fmean


@dataclass(frozen=True)
class Parameters:
    """`algorithm.keep_pos_ratio` and its neighbours, then what only the specification names."""

    keep_pos_ratio: float = 1.0
    keep_neg_ratio: float = 1.0
    compute_new_adv: bool = False
    eps: float = 1e-6
    singleton: str = "raw"

    def __post_init__(self):
        for name in ("keep_pos_ratio", "keep_neg_ratio"):
            require(name, 0 <= getattr(self, name) <= 1)
        require("eps", 0 <= self.eps < inf)
        require("singleton", self.singleton in ("raw", "zero", "error"))

    def keeps_all(self):
        return self.keep_pos_ratio == 1 and self.keep_neg_ratio == 1


def require(name, holds):
    if not holds:
        raise ValueError(f"{name} is outside its domain; see grpo-oracle explain advantage.filter")


def filter_samples(rewards, group, parameters):
    """Advantages, the advantages before the filter, and which responses stay: three lists like `rewards`."""
    advantages, original, kept = ([0.0] * len(rewards) for _ in range(3))
    members = {}
    for i, label in enumerate(group):
        members.setdefault(label, []).append(i)
    for places in members.values():
        own = [rewards[i] for i in places]
        before = normalised(own, parameters)
        stays = keep(own, before, parameters)
        after = computed_anew(own, before, stays, parameters)
        for i, old, new, stay in zip(places, before, after, stays):
            original[i], advantages[i], kept[i] = old, new if stay else 0.0, float(stay)
    return advantages, original, kept


def normalised(rewards, parameters):
    """filter.sample: (r - mean) / std with nothing added, 0 where there is no spread; filter.singleton."""
    if len(rewards) == 1:
        if parameters.singleton == "error":
            raise ValueError("a group of one response cannot be normalised")
        return list(rewards) if parameters.singleton == "raw" else [0.0]
    if min(rewards) == max(rewards):
        return [0.0] * len(rewards)
    mean = fmean(rewards)
    std = (sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)) ** 0.5
    return [0.0 if std < parameters.eps else (r - mean) / std for r in rewards]


def keep(rewards, advantages, parameters):
    """filter.keep and filter.order: which stay, decided by the rewards, the earlier of equals first."""
    signs = [sign(r, rewards) if any(advantages) else 0 for r in rewards]
    stays = [s == 0 for s in signs]
    for side, ratio in ((1, parameters.keep_pos_ratio), (-1, parameters.keep_neg_ratio)):
        places = sorted((i for i, s in enumerate(signs) if s == side), key=lambda i: -side * rewards[i])
        count = min(len(places), max(int(len(places) * ratio), 1 if ratio > 0 else 0))
        for i in places[:count]:
            stays[i] = True
    return stays


def sign(reward, rewards):
    """filter.sign: by sums and not by quotients, so that a reward that is the mean is found to be."""
    left, right = (reward, 0.0) if len(rewards) == 1 else (len(rewards) * reward, sum(rewards))
    return (left > right) - (left < right)


def computed_anew(rewards, advantages, stays, parameters):
    """filter.new: from the rewards of those that stay, if there are two of them."""
    left = [r for r, stay in zip(rewards, stays) if stay]
    if not parameters.compute_new_adv or parameters.keeps_all() or len(left) < 2:
        return advantages
    new = iter(normalised(left, parameters))
    return [next(new) if stay else 0.0 for stay in stays]
