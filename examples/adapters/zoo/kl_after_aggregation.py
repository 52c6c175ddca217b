"""The KL is added after the aggregation, as its mean over all slots, padding included.

Seen: https://github.com/allenai/open-instruct/pull/535
"""
# expects: KL added after the aggregation, as a mean over all slots

import base


def kl_loss(x, mask, tokens, o):
    return base.mean(base.kl_tokens(x, o))


base.kl_loss = kl_loss


base.serve("zoo: kl after aggregation", ["objective.actor_loss"])
