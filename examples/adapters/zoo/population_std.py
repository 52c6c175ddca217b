"""The population's deviation, whatever deviation is asked for: numpy's `std` for torch's.

Seen: https://github.com/NVIDIA/TorchFort/issues/38
"""
# expects: matches rival: population std

import base


def deviation(rewards, std):
    return right(rewards, "population")


right, base.deviation = base.deviation, deviation


base.serve("zoo: population std", ["advantage.group_norm"])
