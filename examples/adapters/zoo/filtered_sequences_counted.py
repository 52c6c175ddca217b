"""Sequences that were filtered out, which keep no token, are left in the denominator.

Seen: https://github.com/huggingface/trl/pull/3248
(its review discusses what masked-out samples do to a mean)
"""
# expects: sequences without a kept token are counted

import base


base.sequence_count = len


base.serve("zoo: filtered sequences counted", ["aggregate.loss"])
