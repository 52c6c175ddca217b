"""The ratio is old over new: the difference is taken the wrong way round.

A plausible slip.
"""
# expects: log-ratio with the wrong sign

import base


def log_ratio(logp, old):
    return base.stop(old) - logp


base.log_ratio = log_ratio


base.serve("zoo: log ratio sign", ["logprob.ratio", "objective.clip"])
