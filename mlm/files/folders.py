"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm.errors import UserError
from mlm.files.locks import lock_file


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out` to write in; it becomes `out` at the end, or vanishes on any error.

    Raises UserError where `out` already holds something, and for every OSError inside the block:
    a disk that is full, a place that is read-only. What is read there must therefore raise errors
    of its own.
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
    """As `new_folder`, but always the same folder, so that another process can go on in it.

    Where `finished` says that something in it is done, it stays after an error; else it vanishes.
    What lies in its subfolder `work` is for going on, and is taken away at the end. Raises
    UserError also where another process is writing in it.
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


def _check_empty(out: Path) -> None:
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise UserError(
            f"{out} exists and is not an empty folder, and nothing is written over; choose "
            f"another folder, or remove this one"
        )
