"""Each position's logits are asked for the next position's token.

Seen: https://github.com/AI-Hypercomputer/maxtext/issues/2103
"""
# expects: `tokens` shifted by one to the left

import base


def scored(logps, tokens):
    return right(logps, tokens[1:] + tokens[:1])


right, base.scored = base.scored, scored


base.serve("zoo: shifted tokens", ["logprob.token"])
