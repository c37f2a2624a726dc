"""What a call adds to this process's memory, as the system counts it."""

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def resident(key: str) -> int:
    """Bytes of this process's memory: VmRSS now, VmHWM at most since `forget_peak`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(key)).split()[1])


def forget_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def added_by(act: Callable[[], Any]) -> tuple[int, Any]:
    """Bytes that `act` added at its peak, and its result."""
    gc.collect()
    # After a separately mapped block is freed, C takes that size from the heap, where holes form.
    torch.zeros((30 << 20) // 4)
    ctypes.CDLL("libc.so.6").malloc_trim(0)  # or freed memory would be reused without being counted
    forget_peak()
    before = resident("VmRSS")
    made = act()
    return resident("VmHWM") - before, made
