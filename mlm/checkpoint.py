"""Checkpoints: the canonical state under layout-free names, whole or not at all.

`checkpoints/step-00001000/` holds what torch.distributed.checkpoint wrote (fp32 master weights
under `weight/<name>`, the moments under `exp_avg/<name>` and `exp_avg_sq/<name>`; the names are
the published ones) and `checkpoint.json`: step, config, data phase, tracker id, and the sha256 of
every file. It is written aside and renamed, so a folder of that name is a whole checkpoint.
"""

import errno
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as ShardedAlong

from mlm.errors import DataError, UserError
from parallel.engine import Engine
from parallel.sharding import shard_of
from parallel.state import KINDS, read_state, write_state

FORMAT = 1
FULL = 1 << 20  # free bytes below which a disk counts as full
FOLDER, MANIFEST = "checkpoints", "checkpoint.json"


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself, beside its tensors."""

    step: int
    samples: int  # sequences that were trained on: the data phase
    index: str  # hash of the index of the shards that they came from
    config: dict[str, Any]
    tracker_id: str | None = None


def save(engine: Engine, run: Path, manifest: Manifest, keep: int) -> Path:
    """Writes a checkpoint and deletes all but the newest `keep`; a collective.

    Raises `UserError` on every rank where it cannot be written; what was there before stays.
    """
    final = run / FOLDER / f"step-{manifest.step:08d}"
    aside = final.with_name(final.name + ".partial")
    error = None
    try:
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
    except OSError as caught:
        error = caught
    if not _failed(error):
        try:
            dcp.save(_state(engine), storage_writer=dcp.FileSystemWriter(aside))
            if dist.get_rank() == 0:
                _write_manifest(aside, manifest)
                shutil.rmtree(final, ignore_errors=True)
                aside.rename(final)
        except (OSError, dcp.api.CheckpointException) as caught:
            error = _cause(caught, run)
    if _failed(error):
        if dist.get_rank() == 0:
            shutil.rmtree(aside, ignore_errors=True)
        dist.barrier()  # what follows on other ranks may need the space
        raise UserError(
            f"the checkpoint of step {manifest.step} could not be written to {final} "
            f"({_reason(error)}); free space, and start the run again: it goes on from "
            f"{newest(run) or 'its first step'}"
        )
    if dist.get_rank() == 0:
        for old in all_checkpoints(run)[:-keep]:
            shutil.rmtree(old)
    return final


def restore(engine: Engine, folder: Path) -> Manifest:
    """Puts the state of a checkpoint into an engine of any layout; a collective."""
    manifest = read_manifest(folder)
    state = _state(engine)
    dcp.load(state, storage_reader=dcp.FileSystemReader(folder))
    states: dict[str, dict[str, Tensor]] = {}
    for label, tensor in state.items():
        kind, name = label.split("/", 1)
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        states.setdefault(name, {})[kind] = local
    write_state(engine, states, manifest.step)
    return manifest


def open_weights(folder: Path) -> tuple[dict[str, tuple[int, ...]], Callable[[str], Tensor]]:
    """The shapes of a checkpoint's weights by name, and a function that reads one of them, whole
    and in fp32, on this process alone; it raises `DataError`."""
    prefix = "weight/"
    reader = dcp.FileSystemReader(folder)
    found = reader.read_metadata().state_dict_metadata
    shapes = {
        label.removeprefix(prefix): tuple(item.size)  # pyright: ignore
        for label, item in found.items()
        if label.startswith(prefix)
    }

    def read(name: str) -> Tensor:
        state: dict[str, Any] = {prefix + name: torch.empty(shapes[name])}
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.distributed is disabled")  # as asked
                dcp.load(state, storage_reader=reader, no_dist=True)
        except (OSError, dcp.api.CheckpointException) as error:
            raise DataError(
                f"{folder} cannot be read ({str(error).splitlines()[0]}); choose another checkpoint"
            ) from error
        return state[prefix + name]

    return shapes, read


def all_checkpoints(run: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    found = (run / FOLDER).glob(f"step-*/{MANIFEST}")
    return sorted(path.parent for path in found if not path.parent.name.endswith(".partial"))


def newest(run: Path) -> Path | None:
    """The checkpoint that a run goes on from; None where there is none."""
    found = all_checkpoints(run)
    return found[-1] if found else None


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest; raises `DataError` where it is not one."""
    try:
        values = json.loads((folder / MANIFEST).read_text("utf-8"))
        if values["format"] == FORMAT:
            return Manifest(**{k: v for k, v in values.items() if k not in ("format", "files")})
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(
        f"{folder / MANIFEST} is not the manifest of a checkpoint of format {FORMAT}; choose "
        f"another checkpoint, or delete this one to go on from the one before"
    )


def verify(folder: Path) -> None:
    """Raises `DataError` naming the first file that is not what the manifest says."""
    read_manifest(folder)
    files = json.loads((folder / MANIFEST).read_text("utf-8"))["files"]
    for name, expected in files.items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else None
        if size != expected["bytes"] or _sha256(path) != expected["sha256"]:
            what = "missing" if size is None else "damaged"
            raise DataError(
                f"{path} is {what}: it is not what {MANIFEST} says; delete {folder} to go on from "
                f"the checkpoint before"
            )


def _state(engine: Engine) -> dict[str, Any]:
    """This rank's part of the canonical state, labelled `<kind>/<name>`."""
    group = engine.grid.tp
    mesh = None if group is None else DeviceMesh.from_group(group, engine.device.type)
    state: dict[str, Any] = {}
    for name, parameter, tensors in read_state(engine):
        shard = shard_of(parameter)
        for kind in KINDS:
            tensor = tensors[kind].contiguous()
            if shard is not None:
                assert mesh is not None
                placement = [ShardedAlong(shard.dim)]
                tensor = DTensor.from_local(tensor, mesh, placement, run_check=False)
            state[f"{kind}/{name}"] = tensor
    return state


def _failed(error: BaseException | None) -> bool:
    """Whether any rank has an error; a collective."""
    found: list[bool] = [False] * dist.get_world_size()
    dist.all_gather_object(found, error is not None)
    return any(found)


def _cause(error: BaseException, run: Path) -> BaseException:
    """The operating system's error behind a checkpoint that was not written, if it is one."""
    causes = [error]
    if isinstance(error, dcp.api.CheckpointException):
        causes = [item[0] for item in error.failures.values()]
    found = next((cause for cause in causes if isinstance(cause, OSError)), None)
    # On a full disk torch's writer only sees that a file is shorter than what it wrote.
    if found is None and shutil.disk_usage(run).free < FULL:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return found or causes[0]


def _reason(error: BaseException | None) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return "see the ranks' logs" if error is None else str(error).splitlines()[0]


def _write_manifest(folder: Path, manifest: Manifest) -> None:
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
        for path in sorted(folder.iterdir())
    }
    values = {"format": FORMAT, **asdict(manifest), "files": files}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump(values, file, indent=1)
        file.flush()
        os.fsync(file.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
