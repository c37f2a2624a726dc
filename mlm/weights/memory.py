"""Freed memory, returned to the operating system at once."""

import ctypes


def release_free_memory() -> None:
    """Has the C library return free memory to the operating system, where it can.

    Without it, a tensor that is read, cast and freed leaves a hole that a smaller one then takes
    part of; the next large tensor takes new memory, and a rank holds more than its slices and one
    tensor.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
