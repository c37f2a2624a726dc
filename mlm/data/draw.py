"""Random bits as a function of a key and a counter alone.

SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), read by position: output n of the generator whose
state starts at `key`. Written out here, since numpy does not promise that the methods of a
generator stay the same between versions, and a run keeps its order and masks after an upgrade.
"""

import math
from collections.abc import Callable

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def bits(keys: np.ndarray | np.uint64, counters: np.ndarray | np.uint64) -> np.ndarray:
    """64 uniform bits, uint64, for each pair of a key and a counter, both uint64 and broadcast."""
    z = np.asarray((counters + np.uint64(1)) * _GAMMA + keys)
    shifted = z >> np.uint64(30)
    for shift, factor in ((27, _FIRST), (31, _SECOND)):
        z = np.bitwise_xor(z, shifted, out=z)
        z = np.multiply(z, factor, out=z)
        shifted = np.right_shift(z, np.uint64(shift), out=shifted)
    return np.bitwise_xor(z, shifted, out=z)


def chained(key: int, number: int) -> int:
    """A key derived from a key and a number: cheaper than `parallel.keys.key`, and as good."""
    return int(bits(np.array([key], np.uint64), np.array([number], np.uint64))[0])


def permutation(count: int, key: int) -> np.ndarray:
    """The numbers below `count` in an order that `key` determines, (count,) int64."""
    return permutations(count, np.array([key], np.uint64))[0]


def permutations(count: int, keys: np.ndarray) -> np.ndarray:
    """A permutation for each of `keys`: (keys, count) int64.

    Sorts random bits whose low bits are the number itself: no two are equal, and no indirect sort
    is needed, which would take several times as long.
    """
    low = np.uint64((1 << (count - 1).bit_length()) - 1)
    numbers = np.arange(count, dtype=np.uint64)
    drawn = bits(keys[:, None], numbers) & ~low | numbers
    drawn.sort(axis=1)
    return (drawn & low).astype(np.int64)


class Shuffle:
    """The numbers below `count` in an order that `key` determines, without storing it.

    A Feistel network over pairs (Luby and Rackoff, 1988) whose halves are added modulo their sizes;
    results of `count` or more pass through it again (Black and Rogaway, CT-RSA 2002, section 3). So
    every place costs the same, and no memory, for any count.
    """

    ROUNDS = 8

    def __init__(self, count: int, key: int) -> None:
        self.count = count
        high = math.isqrt(count - 1) + 1
        self._sizes = np.uint64(high), np.uint64(-(-count // high))
        numbers = np.arange(self.ROUNDS, dtype=np.uint64)
        self._keys = bits(np.array([key], np.uint64), numbers)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """The numbers at places below `count`, int64, of the same shape."""
        return self._inside(places, self._forth)

    def places(self, numbers: np.ndarray) -> np.ndarray:
        """The places of numbers below `count`, int64, of the same shape: the inverse."""
        return self._inside(numbers, self._back)

    def _inside(self, given: np.ndarray, step: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        out = step(np.asarray(given).astype(np.uint64))
        while (outside := out >= self.count).any():
            out[outside] = step(out[outside])
        return out.astype(np.int64)

    def _forth(self, numbers: np.ndarray) -> np.ndarray:
        halves = list(np.divmod(numbers, self._sizes[1]))
        for round in range(self.ROUNDS):
            side, other = round % 2, 1 - round % 2
            size = self._sizes[side]
            halves[side] = (halves[side] + bits(self._keys[round], halves[other]) % size) % size
        return halves[0] * self._sizes[1] + halves[1]

    def _back(self, numbers: np.ndarray) -> np.ndarray:
        halves = list(np.divmod(numbers, self._sizes[1]))
        for round in reversed(range(self.ROUNDS)):
            side, other = round % 2, 1 - round % 2
            size = self._sizes[side]
            added = bits(self._keys[round], halves[other]) % size
            halves[side] = (halves[side] + size - added) % size
        return halves[0] * self._sizes[1] + halves[1]
