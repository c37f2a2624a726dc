"""The run folder `<run.dir>/<name>/`: its name, whose it is, what the launcher writes into it."""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any

import psutil
import yaml

from launch.environment import attempt, started_with
from mlm.config import TrainConfig, as_dict, defaults, value_of
from mlm.errors import DataError, UserError
from mlm.files.jsonl import append_row
from mlm.files.locks import lock
from mlm.health.outcome import OUTCOME, STARTS, write_refusal
from mlm.health.stopping import STOP
from mlm.setting import settings
from mlm.tracking.trackers import ID as TRACKER_ID

CONFIG, OVERRIDES, DATA = "config.yaml", "overrides.txt", "data.json"
REFUSALS = "logs/refusals.jsonl"  # a row for each start that was refused
DEFAULTS = defaults(TrainConfig)
PREPARED = "prepared"  # beside the runs: tokenizers and shards made of `data.corpus`


def run_name(given: str | None, model: str | None, run_dir: Path) -> str:
    """The name of a run: the given one, else a new `<model>-<time>`; raises `UserError`."""
    name = first = given or f"{model or 'run'}-{datetime.now():%Y%m%d-%H%M%S}"
    number = 1
    while not given and os.path.lexists(run_dir / name):  # started in the same second
        number += 1
        name = f"{first}-{number}"
    parts = name.split("/")
    if name.startswith("/") or any(part in ("", ".", "..") for part in parts):
        raise UserError(f"run.name={name} is not a folder inside run.dir; give a plain name")
    if parts[0] == PREPARED:
        raise UserError(f"run.name={name} is where prepared data is kept; give another name")
    return name


def check_folder(folder: Path, fresh: bool) -> dict[str, Any] | None:
    """The settings of the run that `folder` holds, None where a new run can begin there.

    Raises `UserError` where the folder is something else or could not be written.
    """
    # Unlike `Path.exists`, it is false, not an error, in a folder that may not be read.
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.exists(path))
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        what = "is read-only" if place.is_dir() else "is not a folder"
        raise UserError(
            f"{place} {what}, so the run {folder} cannot be there; choose another run.dir"
        )
    if place != folder or not any(folder.iterdir()):
        return None
    config = folder / CONFIG
    if not config.is_file():
        raise UserError(
            f"{folder} is not empty and holds no run ({CONFIG} is not there); choose another "
            f"run.name, or move what is in it"
        )
    if fresh:
        return None
    try:
        settings = yaml.safe_load(config.read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        settings = None
    if not isinstance(settings, dict):
        raise UserError(f"{config} cannot be read; start over with run.fresh=true")
    return settings


def check_same_run(folder: Path, before: dict[str, Any], config: TrainConfig) -> None:
    """Raises `UserError` with the first setting in which `config` is not the run in `folder`.

    A `model.vocab_size` that is still open, here or where a job has not begun, is not compared.
    """
    now = as_dict(config)
    for setting in settings(TrainConfig):
        name, value = setting.name, value_of(now, setting.name)
        # A run of an older version, which lacked the setting, had its default.
        old = value_of(before, name, value_of(DEFAULTS, name))
        if setting.resume or (name == "model.vocab_size" and None in (old, value)):
            continue
        if old != value:
            raise UserError(
                f"{folder} holds a run with {name}={old}, not {value}; give another run.name, or "
                f"run.fresh=true to start over what is there"
            )


def check_same_data(folder: Path, hashes: dict[str, str]) -> None:
    """Raises `DataError` if the run in `folder` began with other shards or another tokenizer."""
    path = folder / DATA
    before = json.loads(path.read_text("utf-8")) if path.is_file() else hashes
    for name, value in hashes.items():
        if before.get(name, value) != value:
            raise DataError(
                f"the {name} has changed since {folder} began ({before[name][:12]} then, "
                f"{value[:12]} now); give back the old data, or start over with run.fresh=true"
            )


def claim(folder: Path, fresh: bool) -> IO[bytes]:
    """Makes `folder` this process's, and returns its open `logs/launcher.log`.

    The log is locked until the last process that inherited it has ended, so no second start gets
    into a folder in which ranks are alive. `fresh` deletes what a run has left there.
    """
    try:
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        log = (folder / "logs" / "launcher.log").open("ab")
    except OSError as error:
        raise _unwritable(folder, error) from None
    _lock(log, folder)
    if fresh:
        _empty(folder)
        log.truncate(0)
    _forget_request(folder / STOP)
    (folder / OUTCOME).unlink(missing_ok=True)
    return log


def _forget_request(stop: Path) -> None:
    """Deletes a request to stop that is older than this process: it was for an earlier start."""
    if stop.exists() and stop.stat().st_mtime < psutil.Process().create_time():
        stop.unlink(missing_ok=True)


def begin_again(folder: Path, restart: int) -> None:
    """Makes a folder that is claimed ready for the restart number `restart` of its ranks."""
    (folder / OUTCOME).unlink(missing_ok=True)
    append_row(folder / STARTS, started_with() | {"restart": restart})


def refuse(folder: Path, error: UserError) -> None:
    """Keeps that a start was refused, where there is a run; as its outcome if it is not running."""
    row = {"attempt": attempt(), "code": error.code, "sentence": str(error)}
    with suppress(UserError, OSError):
        if (folder / CONFIG).is_file():
            append_row(folder / REFUSALS, row)
            with held(folder):
                write_refusal(folder, error.code, str(error), attempt())


def _name_for_trackers(folder: Path, config: TrainConfig) -> None:
    """Gives the run the id that its trackers know it by, which it keeps over all starts."""
    file = folder / TRACKER_ID
    if not file.exists():
        given = os.environ.get("WANDB_RUN_ID")
        if "/" in str(config.run.name):  # of a sweep, whose points need one each
            given = None
        _replace(file, (given or secrets.token_hex(4)) + "\n")


def saved_step(folder: Path) -> int | None:
    """The step of the newest checkpoint. `mlm.checkpoint` would import torch, for seconds."""
    names = (path.parent.name for path in folder.glob("checkpoints/step-*/checkpoint.json"))
    return max((int(name[5:]) for name in names if name[5:].isdecimal()), default=None)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keeps a run from being started meanwhile; raises `UserError` if it is running."""
    path = folder / "logs" / "launcher.log"
    if not path.is_file():  # an import, or nothing at all
        yield
        return
    with path.open("ab") as log:
        _lock(log, folder)
        yield


def write(folder: Path, config: TrainConfig, overrides: list[str], hashes: dict[str, str]) -> Path:
    """Writes what the ranks start from; returns the path of `config.yaml`. Raises `UserError`."""
    new = not (folder / CONFIG).exists()
    try:
        _replace(folder / OVERRIDES, "".join(f"{text}\n" for text in overrides))
        _replace(folder / DATA, json.dumps(hashes, indent=1) + "\n")
        _name_for_trackers(folder, config)
        append_row(folder / STARTS, started_with())
        write_config(folder, config)  # last: it makes the folder a run's
    except OSError as error:
        if new:
            shutil.rmtree(folder, ignore_errors=True)
        raise _unwritable(folder, error) from None
    return folder / CONFIG


def write_submitted(folder: Path, config: TrainConfig, overrides: list[str]) -> None:
    """Writes what a job begins with that prepares its data itself, where there is no run yet."""
    try:
        _replace(folder / OVERRIDES, "".join(f"{text}\n" for text in overrides))
        _name_for_trackers(folder, config)
        if not (folder / CONFIG).exists():
            write_config(folder, config)
    except OSError as error:
        raise _unwritable(folder, error) from None


def write_config(folder: Path, config: TrainConfig) -> None:
    """Writes `config.yaml`, without `launch`: it is the same run, whatever starts it."""
    values = as_dict(config)
    values.pop("launch")
    _replace(folder / CONFIG, yaml.safe_dump(values, sort_keys=False, allow_unicode=True))


def _lock(log: IO[bytes], folder: Path) -> None:
    try:
        locked = lock(log, wait=False)
    except OSError as error:
        raise _unwritable(folder, error) from None
    if not locked:
        log.close()
        raise UserError(
            f"{folder} is in use by a run that has not ended; wait for it, or give another run.name"
        )


def _empty(folder: Path) -> None:
    """Deletes all of a run but the log that is open and locked."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and path.name != "logs":
            shutil.rmtree(path)
        elif path.name != "logs":
            path.unlink()
    for path in (folder / "logs").iterdir():
        if path.name != "launcher.log":
            path.unlink()


def _replace(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    aside = path.with_name(path.name + ".new")
    try:
        aside.write_text(text, "utf-8")
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def _unwritable(folder: Path, error: OSError) -> UserError:
    remedy = {
        errno.ENAMETOOLONG: "choose a shorter run.name",
        errno.ENOSPC: "free space, or choose another run.dir",
        errno.EDQUOT: "free space, or choose another run.dir",
    }.get(error.errno or 0, "choose another run.dir")
    return UserError(f"{folder} cannot be written ({error.strerror}); {remedy}")
