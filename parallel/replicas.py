"""Do the replicas agree? What several ranks must hold in common is compared by a hash of its bits.

A rank whose memory or network has a fault keeps training, with weights unlike its replicas', and
nothing else shows it: what it sends is only added to what the others send.
"""

import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from parallel.engine.interface import Engine
from parallel.groups import Group, ProcessGrid
from parallel.layout import Layout
from parallel.sharding import shard_of

AXES = ("tensor", "pipeline", "data")  # as a layout gives coordinates
CHUNK = 2**18  # words hashed at once: their products stay in a core's cache
ODD = -0x61C8864680B583EB  # 2**64 over the golden ratio, as an int64
LEAST = torch.iinfo(torch.int64).min
WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int32}  # by bytes of an element


@dataclass(frozen=True)
class Copy:
    """What a rank holds of a tensor: its fingerprint, and the axes along which ranks hold the
    same (along `pipeline`, those stages that have the tensor at all)."""

    name: str
    axes: tuple[str, ...]
    fingerprint: int


@dataclass(frozen=True)
class Difference:
    """A tensor that is not the same where it should be.

    name: of the first such tensor, in the order of the model
    axes: those along which its copies differ
    ranks: those that differ from what more than half of them hold; where there is no such value,
        all that hold a copy
    others: the ranks that hold it; empty where there is none
    hosts: the machines of `ranks`, one for each
    """

    name: str
    axes: tuple[str, ...]
    ranks: tuple[int, ...]
    others: tuple[int, ...]
    hosts: tuple[str, ...]


def fingerprint(tensor: Tensor) -> Tensor:
    """A hash of a tensor's bits and their places: 0-dim int64, on the tensor's device.

    Tensors that differ in one bit never have the same one; others do with a chance of about
    2**-64. Memory: that of a chunk, whatever the tensor.

    The words of a chunk are added up modulo 2**64, each times the odd weight of its place: an odd
    factor loses no bit. What is then done with the sum can be undone, so it loses none either.
    """
    words = tensor.detach().reshape(-1).view(WORDS[tensor.element_size()])
    weights = _weights(tensor.device)
    found = torch.full((), tensor.numel(), dtype=torch.int64, device=tensor.device)
    for chunk in words.split(CHUNK):
        found = (found ^ (chunk * weights[: len(chunk)]).sum()) * ODD
        found = found ^ (found >> 32 & 0xFFFFFFFF)  # masked, since it shifts copies of the sign in
    return found


@cache
def _weights(device: torch.device) -> Tensor:
    """Odd weights of the places in a chunk, int64, the same on every device.

    They are 17th powers of odd numbers: t**17 - s**17 has as many factors 2 as t - s, at most 18
    here, and a difference of two words has at most 31. So the sum knows the order of any two
    words; and powers, unlike the t themselves, have no differences that repeat.
    """
    bases = (2 * torch.arange(CHUNK, device=device) + 1) * ODD
    powers = bases
    for _ in range(4):
        powers = powers * powers
    return bases * powers


def check_replicas(engine: Engine) -> Difference | None:
    """Compares the replicas of all weights; a collective, with one result on all ranks.

    Along `data`: every parameter. ZeRO-3 has partitioned them, and there are no replicas.
    Along `tensor`: parameters that are not sharded; with ZeRO-3, this data rank's part of them.
    Along `pipeline`: tied weights, of which two stages have copies.
    Masters and moments, which ZeRO partitions over the data ranks, are not compared.
    """
    grid = engine.grid
    whole = grid.layout.zero < 3
    if grid.tp is None and grid.pp is None and not (grid.dp is not None and whole):
        return None
    keys = {layer.tied: None for layer in engine.layers if layer.tied is not None}
    tied = {id(p): key for key in keys for p in engine.tied_parameters(key)}
    named = engine.named_parameters()
    axes = []
    for _, parameter in named:
        equal = (shard_of(parameter) is None, id(parameter) in tied, whole)
        axes.append(tuple(axis for axis, is_equal in zip(AXES, equal, strict=True) if is_equal))
    found = torch.stack([fingerprint(engine.held_part(parameter)) for _, parameter in named])
    rows: list[tuple[Group, list[int]]] = [
        (grid.dp, [i for i, along in enumerate(axes) if "data" in along]),
        (grid.tp, [i for i, along in enumerate(axes) if "tensor" in along]),
    ]
    places = [tied.get(id(parameter)) for _, parameter in named]
    # All stages take part, also those without a copy.
    rows += [(grid.pp, [i for i, at in enumerate(places) if at == key]) for key in keys]
    return _compare(grid.layout, [name for name, _ in named], axes, found, rows)


def check_batches(
    grid: ProcessGrid, device: torch.device, named: Iterable[tuple[str, Tensor]]
) -> Difference | None:
    """Compares what the tensor-parallel ranks and the stages of each data rank are fed with; a
    collective, with one answer on all ranks.

    named: as many tensors on every rank, wherever they are; device: that of the collectives
    """
    if grid.tp is None and grid.pp is None:
        return None
    prints = [(name, fingerprint(tensor)) for name, tensor in named]
    found = torch.stack([value.to(device) for _, value in prints])
    names, every = [name for name, _ in prints], list(range(len(prints)))
    axes = [("tensor", "pipeline")] * len(prints)
    return _compare(grid.layout, names, axes, found, [(grid.tp, every), (grid.pp, every)])


def first_difference(
    layout: Layout, held: Sequence[Sequence[Copy]], hosts: Sequence[str]
) -> Difference | None:
    """The first tensor whose copies differ, from what each rank holds, in the order of the model,
    and each rank's machine."""
    alike: dict[tuple, dict[int, int]] = {}  # fingerprints that must be equal, by rank
    axes: dict[tuple, tuple[str, ...]] = {}
    for rank, copies in enumerate(held):
        coordinates = dict(zip(AXES, layout.coordinates(rank), strict=True))
        for copy in copies:
            place = (copy.name, *(coordinates[axis] for axis in AXES if axis not in copy.axes))
            alike.setdefault(place, {})[rank] = copy.fingerprint
            axes[place] = copy.axes
    order = {place[0]: None for place in alike}  # rank by rank, and so stage by stage
    numbers = {name: number for number, name in enumerate(order)}
    for place, prints in sorted(alike.items(), key=lambda row: numbers[row[0][0]]):
        if len(set(prints.values())) > 1:
            along = tuple(axis for axis in axes[place] if _differs_along(axis, layout, prints))
            ranks, others = _sides(prints)
            return Difference(place[0], along, ranks, others, tuple(hosts[r] for r in ranks))
    return None


def _sides(prints: dict[int, int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Those that differ from the value of more than half, and the rest; all, if there is none."""
    values = list(prints.values())
    most = max(values, key=values.count)
    if 2 * values.count(most) <= len(values):
        return tuple(prints), ()
    odd = tuple(rank for rank, value in prints.items() if value != most)
    return odd, tuple(rank for rank, value in prints.items() if value == most)


def _differs_along(axis: str, layout: Layout, prints: dict[int, int]) -> bool:
    """Whether two ranks that have other values differ in their place on this axis alone."""
    lines: dict[tuple, set[int]] = {}
    for rank, value in prints.items():
        coordinates = zip(AXES, layout.coordinates(rank), strict=True)
        lines.setdefault(tuple(at for name, at in coordinates if name != axis), set()).add(value)
    return any(len(values) > 1 for values in lines.values())


def _compare(
    layout: Layout,
    names: list[str],
    axes: list[tuple[str, ...]],
    found: Tensor,
    rows: list[tuple[Group, list[int]]],
) -> Difference | None:
    """A few numbers are sent where all is equal, and all fingerprints where it is not.

    found: (tensors,) int64; rows: groups, and which tensors are equal on all their ranks that
    have any
    """
    differs = torch.zeros((), dtype=torch.int64, device=found.device)
    for group, chosen in rows:
        if group is None:
            continue
        bounds = torch.full((2,), LEAST, device=found.device)
        if chosen:
            value = fingerprint(found[chosen])
            bounds = torch.stack([value, ~value])  # ~ turns the order round: one maximum is a least
        dist.all_reduce(bounds, dist.ReduceOp.MAX, group)
        if chosen:
            differs = differs | (bounds[0] != ~bounds[1])
    dist.all_reduce(differs, dist.ReduceOp.MAX)
    if not differs:
        return None
    own = [Copy(*row) for row in zip(names, axes, found.tolist(), strict=True)]
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, (own, socket.gethostname()))
    difference = first_difference(layout, *zip(*gathered, strict=True))
    assert difference is not None, "fingerprints of fingerprints differ, and these do not"
    return difference
