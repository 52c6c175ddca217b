"""The losses of padding are summed with the others'; only the denominator knows the mask.

Seen: https://github.com/alibaba/ROLL/pull/444
"""
# expects: the mask is ignored
# expects: masked slots leak: NaN or an infinity in one of them comes out

import base


def kept_rows(losses, mask):
    return losses.rows()


base.kept_rows = kept_rows


base.serve("zoo: mask ignored", ["aggregate.loss"])
