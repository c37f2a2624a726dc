"""Tokens per second, and how much of the hardware's arithmetic they are."""

import time

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


class Stopwatch:
    """Seconds of the steps since the last look, and the part of them spent waiting for data."""

    def __init__(self) -> None:
        self.steps, self.data = 0, 0.0
        self.started = time.perf_counter()

    def waited(self, since: float) -> None:
        """Counts the time since `since` (of `time.perf_counter`) as waiting for data."""
        self.data += time.perf_counter() - since

    def look(self) -> tuple[float, float]:
        """Mean `(seconds_step, seconds_data)` since the last look, and starts anew."""
        steps = max(self.steps, 1)
        means = (time.perf_counter() - self.started) / steps, self.data / steps
        self.__init__()
        return means

    def pause(self) -> "Pause":
        """A context whose time does not count: evaluation, saving."""
        return Pause(self)


class Pause:
    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def __enter__(self) -> None:
        self.began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.watch.started += time.perf_counter() - self.began
