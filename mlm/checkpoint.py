"""Checkpoints: the canonical state under layout-free names, whole or not at all.

`checkpoints/step-00001000/` holds what torch.distributed.checkpoint wrote (fp32 master weights
under `weight/<name>`, the moments under `exp_avg/<name>` and `exp_avg_sq/<name>`; the names are
the published ones) and `checkpoint.json`: step, config, data phase, tracker id, and the sha256 of
every file. It is written aside and renamed, so a folder of that name is a whole checkpoint. One
that was imported is of step 0 and has no moments.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor import Shard as ShardedAlong

from mlm.errors import DataError, UserError
from mlm.weights import stored
from mlm.weights.source import Weights
from parallel.engine import Engine
from parallel.sharding import shard_of
from parallel.state import KINDS, read_state, write_state

FORMAT = 1
FOLDER, MANIFEST = "checkpoints", "checkpoint.json"


@dataclass(frozen=True)
class Imported:
    """What an import keeps of its source, beside the weights.

    head: the name of the model's class; config: the values of config.json
    dtype: that the weights had, `bfloat16` and the like; dtypes: of those that had another
    tokenizer: the hash of the tokenizer beside the checkpoints; None where there is none
    model_max_length: tokens to which it cuts a text; None where its folder does not say
    """

    source: str
    head: str
    config: dict[str, Any]
    dtype: str
    dtypes: dict[str, str]
    tokenizer: str | None
    model_max_length: int | None = None


@dataclass(frozen=True)
class Manifest:
    """What a checkpoint says of itself, beside its tensors."""

    step: int
    samples: int  # sequences that were trained on: the data phase
    index: str  # hash of the index of the shards that they came from
    config: dict[str, Any]
    tracker_id: str | None = None
    imported: Imported | None = None  # and then there is no index and no config of a run


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
            error = stored.cause_of(caught, run)
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


def save_import(
    weights: Weights, run: Path, imported: Imported, show: stored.Show | None = None
) -> Path:
    """Writes the checkpoint of an import, on this process alone, a part of a weight at a time.

    `run` is new and the caller's to delete; show: as in `write_weights`. Raises OSError, and
    DataError for what cannot be read.
    """
    folder = run / FOLDER / "step-00000000"
    folder.mkdir(parents=True)
    stored.write_weights(weights, folder, show)
    _write_manifest(folder, Manifest(0, 0, "", {}, imported=imported))
    return folder


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
            kept = {name: values[name] for name in values.keys() - {"format", "files"}}
            imported = kept.pop("imported", None)
            return Manifest(**kept, imported=imported and Imported(**imported))
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
