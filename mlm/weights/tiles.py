"""Tensors of a checkpoint in tiles: each rank writes and reads its own, and no more.

A data rank of ZeRO holds a piece of a flattened slice of a tensor, and torch.distributed.checkpoint
cannot express that. It can express boxes, and such a piece is a few boxes of the full tensor.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
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

from mlm.errors import DataError
from parallel.sharding import Box

PART = 1 << 24  # elements that are read or written at once


@dataclass(frozen=True)
class Tile:
    """A box of the fp32 tensor `label`, whose full shape is `full`.

    tensor: returns the tensor to write or to fill, of the shape of the box
    """

    label: str
    full: tuple[int, ...]
    box: Box
    tensor: Callable[[], Tensor]

    @property
    def chunk(self) -> ChunkStorageMetadata:
        return ChunkStorageMetadata(torch.Size(self.box.offsets), torch.Size(self.box.sizes))

    @property
    def index(self) -> MetadataIndex:
        return MetadataIndex(self.label, torch.Size(self.box.offsets))


class SaveTiles(DefaultSavePlanner):
    """Writes tiles, one after another; the tiles of all ranks cover every tensor once.

    Torch's writer refers to every tensor that it was given until its file is closed, and copies
    those that do not fill their storage. So it gets views of memory that exists anyway, or of one
    buffer.

    on_progress: is called for each tile
    """

    def __init__(
        self, tiles: Iterable[Tile], on_progress: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__()
        self.tiles, self.on_progress = {tile.index: tile for tile in tiles}, on_progress
        self.buffer = torch.empty(0)

    def create_local_plan(self) -> SavePlan:
        items = []
        for tile in self.tiles.values():
            properties = TensorProperties(torch.float32)
            data = TensorWriteData(tile.chunk, properties, torch.Size(tile.full))
            items.append(WriteItem(tile.index, WriteItemType.SHARD, tensor_data=data))
        self.plan = SavePlan(items, planner_data={})
        return self.plan

    def resolve_data(self, write_item: WriteItem) -> Tensor:
        index = write_item.index
        tensor = self.tiles[MetadataIndex(index.fqn, index.offset)].tensor()
        self.on_progress()
        if tensor.device.type == "cpu" and tensor.is_contiguous():
            return torch.from_numpy(tensor.numpy())
        if len(self.buffer) < tensor.numel():
            self.buffer = torch.empty(tensor.numel())
        view = torch.from_numpy(self.buffer.numpy()[: tensor.numel()])
        return view.view(tensor.shape).copy_(tensor)


class LoadTiles(DefaultLoadPlanner):
    """Fills tiles from wherever their numbers are in a checkpoint; raises DataError for a tensor
    that is missing or has another shape."""

    def __init__(self, tiles: Iterable[Tile]) -> None:
        super().__init__()
        self.tiles = {tile.index: tile for tile in tiles}

    def set_up_planner(
        self, state_dict: Any, metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        self.state_dict, self.metadata, self.is_coordinator = {}, metadata, is_coordinator

    def create_local_plan(self) -> LoadPlan:
        assert self.metadata is not None
        saved: dict[str, Any] = dict(self.metadata.state_dict_metadata)
        items = []
        for tile in self.tiles.values():
            found = saved.get(tile.label)
            if found is None or tuple(found.size) != tile.full:
                what = "is not in it" if found is None else f"has the shape {tuple(found.size)}"
                raise DataError(
                    f"{tile.label} {what}, and this model has one of {tile.full}; choose a "
                    f"checkpoint of this model"
                )
            items += create_read_items_for_chunk_list(tile.label, found, [tile.chunk])
        return LoadPlan(items)

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        return self.tiles[MetadataIndex(index.fqn, index.offset)].tensor()
