"""The logits are divided by the temperature where they are made and again where they are scored.

A plausible slip.
"""
# expects: temperature applied twice

import base


def tempered(logits, temperature):
    return right(right(logits, temperature), temperature)


right, base.tempered = base.tempered, tempered


base.serve("zoo: temperature twice", ["logprob.token"])
