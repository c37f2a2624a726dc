"""The stopwatch of the training loop."""

import torch

from mlm.training import throughput
from mlm.training.throughput import Stopwatch, peak_flops


def test_stopwatch_averages_over_steps_and_excludes_pauses(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    waiting = [7.0]
    watch = Stopwatch(lambda: waiting[0])
    for _ in range(4):
        since = now[0]
        now[0] += 0.5
        watch.waited(since)
        now[0] += 1.5
        waiting[0] += 0.25
        watch.steps += 1
    with watch.pause():
        now[0] += 1000.0
        waiting[0] += 999.0
    assert watch.lap() == (2.0, 0.5, 1.75)
    now[0] += 3.0
    watch.steps += 1
    assert watch.lap() == (3.0, 0.0, 3.0)


def test_peak_flops_follows_the_name_of_the_device(monkeypatch):
    assert peak_flops(torch.device("cpu")) is None
    names = {"NVIDIA H200": 989e12, "NVIDIA H100 PCIe": 756e12, "Tesla K80": None}
    for name, peak in names.items():
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _, name=name: name)
        assert peak_flops(torch.device("cuda")) == peak
