"""The last collectives of a process, and the time that it spends in them.

torch's own flight recorder does not know on gloo when a collective began or whether it has ended
(in 2.13 all of them stay "scheduled"). So the functions of torch.distributed are wrapped while
`recording`; DeepSpeed calls the same ones.
"""

import functools
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

FUNCTIONS = (
    "all_reduce",
    "all_reduce_coalesced",
    "reduce",
    "broadcast",
    "all_gather",
    "all_gather_single",
    "all_gather_into_tensor",
    "_all_gather_base",
    "all_gather_coalesced",
    "reduce_scatter",
    "reduce_scatter_single",
    "reduce_scatter_tensor",
    "_reduce_scatter_base",
    "gather",
    "scatter",
    "all_to_all",
    "all_to_all_single",
    "send",
    "recv",
    "isend",
    "irecv",
    "batch_isend_irecv",
    "barrier",
    "monitored_barrier",
    "all_gather_object",
    "gather_object",
    "broadcast_object_list",
    "scatter_object_list",
)
TO, FROM = ("send", "isend"), ("recv", "irecv")
KEPT = 32
PENDING = 64  # event pairs that may wait before those that are over are counted


@dataclass(slots=True)
class Call:
    """A call of a function of torch.distributed; times are of `time.perf_counter`.

    size: bytes of its largest argument, 0 for objects; group: None for all ranks
    peer: the rank that a send goes to or a receive comes from
    """

    name: str
    size: int
    group: dist.ProcessGroup | None
    peer: int | None
    began: float
    ended: float | None = None


class Recorder:
    """What `recording` keeps.

    calls: how many there have been, of the threads that train; others' (a save in the background)
        are kept in the list only
    event: makes a CUDA event; None on CPUs, where a collective is over when its function returns
    """

    def __init__(self, event: Callable[[], Any] | None = None) -> None:
        self.calls = 0
        self._event = event
        self._last: deque[Call] = deque(maxlen=KEPT)
        self._current: Call | None = None
        self._seconds = 0.0
        self._pending: deque[tuple[Any, Any, Call]] = deque()
        self._spare: list[Any] = []
        self._owner = threading.get_ident()
        self._thread = threading.local()

    def seconds(self) -> float:
        """Seconds that training has spent in collectives so far, waiting for others included.

        On CUDA it is the time of the default stream, of the collectives that are over there.
        """
        self._count()
        return self._seconds

    def current(self) -> Call | None:
        """The collective that training is in now, on the host or on the device's default stream;
        may be asked from any thread."""
        for started, ended, call in list(self._pending):
            if not ended.query():
                return call if started.query() else None
        return self._current

    def last(self) -> list[Call]:
        """The last collectives, oldest first."""
        return list(self._last)

    def wrapped(self, name: str, function: Callable) -> Callable:
        """`function`, recorded; calls that it makes itself are a part of it."""

        @functools.wraps(function)
        def recorded(*args: Any, **kwargs: Any) -> Any:
            if getattr(self._thread, "inside", False):
                return function(*args, **kwargs)
            call = _call(name, args, kwargs)
            # A backward pass on CUDA runs in another thread, while the one that trains waits.
            training = threading.get_ident() == self._owner or self._on_device(args, kwargs)
            self._last.append(call)
            if training:
                self.calls += 1
                self._current = call
            started = self._mark() if training else None
            self._thread.inside = True
            try:
                return function(*args, **kwargs)
            finally:
                self._thread.inside = False
                call.ended = time.perf_counter()
                if training:
                    self._current = None
                    self._end(started, call)

        return recorded

    def _end(self, started: Any, call: Call) -> None:
        if self._event is None:
            assert call.ended is not None
            self._seconds += call.ended - call.began
        elif started is not None:
            self._pending.append((started, self._mark(), call))
            if len(self._pending) > PENDING:
                self._count()

    def _mark(self) -> Any:
        """An event on the default stream; None on another one, which runs at the same time."""
        if self._event is None or torch.cuda.current_stream() != torch.cuda.default_stream():
            return None
        event = self._spare.pop() if self._spare else self._event()
        event.record()
        return event

    def _count(self) -> None:
        while self._pending and self._pending[0][1].query():
            started, ended, _ = self._pending.popleft()
            self._seconds += started.elapsed_time(ended) / 1000
            self._spare += [started, ended]

    def _on_device(self, args: tuple, kwargs: dict) -> bool:
        return self._event is not None and any(
            isinstance(value, Tensor) and value.is_cuda for value in (*args, *kwargs.values())
        )


@contextmanager
def recording(device: torch.device) -> Iterator[Recorder]:
    """Records the collectives of this process; begins before an engine is built, since DeepSpeed
    keeps some of the functions."""
    event = functools.partial(torch.cuda.Event, enable_timing=True)
    recorder = Recorder(event if device.type == "cuda" else None)
    before: list[tuple[Any, str, Any]] = [(dist.Work, "wait", dist.Work.wait)]
    for module in (dist, distributed_c10d):
        names = [name for name in FUNCTIONS if hasattr(module, name)]
        before += [(module, name, getattr(module, name)) for name in names]
    try:
        for place, name, function in before:
            setattr(place, name, recorder.wrapped(name, function))
        yield recorder
    finally:
        for place, name, function in before:
            setattr(place, name, function)


def describe(calls: Sequence[Call], now: float) -> str:
    """A line per call, for a log; now: of `time.perf_counter`."""
    return "\n".join(_line(call, now) for call in calls)


def _line(call: Call, now: float) -> str:
    # On CUDA a function returns when its work is queued.
    end = "has not returned" if call.ended is None else f"{1000 * (call.ended - call.began):.2f} ms"
    peer = "" if call.peer is None else f" {'to' if call.name in TO else 'from'} rank {call.peer}"
    size = f"{call.size:,} bytes" if call.size else "no tensor"
    return f"  {now - call.began:.3f} s ago: {call.name}{peer}, {size}, {_who(call)}: {end}"


def _who(call: Call) -> str:
    if call.name == "wait":
        return "for an earlier call"
    if call.group is None:
        return "all ranks"
    ranks = dist.get_process_group_ranks(call.group)
    shown = ", ".join(map(str, ranks[:8]))
    return f"ranks {shown}" + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def _call(name: str, args: tuple, kwargs: dict) -> Call:
    values = (*args, *kwargs.values())
    group = next((value for value in values if isinstance(value, dist.ProcessGroup)), None)
    size = max((_size(value) for value in values), default=0)
    peer = None
    if name in TO or name in FROM:
        given = kwargs.get("dst" if name in TO else "src")
        peer = args[1] if given is None and len(args) > 1 else given
    return Call(name, size, group, peer, time.perf_counter())


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, list):
        return sum(item.nbytes for item in value if isinstance(item, Tensor))
    return 0
