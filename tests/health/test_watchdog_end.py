"""How the watchdog of a rank reads the others, ends a run that has stalled, and counts time."""

import os
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest
import torch.distributed as dist

import mlm.health.watchdog
from mlm.errors import FAILED
from mlm.health import heartbeat
from mlm.health.watchdog import Watchdog
from tests.health.test_watchdog import Exited, beat_of, watchdog_of


class Clock:
    """Time that passes only in `sleep`, which calls `slept` with the number of the sleep."""

    def __init__(self) -> None:
        self.now, self.sleeps = 0.0, 0
        self.slept: Callable[[int], None] = lambda number: None

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.sleeps += 1
        self.slept(self.sleeps)


@pytest.fixture
def clock(tmp_path, monkeypatch) -> Clock:
    """The clock of the watchdogs, whose end of the process is an exception."""

    def raised(code: int) -> None:
        raise Exited(code)

    (tmp_path / heartbeat.FOLDER).mkdir()
    clock = Clock()
    times = {"monotonic": lambda: clock.now, "perf_counter": lambda: clock.now}
    monkeypatch.setattr(mlm.health.watchdog, "time", SimpleNamespace(sleep=clock.sleep, **times))
    monkeypatch.setattr(os, "_exit", raised)
    return clock


def watchdogs(tmp_path, world: int) -> list[Watchdog]:
    """Those of all ranks, which stall after 100 seconds."""
    return [watchdog_of(tmp_path, rank, world) for rank in range(world)]


def tick(seconds: float, *each: Watchdog) -> None:
    for one in each:
        one._tick(seconds)


def test_watchdog_is_called_by_one_rank_of_several(tmp_path, clock):
    """Half of its own time after it has stalled, not before."""
    first, second, third = watchdogs(tmp_path, 3)
    tick(20.0, second, third)
    for _ in range(2):
        tick(20.0, second, third, first)
    second._dumped = True
    tick(5.0, second, third, first)
    assert not first._dumped
    with pytest.raises(Exited):
        tick(6.0, second, third, first)
    assert first._dumped
    assert not third._dumped


def test_watchdog_ends_the_run_of_a_rank_without_beats(tmp_path, clock):
    """The last beat of a process that was killed says that it moved."""
    said: list[str] = []
    first, second = watchdogs(tmp_path, 2)
    first.fail = said.append
    second._beat()
    for _ in range(10):
        tick(10.0, first)
    assert said == []
    with pytest.raises(Exited):
        tick(10.0, first)
    assert said[0].startswith(f"rank 1 stalled (process {os.getpid()} on ")
    assert "stopped, dead or without its file system" in said[0]


def test_watchdog_keeps_the_last_beat_of_a_file_that_it_cannot_read(tmp_path, clock):
    """It may be half-written while it is read; the other rank runs."""
    first, second = watchdogs(tmp_path, 2)
    for _ in range(12):
        second.enter("evaluate")
        tick(10.0, second, first)
    second.path.write_text('{"number"')
    tick(10.0, first)
    assert not first._dumped


def test_watchdog_waits_for_the_stacks_of_all_live_ranks(tmp_path, clock):
    """It goes on beating meanwhile: the others would take it for dead."""
    first, second, third, dead = watchdogs(tmp_path, 4)
    dead._beat()
    numbers: list[int] = []

    def slept(number: int) -> None:
        numbers.append(beat_of(tmp_path, 0).number)
        second._dumped, third._dumped = number >= 2, number >= 4
        second._beat()
        third._beat()

    def told(sentence: str) -> None:
        assert beat_of(tmp_path, 0).dumped  # before this takes its time
        assert clock.sleeps == 0

    clock.slept, first.fail = slept, told
    for _ in range(10):
        tick(10.0, second, third, first)
    with pytest.raises(Exited, match=f"{FAILED}"):
        tick(10.0, first)
    assert clock.sleeps == 4
    assert numbers == list(range(numbers[0], numbers[0] + 4))


def test_watchdog_does_not_wait_forever_for_the_stacks_of_others(tmp_path, clock):
    first, second = watchdogs(tmp_path, 2)
    clock.slept = lambda number: second._beat()
    for _ in range(10):
        tick(10.0, second, first)
    with pytest.raises(Exited):
        tick(10.0, first)
    assert clock.now == 25.0  # a quarter of its seconds


def test_watchdog_ends_the_process_where_the_outcome_cannot_be_written(tmp_path, clock, capfd):
    def full(sentence: str) -> None:
        raise OSError(28, "No space left on device")

    (first,) = watchdogs(tmp_path, 1)
    first.fail = full
    with pytest.raises(Exited, match=f"{FAILED}"):
        tick(101.0, first, first)
    assert "\nmlm: rank 0 stalled (" in capfd.readouterr().err


def test_watchdog_does_not_count_time_in_which_the_job_was_suspended(tmp_path, clock, monkeypatch):
    """Of a beat that comes late, at most three times the pause; the next one counts anew."""
    (watchdog,) = watchdogs(tmp_path, 1)
    passed: list[float] = []
    late: Iterator[float] = iter([0.0, 2.0, 500.0, 0.0])

    def wait(pause: float) -> bool:
        clock.now += pause + (extra := next(late, -1.0))
        return extra < 0

    monkeypatch.setattr(watchdog, "_over", SimpleNamespace(wait=wait))
    monkeypatch.setattr(watchdog, "_tick", passed.append)
    watchdog._watch()
    assert watchdog.pause == 5.0
    assert passed == [5.0, 7.0, 15.0, 5.0]


def test_watchdog_begins_after_all_ranks_have_come_and_says_that_its_rank_left(
    tmp_path, clock, monkeypatch
):
    """A rank that comes late, or has left early, is not the one that stalled."""
    watchdog = watchdogs(tmp_path, 2)[0]
    came: list[str] = []

    def barrier() -> None:
        assert not watchdog._thread.is_alive()
        came.append(beat_of(tmp_path, 0).phase)

    def failing_loop() -> None:
        with watchdog:
            watchdog.enter("step")
            raise ValueError("of the loop")

    monkeypatch.setattr(dist, "barrier", barrier)
    with pytest.raises(ValueError, match="of the loop"):
        failing_loop()
    assert came == ["start"]
    assert beat_of(tmp_path, 0).phase == heartbeat.ENDED
    assert not watchdog._thread.is_alive()
