"""Dual clip acts whatever the advantage's sign, where it is meant for negative ones.

Seen: https://github.com/thu-ml/tianshou/issues/433
"""
# expects: dual clip also where A > 0

import base


def dual_clipped(loss, advantage, most):
    if most is not None and advantage > 0 and base.value(loss) > -most * advantage:
        return base.Var(-most * advantage)
    return right(loss, advantage, most)


right, base.dual_clipped = base.dual_clipped, dual_clipped


base.serve("zoo: dual clip everywhere", ["objective.clip"])
