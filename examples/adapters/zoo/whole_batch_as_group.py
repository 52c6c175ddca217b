"""Mean and deviation of the whole batch, whose prompts differ, instead of each group's.

Seen: https://github.com/XU-YIJIE/grpo-flat/issues/2
"""
# expects: the whole batch as one group

import base


def groups(labels):
    return [list(range(len(labels)))] if labels else []


base.groups = groups


base.serve("zoo: whole batch as group", ["advantage.group_norm", "advantage.rloo"])
