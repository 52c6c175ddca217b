"""The recursion runs over masked tokens: what the critic says of them enters the kept ones' advantages.

Seen: https://github.com/alibaba/ROLL/pull/447
"""
# expects: values read at masked slots
# expects: masked slots leak: NaN or an infinity in one of them comes out

import base


def gae_row(rewards, values, mask, o):
    return right(rewards, values, [True] * len(mask), o)


right, base.gae_row = base.gae_row, gae_row


base.serve("zoo: gae over masked tokens", ["advantage.gae"])
