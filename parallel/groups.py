"""The process groups of a layout, and this process's place in it."""

from dataclasses import dataclass
from itertools import product

import torch.distributed as dist

from parallel.layout import Layout

Group = dist.ProcessGroup | None  # None: a group of this process alone, nothing to communicate


@dataclass(frozen=True)
class ProcessGrid:
    """This rank's coordinates and its group along each axis; an axis of degree 1 has no group."""

    layout: Layout
    rank: int
    tp_rank: int
    pp_rank: int
    dp_rank: int
    tp: Group
    pp: Group
    dp: Group

    @property
    def is_first_stage(self) -> bool:
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp_rank == self.layout.pp - 1


def make_grid(layout: Layout) -> ProcessGrid:
    """Makes the groups of `layout`. A collective over the whole world: every rank calls it."""
    rank = dist.get_rank()
    layout.check_processes(dist.get_world_size())
    tp_ranks, pp_ranks, dp_ranks = (range(n) for n in (layout.tp, layout.pp, layout.dp))
    rows = {
        "tp": [[layout.rank(t, p, d) for t in tp_ranks] for p, d in product(pp_ranks, dp_ranks)],
        "pp": [[layout.rank(t, p, d) for p in pp_ranks] for t, d in product(tp_ranks, dp_ranks)],
        "dp": [[layout.rank(t, p, d) for d in dp_ranks] for t, p in product(tp_ranks, pp_ranks)],
    }
    groups = {axis: _own_group(members, rank) for axis, members in rows.items()}
    tp_rank, pp_rank, dp_rank = layout.coordinates(rank)
    return ProcessGrid(layout, rank, tp_rank, pp_rank, dp_rank, **groups)


def _own_group(members: list[list[int]], rank: int) -> Group:
    own = None
    for ranks in members:
        if len(ranks) == 1:
            continue
        group = dist.new_group(ranks)  # every rank makes every group, in the same order
        if rank in ranks:
            assert isinstance(group, dist.ProcessGroup)
            own = group
    return own


def group_size(group: Group) -> int:
    return 1 if group is None else dist.get_world_size(group)


def group_rank(group: Group) -> int:
    return 0 if group is None else dist.get_rank(group)
