"""Weights written as the files of a Hugging Face folder, one tensor in memory at a time."""

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlm.weights.dtypes import IN_SAFETENSORS
from mlm.weights.source import SAFE, SAFE_INDEX

SHARD_BYTES = 5_000_000_000  # at most, unless one tensor alone is larger
NAMES = {dtype: name for name, dtype in IN_SAFETENSORS.items()}

Shapes = Mapping[str, tuple[int, ...]]


def write_weights(
    shapes: Shapes,
    read: Callable[[str], Tensor],
    folder: Path,
    dtypes: Mapping[str, torch.dtype] | None = None,
    shard_bytes: int | None = None,
) -> None:
    """Writes model.safetensors, or shards of it and their index.

    shapes: of every weight by its published name, a tied one under its first name only
    read: returns a weight by name
    dtypes: that each is written in; None: fp32
    shard_bytes: the largest size of a file; None: SHARD_BYTES
    """
    dtypes = dtypes or dict.fromkeys(shapes, torch.float32)
    shards = _shards(shapes, dtypes, SHARD_BYTES if shard_bytes is None else shard_bytes)
    if len(shards) == 1:
        write_safetensors(folder / SAFE, shards[0], read, dtypes)
        return
    files = {
        f"model-{number:05d}-of-{len(shards):05d}.safetensors": shard
        for number, shard in enumerate(shards, 1)
    }
    for file, shard in files.items():
        write_safetensors(folder / file, shard, read, dtypes)
    index = {
        "metadata": {"total_size": sum(_bytes(shapes[name], dtypes[name]) for name in shapes)},
        "weight_map": {name: file for file, shard in files.items() for name in shard},
    }
    write_json(folder / SAFE_INDEX, index)


def write_safetensors(
    path: Path,
    shapes: Shapes,
    read: Callable[[str], Tensor],
    dtypes: Mapping[str, torch.dtype],
) -> None:
    """Writes a safetensors file: length of the header, header, tensors one after another.

    `safetensors.save_file` would hold all of them in memory, and does not raise OSError on a full
    disk.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + _bytes(shape, dtypes[name])
        header[name] = {
            "dtype": NAMES[dtypes[name]],
            "shape": list(shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors begin at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for name in shapes:
            tensor = read(name).detach().to("cpu", dtypes[name]).contiguous()
            assert tensor.shape == shapes[name], name
            file.write(tensor.view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _shards(
    shapes: Shapes, dtypes: Mapping[str, torch.dtype], most: int
) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        length = _bytes(shape, dtypes[name])
        if shards[-1] and size + length > most:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += length
    return shards


def _bytes(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    return math.prod(shape) * dtype.itemsize
