"""Rewards are reshaped to rows of a group each, as if a group's members always stood together.

Seen: https://github.com/radixark/miles/pull/1573
(the first point of its review)
"""
# expects: groups by position instead of label

import base


def groups(labels):
    size = max(1, len(labels) // max(1, len(set(labels))))
    return [list(range(start, min(start + size, len(labels)))) for start in range(0, len(labels), size)]


base.groups = groups


base.serve("zoo: groups by position", ["advantage.group_norm", "advantage.rloo"])
