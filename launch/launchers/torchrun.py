"""`torchrun ... -m launch train`: the ranks exist already, rank 0 composes for all of them.

It sends the others the path of the run's `config.yaml`, or that there is nothing to do, through
torchrun's store.
"""

import json
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

from launch.launcher import Launcher, Outcome, Run, RunFailed, finish, read_outcome
from launch.ready import check, ready, refusals_kept
from launch.resolve import resolve
from launch.verb import Composed
from mlm.config import TrainConfig
from mlm.errors import CONFIG, DONE, FAILED, UserError
from mlm.health.stopping import listen
from parallel.layout import Layout

log = logging.getLogger(__name__)

KEY, FOLDER = "polymlm/launch/{restart}", "polymlm/folder"
SWEEP = {"-m", "--multirun"}
SECONDS_TO_COMPOSE = 1800  # rank 0 checks a large index meanwhile
SECONDS_TO_SEE = 60  # until a file that rank 0 wrote shows on another node

Composing = Callable[[Callable[[Composed], float | None]], None]


class ExistingRanks(Launcher):
    """Ranks that exist: torchrun has started this process as one of them. `device` follows the GPUs
    of this machine, `dp` the number of ranks."""

    def resolve(self, config: TrainConfig) -> tuple[TrainConfig, Layout]:
        ranks = int(os.environ["WORLD_SIZE"])
        if config.data.shards is None:
            raise UserError(
                f"data.corpus={config.data.corpus} is prepared by one process, and {ranks} were "
                f"started; run `mlm tokenizer` and `mlm shards` first, and give data.shards=DIR"
            )
        return resolve(config, ranks)

    def start(self, run: Run) -> Outcome:
        """Trains as rank 0, in this process."""
        return read_outcome(run.config_path.parent, _train(run.config_path))


def train_as_rank(composing: Composing, arguments: Sequence[str]) -> None:
    """Trains as this rank. `composing(task)` calls `task` with the composed job, on rank 0 only.

    Raises a silent `UserError` with the outcome's code on every rank; rank 0 prints its sentence.
    """
    if SWEEP.intersection(arguments):
        _say(
            "-m starts one job after another, and torchrun has started the ranks of a single one; "
            "run the sweep with `mlm train -m` outside of torchrun"
        )
        raise RunFailed(CONFIG, "")
    listen()
    store = _store()
    if _rank() == 0:
        launcher = ExistingRanks()
        run = _compose(store, composing, launcher)
        if run is None:
            return
        code = DONE  # the open log of `run` keeps its folder locked until the end
        try:
            finish(launcher.start(run), run.config_path.parent)
        except RunFailed as failed:
            code = failed.code
            _say(str(failed))
    else:
        path = _listen(store)
        if path is None:
            return
        code = _train(path)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # leaving groups in order can hang on ranks that are gone


def _train(config_path: Path) -> int:
    from mlm.training.rank import main

    return main(str(config_path))


def _compose(store: Any, composing: Composing, launcher: Launcher) -> Run | None:
    """Rank 0: composes, and sends the others the path, or the code to end with."""
    runs: list[Run] = []

    def task(composed: Composed) -> None:
        composed = _named_before(composed, store)
        with refusals_kept(composed):
            runs.append(ready(check(composed), launcher))
        store.set(FOLDER, str(runs[0].folder))

    message: dict[str, Any] = {"code": FAILED}
    try:
        composing(task)
        message = {"code": 0, "config": str(runs[0].config_path) if runs else None}
    except UserError as error:
        _say(str(error))  # before the others end: torchrun kills the rest then
        message = {"code": error.code}
        raise RunFailed(error.code, "") from None
    except Exception:
        traceback.print_exc()
        raise RunFailed(FAILED, "") from None
    except SystemExit:  # after `--help` and the like
        message = {"code": 0, "config": None}
        raise
    finally:
        store.set(_key(), json.dumps(message))
        if not runs:
            _wait_until_heard(store)
    return runs[0] if runs else None


def _named_before(composed: Composed, store: Any) -> Composed:
    """The job of a start that torchrun repeats: the run of the start before, whatever its name.

    Raises `RunFailed` where that has ended with a code after which another start is in vain, or is
    not wanted: after a stop on request.
    """
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == 0 or not store.check([FOLDER]):
        return composed
    folder = Path(store.get(FOLDER).decode())
    outcome = read_outcome(folder, FAILED)
    if outcome.code != FAILED:
        raise RunFailed(outcome.code, f"not restarted: {outcome.sentence}")
    run = composed.settings["run"]
    run = run | {"name": os.path.relpath(folder, run["dir"]), "fresh": False}
    return replace(composed, settings=composed.settings | {"run": run})


def _listen(store: Any) -> Path | None:
    """Another rank: the path that rank 0 sends; raises a silent `UserError` if it failed."""
    try:
        store.wait([_key()], timedelta(seconds=SECONDS_TO_COMPOSE))
        message = json.loads(store.get(_key()))
    except RuntimeError:
        raise UserError(
            f"rank 0 sent nothing for {SECONDS_TO_COMPOSE} seconds; see what it has printed"
        ) from None
    store.add(_key() + "/heard", 1)
    if message["code"]:
        raise RunFailed(message["code"], "")
    return _visible(Path(message["config"])) if message["config"] else None


def _visible(path: Path) -> Path:
    end = time.monotonic() + SECONDS_TO_SEE
    while not path.exists():
        if time.monotonic() > end:
            raise UserError(
                f"{path}, which rank 0 wrote, is not visible on {os.uname().nodename}; choose a "
                f"run.dir that every node sees"
            )
        time.sleep(0.5)
    return path


def _wait_until_heard(store: Any) -> None:
    """Stays until the others know, since torchrun may hold the store, and ends them with us."""
    others = int(os.environ["WORLD_SIZE"]) - 1
    end = time.monotonic() + 10
    while store.add(_key() + "/heard", 0) < others and time.monotonic() < end:
        time.sleep(0.02)


def _say(sentence: str) -> None:
    if _rank() == 0:
        log.error(sentence)


def _rank() -> int:
    return int(os.environ["RANK"])


def _key() -> str:
    return KEY.format(restart=os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


def _store() -> Any:
    """A client of torchrun's store; without torchrun's agent, rank 0 hosts it, as torch does."""
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=not hosted and _rank() == 0,
        timeout=timedelta(seconds=SECONDS_TO_COMPOSE),
        wait_for_workers=False,
        multi_tenant=True,
    )
