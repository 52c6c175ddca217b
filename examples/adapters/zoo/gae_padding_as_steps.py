"""Masked slots are steps of value 0, though they are to be passed over.

Seen: https://github.com/radixark/miles/pull/1827
"""
# expects: matches rival: masked slots as steps of value 0

import base


def gae_row(rewards, values, mask, o):
    o.mask_mode = "none"
    return right(rewards, values, mask, o)


right, base.gae_row = base.gae_row, gae_row


base.serve("zoo: gae padding as steps", ["advantage.gae"])
