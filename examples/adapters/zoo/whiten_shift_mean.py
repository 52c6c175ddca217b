"""`shift_mean` is read the other way round: true adds the mean back.

A plausible slip. torchtune's argument of this name means just that.
"""
# expects: `shift_mean` read the other way round

import base


def whitened(entries, ddof, eps, eps_mode, shift_mean=True):
    return right(entries, ddof, eps, eps_mode, not shift_mean)


right, base.whitened = base.whitened, whitened


base.serve("zoo: whiten shift mean", ["mask.whiten"])
