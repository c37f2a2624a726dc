"""The state of an engine as tiles of a checkpoint, in any layout."""

import warnings
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load

from mlm.errors import DataError, UserError
from mlm.weights.stored import causes_of
from mlm.weights.tiles import LoadTiles, Tile
from parallel.engine.interface import Engine, Piece
from parallel.groups import group_rank, group_size
from parallel.sharding import Box, boxes, shard_of

PART = 1 << 22  # numbers of a tile; loading holds a few tiles at once


def restore(engine: Engine, folder: Path, step: int) -> None:
    """Loads the state of a checkpoint after `step` optimizer steps into an engine of any layout; a
    collective. Each rank reads its own pieces in place.

    Raises `DataError` on every rank where a checkpoint lacks such a state.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            planner = LoadTiles(tiles(engine.pieces()))
            load({}, storage_reader=FileSystemReader(folder), planner=planner)
    except CheckpointException as error:
        causes = causes_of(error)
        cause = next((each for each in causes if isinstance(each, UserError)), causes[0])
        if isinstance(cause, UserError | OSError):
            raise DataError(f"{folder} cannot be resumed from: {cause}") from error
        raise
    engine.pieces_changed(step)


def tiles(found: Sequence[Piece]) -> Iterator[Tile]:
    """The tiles of all pieces, labelled `<kind>/<name>`, as views to read from and write to."""
    for piece in found:
        full, origin = _full_shape(piece)
        done = 0
        for box in boxes(piece.shape, piece.start, piece.start + _length(piece), PART):
            places = tuple(a + b for a, b in zip(origin, box.offsets, strict=True))
            for kind, flat in piece.tensors.items():
                view = partial(_view, flat, done, box)
                yield Tile(f"{kind}/{piece.name}", full, Box(places, box.sizes), view)
            done += box.numel


def pieces_to_write(engine: Engine) -> list[Piece]:
    """The pieces that this rank writes; a copy is written by the first rank that has it.

    Copies are parameters that every tensor-parallel rank holds whole, and tied ones on a later
    stage.
    """
    layers = engine.layers
    here = {id(layer) for layer in engine.local_layers}
    later = {
        layer.name
        for layer in layers
        if layer.tied is not None
        and id(next(each for each in layers if each.tied == layer.tied)) not in here
    }
    first = group_rank(engine.grid.tp) == 0
    return [
        piece
        for piece in engine.pieces()
        if (first or shard_of(piece.parameter) is not None)
        and not any(piece.name.startswith(f"{name}.") for name in later)
    ]


def _full_shape(piece: Piece) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shape of the full parameter, and the offsets of this rank's slice in it."""
    full, origin = list(piece.shape), [0] * len(piece.shape)
    shard = shard_of(piece.parameter)
    if shard is not None:
        origin[shard.dim] = group_rank(shard.group) * full[shard.dim]
        full[shard.dim] *= group_size(shard.group)
    return tuple(full), tuple(origin)


def _length(piece: Piece) -> int:
    return len(next(iter(piece.tensors.values())))


def _view(flat: Tensor, start: int, box: Box) -> Tensor:
    return flat[start : start + box.numel].view(box.sizes)
