"""Jobs in worker processes that report progress, and that all stop when one of them fails."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from mlm.errors import UserError

Result = TypeVar("Result")

SMALL = 1 << 23  # bytes: starting processes takes longer than the work
POLL_SECONDS = 0.2


class Report(Protocol):
    """What a job is given to say how far it is, and to ask how much of the machine is its own."""

    def __call__(self, amount: int) -> None:
        """Adds to what is done; may raise, to end the job."""
        ...

    def threads(self) -> int:
        """How many a job may use now: more when fewer jobs than cores are left."""
        ...


class _StopAsked(Exception):
    """Raised inside a job whose result nobody waits for any more."""


class Workers:
    """Processes that do jobs, or this one where `count` is 1. A context: leaving it ends them.

    `count=None` means a process per core, and none at all for input of little `weight` in bytes.
    """

    def __init__(self, count: int | None, jobs: int, weight: int) -> None:
        if count is None:
            count = 1 if weight < SMALL else len(os.sched_getaffinity(0))
        self._cores, self._count = count, min(count, jobs)
        self._executor: ProcessPoolExecutor | None = None
        if self._count > 1:
            # Spawned: a fork of a process with running threads, as torch's, may hang.
            context = multiprocessing.get_context("spawn")
            self._done, self._left = context.Value("q", 0), context.Value("q", 0)
            self._stop = context.Event()
            shared = (self._done, self._left, self._stop, self._cores)
            self._executor = ProcessPoolExecutor(self._count, context, _start, shared)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        if self._executor is not None:
            self._stop.set()
            self._executor.shutdown(wait=True, cancel_futures=True)

    def each(
        self,
        function: Callable[..., Result],
        jobs: dict[str, tuple],
        on_progress: Callable[[int], None] | None = None,
    ) -> dict[str, Result]:
        """`function(report, *arguments)` of every job, by its name; they start in the order given.

        A job calls `report(amount)` now and then, which may end it; `on_progress(done)` gets the
        sum over all. The first exception is raised as it was, and leaving the context stops the
        other jobs.
        """
        if self._executor is None:
            report = _Here(on_progress, self._cores)
            return {name: function(report, *arguments) for name, arguments in jobs.items()}
        self._left.value = len(jobs)
        before = self._done.value
        try:
            futures = {
                name: self._executor.submit(_run, function, arguments)
                for name, arguments in jobs.items()
            }
            pending = set(futures.values())
            while pending:
                finished, pending = wait(pending, POLL_SECONDS, FIRST_EXCEPTION)
                for future in finished:
                    future.result()
                if on_progress is not None:
                    on_progress(self._done.value - before)
        except BrokenProcessPool:
            raise UserError(
                f"one of {self._count} worker processes was killed, often for want of memory; give "
                f"fewer workers"
            ) from None
        return {name: future.result() for name, future in futures.items()}


class _Here:
    """The report of jobs in this process, one after another."""

    def __init__(self, on_progress: Callable[[int], None] | None, cores: int) -> None:
        self._on_progress, self._cores = on_progress, cores
        self._done = 0

    def __call__(self, amount: int) -> None:
        self._done += amount
        if amount and self._on_progress is not None:
            self._on_progress(self._done)

    def threads(self) -> int:
        return self._cores


class _There:
    """The report of jobs in a worker process."""

    def __init__(self, done: Any, left: Any, stop: Any, cores: int) -> None:
        self._done, self._left, self._stop, self._cores = done, left, stop, cores

    def __call__(self, amount: int) -> None:
        if self._stop.is_set():
            raise _StopAsked
        if amount:
            with self._done.get_lock():
                self._done.value += amount

    def threads(self) -> int:
        return max(1, self._cores // max(1, self._left.value))

    def ended(self) -> None:
        with self._left.get_lock():
            self._left.value -= 1


def _start(done: Any, left: Any, stop: Any, cores: int) -> None:
    global _report
    _report = _There(done, left, stop, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which asks us to stop


def _run(function: Callable[..., Result], arguments: tuple) -> Result:
    try:
        return function(_report, *arguments)
    finally:
        _report.ended()
