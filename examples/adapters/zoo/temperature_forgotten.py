"""The log-probabilities are those of the untempered logits, though the tokens were drawn from tempered ones.

Seen: https://github.com/huggingface/trl/pull/3029
"""
# expects: matches rival: the temperature forgotten

import base


def tempered(logits, temperature):
    return logits


base.tempered = tempered


base.serve("zoo: temperature forgotten", ["logprob.token"])
