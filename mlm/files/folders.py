"""Folders that exist as a whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm.errors import UserError
from mlm.files.locks import lock_file


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in; it is renamed to `out` at the end, or deleted on an error.

    Raises UserError where `out` is not empty, and for every OSError in the block, such as a full
    disk or a read-only place. Code that reads in the block must therefore raise errors of its own.
    """
    out = Path(os.path.abspath(out))
    aside = out.parent / f".{out.name}.{os.getpid()}.partial"
    try:
        with _sentence(out):
            _check_empty(out)
            out.parent.mkdir(parents=True, exist_ok=True)
            aside.mkdir()
            yield aside
            os.replace(aside, out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def kept_folder(out: Path, finished: Callable[[Path], bool], work: str) -> Iterator[Path]:
    """As `new_folder`, but always the same folder, so that a later process can resume in it.

    finished: whether the folder has something to resume from, so that it stays after an error
    work: a subfolder for what resuming needs, deleted at the end

    Raises UserError also where another process is writing in it.
    """
    out = Path(os.path.abspath(out))
    aside = out.parent / f".{out.name}.partial"
    with _sentence(out), _locked(out):
        try:
            (aside / work).mkdir(parents=True, exist_ok=True)
            yield aside
            os.replace(aside, out)
            shutil.rmtree(out / work)
        finally:
            if aside.exists() and not finished(aside):
                shutil.rmtree(aside, ignore_errors=True)


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Keeps other processes from writing a folder that does not exist yet."""
    _check_empty(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(out.parent / f".{out.name}.lock") as locked:
        if not locked:
            raise UserError(
                f"{out} is being written by another process; wait for it to end, or choose "
                f"another folder"
            )
        _check_empty(out)  # another process may have finished it by now
        yield


@contextmanager
def _sentence(out: Path) -> Iterator[None]:
    """Raises UserError for every OSError inside."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}; free some space there, or "
            f"choose a folder that you may write to"
        ) from error


def check_absent(out: Path) -> None:
    """Raises UserError where there is something at a path, even an empty folder."""
    if out.exists() or out.is_symlink():
        raise UserError(f"{out} exists, and nothing is overwritten; choose another folder")


def _check_empty(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not an empty folder, and nothing is overwritten; choose "
            f"another folder, or remove this one"
        )
