"""Folders that are there whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlm.errors import UserError


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
        if out.exists() and not (out.is_dir() and not any(out.iterdir())):
            raise UserError(
                f"{out} exists and is not an empty folder, and nothing is written over; choose "
                f"another folder, or remove this one"
            )
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
        yield aside
        os.replace(aside, out)
    except OSError as error:
        raise UserError(
            f"{out} cannot be written: {error.strerror or error}; free some space there, or "
            f"choose a folder that you may write to"
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
