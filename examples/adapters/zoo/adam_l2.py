"""The weight decay is added to the gradient and so enters the means: Adam with L2, not AdamW.

Seen: arXiv 1711.05101, which is about libraries that do this.
"""
# expects: decay added to the gradient (L2)

import base


def adam_step(param, grad, m, v, step, o):
    decay, o.weight_decay = o.weight_decay, 0.0
    after = right(param, grad + decay * param, m, v, step, o)
    o.weight_decay = decay
    return after


right, base.adam_step = base.adam_step, adam_step


base.serve("zoo: adam l2", ["optim.adamw"])
