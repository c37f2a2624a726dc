"""The files of an original checkpoint, and their tensors joined over tensor-parallel ranks.

Each rank saved `<name>-model_part-<rank>.pt`. Megatron's column-parallel layers (query, key, value,
fc1, the dense layer of both heads) and the word embeddings are split along dim 0, weight and bias;
the weights of its row-parallel ones (out_proj, fc2) along dim 1. Every rank holds the rest whole,
including the decoder's bias.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mlm.errors import DataError
from mlm.weights.files import load_pickle
from mlm.weights.original_config import PLAIN

PART = re.compile(r"(.*?)(?:-model)?_part-?(\d+)\.pt")
ENCODER = "sentence_encoder."
SPLIT = {
    0: re.compile(r".*(embed_tokens|lm_head)\.weight|.*((q|k|v)_proj|fc1|dense)\.(weight|bias)"),
    1: re.compile(r".*(self_attn\.out_proj|fc2)\.weight"),
}
APART = 0.5  # relative difference of two ranks' copies above which they are of two models

State = dict[str, Any]


def checkpoint_files(path: Path) -> list[Path]:
    """The files of a checkpoint, one or one for each tensor-parallel rank; raises DataError.

    path: a file, one of the parts, the common beginning of the parts' names and `.pt`, or a folder
        with `model.pt` or with a single checkpoint
    """
    folder, wanted = (path, "model.pt") if path.is_dir() else (path.parent, path.name)
    found: dict[str, dict[int, Path]] = {}
    for file in sorted(folder.glob("*.pt")):
        if part := PART.fullmatch(file.name):
            found.setdefault(f"{part[1]}.pt", {})[int(part[2])] = file
            wanted = f"{part[1]}.pt" if file.name == wanted else wanted
    for file in folder.glob("*.pt"):
        if not PART.fullmatch(file.name):
            found[file.name] = {0: file}
    if path.is_file() and wanted not in found:
        return [path]
    if path.is_dir() and wanted not in found and len(found) == 1:
        (wanted,) = found
    if wanted not in found:
        raise DataError(
            f"{path} is not a checkpoint of the original code, and {folder} has "
            f"{', '.join(sorted(found)) or 'no .pt file'}; give such a file, one of its parts, or "
            f"a folder with one of them"
        )
    parts = found[wanted]
    for rank in range(max(parts) + 1):
        if rank not in parts:
            some = next(iter(parts.values()))
            raise DataError(
                f"{some} is one of several parts, and the part of rank {rank} is missing; copy it "
                f"into the same folder"
            )
    return [parts[rank] for rank in range(len(parts))]


class PartFiles:
    """The opened files of one checkpoint; raises DataError where they are of several."""

    def __init__(self, path: Path):
        self.files = checkpoint_files(path)
        self.states = [_state(file) for file in self.files]
        self.tensors = [
            _named(file, state["model"])
            for file, state in zip(self.files, self.states, strict=True)
        ]
        _check(self)

    def joined(self, name: str) -> "JoinedTensor":
        return JoinedTensor(name, self.files, [tensors[name] for tensors in self.tensors])


class JoinedTensor:
    """One tensor, whole in every part or split along `dim`."""

    def __init__(self, name: str, files: list[Path], tensors: list[Tensor]):
        self.name, self.files, self.tensors = name, files, tensors
        self.dtype, shape = tensors[0].dtype, list(tensors[0].shape)
        self.dim = None
        if len(files) > 1:
            self.dim = next((dim for dim, split in SPLIT.items() if split.fullmatch(name)), None)
        for file, tensor in zip(files, self.tensors, strict=True):
            if list(tensor.shape) != shape or tensor.dtype != self.dtype:
                raise DataError(
                    f"{file} has {name} with the shape {tuple(tensor.shape)}, and {files[0]} "
                    f"{tuple(shape)}; give the parts of one checkpoint"
                )
        if self.dim is not None:
            shape[self.dim] *= len(files)
        self.shape = tuple(shape)

    def part(self, dim: int, start: int, stop: int) -> Tensor:
        if self.dim is None:
            self._compare()
            return self.tensors[0].narrow(dim, start, stop - start).clone()
        shape = [*self.shape[:dim], stop - start, *self.shape[dim + 1 :]]
        whole = torch.empty(shape, dtype=self.dtype, device="cpu")
        each = self.tensors[0].shape[self.dim]
        for rank, tensor in enumerate(self.tensors):
            if dim != self.dim:
                whole.narrow(self.dim, rank * each, each).copy_(
                    tensor.narrow(dim, start, stop - start)
                )
                continue
            low, high = max(start, rank * each), min(stop, (rank + 1) * each)
            if low < high:
                whole.narrow(dim, low - start, high - low).copy_(
                    tensor.narrow(dim, low - rank * each, high - low)
                )
        return whole

    def _compare(self) -> None:
        """Copies on several ranks drift apart a little in training; those of two models are far
        apart. Raises DataError for such."""
        first = self.tensors[0].float()
        for file, tensor in zip(self.files[1:], self.tensors[1:], strict=True):
            if (tensor.float() - first).norm() > APART * first.norm():
                raise DataError(
                    f"{file} has another {self.name} than {self.files[0]}, and every part of a "
                    f"checkpoint holds that tensor whole; give the parts of one checkpoint"
                )


def _state(file: Path) -> State:
    try:
        state = load_pickle(file, PLAIN)
    except OSError as error:
        raise DataError(
            f"{file} cannot be read ({error.strerror or error}); see that you may read it"
        ) from None
    model = state.get("model") if isinstance(state, dict) else None
    if not isinstance(model, dict) or not all(isinstance(each, Tensor) for each in model.values()):
        raise DataError(
            f"{file} has no tensors under `model`, as checkpoints of the original code have; give "
            f"one of these"
        )
    return state


def _named(file: Path, model: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors without the prefix of `sentence_encoder` and `lm_head`, which depends on the
    version."""
    named = {re.sub(r"^(encoder|decoder)\.", "", name): each for name, each in model.items()}
    if not any(name.startswith(ENCODER) for name in named):
        raise DataError(
            f"{file} has no encoder.sentence_encoder, but tensors such as {next(iter(named), '')}; "
            f"give a checkpoint of XLM-R XL or XXL"
        )
    return named


def _check(parts: PartFiles) -> None:
    """Raises DataError unless the files are all the parts of one checkpoint."""
    files, states = parts.files, parts.states
    for file, state, tensors in zip(files, states, parts.tensors, strict=True):
        if "fsdp_metadata" in state:
            raise DataError(
                f"{file} is a shard of data-parallel ranks (FSDP), which is unsupported; give a "
                f"checkpoint that the original code has consolidated"
            )
        for name in parts.tensors[0].keys() ^ tensors.keys():
            raise DataError(
                f"{name} is in only one of {files[0]} and {file}; give the parts of one checkpoint"
            )
        if (steps := _steps(state)) != _steps(states[0]):
            raise DataError(
                f"{file} is of step {steps}, and {files[0]} of step {_steps(states[0])}; give the "
                f"parts of one checkpoint"
            )
    query = next((each for name, each in parts.tensors[0].items() if "q_proj.weight" in name), None)
    if query is not None and query.shape[0] * len(files) != query.shape[1]:
        raise DataError(
            f"{files[0]} is one of {query.shape[1] // max(query.shape[0], 1)} parts, as its "
            f"tensors show, and {len(files)} are there; copy exactly these beside it, "
            f"each with its rank in the name (-model_part-1.pt)"
        )


def _steps(state: State) -> Any:
    history = state.get("optimizer_history") or [{}]
    return history[-1].get("num_updates")
