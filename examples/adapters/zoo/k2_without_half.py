"""k2 is the squared difference, without the half.

Seen: https://github.com/one-covenant/grail/pull/42
"""
# expects: off by the factor 2

import base


def kl_of(d, kind):
    return d * d if kind == "k2" else right(d, kind)


right, base.kl_of = base.kl_of, kl_of


base.serve("zoo: k2 without half", ["kl.estimate"])
