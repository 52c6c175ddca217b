"""The entropy is added to the loss, so that it is minimised.

Seen: https://github.com/pukkapies/dl-imperial-maths/pull/8
"""
# expects: entropy bonus with the wrong sign

import base


def combined(policy, kl_term, entropy, o):
    return policy + kl_term * o.kl_loss_coef + entropy * o.entropy_coeff


base.combined = combined


base.serve("zoo: entropy bonus sign", ["objective.actor_loss"])
