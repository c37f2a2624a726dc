"""Memory that is free again, handed back to the system at once."""

import ctypes


def release_free_memory() -> None:
    """Has the C library hand free memory back to the system, where it knows how to.

    Without it a tensor that is read, cast and freed leaves a hole that a smaller one settles in;
    the next large one takes new memory, and a rank holds more than its own part and one tensor.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
