"""The weights in a checkpoint, read in parts and written one by one, on this process alone."""

import errno
import math
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
)
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    SavePlan,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from mlm.errors import DataError, UserError
from mlm.weights.memory import give_back
from mlm.weights.source import Weights

PREFIX = "weight/"
FULL = 1 << 20  # free bytes below which a disk counts as full
PART = 1 << 24  # numbers that are read and written at once

Show = Callable[[int, int], None]


def open_weights(folder: Path) -> Weights:
    """The fp32 weights of a checkpoint, without its moments; raises DataError."""
    reader = _Reader(folder)
    found: dict[str, Any] = {
        label.removeprefix(PREFIX): item
        for label, item in reader.read_metadata().state_dict_metadata.items()
        if label.startswith(PREFIX)
    }
    shapes = {name: tuple(item.size) for name, item in found.items()}

    def part(name: str, dim: int, start: int, stop: int) -> Tensor:
        shape = list(shapes[name])
        offsets = [0] * len(shape)
        if shape:
            shape[dim], offsets[dim] = stop - start, start
        made = torch.empty(shape)
        try:
            with _alone():
                state = {PREFIX + name: made}
                dcp.load(state, storage_reader=reader, planner=_Part(offsets), no_dist=True)
        except (OSError, dcp.api.CheckpointException) as error:
            reason = str(_causes(error)[0]).splitlines()[0]
            raise DataError(
                f"{folder} cannot be read ({reason}); choose another checkpoint"
            ) from error
        return made

    return Weights(folder, shapes, dict.fromkeys(shapes, torch.float32), part)


def write_weights(weights: Weights, folder: Path, show: Show | None = None) -> None:
    """Writes weights into `folder` as a checkpoint holds them, in fp32, a part in memory at a time.

    show: is called with how many numbers are written, of how many. Raises DataError where one
    cannot be read, and OSError where it cannot be written.
    """
    # No copies ahead: all parts go through the planner's one buffer.
    writer = dcp.FileSystemWriter(folder, per_thread_copy_ahead=0)
    planner = _InParts(weights, show or (lambda done, total: None))
    try:
        with _alone():
            dcp.save({}, storage_writer=writer, planner=planner, no_dist=True)
    except dcp.api.CheckpointException as error:
        cause = cause_of(error, folder)
        if isinstance(cause, UserError | OSError | KeyboardInterrupt):
            raise cause from None
        raise


def parts_of(shape: tuple[int, ...]) -> list[tuple[int, int]]:
    """Beginnings and ends, along the first dim, of parts that are read and written at once."""
    length, rows = (*shape, 1)[0], max(1, PART // max(1, math.prod(shape[1:])))
    return [(start, min(start + rows, length)) for start in range(0, length, rows)]


def cause_of(error: BaseException, folder: Path) -> BaseException:
    """The operating system's error behind a checkpoint that was not written, if it is one."""
    causes = _causes(error)
    found = next((cause for cause in causes if isinstance(cause, OSError)), None)
    # On a full disk torch's writer only sees that a file is shorter than what it wrote.
    if found is None and shutil.disk_usage(folder).free < FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return found or causes[0]


def _causes(error: BaseException) -> list[BaseException]:
    if isinstance(error, dcp.api.CheckpointException):
        return [item[0] for item in error.failures.values()]
    return [error]


class _Reader(dcp.FileSystemReader):
    """Reads the list of all tensors once, not again for each of them."""

    known: Metadata | None = None

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        if self.known is None:
            self.known = super().read_metadata(*args, **kwargs)
        return self.known


class _Part(dcp.DefaultLoadPlanner):
    """Loads the one tensor of a state from the place `offsets` of the saved one."""

    def __init__(self, offsets: list[int]) -> None:
        super().__init__()
        self.offsets = offsets

    def create_local_plan(self) -> LoadPlan:
        [(label, tensor)] = self.state_dict.items()
        assert self.metadata is not None
        saved: Any = self.metadata.state_dict_metadata[label]
        chunk = ChunkStorageMetadata(torch.Size(self.offsets), tensor.shape)
        return LoadPlan(create_read_items_for_chunk_list(label, saved, [chunk]))

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.state_dict[index.fqn]


class _InParts(dcp.DefaultSavePlanner):
    """Cuts weights along their first dim, and reads a part when it is to be written.

    Torch's writer keeps hold of every tensor that it was given until its file is closed, so all of
    them are views of one buffer.
    """

    def __init__(self, weights: Weights, show: Show) -> None:
        super().__init__()
        self.weights, self.show, self.done = weights, show, 0
        self.total = sum(math.prod(shape) for shape in weights.shapes.values())
        parts = [chunk.sizes.numel() for name in weights.shapes for chunk in self._chunks(name)]
        self.buffer = torch.empty(max(parts, default=0)).numpy()

    def create_local_plan(self) -> SavePlan:
        items = []
        for name, shape in self.weights.shapes.items():
            for number, chunk in enumerate(self._chunks(name)):
                data = TensorWriteData(chunk, TensorProperties(torch.float32), torch.Size(shape))
                index = MetadataIndex(PREFIX + name, chunk.offsets, number)
                items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items, planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        start, rows = (chunk.offsets[0], chunk.sizes[0]) if chunk.sizes else (0, 1)
        name = write_item.index.fqn.removeprefix(PREFIX)
        part = self.weights.part(name, 0, start, start + rows)
        made = torch.frombuffer(self.buffer, dtype=torch.float32, count=part.numel())
        made = made.view(part.shape).copy_(part)
        del part
        # What torch's writer keeps settles where a part was, so that the next one finds no room
        # there and takes new memory (measured: 1 GB for forty parts of 26 MB).
        give_back()
        self.done += made.numel()
        self.show(self.done, self.total)
        return made

    def _chunks(self, name: str) -> list[ChunkStorageMetadata]:
        shape = self.weights.shapes[name]
        if not shape:
            return [ChunkStorageMetadata(torch.Size(()), torch.Size(()))]
        rest = [0] * (len(shape) - 1)
        return [
            ChunkStorageMetadata(torch.Size([start, *rest]), torch.Size([stop - start, *shape[1:]]))
            for start, stop in parts_of(shape)
        ]


@contextmanager
def _alone() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as asked
        yield
