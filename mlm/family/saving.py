"""Writes a model, whole or sharded over a group, into a Hugging Face folder."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from mlm.errors import UserError
from mlm.family.config import XLMRobertaXLConfig
from mlm.files.folders import new_folder
from mlm.weights.load import full_shapes
from mlm.weights.write import write_weights
from parallel.groups import Group, group_rank, group_size
from parallel.sharding import shard_of

WEIGHTS = re.compile(r"(model|pytorch_model)(-\d+-of-\d+)?\.(safetensors|bin)(\.index\.json)?")


def save(
    model: Any,
    folder: Path,
    config: XLMRobertaXLConfig,
    shard_bytes: int,
    given: Mapping[str, Tensor] | None = None,
) -> None:
    """The first rank of the model's group writes; every rank calls it. Raises UserError on all.

    A folder that is not there, or empty, becomes the model's at the end or stays as it was. In one
    that holds files the new ones take their places when all of them are written, and weights of
    another form, which would be read in their stead, go. given: weights in place of the model's
    """
    group, device = model.group, model.group_device()
    parameters: dict[str, Any] = dict(model.named_parameters() if given is None else given)
    shapes = full_shapes(model) if given is None else {k: tuple(v.shape) for k, v in given.items()}
    waiting = iter(shapes)

    def read(name: str) -> Tensor:
        assert next(waiting) == name, "all ranks gather the parameters in one order"
        return whole(parameters[name], group, device)

    error = None
    if group_rank(group) == 0:
        try:
            dtypes = {name: parameter.dtype for name, parameter in parameters.items()}
            with _files(folder) as aside:
                config.save_pretrained(aside)
                write_weights(shapes, read, aside, dtypes, shard_bytes)
        except (UserError, OSError) as caught:
            error = str(caught)
    for name in waiting:  # on the other ranks; on the first one what a failure left
        whole(parameters[name], group, device)
    if group is not None:
        found = [error]
        dist.broadcast_object_list(found, dist.get_global_rank(group, 0), group, device)
        error = found[0]
    if error is not None:
        raise UserError(error)


def whole(
    parameter: Tensor, group: Group, device: torch.device, everywhere: bool = False
) -> Tensor:
    """A parameter as it is without a group, on the CPU; a collective where it is split. On other
    ranks than the first it is some slice, unless it is wanted `everywhere`.

    device: where a tensor must lie to be sent over the group
    """
    value, shard = parameter.detach(), shard_of(parameter)
    if shard is None or group is None:
        return value.cpu()
    # As bytes: not every backend sends every dtype.
    local = value.to(device).contiguous().view(torch.uint8)
    first = dist.get_global_rank(group, 0)
    if not everywhere and group_rank(group) != 0:
        dist.gather(local, None, first, group)
        return value
    made = torch.empty((group_size(group), *local.shape), dtype=torch.uint8, device=device)
    if everywhere:
        dist.all_gather(list(made), local, group)
    else:
        dist.gather(local, list(made), first, group)
    # (ranks, ...) to one tensor along the dim that is split; along the first one it is that already
    return made.view(value.dtype).movedim(0, shard.dim).flatten(shard.dim, shard.dim + 1).cpu()


@contextmanager
def _files(folder: Path) -> Iterator[Path]:
    """A folder to write in, whose files are in `folder` at the end; raises UserError."""
    folder = Path(os.path.abspath(folder))
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file; give a folder to write the model into")
    if not folder.is_dir() or not any(folder.iterdir()):
        with new_folder(folder) as aside:
            yield aside
        return
    new = folder / f".{os.getpid()}.new"
    with new_folder(new) as aside:
        yield aside
    _take_places(new, folder)


def _take_places(new: Path, folder: Path) -> None:
    """Moves all files of `new` into `folder`, and removes weights there that are not of them."""
    made = {path.name for path in new.iterdir()}
    try:
        old = [path for path in folder.iterdir() if WEIGHTS.fullmatch(path.name)]
        for name in sorted(made):
            os.replace(new / name, folder / name)
        for path in old:
            if path.name not in made:
                path.unlink()
        new.rmdir()
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror or error}); what was to be written is in "
            f"{new} and there"
        ) from error
