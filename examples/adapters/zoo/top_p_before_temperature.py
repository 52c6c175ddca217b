"""The nucleus is chosen before the temperature is applied.

Seen: https://github.com/fishaudio/fish-speech/pull/1150
"""
# expects: top-p before the temperature

import base


def distribution_of(logits, o):
    if o.temperature == 0:
        return right(logits, o)
    return base.softmax([logit / o.temperature for logit in base.filtered(logits, o)])


right, base.distribution_of = base.distribution_of, distribution_of


base.serve("zoo: top p before temperature", ["sampling.distribution"])
