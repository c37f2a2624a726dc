"""The recorder of collectives: what it keeps, and the time that it counts."""

import time
from contextlib import suppress
from threading import Thread

import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from parallel import recorder as recorder_module
from parallel.engine.build import build_engine
from parallel.engine.interface import EngineSettings
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.pipeline.stages import StageLayer
from parallel.recorder import FUNCTIONS, KEPT, Call, Recorder, describe, recording
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def name_of(call: Call | None) -> str:
    assert call is not None
    return call.name


def _all_kinds():
    rank = dist.get_rank()
    pair = dist.new_group([0, 1])
    with recording(CPU) as recorder:
        x = torch.ones(4)
        dist.all_reduce(x)
        dist.all_reduce(x, group=pair)
        distributed_c10d.broadcast(x, 0)
        dist.all_gather([torch.empty(4), torch.empty(4)], x, pair)
        dist.all_gather_into_tensor(torch.empty(8), x)
        dist.all_gather_object([None, None], "text")
        (dist.send if rank == 0 else dist.recv)(x, 1 - rank)
        work = dist.all_reduce(x, async_op=True)
        assert recorder.current() is None
        assert work is not None
        work.wait()
        dist.barrier()
        calls = recorder.calls
    dist.all_reduce(x)  # is no longer recorded
    assert recorder.calls == calls
    rows = [(call.name, call.size, call.peer, call.group is not None) for call in recorder.last()]
    assert all(call.ended is not None for call in recorder.last())
    return rows, describe(recorder.last(), time.perf_counter())


@pytest.mark.ranks
def test_recorder_keeps_collectives_with_size_group_and_peer():
    for rank, (rows, text) in enumerate(run_ranks(2, _all_kinds)):
        assert rows == [
            ("all_reduce", 16, None, False),
            ("all_reduce", 16, None, True),
            ("broadcast", 16, None, False),
            ("all_gather", 32, None, True),
            ("all_gather_into_tensor", 32, None, False),
            ("all_gather_object", 0, None, False),
            (("send", "recv")[rank], 16, 1 - rank, False),
            ("all_reduce", 16, None, False),
            ("wait", 0, None, False),
            ("barrier", 0, None, False),
        ]
        lines = text.splitlines()
        assert "all_reduce, 16 bytes, ranks 0, 1: " in lines[1]
        assert f"{('send to', 'recv from')[rank]} rank {1 - rank}, 16 bytes, all ranks" in lines[6]


def test_recording_restores_every_function():
    before = [getattr(dist, name) for name in FUNCTIONS if hasattr(dist, name)]
    wait = dist.Work.wait
    with suppress(KeyError), recording(CPU):
        assert dist.all_reduce is not before[0]
        raise KeyError
    assert [getattr(dist, name) for name in FUNCTIONS if hasattr(dist, name)] == before
    assert dist.Work.wait == wait


def _waiting(folder):
    """Rank 1 arrives 0.3 s after rank 0 began to wait; then again with an async collective."""
    found = []
    with recording(CPU) as recorder:
        for async_op in (False, True):
            dist.barrier()
            before = recorder.seconds()
            file = folder / ("wait" if async_op else "all_reduce")
            if dist.get_rank() == 1:
                while not file.exists():
                    time.sleep(0.01)
                time.sleep(0.3)
            else:
                Thread(target=_write_call, args=(recorder, file)).start()
            work = dist.all_reduce(torch.ones(1), async_op=async_op)
            if async_op:
                assert work is not None
                work.wait()
            found.append((recorder.seconds() - before, file.read_text()))
    return found


def _write_call(recorder, file):
    """Writes the main thread's current call once it is the one that the file is named after."""
    while (call := recorder.current()) is None or call.name != file.name:
        time.sleep(0.001)
    file.write_text(call.name)


@pytest.mark.ranks
def test_recorder_counts_waiting_as_time_in_collectives(tmp_path):
    waits, _ = run_ranks(2, _waiting, tmp_path)
    assert [name for _, name in waits] == ["all_reduce", "wait"]
    assert all(seconds >= 0.3 for seconds, _ in waits)


def _engine(zero: int, pp: int):
    grid = make_grid(Layout(pp=pp, dp=2 // pp, zero=zero))
    layers = [
        StageLayer("a", lambda: torch.nn.Linear(4, 4), 20, 32.0, lambda m, x, _: m(x)),
        StageLayer("b", lambda: torch.nn.Linear(4, 4), 20, 32.0, lambda m, x, _: (m(x).sum(), {})),
    ]
    with recording(CPU) as recorder:
        engine = build_engine(
            layers,
            grid,
            lambda named: torch.optim.AdamW([p for _, p in named], lr=1e-3),
            EngineSettings(1, 2),
        )
        before = recorder.calls
        engine.train_batch([_Batch(), _Batch()], 1e-3)
        return recorder.calls - before, {call.name for call in recorder.last()}


class _Batch:
    inputs = torch.ones(1, 4)

    def to(self, device):
        return self


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("zero", "pp", "names"),
    [
        (1, 2, ({"send", "recv"}, {"send", "recv"})),
        (1, 1, ({"all_reduce"}, {"all_reduce"})),
        (3, 1, ({"all_gather_into_tensor"}, {"all_gather_into_tensor"})),
    ],
)
def test_recorder_sees_the_collectives_of_deepspeed(zero, pp, names):
    for (calls, found), expected in zip(run_ranks(2, _engine, zero, pp), names, strict=True):
        assert calls > 0
        assert expected <= found


def test_recorder_keeps_few_calls_and_none_inside_another():
    recorder = Recorder()
    inner = recorder.wrapped("isend", lambda: name_of(recorder.current()))
    outer = recorder.wrapped("send", lambda: inner())
    assert [outer() for _ in range(KEPT + 5)] == ["send"] * (KEPT + 5)
    assert (recorder.calls, len(recorder.last())) == (KEPT + 5, KEPT)
    assert recorder.current() is None


def test_recorder_ends_a_call_that_fails():
    recorder = Recorder()
    with pytest.raises(ZeroDivisionError):
        recorder.wrapped("barrier", lambda: 1 / 0)()
    assert recorder.current() is None
    assert recorder.last()[0].ended is not None
    recorder.wrapped("barrier", lambda: None)()
    assert recorder.calls == 2


def test_recorder_does_not_count_calls_of_other_threads():
    """A checkpoint that is saved in the background waits in collectives of its own."""
    recorder = Recorder()
    thread = Thread(target=recorder.wrapped("all_gather_object", lambda: time.sleep(0.01)))
    thread.start()
    thread.join()
    assert (recorder.calls, recorder.seconds()) == (0, 0.0)
    assert [call.name for call in recorder.last()] == ["all_gather_object"]


class FakeDevice:
    """A stream whose clock the test moves: events recorded before `done` have completed."""

    def __init__(self) -> None:
        self.queued, self.done = 0.0, 0.0

    def event(self) -> "FakeEvent":
        return FakeEvent(self)


class FakeEvent:
    def __init__(self, device: FakeDevice) -> None:
        self.device = device

    def record(self) -> None:
        self.time = self.device.queued

    def query(self) -> bool:
        return self.time <= self.device.done

    def elapsed_time(self, later: "FakeEvent") -> float:
        return 1000 * (later.time - self.time)


@pytest.fixture
def device(monkeypatch) -> FakeDevice:
    for name in ("current_stream", "default_stream"):
        monkeypatch.setattr(recorder_module.torch.cuda, name, lambda: "the stream")
    return FakeDevice()


def test_recorder_measures_time_on_the_stream_of_a_device(device):
    """Functions return when their work is queued: 1 s of computing, 2 s in a collective, twice."""
    recorder = Recorder(device.event)

    def queue(seconds: float) -> None:
        device.queued += seconds

    for _ in range(2):
        queue(1.0)
        recorder.wrapped("all_reduce", queue)(2.0)
    assert recorder.current() is None  # it is computing
    device.done = 1.5
    assert name_of(recorder.current()) == "all_reduce"
    assert recorder.seconds() == 0.0
    device.done = 3.5
    assert recorder.seconds() == 2.0
    assert recorder.current() is None
    device.done = 6.0
    assert recorder.seconds() == 4.0
    assert recorder.current() is None


def test_recorder_reuses_events(device):
    made = []
    recorder = Recorder(lambda: made.append(1) or device.event())
    call = recorder.wrapped("send", lambda: None)
    for _ in range(1000):
        call()
        device.done = device.queued
    assert len(made) < 200


def test_recorder_does_not_time_calls_on_another_stream(device, monkeypatch):
    recorder = Recorder(device.event)
    monkeypatch.setattr(recorder_module.torch.cuda, "current_stream", lambda: "another")
    recorder.wrapped("all_reduce", lambda: None)()
    assert (recorder.calls, recorder.seconds(), recorder.current()) == (1, 0.0, None)
