"""The mean divides by every slot: masked ones are zeros in the sum, and yet counted.

Seen: https://github.com/huggingface/trl/issues/6369
"""
# expects: masked slots count as zeros

import base


def kept(array, mask):
    return [entry if keep else base.Var(0.0) for entry, keep in zip(array.data, mask.data)]


base.kept = kept


base.serve("zoo: mask in numerator only", ["mask.mean"])
