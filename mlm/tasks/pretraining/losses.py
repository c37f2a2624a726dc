"""Losses of masked tokens by language."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlm.batch.micro_batch import IGNORED, MicroBatch
from mlm.tasks.task import Tally
from parallel.engine.interface import Engine, Outputs

FEW = 100  # masked tokens; a loss that is a mean of fewer is off by a quarter of a nat
NAMED = 5


@dataclass(frozen=True)
class Losses:
    """Sums over masked tokens and their counts, by language; means are in nats per token."""

    sums: list[float]
    counts: list[int]
    languages: list[str]

    @property
    def mean(self) -> float:
        """Over all masked tokens; NaN where there are none."""
        return sum(self.sums) / sum(self.counts) if sum(self.counts) else math.nan

    @property
    def by_language(self) -> dict[str, float]:
        """Of the languages that have masked tokens."""
        rows = zip(self.languages, self.sums, self.counts, strict=True)
        return {name: total / count for name, total, count in rows if count}


def few_tokens(losses: Losses) -> str:
    """Names the languages whose loss is of few masked tokens; empty where there are none."""
    few = [
        f"{name} ({count})"
        for name, count in zip(losses.languages, losses.counts, strict=True)
        if count < FEW
    ]
    if not few:
        return ""
    more = f" and {len(few) - NAMED} more languages" if len(few) > NAMED else ""
    return f"; of fewer than {FEW} masked tokens, and so inexact: {', '.join(few[:NAMED])}{more}"


class LossTally(Tally):
    """Adds up the losses of masked tokens by language, on the ranks of the last stage."""

    def __init__(self, languages: list[str], device: torch.device) -> None:
        self.languages = languages
        self.found = torch.zeros(len(languages), 2, dtype=torch.float64, device=device)

    def add(self, batches: Sequence[MicroBatch], outputs: Sequence[Outputs]) -> None:
        for batch, output in zip(batches, outputs, strict=False):  # no outputs on other stages
            self.add_losses(batch, output["losses"])

    def add_losses(self, batch: MicroBatch, losses: Tensor) -> None:
        """losses: (micro_batch, masked), 0 where there is no target."""
        languages, targets = (t.to(self.found.device) for t in (batch.languages, batch.targets))
        languages = languages.repeat_interleave(targets.shape[1])
        rows = torch.stack([losses.flatten().double(), (targets.flatten() != IGNORED).double()], 1)
        self.found.index_add_(0, languages, rows)

    def take(self, engine: Engine) -> dict[str, Any]:
        losses = self.losses(engine)
        self.clear()
        return {"loss_by_language": losses.by_language}

    def clear(self) -> None:
        self.found.zero_()

    def losses(self, engine: Engine) -> Losses:
        """Summed over the ranks, of which those of a tensor-parallel group have the same; a
        collective."""
        total = self.found.clone()
        dist.all_reduce(total)
        sums, counts = (total / engine.grid.layout.tp).t().tolist()
        return Losses(sums, [round(count) for count in counts], self.languages)
