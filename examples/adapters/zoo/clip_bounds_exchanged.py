"""The lower bound uses clip_ratio_high and the upper clip_ratio_low.

A plausible slip.
"""
# expects: the clip bounds exchanged

import base


def token_loss(ratio, advantage, o):
    loss = base.clipped_loss(ratio, advantage, o.clip_ratio_high, o.clip_ratio_low)
    return base.dual_clipped(base.Var(0.0) + loss, advantage, o.clip_ratio_c)


base.token_loss = token_loss


base.serve("zoo: clip bounds exchanged", ["objective.clip"])
