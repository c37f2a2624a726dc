"""The weights of a checkpoint, read in parts and written one by one, by a single process."""

import errno
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from mlm.errors import DataError, UserError
from mlm.weights.memory import release_free_memory
from mlm.weights.source import Weights
from mlm.weights.tiles import PART, LoadTiles, SaveTiles, Tile
from parallel.sharding import Box

PREFIX = "weight/"
FULL = 1 << 20  # free bytes below which a disk counts as full

Show = Callable[[int, int], None]


def open_checkpoint(folder: Path) -> Weights:
    """The fp32 weights of a checkpoint, without its moments; raises DataError."""
    reader = _Reader(folder)
    found: dict[str, Any] = {
        label.removeprefix(PREFIX): item
        for label, item in reader.read_metadata().state_dict_metadata.items()
        if label.startswith(PREFIX)
    }
    shapes = {name: tuple(item.size) for name, item in found.items()}

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        shape = list(shapes[name])
        offsets = [0] * len(shape)
        if shape:
            shape[dim], offsets[dim] = stop - start, start
        value = torch.empty(shape)
        box = Box(tuple(offsets), tuple(shape))
        tile = Tile(PREFIX + name, shapes[name], box, lambda: value)
        try:
            with without_distributed():
                load({}, storage_reader=reader, planner=LoadTiles([tile]), no_dist=True)
        except (OSError, CheckpointException) as error:
            reason = str(causes_of(error)[0]).splitlines()[0]
            raise DataError(
                f"{folder} cannot be read ({reason}); choose another checkpoint"
            ) from error
        return value

    return Weights(folder, shapes, dict.fromkeys(shapes, torch.float32), read_part)


def write_checkpoint(weights: Weights, folder: Path, show: Show | None = None) -> None:
    """Writes weights into `folder` as a checkpoint holds them, in fp32, with one part in memory.

    show: is called with the number of elements written so far, and with the total

    Raises DataError for a weight that cannot be read, and OSError where one cannot be written.
    """
    # No copies ahead, since all parts go through one buffer of the planner.
    writer = FileSystemWriter(folder, per_thread_copy_ahead=0)
    planner = SaveTiles(_parts(weights, show or (lambda done, total: None)))
    try:
        with without_distributed():
            save({}, storage_writer=writer, planner=planner, no_dist=True)
    except CheckpointException as error:
        cause = cause_of(error, folder)
        if isinstance(cause, UserError | OSError | KeyboardInterrupt):
            raise cause from None
        raise


def _parts(weights: Weights, show: Show) -> Iterator[Tile]:
    """All weights, each cut along its first dim; a part is read when it is written."""
    total = sum(math.prod(shape) for shape in weights.shapes.values())
    largest = max(
        (box.numel for shape in weights.shapes.values() for box in _cut(shape)), default=0
    )
    buffer, done = torch.empty(largest).numpy(), 0

    def read(name: str, start: int, rows: int) -> Tensor:
        nonlocal done
        part = weights.part(name, 0, start, start + rows)
        buffered = torch.from_numpy(buffer[: part.numel()]).view(part.shape).copy_(part)
        del part
        # Torch's writer allocates where a part was freed, so that the next part would not fit there
        # and would take new memory (measured: 1 GB for forty parts of 26 MB).
        release_free_memory()
        done += buffered.numel()
        show(done, total)
        return buffered

    for name, shape in weights.shapes.items():
        for box in _cut(shape):
            start, rows = (box.offsets[0], box.sizes[0]) if shape else (0, 1)
            yield Tile(PREFIX + name, shape, box, partial(read, name, start, rows))


def _cut(shape: tuple[int, ...]) -> Iterator[Box]:
    """A whole tensor as boxes of whole rows."""
    for start, stop in parts_of(shape):
        rest = (0,) * (len(shape) - 1)
        yield Box((start, *rest), (stop - start, *shape[1:])) if shape else Box((), ())


def parts_of(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Starts and ends, along the first dim, of the parts of a tensor that are read at once."""
    length, rows = (*shape, 1)[0], max(1, PART // max(1, math.prod(shape[1:])))
    return [(start, min(start + rows, length)) for start in range(0, length, rows)]


def cause_of(error: BaseException, folder: Path) -> BaseException:
    """Why a checkpoint was not written: the operating system's error, if there is one."""
    causes = causes_of(error)
    found = next((cause for cause in causes if isinstance(cause, OSError)), None)
    # On a full disk torch's writer only reports that a file is shorter than what it wrote.
    if found is None and shutil.disk_usage(folder).free < FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return found or causes[0]


def causes_of(error: BaseException) -> list[BaseException]:
    """The errors of the ranks that an error of torch's checkpoints wraps."""
    if isinstance(error, CheckpointException):
        return [item[0] for item in error.failures.values()]
    return [error]


class _Reader(FileSystemReader):
    """Reads the list of all tensors once instead of once per tensor."""

    known: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.known is None:
            self.known = super().read_metadata(*args, **kwargs)
        return self.known


@contextmanager
def without_distributed() -> Iterator[None]:
    """Torch's checkpoints in this process only, without its warning about that."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as asked
        yield
