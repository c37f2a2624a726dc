"""`mlm checkpoints`: the checkpoints of a run, whether they are whole, and which to delete."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.table import Table

from mlm.checkpoint.folder import (
    DAMAGED,
    FOLDER,
    PARTIAL,
    WHOLE,
    Manifest,
    fault,
    files_of,
    read_manifest,
    remove,
)
from mlm.checkpoint.writing import Keep, prune
from mlm.console import plain_console
from mlm.errors import DataError, UserError

WIDE = 160  # characters


@dataclass(frozen=True)
class Entry:
    """A folder among the checkpoints. wrong: what is wrong with it; None: it is whole."""

    folder: Path
    size: int  # bytes
    manifest: Manifest | None
    wrong: str | None


def entries(run: Path, verify: bool = True) -> list[Entry]:
    """All folders among a run's checkpoints, by name; raises UserError where it has none.

    verify: whether the checksum of every file is verified
    """
    if not run.is_dir():
        raise UserError(f"{run} is not a folder; give a run folder")
    found = sorted(path for path in (run / FOLDER).glob("step-*") if path.is_dir())
    if not found:
        raise UserError(f"{run} has no checkpoints; give a run folder that has saved one")
    return [_entry(folder, verify) for folder in found]


def show(run: Path, verify: bool, keep: Keep | None) -> list[Entry]:
    """Prints a table of a run's checkpoints, and returns the entries in it.

    keep: first deletes all other checkpoints, and damaged or unfinished ones

    Nothing is deleted of a run without a whole checkpoint. Raises UserError.
    """
    found, console = entries(run, verify), plain_console()
    if not console.is_terminal:
        console.width = WIDE  # a row is a line
    gone: list[Path] = []
    if keep is not None:
        if all(entry.wrong is not None for entry in found):
            raise UserError(
                f"{run} has no whole checkpoint, so nothing of it is deleted; see what is wrong "
                f"with `mlm checkpoints {run}`"
            )
        damaged = [entry.folder for entry in found if entry.wrong is not None]
        for folder in damaged:
            remove(folder)
        gone = damaged + prune(run, keep)
        found = [entry for entry in found if entry.folder not in gone]
    table = Table(box=None, pad_edge=False)
    for name in ("step", "saved", "size", "layout", "state"):
        table.add_column(name, justify="right" if name in ("step", "size") else "left")
    for entry in found:
        table.add_row(*_row(entry, verify))
    console.print(table)
    for folder in gone:
        console.print(f"deleted {folder}", soft_wrap=True)
    return found


def _entry(folder: Path, verify: bool) -> Entry:
    size = sum(path.stat().st_size for path in folder.iterdir())
    if folder.name.endswith(PARTIAL):
        return Entry(folder, size, None, "not finished: an interrupted save or deletion")
    try:
        manifest = read_manifest(folder)
        wrong = fault(folder, files_of(folder).items()) if verify else None
    except DataError as error:
        return Entry(folder, size, None, str(error).partition(";")[0])
    if not WHOLE.fullmatch(folder.name):
        damaged = folder.name.endswith(DAMAGED)
        wrong = wrong or ("set aside by a run" if damaged else "not the name of a checkpoint")
    return Entry(folder, size, manifest, wrong)


def _row(entry: Entry, verify: bool) -> tuple[str, ...]:
    saved = datetime.fromtimestamp(entry.folder.stat().st_mtime)
    whole = "whole" if verify else "not verified"
    step, layout = entry.folder.name.removeprefix("step-"), ""
    if entry.manifest is not None:
        step = str(entry.manifest.step)
        degrees = entry.manifest.config.get("parallel")
        layout = "imported"
        if degrees:
            layout = "tp {tp} pp {pp} dp {dp} ZeRO-{zero}".format(**degrees)
    state = whole if entry.wrong is None else entry.wrong.replace(f"{entry.folder}/", "")
    return step, f"{saved:%Y-%m-%d %H:%M}", _size(entry.size), layout, state


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if number < 1000:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1000
    return f"{number:.1f} TB"
