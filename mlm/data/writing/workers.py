"""Jobs in worker processes that report their progress, and all stop when one of them fails."""

import multiprocessing
import os
import signal
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, Protocol, TypeVar

from mlm.errors import UserError

Result = TypeVar("Result")

SMALL = 1 << 23  # bytes of input for which starting processes would take longer than the work
POLL_SECONDS = 0.2


class JobProgress(Protocol):
    """Passed to a job, to report its progress and to ask how many threads it may use."""

    def __call__(self, amount: int) -> None:
        """Adds to the amount done; may raise, to end the job."""
        ...

    def threads(self) -> int:
        """The threads that a job may use now: more once fewer jobs than cores remain."""
        ...


class _StopRequested(Exception):
    """Raised inside a job whose result is not needed any more."""


class Workers:
    """Processes that run jobs, or this process where one is enough. A context: leaving it ends
    them."""

    def __init__(self, count: int | None, jobs: int, weight: int) -> None:
        """count: of processes; None: one per core, or none besides this where the `weight` of the
        jobs, in bytes of input, is small"""
        if count is None:
            count = 1 if weight < SMALL else len(os.sched_getaffinity(0))
        self._cores, self._count = count, min(count, jobs)
        self._executor: ProcessPoolExecutor | None = None
        if self._count > 1:
            # Spawned, since a fork of a process with running threads, such as torch's, may hang.
            context = multiprocessing.get_context("spawn")
            self._done, self._remaining = context.Value("q", 0), context.Value("q", 0)
            self._stop = context.Event()
            shared = (self._done, self._remaining, self._stop, self._cores)
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
        """`function(progress, *arguments)` of every job, by its name, started in the order given.

        A job calls `progress(amount)` from time to time, which may end it; `on_progress` is called
        with the sum over all jobs. The first exception of a job is raised as it is, and leaving the
        context stops the other jobs.
        """
        if self._executor is None:
            progress = _InThisProcess(on_progress, self._cores)
            return {name: function(progress, *arguments) for name, arguments in jobs.items()}
        self._remaining.value = len(jobs)
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
                f"one of {self._count} worker processes was killed, often for lack of memory; give "
                f"fewer workers"
            ) from None
        return {name: future.result() for name, future in futures.items()}


class _InThisProcess:
    """The progress of jobs in this process, one after another."""

    def __init__(self, on_progress: Callable[[int], None] | None, cores: int) -> None:
        self._on_progress, self._cores = on_progress, cores
        self._done = 0

    def __call__(self, amount: int) -> None:
        self._done += amount
        if amount and self._on_progress is not None:
            self._on_progress(self._done)

    def threads(self) -> int:
        return self._cores


class _InWorker:
    """The progress of jobs in a worker process."""

    def __init__(self, done: Any, remaining: Any, stop: Any, cores: int) -> None:
        self._done, self._remaining, self._stop, self._cores = done, remaining, stop, cores

    def __call__(self, amount: int) -> None:
        if self._stop.is_set():
            raise _StopRequested
        if amount:
            with self._done.get_lock():
                self._done.value += amount

    def threads(self) -> int:
        return max(1, self._cores // max(1, self._remaining.value))

    def job_ended(self) -> None:
        with self._remaining.get_lock():
            self._remaining.value -= 1


def _start(done: Any, remaining: Any, stop: Any, cores: int) -> None:
    global _progress
    _progress = _InWorker(done, remaining, stop, cores)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C, and stops the workers


def _run(function: Callable[..., Result], arguments: tuple) -> Result:
    try:
        return function(_progress, *arguments)
    finally:
        _progress.job_ended()
