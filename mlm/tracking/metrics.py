"""`metrics.jsonl`: one JSON object per logged step or evaluation."""

import math
from pathlib import Path
from typing import Any

from mlm.files.jsonl import append_row, drop_last_rows

METRICS = "metrics.jsonl"


def append(path: Path, row: dict[str, Any]) -> None:
    """Adds a row; a number that is not finite is written as null."""
    append_row(path, plain(row), durable=False)


def drop_after(path: Path, start: int, steps: int) -> None:
    """Drops the rows that a resume at `start` writes again, and a half-written one.

    Such rows are the last ones and no others are read, so that a start takes equally long at any
    step. The last evaluation of a run of `steps` is repeated at every start of it.
    """

    def repeated(row: dict[str, Any]) -> bool:
        return row["step"] > start or ("eval_loss" in row and row["step"] == steps)

    drop_last_rows(path, repeated)


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
