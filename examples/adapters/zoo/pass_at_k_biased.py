"""pass@k as 1 - (1 - c/n)^k, which is biased for few samples.

Seen: arXiv 2107.03374 (Eq. 1), which warns of it.
"""
# expects: 1 - (1 - c/n)^k, which is biased

import base


def chance(n, c, k):
    return 1.0 - (1.0 - c / n) ** k if n else 0.0


base.chance = chance


base.serve("zoo: pass at k biased", ["metrics.pass_at_k"])
