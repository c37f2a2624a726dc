"""`incidents.jsonl`: what went wrong in a run, and what was done about it."""

import math
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch.distributed as dist

from mlm.files.jsonl import append_row, read_rows, repair

INCIDENTS = "incidents.jsonl"
REFUSED, ROLLED_BACK, SKIPPED, BAD_SHARD = "refused", "rolled back", "skipped", "bad shard"
SKIPPED_BEFORE = "left out"  # how earlier runs wrote `skipped`


class Incidents:
    """The incidents of all starts of a run; every rank makes one, together.

    Rank 0 writes each incident to the disk before training continues. `what` is one of: `refused`,
    a step that was computed and not applied; `rolled back`, to the checkpoint of step `to`;
    `skipped`, a step whose batch, the samples from the first to the last of `samples`, is not
    trained on; `bad shard`, a `shard` whose samples are not trained on from this step on. `step`
    counts from 1, as in the metrics.
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
    def skipped(self) -> set[int]:
        """The steps that are skipped, counted from 0."""
        return skipped_steps(self.rows)

    @property
    def counts(self) -> dict[str, int]:
        """The number of incidents of each kind that has occurred."""
        return dict(Counter(row["what"].replace(" ", "_") for row in self.rows))

    def refused(self, step: int, why: str, loss: float, norm: float) -> None:
        numbers = {"loss": _number(loss), "grad_norm": _number(norm)}
        self._add({"what": REFUSED, "step": step + 1, "why": why, **numbers})

    def rolled_back(self, step: int, to: int) -> None:
        self._add({"what": ROLLED_BACK, "step": step + 1, "to": to})

    def skip(self, step: int) -> None:
        samples = [step * self.batch, (step + 1) * self.batch - 1]
        self._add({"what": SKIPPED, "step": step + 1, "samples": samples})

    def bad_shard(self, step: int, shard: str, offset: int, why: str) -> None:
        row = {"what": BAD_SHARD, "step": step + 1, "shard": shard, "offset": offset, "why": why}
        self._add(row)

    def _add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.first:
            append_row(self.path, {"time": round(time.time(), 3), **row})


def skipped_steps(rows: list[dict[str, Any]]) -> set[int]:
    """The steps, counted from 0, whose batches are skipped according to rows of incidents."""
    return {row["step"] - 1 for row in rows if row["what"] in (SKIPPED, SKIPPED_BEFORE)}


def skipped_shards(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The shards that are skipped according to rows of incidents, and the step, from 0, from which
    each is."""
    found: dict[str, int] = {}
    for row in rows:
        if row["what"] == BAD_SHARD:
            step = row["step"] - 1
            found[row["shard"]] = min(step, found.get(row["shard"], step))
    return found


def read_incidents(run: Path) -> list[dict[str, Any]]:
    """The incidents of a run, except those that a kill has left half-written."""
    return read_rows(run / INCIDENTS, skip_damaged=True)


def _number(value: float) -> float | str:
    """As JSON, which has no number that is not finite."""
    return value if math.isfinite(value) else str(value)
