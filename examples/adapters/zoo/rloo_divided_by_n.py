"""The sum of the others' rewards is divided by n instead of n - 1.

A plausible slip.
"""
# expects: the sum of the others divided by n

import base


def leave_one_out(rewards):
    return [reward - (sum(rewards) - reward) / len(rewards) for reward in rewards]


base.leave_one_out = leave_one_out


base.serve("zoo: rloo divided by n", ["advantage.rloo"])
