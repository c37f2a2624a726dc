"""`incidents.jsonl`: what went wrong with the numbers of a run, and what was done about it."""

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mlm.files.jsonl import append_row, read_rows, repair

INCIDENTS = "incidents.jsonl"
REFUSED, ROLLED_BACK, LEFT_OUT, BAD_SHARD = "refused", "rolled back", "left out", "bad shard"


class Incidents:
    """The incidents of a run, of all its starts; made on every rank together.

    Rank 0 writes them, each to the disk before the run goes on. `what` is one of: `refused`, a
    step that was made but not applied; `rolled back`, to the checkpoint of step `to`; `left out`,
    a step whose batch, the samples from the first to the last of `samples`, is not trained on;
    `bad shard`, a `shard` of whose samples none is trained on from this step on.
    `step` is counted as in the metrics, from 1.
    """

    def __init__(self, run: Path, global_batch_size: int) -> None:
        self.path, self.batch = run / INCIDENTS, global_batch_size
        self.first = dist.get_rank() == 0
        if self.first:
            repair(self.path)
        found = [read_incidents(run) if self.first else []]
        dist.broadcast_object_list(found)
        self.rows: list[dict[str, Any]] = found[0]

    @property
    def left_out(self) -> set[int]:
        """The steps that are left out, counted from 0."""
        return steps_left_out(self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """How many there were of each kind that there was."""
        return dict(Counter(row["what"].replace(" ", "_") for row in self.rows))

    def refused(self, step: int, why: str, loss: float, norm: float) -> None:
        numbers = {"loss": _number(loss), "grad_norm": _number(norm)}
        self._add({"what": REFUSED, "step": step + 1, "why": why, **numbers})

    def rolled_back(self, step: int, to: int) -> None:
        self._add({"what": ROLLED_BACK, "step": step + 1, "to": to})

    def leave_out(self, step: int) -> None:
        samples = [step * self.batch, (step + 1) * self.batch - 1]
        self._add({"what": LEFT_OUT, "step": step + 1, "samples": samples})

    def bad_shard(self, step: int, shard: str, offset: int, why: str) -> None:
        row = {"what": BAD_SHARD, "step": step + 1, "shard": shard, "offset": offset, "why": why}
        self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.first:
            append_row(self.path, {"time": round(time.time(), 3), **row})


def steps_left_out(rows: list[dict[str, Any]]) -> set[int]:
    """The steps, counted from 0, whose batches rows of incidents leave out."""
    return {row["step"] - 1 for row in rows if row["what"] == LEFT_OUT}


def shards_left_out(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The shards that rows of incidents leave out, and the steps, from 0, from which on."""
    found: dict[str, int] = {}
    for row in rows:
        if row["what"] == BAD_SHARD:
            step = row["step"] - 1
            found[row["shard"]] = min(step, found.get(row["shard"], step))
    return found


def read_incidents(run: Path) -> list[dict[str, Any]]:
    """The incidents of a run, those that a kill has left half-written passed over."""
    return read_rows(run / INCIDENTS, skip_damaged=True)


def _number(value: float) -> float | str:
    """JSON has no number for what is not finite."""
    return value if math.isfinite(value) else str(value)
