"""The entropy has lost its minus.

A plausible slip.
"""
# expects: off by the sign

import base


def entropy_of(logps):
    return -right(logps)


right, base.entropy_of = base.entropy_of, entropy_of


base.serve("zoo: entropy sign", ["logprob.token"])
