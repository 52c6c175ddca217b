"""The ratio is old over new: the difference is taken the wrong way round.

A plausible slip.
"""
# expects: log-ratio with the wrong sign

import base


def ratio_of(logp, old, clamp_at):
    difference = base.stop(old) - logp
    return base.exp(difference if clamp_at is None else base.clamp(difference, -clamp_at, clamp_at))


base.ratio_of = ratio_of


base.serve("zoo: log ratio sign", ["logprob.ratio", "objective.clip"])
