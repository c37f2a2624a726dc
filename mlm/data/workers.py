"""Jobs in worker processes that report progress, and that all stop when one of them fails."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from mlm.errors import UserError

Report = Callable[[int], None]
Result = TypeVar("Result")

SMALL = 1 << 23  # bytes: starting processes takes longer than the work
POLL_SECONDS = 0.2


class _StopAsked(Exception):
    """Raised inside a job whose result nobody waits for any more."""


class Workers:
    """Processes that do jobs, or this one where `count` is 1. A context: leaving it ends them.

    `count=None` means a process per core, and none at all for input of little `weight` in bytes.
    """

    def __init__(self, count: int | None, jobs: int, weight: int) -> None:
        if count is None:
            count = 1 if weight < SMALL else len(os.sched_getaffinity(0))
        self._count = min(count, jobs)
        self._executor: ProcessPoolExecutor | None = None
        if self._count > 1:
            # Spawned: a fork of a process with running threads, as torch's, may hang.
            context = multiprocessing.get_context("spawn")
            self._done, self._stop = context.Value("q", 0), context.Event()
            self._executor = ProcessPoolExecutor(
                self._count, context, _start, (self._done, self._stop)
            )

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
        on_progress: Report | None = None,
    ) -> dict[str, Result]:
        """`function(report, *arguments)` of every job, by its name; they start in the order given.

        A job calls `report(amount)` now and then, which may end it; `on_progress(done)` gets the
        sum over all. The first exception is raised as it was, and leaving the context stops the
        other jobs.
        """
        if self._executor is None:
            return _here(function, jobs, on_progress)
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


def _here(
    function: Callable[..., Result], jobs: dict[str, tuple], on_progress: Report | None
) -> dict[str, Result]:
    done = 0

    def report(amount: int) -> None:
        nonlocal done
        done += amount
        if on_progress is not None:
            on_progress(done)

    return {name: function(report, *arguments) for name, arguments in jobs.items()}


def _start(done: Any, stop: Any) -> None:
    global _done, _stop
    _done, _stop = done, stop
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which asks us to stop


def _run(function: Callable[..., Result], arguments: tuple) -> Result:
    return function(_report, *arguments)


def _report(amount: int) -> None:
    if _stop.is_set():
        raise _StopAsked
    with _done.get_lock():
        _done.value += amount
