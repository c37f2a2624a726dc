"""`launch=local`: torchrun with one process per rank, watched until it ends."""

import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

from launch import IS_CHECKOUT, ROOT, run_folder
from launch.launcher import Killed, Launcher, Outcome, Run, read_outcome
from launch.launchers import killed_ranks
from launch.launchers.lost_shards import explained
from launch.launchers.processes import Processes
from launch.machine import kills
from launch.resolve import resolve
from launch.terminal import terminal_for_bars
from mlm.config import TrainConfig
from mlm.console import plain_console
from mlm.errors import FAILED
from mlm.health.stopping import SIGNALS, STOP
from mlm.tracking.progress import stage
from mlm.tracking.screen import log_line
from parallel.layout import Layout

log = logging.getLogger(__name__)


class Local(Launcher):
    """This machine: `device` and `dp` follow the GPUs that are visible here."""

    def resolve(self, config: TrainConfig) -> tuple[TrainConfig, Layout]:
        return resolve(config)

    def start(self, run: Run) -> Outcome:
        """Starts the ranks, and again after a failure, up to `launch.max_restarts` times; not after
        one that is the same at the same step."""
        limit = run.config.launch.max_restarts
        outcome, before = _start(run), None
        for restart in range(1, limit + 1):
            if outcome.code != FAILED or outcome.repeats or outcome == before:
                break
            text = f"{outcome.sentence}; restart {restart} of {limit}"
            log.warning(text)
            log_line(run.folder, text)
            run_folder.begin_again(run.folder, restart)
            outcome, before = _start(run), outcome
        return outcome


def _start(run: Run) -> Outcome:
    assert run.log is not None, "the folder is claimed"
    processes, data = run.layout.world_size, run.config.data
    command = torchrun(run.config_path, processes)
    outcome = run_ranks(command, run.folder, environment(processes), run.log)
    return explained(outcome, run.folder, str(data.shards), data.on_bad_shard == "skip")


def torchrun(config: Path, processes: int) -> list[str]:
    """The command that starts the ranks of a run."""
    # A host whose own name does not resolve would not find itself.
    here = ["--standalone", "--local-addr", "127.0.0.1"]
    options = [*here, "--nproc-per-node", str(processes)]
    return [sys.executable, "-m", "torch.distributed.run", *options, "-m", "mlm.train", str(config)]


def environment(processes: int) -> dict[str, str]:
    """The environment of the ranks; what the user has set stays."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    given = {name: value for name, value in os.environ.items() if not name.startswith("HYDRA_")}
    paths = list(filter(None, given.get("PYTHONPATH", "").split(os.pathsep)))
    if IS_CHECKOUT:
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

    A signal asks the ranks to save and end, through the file `stop`; a Ctrl-C after that kills
    them, and raises `Killed`. Ctrl-Z suspends them. What the ranks leave in the folder for
    temporary files (torchrun and W&B do) is deleted.
    """
    start, kills_before = log.seek(0, os.SEEK_END), kills()
    with TemporaryDirectory(prefix="polymlm-", ignore_cleanup_errors=True) as temporary:
        ranks = Processes(command, env | {"TMPDIR": temporary}, log)
        with _signals(ranks, folder) as requests, terminal_for_bars():
            with stage(plain_console(sys.stdout), "Starting the processes"):
                ranks.wait_for_ranks()
            code, ended_here = ranks.wait(folder)
    (folder / STOP).unlink(missing_ok=True)
    if requests.killed:
        sentence = f"the ranks were killed; {_saved(folder)}"
        log_line(folder, sentence)
        raise Killed(sentence)
    outcome = read_outcome(folder, code, start)
    if ended_here:
        return outcome
    path = folder / "logs" / "launcher.log"
    return killed_ranks.explained(outcome, path, start, kills_before)


def _saved(folder: Path) -> str:
    """What is left of a run that was killed."""
    step = run_folder.saved_step(folder)
    return "nothing had been saved" if step is None else f"the checkpoint of step {step} is kept"


@dataclass
class _Requests:
    stop: bool = False
    killed: bool = False


@contextmanager
def _signals(ranks: Processes, folder: Path) -> Iterator[_Requests]:
    """Handles signals while the ranks live; gives what was asked for."""
    requests = _Requests()

    def stop(number: int, frame: object) -> None:
        if not requests.stop:
            requests.stop = True
            (folder / STOP).touch()
            text = "saving and stopping; another Ctrl-C kills the ranks"
            log.warning(text)
            log_line(folder, text)
        elif number == signal.SIGINT:  # schedulers send the others twice
            requests.killed = True
            ranks.kill()

    def suspend(number: int, frame: object) -> None:
        with ranks.suspended():
            os.kill(os.getpid(), signal.SIGSTOP)

    handlers = {**dict.fromkeys(SIGNALS, stop), signal.SIGTSTP: suspend}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        ranks.kill()
