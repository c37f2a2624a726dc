"""Whether the values of a tensor that a user gave are checked."""

import os

from torch import Tensor

VARIABLE = "POLYMLM_CHECK"


def values_checked(given: Tensor) -> bool:
    """Always on a CPU. On another device reading one value waits for all work before it, so there
    values are checked only where the environment has POLYMLM_CHECK=1; shapes always are."""
    return given.device.type == "cpu" or os.environ.get(VARIABLE) == "1"
