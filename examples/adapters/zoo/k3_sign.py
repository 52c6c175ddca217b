"""k3 of the wrong difference: exp(d) - d - 1 for exp(-d) + d - 1.

Seen: https://github.com/walkinglabs/hands-on-modern-rl/issues/27
"""
# expects: log-ratio with the wrong sign

import base


def kl_of(d, kind):
    return base.exp(d) - d - 1.0 if kind == "k3" else right(d, kind)


right, base.kl_of = base.kl_of, kl_of


base.serve("zoo: k3 sign", ["kl.estimate"])
