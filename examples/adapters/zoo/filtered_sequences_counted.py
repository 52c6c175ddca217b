"""Sequences that were filtered out, which keep no token, are left in the denominator.

Seen: https://github.com/radixark/miles/pull/2796 (there each is counted as a token)
"""
# expects: sequences without a kept token are counted

import base


base.sequence_count = len


base.serve("zoo: filtered sequences counted", ["aggregate.loss"])
