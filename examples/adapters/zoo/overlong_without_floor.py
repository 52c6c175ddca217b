"""The overlong penalty falls on below its floor.

A plausible slip.
"""
# expects: matches rival: no floor

import base


def penalty(length, o):
    o.floor = None
    return right(length, o)


right, base.penalty = base.penalty, penalty


base.serve("zoo: overlong without floor", ["reward.overlong"])
