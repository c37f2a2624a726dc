"""`launch=local`: torchrun with one process per rank, watched until it ends."""

import ctypes
import logging
import os
import signal
import site
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import psutil

from launch import ROOT
from launch.launcher import Launcher, Outcome, Run, read_outcome
from launch.launchers import killed_ranks
from launch.launchers.lost_shards import explained
from launch.machine import kills
from launch.resolve import resolve
from launch.terminal import terminal_for_bars
from mlm.config import TrainConfig
from mlm.console import plain_console
from mlm.errors import FAILED
from mlm.health.outcome import OUTCOME, STOP
from mlm.tracking.progress import stage
from mlm.tracking.screen import log_line
from parallel.layout import Layout

log = logging.getLogger(__name__)

PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
SECONDS_BETWEEN_CHECKS, SECONDS_TO_SEE_RANKS = 0.5, 0.05


class Local(Launcher):
    """This machine: `device` and `dp` follow the GPUs that are visible here."""

    def resolve(self, config: TrainConfig) -> tuple[TrainConfig, Layout]:
        return resolve(config)

    def start(self, run: Run) -> Outcome:
        processes, data = run.layout.world_size, run.config.data
        command = torchrun(run.config_path, processes)
        outcome = run_ranks(command, run.folder, environment(processes), run.log)
        return explained(outcome, run.folder, str(data.shards), data.on_bad_shard == "skip")


def torchrun(config: Path, processes: int) -> list[str]:
    """The command that starts the ranks of a run."""
    options = ["--standalone", "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "mlm.train", str(config)]


def environment(processes: int) -> dict[str, str]:
    """The environment of the ranks; what the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = {name: value for name, value in os.environ.items() if not name.startswith("HYDRA_")}
    paths = list(filter(None, given.get("PYTHONPATH", "").split(os.pathsep)))
    if str(ROOT) not in site.getsitepackages():  # a checkout
        paths.insert(0, str(ROOT))
    return {
        "OMP_NUM_THREADS": str(max(1, (cores or 1) // processes)),
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        **given,
        "PYTHONSAFEPATH": "1",
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
    }


def run_ranks(command: list[str], folder: Path, env: dict[str, str], log: IO[bytes]) -> Outcome:
    """Runs `command` to its end, with its errors in `log`, and returns what it left as outcome.

    The first signal asks the ranks to save and end, through the file `stop`; the second kills them,
    unless it is SIGUSR1, a scheduler's warning. The command lives in a session of its own, and ends
    when this process does. What it and the ranks leave in the folder for temporary files (torchrun
    and W&B do) is deleted.
    """
    start, kills_before = log.seek(0, os.SEEK_END), kills()
    with TemporaryDirectory(prefix="polymlm-", ignore_cleanup_errors=True) as temporary:
        child = subprocess.Popen(
            command,
            env=env | {"TMPDIR": temporary},
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with(os.getpid()) if sys.platform == "linux" else None,
        )
        with _stopping(child, folder) as requests, terminal_for_bars():
            with stage(plain_console(sys.stdout), "Starting the processes"):
                _until_ranks(child)
            code, ended_here = _wait(child, folder)
    (folder / STOP).unlink(missing_ok=True)
    if len(requests) > 1:
        return Outcome(FAILED, f"the ranks were killed; {_saved(folder)}")
    outcome = read_outcome(folder, code, start)
    if ended_here:
        return outcome
    path = folder / "logs" / "launcher.log"
    return killed_ranks.explained(outcome, path, start, kills_before)


def _saved(folder: Path) -> str:
    """What is left of a run that was killed. `mlm.checkpoint` would import torch, for seconds."""
    names = (path.parent.name for path in folder.glob("checkpoints/step-*/checkpoint.json"))
    steps = [int(name[5:]) for name in names if name[5:].isdecimal()]
    return f"the checkpoint of step {max(steps)} is kept" if steps else "nothing had been saved"


def _until_ranks(child: subprocess.Popen) -> None:
    """Waits until torchrun has started its first rank, or has ended."""
    with suppress(psutil.NoSuchProcess):
        torchrun = psutil.Process(child.pid)
        while child.poll() is None and not torchrun.children():
            time.sleep(SECONDS_TO_SEE_RANKS)


@contextmanager
def _stopping(child: subprocess.Popen, folder: Path) -> Iterator[list[int]]:
    """Handles interrupts while the child lives; gives the list of those that came."""
    requests: list[int] = []

    def stop(number: int, frame: object) -> None:
        if requests and number == signal.SIGUSR1:
            return
        requests.append(number)
        if len(requests) == 1:
            (folder / STOP).touch()
            text = "saving and stopping; once more to kill"
            log.warning(text)
            log_line(folder, text)
        else:
            _kill(child)

    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            _kill(child)


def _wait(child: subprocess.Popen, folder: Path) -> tuple[int, bool]:
    """Waits for torchrun's end, and kills ranks that are stopped once no other is left of a run
    that has its outcome: torchrun's SIGTERM does not reach them, and its SIGKILL takes 30 s.

    Returns its code, and whether a rank was killed.
    """
    killed = False
    while True:
        try:
            return child.wait(SECONDS_BETWEEN_CHECKS), killed
        except subprocess.TimeoutExpired:
            if (folder / OUTCOME).exists():
                killed = _kill_stopped(child) or killed


def _kill_stopped(child: subprocess.Popen) -> bool:
    try:
        ranks = psutil.Process(child.pid).children()
        states = [rank.status() for rank in ranks]
        if set(states) <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
            for rank in ranks:
                rank.kill()
            return bool(ranks)
    except psutil.NoSuchProcess:
        pass  # it ends
    return False


def _kill(child: subprocess.Popen) -> None:
    """Kills torchrun and its ranks, each of which has a session of its own."""
    try:
        family = psutil.Process(child.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return
    child.kill()
    for process in family:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue


def _end_with(parent: int) -> Callable[[], None]:
    """What the child runs before the command: on the parent's death it gets SIGTERM."""
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGTERM)

    return arrange
