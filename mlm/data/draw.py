"""Random bits as a function of a key and a counter, and nothing else.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), read by position: output n of the generator whose
state starts at `key`. Written out here, since numpy promises no generator's methods to stay the
same between its versions, and a run must see the same order and masks after an upgrade.
"""

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def bits(keys: np.ndarray, counters: np.ndarray) -> np.ndarray:
    """64 uniform bits, uint64, for each pair of a key and a counter, both uint64 and broadcast."""
    z = counters + np.uint64(1)
    z = z * _GAMMA + keys
    z ^= z >> np.uint64(30)
    z *= _FIRST
    z ^= z >> np.uint64(27)
    z *= _SECOND
    z ^= z >> np.uint64(31)
    return z


def permutation(count: int, key: int) -> np.ndarray:
    """The numbers below `count` in an order that `key` decides, int64."""
    drawn = bits(np.array([key], np.uint64), np.arange(count, dtype=np.uint64))
    return np.argsort(drawn, kind="stable")
