"""Each micro-batch is divided by its own count of tokens, and the means are averaged.

Seen: https://github.com/PrimeIntellect-ai/prime-rl/pull/583
"""
# expects: matches rival: mean of the micro-batches' means

import base


def micro_batch(own, whole, width, count, o):
    return base.aggregate(own, own, width, o) / count


base.micro_batch = micro_batch


base.serve("zoo: micro batch means", ["aggregate.micro_batches"])
