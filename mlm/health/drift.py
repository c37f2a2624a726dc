"""A run whose replicas differ ends, and reports which tensor, which ranks and how to resume."""

from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlm import checkpoint
from mlm.errors import DataError, DriftError
from parallel.engine.interface import Engine
from parallel.replicas import Difference, check_batches, check_replicas

SHOWN = 8  # ranks that a sentence names


def check_weights_agree(engine: Engine, saver: checkpoint.Saver, step: int) -> None:
    """Raises `DriftError` on all ranks if replicas of a weight differ after `step`."""
    difference = check_replicas(engine)
    if difference is not None:
        saver.wait()  # it writes a copy from when they agreed
        raise DriftError(_sentence(difference, step, saver.run))


def check_batches_agree(
    engine: Engine, batches: Sequence[Any], saver: checkpoint.Saver, step: int
) -> None:
    """Raises `DriftError` on all ranks if the ranks of a data rank would get other batches in
    `step`."""
    difference = check_batches(engine.grid, engine.device, _named(batches))
    if difference is not None:
        saver.wait()
        raise DriftError(_sentence(difference, step, saver.run))


def _named(batches: Sequence[Any]) -> Iterator[tuple[str, Tensor]]:
    """All that a step depends on."""
    for number, batch in enumerate(batches):
        for name, value in _values(batch):
            yield f"{name} of micro-batch {number}", value


def _values(batch: Any) -> Iterator[tuple[str, Tensor]]:
    """The fields of a dataclass, and of dataclasses in it, as tensors; not what it has derived from
    them."""
    for item in fields(batch):
        value = getattr(batch, item.name)
        if is_dataclass(value):
            yield from _values(value)
        elif isinstance(value, Tensor):
            yield item.name, value
        elif isinstance(value, int | float | tuple):
            kind = torch.float64 if isinstance(value, float) else torch.int64
            yield item.name, torch.tensor(value, dtype=kind)


def _sentence(found: Difference, step: int, run: Path) -> str:
    where = f"{_ranks(found.ranks)} ({', '.join(dict.fromkeys(found.hosts[:SHOWN]))})"
    axes = " and ".join(found.axes)
    if found.others:
        what = f"on {where} differs from its {axes} replicas on {_ranks(found.others)}"
    else:
        what = f"differs between its {axes} replicas on {where}"
    return (
        f"step {step}: {found.name} {what}, as a fault of memory, disk or network makes it; check "
        f"the machine, and start the run again: it resumes from {_last_checkpoint(run)}"
    )


def _ranks(ranks: Sequence[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    shown = [str(rank) for rank in ranks[:SHOWN]]
    if len(ranks) > SHOWN:
        return f"ranks {', '.join(shown)} and {len(ranks) - SHOWN} more"
    return f"ranks {', '.join(shown[:-1])} and {shown[-1]}"


def _last_checkpoint(run: Path) -> str:
    """The checkpoint that the next start resumes from, and whether its replicas were compared."""
    newest = checkpoint.newest(run)
    if newest is None:
        return "its beginning, since nothing is saved yet"
    try:
        checks = checkpoint.read_manifest(newest).config.get("checks", {})
    except DataError:
        checks = {}
    if checks.get("replicas_every"):
        return f"{newest.name}, whose replicas agreed"
    return f"{newest.name}, which was saved without checks.replicas_every"
