"""How long each rank works in a step, and the ranks that delay the others."""

import os
from collections.abc import Sequence
from statistics import median_low
from typing import Any

import torch
import torch.distributed as dist

from parallel.groups import ProcessGrid

FACTOR, ROWS = 1.5, 3


class Stragglers:
    """Names a rank that is slow in `ROWS` logged rows in a row, once until it recovers.

    Slow is `FACTOR` times the median of its pipeline stage, as stages have different work (the
    lower one of two: that of the faster of two ranks). stages: of each rank.
    """

    def __init__(self, stages: Sequence[int]) -> None:
        self.stages = stages
        self.slow = [0] * len(stages)
        self.named: set[int] = set()

    def update(self, seconds: Sequence[float]) -> int | None:
        """Records a logged row; returns the slowest rank that is newly a straggler, or None.

        seconds: that each rank worked, without waiting for others
        """
        for rank, own in enumerate(seconds):
            self.slow[rank] = self.slow[rank] + 1 if own > FACTOR * self.usual(rank, seconds) else 0
        self.named = {rank for rank in self.named if self.slow[rank]}
        new = [r for r, rows in enumerate(self.slow) if rows >= ROWS and r not in self.named]
        if not new:
            return None
        worst = max(new, key=lambda rank: seconds[rank])
        self.named.add(worst)
        return worst

    def usual(self, rank: int, seconds: Sequence[float]) -> float:
        """The median of the stage of a rank."""
        own = self.stages[rank]
        return median_low(s for s, stage in zip(seconds, self.stages, strict=True) if stage == own)


class Pace:
    """The step times of all ranks. Made on all ranks together."""

    def __init__(self, grid: ProcessGrid, device: torch.device) -> None:
        world = grid.layout.world_size
        self.rank, self.device = grid.rank, device
        self.memory: int | None = None  # the peak of any rank at the last logged row, in bytes
        self.stragglers = Stragglers([grid.layout.coordinates(r)[1] for r in range(world)])
        self.hosts: list[Any] = [None] * world
        dist.all_gather_object(self.hosts, os.uname().nodename)

    def figures(self, seconds: float, memory: int) -> tuple[dict[str, Any], str | None]:
        """The ranks' part of a logged row, and a line for people if one is a new straggler.

        seconds: that this rank worked in a step; memory: its peak in bytes. A collective, with one
        result on all ranks.
        """
        found = torch.zeros(2, len(self.hosts), dtype=torch.float64, device=self.device)
        found[:, self.rank] = torch.tensor([seconds, memory], dtype=torch.float64)
        dist.all_reduce(found)
        every = found[0].tolist()
        self.memory = int(found[1].max())
        slowest = max(range(len(every)), key=every.__getitem__)
        row: dict[str, Any] = {
            "seconds_rank": {"min": min(every), "max": every[slowest], "slowest": slowest},
            "memory_peak": self.memory,
        }
        slow = self.stragglers.update(every)
        if slow is None:
            return row, None
        usual = self.stragglers.usual(slow, every)
        return row | {"straggler": slow}, (
            f"rank {slow} on {self.hosts[slow]} is a straggler: its own work takes "
            f"{every[slow]:.3g} s of a step, {usual:.3g} s on the ranks of its stage, which wait"
        )
