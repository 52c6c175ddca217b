"""The baseline is the mean of the whole group, the response's own reward included.

A plausible slip.
"""
# expects: the baseline includes the response itself

import base


def leave_one_out(rewards):
    return base.centred(rewards)


base.leave_one_out = leave_one_out


base.serve("zoo: rloo includes itself", ["advantage.rloo"])
