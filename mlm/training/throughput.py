"""Tokens per second, how much of the hardware's arithmetic they are, and memory."""

import resource
import sys
import time
from collections.abc import Callable

import torch

# Dense bf16 peak FLOP/s of a device, from the vendors' data sheets, by a part of its name.
PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "V100": 125e12,
}


def peak_flops(device: torch.device) -> float | None:
    """Peak bf16 FLOP/s of a device; None where it is not known, as on CPUs."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for part, peak in PEAKS.items() if part in name), None)


def peak_memory(device: torch.device) -> int:
    """The most bytes that this process has had: of the GPU's memory, or else of the machine's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


class Stopwatch:
    """Seconds of the steps since the last lap, of which some were spent waiting for data, and in
    some this rank worked without waiting for others.

    collective_seconds: returns the seconds that this rank has spent in collectives so far
    """

    def __init__(self, collective_seconds: Callable[[], float] = lambda: 0.0) -> None:
        self.collective_seconds = collective_seconds
        self._start()

    def _start(self) -> None:
        self.steps, self.data = 0, 0.0
        self.started, self.waited_before = time.perf_counter(), self.collective_seconds()

    def waited(self, since: float) -> None:
        """Counts the time since `since` (of `time.perf_counter`) as waiting for data."""
        self.data += time.perf_counter() - since

    def lap(self) -> tuple[float, float, float]:
        """Mean seconds per step since the last lap: all, waiting for data, and working; starts the
        next lap."""
        steps = max(self.steps, 1)
        seconds = time.perf_counter() - self.started
        working = max(0.0, seconds - (self.collective_seconds() - self.waited_before))
        means = seconds / steps, self.data / steps, working / steps
        self._start()
        return means

    def pause(self) -> "Pause":
        """A context whose time does not count: evaluation, saving."""
        return Pause(self)


class Pause:
    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def __enter__(self) -> None:
        self.began, self.waited = time.perf_counter(), self.watch.collective_seconds()

    def __exit__(self, *_: object) -> None:
        self.watch.started += time.perf_counter() - self.began
        self.watch.waited_before += self.watch.collective_seconds() - self.waited
