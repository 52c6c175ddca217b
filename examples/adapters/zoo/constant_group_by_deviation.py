"""Equal rewards are left to a deviation that rounding should make 0 and does not: in single precision the mean of three
0.9 is not 0.9, and their deviation not 0.

Seen: https://github.com/verl-project/verl/pull/4597
"""
# expects: equal members are told by a rounded deviation, not by comparing

import math
import struct

import base


def single(number):
    """Rounded to single precision."""
    return struct.unpack("f", struct.pack("f", number))[0]


def group_advantages(rewards, everyone, o):
    if len(rewards) == 1 or not base.all_equal(rewards):
        return right(rewards, everyone, o)
    sum_of = 0.0
    for reward in rewards:
        sum_of = single(sum_of + reward)
    gap = single(rewards[0] - single(sum_of / len(rewards)))
    std = math.sqrt(gap * gap * len(rewards) / (len(rewards) - 1))
    return [gap / (std + o.eps) if std or o.eps else 0.0] * len(rewards)


right, base.group_advantages = base.group_advantages, group_advantages


base.serve("zoo: constant group by deviation", ["advantage.group_norm"], "f32")
