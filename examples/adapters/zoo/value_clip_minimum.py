"""The smaller of the clipped and the unclipped squared error, where the larger is meant.

Seen: https://github.com/ray-project/ray/issues/2233
"""
# expects: the smaller of the two squared errors

import base


def larger_error(plain, other):
    return base.minimum(plain, other)


base.larger_error = larger_error


base.serve("zoo: value clip minimum", ["value.clipped"])
