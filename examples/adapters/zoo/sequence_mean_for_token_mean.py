"""Each sequence's mean first, whatever is asked for: short responses weigh more.

Seen: https://github.com/huggingface/trl/pull/2881
"""
# expects: matches rival: sequence mean of token means
# expects: matches rival: sequence mean for token mean

import base


def by_mode(rows, tokens, sequences, length, mode):
    return base.total(base.mean(row) for row in rows if row) / sequences


base.by_mode = by_mode


base.serve("zoo: sequence mean for token mean", ["aggregate.loss", "objective.actor_loss"])
