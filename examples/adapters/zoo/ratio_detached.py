"""The ratio is computed without gradient, so that the loss is right and nothing is learnt.

A plausible slip.
"""
# expects: value right, gradient wrong: no gradient reaches `logp`

import base


def ratio_of(logp, old, clamp_at):
    return base.Var(base.stop(right(logp, old, clamp_at)))


right, base.ratio_of = base.ratio_of, ratio_of


base.serve("zoo: ratio detached", ["logprob.ratio", "objective.clip"])
