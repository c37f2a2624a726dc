"""Copies of many rows of ids at once, wherever in memory they lie.

The rows of a batch lie in many maps, and copied one by one in Python they take more than twice as
long as in one call of numpy, which takes rows of one array only. So all of memory is made one: its
element k is the row of ids that begins at the k-th id of memory, each of them beginning one id
behind the other. Nothing of it is touched but the rows that are asked for.
"""

from functools import lru_cache

import numpy as np

ID_BYTES = 4
FIRST = 4096  # the address of id 0; where nothing is ever mapped, and not 0, which numpy refuses
ADDRESSES = 1 << 48  # of a process
LONGEST = 16384  # ids of a row: the bytes of all elements must be fewer than 2^63


class _Memory:
    """What numpy is told of it."""

    def __init__(self, length: int) -> None:
        self.__array_interface__ = {
            "version": 3,
            "data": (FIRST, True),
            "typestr": f"|V{length * ID_BYTES}",
            "shape": ((ADDRESSES - FIRST) // ID_BYTES,),
            "strides": (ID_BYTES,),
        }


@lru_cache
def _memory(length: int) -> np.ndarray:
    return np.asarray(_Memory(length))


def place_of(ids: np.ndarray) -> int:
    """Where in memory an int32 array begins, counted in ids."""
    return (ids.ctypes.data - FIRST) // ID_BYTES


def rows_at(places: np.ndarray, length: int) -> np.ndarray:
    """Copies of the `length` ids from each of `places` (rows,) on, (rows, length) int32.

    The caller holds what lies there; where nothing does, the process dies.
    """
    if length > LONGEST:
        parts = rows_at(places, LONGEST), rows_at(places + LONGEST, length - LONGEST)
        return np.concatenate(parts, axis=1)
    return _memory(length)[places].view(np.int32).reshape(len(places), length)
