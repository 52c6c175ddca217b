"""The old log-probabilities are computed with gradient, which flows through them.

A plausible slip.
"""
# expects: value right, gradient wrong: the gradient flows to `logp_old`, which is a constant
# expects: value right, gradient wrong: the gradient flows to `logp_ref`, which is a constant

import base


def read(name, request):
    arrays, options = right(name, request)
    for key in ("logp_old", "logp_ref"):
        if key in arrays:
            arrays[key].data = [base.Var(entry) for entry in arrays[key].data]
    return arrays, options


right, base.read = base.read, read
base.stop = lambda number: number


base.serve("zoo: old not detached", ["logprob.ratio", "objective.clip", "kl.estimate"])
