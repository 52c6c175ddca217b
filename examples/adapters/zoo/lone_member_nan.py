"""A group of one is divided by `torch.std` of one number, which is NaN.

Seen: https://github.com/radixark/miles/pull/1573
(the second point of its review)
"""
# expects: a group of one goes wrong

import math

import base


def lone_member(reward, o):
    return math.nan


base.lone_member = lone_member


base.serve("zoo: lone member nan", ["advantage.group_norm"])
