"""Requests to stop a run: a signal to any of its ranks, or the file `stop` in its folder."""

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

STOP = "stop"
# Of a scheduler, a supervisor or torchrun; of a time limit; of a terminal; of one that is closed.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
PR_SET_PDEATHSIG = 1

_received: list[int] = []


def listen() -> None:
    """From now on this process, a rank, only notes these signals, however many come: Slurm and
    torchrun send SIGTERM twice. Its own thread asks `requested` between two steps.

    Also, SIGTERM comes when the process that started it dies: no rank trains on alone.
    """
    for number in SIGNALS:
        signal.signal(number, lambda received, frame: _received.append(received))
    end_with(os.getppid())()


def requested(run: Path, *, main: bool) -> bool:
    """Whether this rank was asked to stop; the file counts on the main rank."""
    return bool(_received) or (main and (run / STOP).exists())


def end_with(parent: int) -> Callable[[], None]:
    """A function that makes the process that calls it, a child of `parent`, get SIGTERM when that
    dies. It can run between fork and exec. On Linux."""
    if sys.platform != "linux":
        return lambda: None
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGTERM)

    return arrange
