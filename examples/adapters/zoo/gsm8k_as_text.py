"""Answers are compared as text: 24.0 is wrong where the solution says 24.

Seen: https://github.com/open-compass/opencompass/pull/782
"""
# expects: matches rival: compared as text

import base


def graded(response, answer, o):
    o.compare = "text"
    return right(response, answer, o)


right, base.graded = base.graded, graded


base.serve("zoo: gsm8k as text", ["reward.gsm8k"])
