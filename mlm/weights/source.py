"""The weights of a model under their published names, each read on request."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from mlm.errors import DataError
from mlm.weights.dtypes import FLOATS, name_of
from mlm.weights.files import COPY_AGAIN, OpenFile, ReadPart, open_file
from parallel.groups import group_rank
from parallel.sharding import Shard, split

SAFE, SAFE_INDEX = "model.safetensors", "model.safetensors.index.json"
BIN, BIN_INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
}
BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")  # that old versions saved


@dataclass(frozen=True)
class Weights:
    """The weights in a folder or a file; a tensor is read on request.

    shapes, dtypes: of every weight by name; a tied one is there once, under its name in `TIED`
    read_part: as `part`, which calls it
    files: the file of each weight, for messages
    copies: weights that are tied and stored twice: name -> the name of the second copy
    """

    origin: Path
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, torch.dtype]
    read_part: ReadPart
    files: dict[str, Path] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)

    def part(self, name: str, dim: int, start: int, stop: int) -> Tensor:
        """A weight from `start` to `stop` along `dim`, a new tensor of the stored dtype.

        Raises DataError, also where a second copy of a tied weight differs.
        """
        value, copy = self.read_part(name, dim, start, stop), self.copies.get(name)
        if copy is not None and not same_bits(value, self.read_part(copy, dim, start, stop)):
            raise DataError(
                f"{self.file_of(name)} has other numbers in {copy} than in {name}, and the two "
                f"are one weight in this model; give a model that ties them"
            )
        return value

    def read(self, name: str, shard: Shard | None = None) -> Tensor:
        """A weight, or this rank's slice of it and no more, in its stored dtype.

        Raises DataError, and ValueError where the group does not divide the weight.
        """
        if name not in self.shapes:
            raise DataError(f"{self.origin} has no {name}; give a model that has this weight")
        self.check_dtype(name)
        shape = self.shapes[name]
        if shard is None:
            return self.part(name, 0, 0, (shape or (1,))[0])
        size = split(shape[shard.dim], shard.group, name)
        start = group_rank(shard.group) * size
        return self.part(name, shard.dim, start, start + size)

    def check_dtype(self, name: str) -> None:
        """Raises DataError unless a weight is of a dtype that weights can have."""
        if self.dtypes[name] not in FLOATS:
            raise DataError(
                f"{self.file_of(name)} holds {name} as {self.dtype_name(name)}, and weights are "
                f"float32, float16, bfloat16 or float64; give a model that is not quantised"
            )

    def file_of(self, name: str) -> Path:
        """The file that holds a weight."""
        return self.files.get(name, self.origin)

    def dtype_name(self, name: str) -> str:
        """The dtype of a weight, as a config.json names it."""
        return name_of(self.dtypes[name])


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal bit for bit, so that NaN equals itself."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    pair = (each.contiguous().view(-1).view(torch.uint8) for each in (one, other))
    return torch.equal(*pair)


def open_weights(path: Path) -> Weights:
    """The weights of a Hugging Face folder, or of one file of it; raises DataError.

    A folder is read from the first that it has of: `model.safetensors`, shards of it with an
    index, `pytorch_model.bin`, shards of it with an index.
    """
    if path.is_file():
        return _joined(path, [open_file(path)], {})
    for whole, index in ((SAFE, SAFE_INDEX), (BIN, BIN_INDEX)):
        if (path / whole).is_file():
            return _joined(path, [open_file(path / whole)], {})
        if (path / index).is_file():
            listed = _indexed(path / index)
            opened = [open_file(path / file) for file in dict.fromkeys(listed.values())]
            return _joined(path, opened, listed)
    what = "has none of them" if path.is_dir() else "is not a folder"
    raise DataError(
        f"{path} {what}: the weights of a model are in {SAFE} or {BIN}, or in shards with an "
        f"index; give the folder of a model"
    )


def _indexed(index: Path) -> dict[str, str]:
    """The file of every weight, as an index of shards says."""
    try:
        listed = json.loads(index.read_text("utf-8"))["weight_map"]
        files = {str(name): str(file) for name, file in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise DataError(f"{index} is not an index of weights; {COPY_AGAIN}") from None
    for name, file in files.items():
        if Path(file).name != file or not (index.parent / file).is_file():
            raise DataError(
                f"{index} says that {name} is in {file}, and no such file is beside it; copy that "
                f"file as well"
            )
    return files


def _joined(origin: Path, opened: list[OpenFile], listed: dict[str, str]) -> Weights:
    """The tensors of all files under their published names.

    listed: the file of each name, for names that two files have
    """
    named = {file.path.name: file for file in opened}
    places = {name: file for file in opened for name in file.shapes}
    for name, file in listed.items():
        if name not in named[file].shapes:
            raise DataError(
                f"{named[file].path} has no {name}, and the index beside it lists it; copy both "
                f"again from where they came"
            )
        places[name] = named[file]
    stored = {name: name for name in places if not name.endswith(BUFFERS)}
    copies = {}
    for copy in TIED.keys() & stored.keys():
        del stored[copy]
        if stored.setdefault(TIED[copy], copy) != copy:
            copies[TIED[copy]] = copy

    def read_part(name: str, dim: int, start: int, stop: int) -> Tensor:
        name = stored.get(name, name)
        return places[name].read_part(name, dim, start, stop)

    for name, copy in copies.items():
        if places[name].shapes[name] != places[copy].shapes[copy]:
            raise DataError(
                f"{places[copy].path} has {copy} with the shape {places[copy].shapes[copy]}, and "
                f"{name}, which it is tied to, has {places[name].shapes[name]}; give a model of "
                f"this family"
            )
    return Weights(
        origin,
        {name: places[label].shapes[label] for name, label in stored.items()},
        {name: places[label].dtypes[label] for name, label in stored.items()},
        read_part,
        {name: places[label].path for name, label in stored.items()},
        copies,
    )
