"""How a run ended: `outcome.json`, from which the launcher makes its exit code."""

import json
import secrets
from pathlib import Path
from typing import Any

from mlm.files.jsonl import read_rows

OUTCOME, ROOM = "outcome.json", "outcome.json.room"
STARTS = "starts.jsonl"  # a row by the launcher for each start of the run
ROOM_BYTES = 4096


def make_room(run: Path) -> None:
    """Takes an outcome's space while there is some: a disk that is full to the last byte must not
    keep a run from saying so. `write_outcome` gives it back."""
    (run / ROOM).write_bytes(b" " * ROOM_BYTES)


def write_outcome(
    run: Path,
    code: int,
    sentence: str,
    step: int | None = None,
    eval_loss: float | None = None,
    *,
    repeats: bool = False,
) -> None:
    """Writes the outcome unless there is one: the first rank that fails knows why, and those
    that fail after it only saw it go. Its `attempt` is that of the last start.

    repeats: whether another start would fail in the same way
    """
    rows = read_rows(run / STARTS, skip_damaged=True)
    attempt = rows[-1].get("attempt") if rows else None
    values = {"code": code, "sentence": sentence, "step": step, "eval_loss": eval_loss}
    _put(run, values | {"attempt": attempt} | ({"repeats": True} if repeats else {}))


def write_refusal(run: Path, code: int, sentence: str, attempt: str) -> None:
    """Writes the outcome of a start that was refused; the one before it is kept as `before`."""
    values = {"code": code, "sentence": sentence, "step": None, "eval_loss": None}
    before = read_outcome(run)
    before = before and before.get("before", before)
    (run / OUTCOME).unlink(missing_ok=True)
    _put(run, values | {"attempt": attempt} | ({"before": before} if before else {}))


def read_outcome(run: Path) -> dict[str, Any] | None:
    """What `outcome.json` holds; None where it is not there, or not whole."""
    try:
        values = json.loads((run / OUTCOME).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) else None


def _put(run: Path, values: dict[str, Any]) -> None:
    aside = run / f"{OUTCOME}.{secrets.token_hex(4)}"
    try:
        _write(aside, json.dumps(values).encode(), run / ROOM)
        _name(aside, run / OUTCOME)
    finally:
        aside.unlink(missing_ok=True)
    (run / ROOM).unlink(missing_ok=True)


def _name(aside: Path, path: Path) -> None:
    """Gives a file its name, unless that is taken."""
    try:
        path.hardlink_to(aside)  # unlike a rename, it fails where there is one already
    except FileExistsError:
        return
    except OSError:  # exFAT and mounts of object stores have no hard links
        try:
            path.touch(exist_ok=False)
        except FileExistsError:
            return
        aside.replace(path)


def _write(path: Path, text: bytes, room: Path) -> None:
    try:
        path.write_bytes(text)
    except OSError:
        if not room.exists():
            raise
        room.replace(path)
        with path.open("r+b") as file:  # over the blanks, which are blanks to JSON, too
            file.write(text)
