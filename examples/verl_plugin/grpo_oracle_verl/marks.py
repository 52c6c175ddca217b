"""How an estimator tells the policy loss which tokens to train on.

Between the two verl carries advantages and nothing else that is ours. A token that is not trained on has the advantage
0, and so may one that is. Here the first is the *negative* zero: a number like any other 0 for whoever computes with it,
and a bit that copies, slices, padding and devices leave alone.
"""

import torch


def marked(advantages, trained_on):
    """The advantages, with -0.0 wherever nothing is to be trained on, and +0.0 wherever 0 is what to train on."""
    return torch.where(trained_on, advantages + 0.0, -0.0)  # -0.0 + 0.0 is +0.0


def trained_on(advantages):
    return ~((advantages == 0) & torch.signbit(advantages))
