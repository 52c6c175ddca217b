"""eps is added to the variance, inside the root, instead of to the deviation.

A plausible slip.
"""
# expects: eps inside the root

import math

import base


def normalised(gap, std, eps, eps_mode):
    return gap / math.sqrt(std * std + eps) if eps_mode == "add" else right(gap, std, eps, eps_mode)


right, base.normalised = base.normalised, normalised


base.serve("zoo: eps inside the root", ["advantage.group_norm"])
