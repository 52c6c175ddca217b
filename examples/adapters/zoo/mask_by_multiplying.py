"""Masked slots are multiplied by 0 instead of left out, and 0 times NaN is NaN.

Seen: https://github.com/verl-project/verl/pull/6349
"""
# expects: masked slots leak: NaN or an infinity in one of them comes out

import base


def kept_rows(losses, mask):
    rows = right(losses, mask)
    for row, entries, keeps in zip(rows, losses.rows(), mask.rows()):
        if row:
            row[0] = row[0] + base.total(entry * 0.0 for entry, keep in zip(entries, keeps) if not keep)
    return rows


right, base.kept_rows = base.kept_rows, kept_rows


base.serve("zoo: mask by multiplying", ["aggregate.loss"])
