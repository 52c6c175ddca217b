"""The bias correction counts one step too many, as the counter is raised before it is read.

A plausible slip.
"""
# expects: bias correction one step ahead

import base


def corrected(average, beta, step):
    return right(average, beta, step + 1)


right, base.corrected = base.corrected, corrected


base.serve("zoo: adam step ahead", ["optim.adamw"])
