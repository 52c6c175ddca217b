"""For A < 0 the objective is simplified to min(ratio, 1 - low) A, which is the other side of the clip.

Seen: `e[notes.negative-advantage]` in spec/errata.md, where one of this project's source documents has it.
"""
# expects: min(ratio, 1 - low) for max where A < 0

import base


def clipped_loss(ratio, advantage, low, high):
    if advantage >= 0:
        return right(ratio, advantage, low, high)
    return -(base.minimum(ratio, base.Var(1 - low)) * advantage)


right, base.clipped_loss = base.clipped_loss, clipped_loss


base.serve("zoo: clip minimum for negative", ["objective.clip"])
