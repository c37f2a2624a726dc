"""What a launcher is: it starts the ranks of a run that is ready, and gives their outcome."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from pathlib import Path
from typing import IO

from mlm.config import TrainConfig
from mlm.errors import FAILED, REQUEUE, UserError
from mlm.health import outcome
from mlm.tracking.screen import log_line
from parallel.layout import Layout

LOG_LINES = 12
TORCHRUN = "torch/distributed/elastic"


@dataclass(frozen=True)
class Run:
    """A run that is ready to be started: its folder is made, and locked by the open `log`.

    log: None where the run is started elsewhere; its folder is as it was then
    overrides: of the command line
    """

    folder: Path
    config_path: Path
    config: TrainConfig
    layout: Layout
    log: IO[bytes] | None
    overrides: list[str]


@dataclass(frozen=True)
class Outcome:
    """How a run ended: `outcome.json`, agreed on by its ranks.

    repeats: whether another start would fail in the same way
    """

    code: int
    sentence: str
    step: int | None = None
    eval_loss: float | None = None
    repeats: bool = False


class RunFailed(UserError):
    """A run that ended with another code than 0; the ranks' own sentence."""

    def __init__(self, code: int, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code


class Stopped(KeyboardInterrupt):
    """A point of a sweep was stopped; not an `Exception`, so that Hydra starts no other point."""

    code = REQUEUE


class Killed(KeyboardInterrupt):
    """The user has killed the ranks; a sweep starts no other point."""

    code = FAILED


class Launcher(ABC):
    """Starts the ranks of a run: `python -m mlm.train RUN/config.yaml`, with torchrun's variables
    in their environment.

    elsewhere: it submits the run to machines on which the data is prepared and the folder claimed
    """

    elsewhere = False

    @abstractmethod
    def resolve(self, config: TrainConfig) -> tuple[TrainConfig, Layout]:
        """The config with `train.device=auto` and `parallel.dp=auto` decided for the machines that
        it starts ranks on, and its checked layout. Raises `UserError`."""

    @abstractmethod
    def start(self, run: Run) -> Outcome | None:
        """Starts the ranks and waits for their outcome; None: they were submitted, and run without
        this process. `run.log` stays locked while it is open here or in a child."""


def read_outcome(folder: Path, code: int, start: int = 0) -> Outcome:
    """The outcome of a command that ended with `code`; its log is read from byte `start`."""
    values, written = outcome.read_outcome(folder), None
    if values is not None:
        names = {each.name for each in fields(Outcome)}
        written = Outcome(**{name: values[name] for name in names & values.keys()})
    if written is not None and (written.code != 0 or code == 0):
        return written
    if written is None and code == 0:
        return Outcome(FAILED, f"the ranks ended without an outcome (see {folder / 'logs'})")
    tail = _tail(folder / "logs" / "launcher.log", start)
    return Outcome(FAILED, f"a rank died (see {folder / 'logs'})" + (f":\n{tail}" if tail else ""))


def finish(outcome: Outcome, folder: Path) -> float | None:
    """Prints a good outcome and returns the evaluation loss; raises any other as `RunFailed`."""
    if outcome.sentence:
        log_line(folder, outcome.sentence)
    if outcome.code == 0:
        if outcome.sentence:
            print(outcome.sentence, flush=True)
        return outcome.eval_loss
    logs = str(folder / "logs")
    # A stop on request needs no logs, and some sentences name them.
    where = "" if outcome.code == REQUEUE or logs in outcome.sentence else f" (logs: {logs})"
    raise RunFailed(outcome.code, f"{outcome.sentence}{where}")


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
