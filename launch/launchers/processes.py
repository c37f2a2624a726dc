"""torchrun and the ranks that it starts: started, waited for, suspended, killed. None is left."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import IO

import psutil

from mlm.health.outcome import OUTCOME
from mlm.health.stopping import end_with

SECONDS_BETWEEN_CHECKS, SECONDS_TO_SEE_RANKS = 0.5, 0.05
CHECKS_BETWEEN_LISTS = 10  # of all processes of the machine, which cost time to list
SECONDS_TO_SAVE = 120.0  # of ranks whose torchrun was killed
SECONDS_TO_END = 5.0  # of what a rank has started and left behind


class Processes:
    """A command in a session of its own, and all that it starts; its errors go into `log`.

    It gets SIGTERM when this process dies.
    """

    def __init__(self, command: list[str], env: dict[str, str], log: IO[bytes]) -> None:
        self._child = subprocess.Popen(
            command,
            env=env,
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=end_with(os.getpid()),
        )
        self._known: set[psutil.Process] = set()

    def wait_for_ranks(self) -> None:
        """Waits until the command has started its first rank, or has ended."""
        while self._child.poll() is None and not self._ranks():
            time.sleep(SECONDS_TO_SEE_RANKS)

    def wait(self, folder: Path) -> tuple[int, bool]:
        """Waits for the end of all; returns the command's code, and whether a rank was killed here.

        Ranks that are stopped are killed once no other is left of a run that has its outcome:
        torchrun's SIGTERM does not reach them, and its SIGKILL takes 30 s. Ranks that outlive the
        command, which was killed, save what they have: they get time for that.
        """
        killed = False
        for number in count():
            try:
                self._child.wait(SECONDS_BETWEEN_CHECKS)
                break
            except subprocess.TimeoutExpired:
                if number % CHECKS_BETWEEN_LISTS == 0:
                    self._living()
                if (folder / OUTCOME).exists():
                    killed = self._kill_stopped() or killed
        limit = SECONDS_TO_SAVE if self._child.returncode < 0 else SECONDS_TO_END
        end = time.monotonic() + limit
        while self._living() and time.monotonic() < end:
            time.sleep(SECONDS_TO_SEE_RANKS)
        self.kill()
        return self._child.returncode, killed

    def kill(self) -> None:
        """Kills all, each of which has a session of its own."""
        self._signal(signal.SIGKILL)
        if self._child.poll() is None:
            self._child.kill()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """All are stopped meanwhile."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._living():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def _living(self) -> list[psutil.Process]:
        """Those that run, also after the one that started them has ended."""
        with suppress(psutil.NoSuchProcess):
            command = psutil.Process(self._child.pid)
            self._known |= {command, *command.children(recursive=True)}
        self._known = {process for process in self._known if _runs(process)}
        return list(self._known)

    def _ranks(self) -> list[psutil.Process]:
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._child.pid).children()
        return []

    def _kill_stopped(self) -> bool:
        try:
            ranks = self._ranks()
            states = [rank.status() for rank in ranks]
            if set(states) <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
                for rank in ranks:
                    rank.kill()
                return bool(ranks)
        except psutil.NoSuchProcess:
            pass  # it ends
        return False


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
