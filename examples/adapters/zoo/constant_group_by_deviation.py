"""Equal rewards are left to a deviation that rounding should make 0, and does not: 0.2 less the mean of three 0.2.

Seen: https://github.com/verl-project/verl/pull/4597
"""
# expects: equal members are told by a rounded deviation, not by comparing

import math

import base


def group_advantages(rewards, everyone, o):
    if len(rewards) > 1 and base.all_equal(rewards):
        middle = sum(rewards) / len(rewards)
        std = math.sqrt(sum((reward - middle) ** 2 for reward in rewards) / (len(rewards) - 1))
        return [(reward - middle) / (std + 1e-300) for reward in rewards]
    return right(rewards, everyone, o)


right, base.group_advantages = base.group_advantages, group_advantages


base.serve("zoo: constant group by deviation", ["advantage.group_norm"])
