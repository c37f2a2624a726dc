"""`launch=local`: torchrun with one process per rank, watched until it ends."""

import ctypes
import json
import os
import signal
import site
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO

import psutil

from launch import ROOT
from mlm.errors import FAILED, REQUEUE, UserError
from mlm.health.outcome import OUTCOME, STOP

PR_SET_PDEATHSIG = 1
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
LOG_LINES = 12
LOOK = 0.5  # seconds between two looks at a run that goes on
TORCHRUN = "torch/distributed/elastic"


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `outcome.json`, agreed on by its ranks."""

    code: int
    sentence: str
    step: int | None = None
    eval_loss: float | None = None


class RunFailed(UserError):
    """A run that ended with another code than 0; the ranks' own sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


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


def run(command: list[str], folder: Path, env: dict[str, str], log: IO[bytes]) -> Outcome:
    """Runs `command` to its end, with its errors in `log`, and returns what it left as outcome.

    The first signal asks the ranks to save and end, through the file `stop`; the second kills them,
    unless it is SIGUSR1, a scheduler's warning. The command lives in a session of its own, and ends
    when this process does. What it and the ranks leave in the folder for temporary files (torchrun
    and W&B do) is deleted.
    """
    start = log.seek(0, os.SEEK_END)
    with TemporaryDirectory(prefix="polymlm-", ignore_cleanup_errors=True) as temporary:
        child = subprocess.Popen(
            command,
            env=env | {"TMPDIR": temporary},
            stdin=subprocess.DEVNULL,
            stderr=log,
            start_new_session=True,
            preexec_fn=_end_with(os.getpid()) if sys.platform == "linux" else None,
        )
        with _stopping(child, folder) as asked:
            code = _wait(child, folder)
    (folder / STOP).unlink(missing_ok=True)
    if len(asked) > 1:
        return Outcome(FAILED, "the ranks were killed; the last checkpoint stands")
    return outcome(folder, code, start)


def outcome(folder: Path, code: int, start: int = 0) -> Outcome:
    """The outcome of a command that ended with `code`; its log is read from byte `start`."""
    try:
        values = json.loads((folder / OUTCOME).read_text("utf-8"))
        known = {name: values.get(name) for name in ("code", "sentence", "step", "eval_loss")}
        left = Outcome(**known)
    except (OSError, ValueError, AttributeError):
        left = None
    if left is not None and (left.code != 0 or code == 0):
        return left
    if left is None and code == 0:
        return Outcome(FAILED, f"the ranks ended without an outcome (see {folder / 'logs'})")
    tail = _tail(folder / "logs" / "launcher.log", start)
    return Outcome(FAILED, f"a rank died (see {folder / 'logs'})" + (f":\n{tail}" if tail else ""))


def finish(left: Outcome, folder: Path) -> float | None:
    """Prints a good outcome and returns the evaluation loss; raises any other as `RunFailed`."""
    if left.code == 0:
        if left.sentence:
            print(left.sentence, flush=True)
        return left.eval_loss
    logs = str(folder / "logs")
    told = left.code == REQUEUE or logs in left.sentence  # a stop as asked is nothing to look up
    where = "" if told else f" (logs: {logs})"
    raise RunFailed(left.code, f"{left.sentence}{where}")


@contextmanager
def _stopping(child: subprocess.Popen, folder: Path) -> Iterator[list[int]]:
    """Handles interrupts while the child lives; gives the list of those that came."""
    asked: list[int] = []

    def stop(number: int, frame: object) -> None:
        if asked and number == signal.SIGUSR1:
            return
        asked.append(number)
        if len(asked) == 1:
            (folder / STOP).touch()
            print("mlm: saving and stopping; once more to kill", file=sys.stderr, flush=True)
        else:
            _kill(child)

    before = {number: signal.signal(number, stop) for number in STOPS}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if child.poll() is None:
            _kill(child)


def _wait(child: subprocess.Popen, folder: Path) -> int:
    """Waits for torchrun's end, and kills ranks that are stopped once no other is left of a run
    that has its outcome: torchrun's SIGTERM does not reach them, and its SIGKILL takes 30 s."""
    while True:
        try:
            return child.wait(LOOK)
        except subprocess.TimeoutExpired:
            if (folder / OUTCOME).exists():
                _kill_stopped(child)


def _kill_stopped(child: subprocess.Popen) -> None:
    try:
        ranks = psutil.Process(child.pid).children()
        states = [rank.status() for rank in ranks]
        if set(states) <= {psutil.STATUS_STOPPED, psutil.STATUS_ZOMBIE}:
            for rank in ranks:
                rank.kill()
    except psutil.NoSuchProcess:
        return  # it ends


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


def _tail(log: Path, start: int) -> str:
    try:
        with log.open("rb") as file:
            file.seek(start)
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    # torchrun ends with a page about the ranks that died, which says less than what they wrote.
    pages = [i for i, line in enumerate(lines) if TORCHRUN in line and "failed (exitcode" in line]
    return "\n".join(lines[: pages[0] if pages and pages[0] else None][-LOG_LINES:])
