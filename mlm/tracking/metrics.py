"""`metrics.jsonl`: one JSON object per logged step or evaluation."""

import json
import math
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a row; a number that is not finite is written as null."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(plain(row)) + "\n")


def drop_after(path: Path, start: int, steps: int) -> None:
    """Drops the rows that a resume at `start` writes again, and a half-written one.

    Such rows are the last ones and no others are read, so that a start takes equally long at any
    step. The last evaluation of a run of `steps` is repeated at every start of it.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        end = len(content)
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            if not _repeated(content[begin:end], start, steps):
                break
            end = begin
        whole = not end or content[end - 1 : end] == b"\n"
    with path.open("r+b") as file:
        file.truncate(end)
        if not whole:
            file.seek(end)
            file.write(b"\n")


def plain(value: Any) -> Any:
    """JSON has no NaN; null stands for a number that is not finite."""
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def flat(row: dict[str, Any]) -> dict[str, Any]:
    """A row as trackers take it: the figure of a language is `eval_loss_by_language/sw`."""
    values: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            values |= {f"{name}/{inner}": item for inner, item in value.items()}
        elif value is not None:
            values[name] = value
    return values


def _repeated(line: bytes, start: int, steps: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return True  # half-written
    return row["step"] > start or ("eval_loss" in row and row["step"] == steps)
