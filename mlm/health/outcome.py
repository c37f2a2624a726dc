"""How a run ended: `outcome.json`, from which the launcher makes its exit code."""

import json
import os
import tempfile
from pathlib import Path

OUTCOME, STOP, ROOM = "outcome.json", "stop", "outcome.json.room"
STARTS = "starts.jsonl"  # a row by the launcher for each start of the run
ROOM_BYTES = 4096


def make_room(run: Path) -> None:
    """Takes an outcome's space while there is some: a disk that is full to the last byte must not
    keep a run from saying so. `write_outcome` gives it back."""
    (run / ROOM).write_bytes(b" " * ROOM_BYTES)


def write_outcome(
    run: Path, code: int, sentence: str, step: int | None = None, eval_loss: float | None = None
) -> None:
    """Writes the outcome unless there is one: the first rank that fails knows why, and those
    that fail after it only saw it go."""
    values = {"code": code, "sentence": sentence, "step": step, "eval_loss": eval_loss}
    text = json.dumps(values).encode()
    handle, aside = tempfile.mkstemp(dir=run, prefix=OUTCOME)
    os.close(handle)
    try:
        _write(Path(aside), text, run / ROOM)
        os.link(aside, run / OUTCOME)  # unlike a rename, it fails where there is one already
    except FileExistsError:
        pass
    finally:
        os.unlink(aside)
    (run / ROOM).unlink(missing_ok=True)


def _write(path: Path, text: bytes, room: Path) -> None:
    try:
        path.write_bytes(text)
    except OSError:
        if not room.exists():
            raise
        room.replace(path)
        with path.open("r+b") as file:  # over the blanks, which are blanks to JSON, too
            file.write(text)
