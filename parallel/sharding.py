"""Which parameters are split over tensor-parallel ranks, and along which dim."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor

from parallel.groups import Group, group_rank, group_size


@dataclass(frozen=True)
class Shard:
    """A parameter is an equal slice along `dim` of a tensor that `group` holds together."""

    dim: int
    group: Group


def mark_sharded(parameter: Tensor, dim: int, group: Group) -> None:
    """Records that `parameter` is this rank's slice along `dim`; no-op for a group of one."""
    if group is None:
        return
    parameter.shard = Shard(dim, group)  # pyright: ignore[reportAttributeAccessIssue]
    # DeepSpeed counts a parameter without this mark once per group in the gradient norm.
    parameter.tensor_model_parallel = True  # pyright: ignore[reportAttributeAccessIssue]


def shard_of(parameter: Tensor) -> Shard | None:
    """How a parameter is split; None where every tensor-parallel rank holds all of it."""
    return getattr(parameter, "shard", None)


def group_of(parameter: Tensor) -> Group:
    """The group that holds a parameter together; None where a process holds all of it."""
    shard = shard_of(parameter)
    return None if shard is None else shard.group


def slice_of(full: Tensor, shard: Shard | None) -> Tensor:
    """This rank's slice of a full tensor."""
    if shard is None:
        return full
    return full.chunk(group_size(shard.group), dim=shard.dim)[group_rank(shard.group)]


def split(size: int, group: Group, what: str) -> int:
    """`size` over the ranks of `group`; raises ValueError where it does not divide."""
    ranks = group_size(group)
    if size % ranks:
        raise ValueError(f"{what}={size} is not a multiple of the {ranks} ranks that split it")
    return size // ranks


@dataclass(frozen=True)
class Box:
    """A part of a tensor: `sizes` elements from `offsets` on along each dim."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]

    @property
    def numel(self) -> int:
        return math.prod(self.sizes)


def boxes(shape: Sequence[int], start: int, stop: int, most: int | None = None) -> Iterator[Box]:
    """The fewest boxes that elements `start` to `stop` of a flattened tensor fill, in their order.

    A matrix needs three at most: the rest of a row, whole rows, the beginning of a row. most:
    elements of a box, unless one row has more.
    """
    if start >= stop:
        return
    if len(shape) == 0:
        yield Box((), ())
        return
    row = math.prod(shape[1:])
    rows = max(1, most // row) if most is not None else stop
    place = start
    while place < stop:
        number, inside = divmod(place, row)
        if inside or stop - place < row:
            end = min(stop, (number + 1) * row)
            for box in boxes(shape[1:], inside, inside + end - place, most):
                yield Box((number, *box.offsets), (1, *box.sizes))
        else:
            end = (number + min(rows, stop // row - number)) * row
            yield Box((number, *[0] * (len(shape) - 1)), (end // row - number, *shape[1:]))
        place = end
