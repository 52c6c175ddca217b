"""What has to be refused is answered: options out of range, groups that are too small, NaN among the rewards.

A plausible slip.
"""
# expects: accepts what should be an error

import base


def answer(request):
    try:
        return right(request)
    except base.Fault:
        first = next(iter(request["inputs"].values()), {"shape": [0], "data": []})
        return {name: {"shape": first["shape"], "data": [0.0] * len(first["data"])} for name in request["want"]}


right, base.answer = base.answer, answer


base.serve("zoo: silent refusals", ["advantage.group_norm", "reward.overlong"])
