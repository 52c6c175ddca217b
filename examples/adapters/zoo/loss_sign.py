"""The objective is minimised: the loss lacks its minus.

A plausible slip.
"""
# expects: off by the sign

import base


def token_loss(ratio, advantage, o):
    return -right(ratio, advantage, o)


right, base.token_loss = base.token_loss, token_loss


base.serve("zoo: loss sign", ["objective.clip"])
