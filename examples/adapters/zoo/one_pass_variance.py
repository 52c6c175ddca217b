"""The variance as the mean of the squares less the square of the mean, which cancels for nearly equal rewards.

Seen: https://github.com/NousResearch/atropos/pull/481
"""
# expects: the variance is computed in one pass and cancels

import math

import base


def spread(numbers, ddof):
    count = len(numbers)
    middle = base.total(numbers) / count
    return (base.total(entry * entry for entry in numbers) / count - middle * middle) * (count / (count - ddof))


def deviation(rewards, std):
    return math.sqrt(max(0.0, base.value(spread(rewards, std == "sample"))))


base.variance, base.deviation = spread, deviation


base.serve("zoo: one pass variance", ["mask.variance", "advantage.group_norm"])
