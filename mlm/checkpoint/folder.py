"""The folders of checkpoints: names, manifests, checksums."""

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mlm.errors import DataError
from mlm.files.hashes import sha256
from mlm.weights import stored
from mlm.weights.source import Weights

FORMAT = 1
FOLDER, MANIFEST = "checkpoints", "checkpoint.json"
WHOLE = re.compile(r"step-\d{8,}")
# Suffixes of folders that are not checkpoints: one being written, deleted, or found damaged.
PARTIAL, GONE, DAMAGED = ".partial", ".gone.partial", ".damaged"


@dataclass(frozen=True)
class Imported:
    """What an import keeps of its source beside the weights.

    head: the name of the model's class; config: the values of config.json
    dtype: of most weights, `bfloat16` and the like; dtypes: of the other weights by name
    tokenizer: the hash of the tokenizer beside the checkpoints; None where there is none
    model_max_length: tokens to which it truncates a text; None where its folder has no limit
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
    """The metadata of a checkpoint.

    samples: sequences that were trained on, which is the data phase
    index: hash of the index of their shards
    imported: of an import, which has no index and no config of a run
    environment: command, host, versions and commit of the start that saved it, and its ranks' peak
        memory in bytes
    """

    step: int
    samples: int
    index: str
    config: dict[str, Any]
    tracker_id: str | None = None
    imported: Imported | None = None
    environment: dict[str, Any] = field(default_factory=dict)


def folder_of(run: Path, step: int) -> Path:
    return run / FOLDER / f"step-{step:08d}"


def all_checkpoints(run: Path) -> list[Path]:
    """The checkpoints of a run that were once whole, oldest first."""
    return [folder for folder in all_named(run) if (folder / MANIFEST).is_file()]


def all_named(run: Path) -> list[Path]:
    """All folders with the name of a checkpoint, oldest first, including those without manifest."""
    found = (path for path in (run / FOLDER).glob("step-*") if WHOLE.fullmatch(path.name))
    return sorted((path for path in found if path.is_dir()), key=step_of)


def step_of(folder: Path) -> int:
    """The step in a checkpoint's name."""
    return int(folder.name.removeprefix("step-"))


def newest(run: Path) -> Path | None:
    """The newest checkpoint of a run; None where there is none."""
    found = all_checkpoints(run)
    return found[-1] if found else None


def read_manifest(folder: Path) -> Manifest:
    """Reads a manifest; raises `DataError` where it is not one."""
    values = _values(folder)
    kept = {name: values[name] for name in values.keys() - {"format", "files"}}
    try:
        imported = kept.pop("imported", None)
        return Manifest(**kept, imported=imported and Imported(**imported))
    except TypeError:
        raise _no_manifest(folder) from None


def files_of(folder: Path) -> dict[str, tuple[int, str]]:
    """(bytes, sha256) of every file, from the manifest; raises `DataError`."""
    try:
        listed = _values(folder)["files"].items()
        return {name: (int(file["bytes"]), str(file["sha256"])) for name, file in listed}
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _no_manifest(folder) from None


def verify(folder: Path) -> None:
    """Raises `DataError` for the first file that differs from the manifest."""
    read_manifest(folder)
    if wrong := fault(folder, files_of(folder).items()):
        raise DataError(f"{wrong}; delete {folder} to resume from the checkpoint before it")


def fault(folder: Path, files: Iterable[tuple[str, tuple[int, str]]]) -> str | None:
    """What is wrong with the first of `files` that has changed since it was written; None: nothing.

    files: name and (bytes, sha256) of each
    """
    for name, (size, expected) in files:
        path = folder / name
        try:
            if path.stat().st_size == size and sha256(path) == expected:
                continue
        except FileNotFoundError:
            return f"{path} is missing, and {MANIFEST} lists it"
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        return f"{path} is damaged: it differs from {MANIFEST}"
    return None


def write_manifest(folder: Path, manifest: Manifest, files: dict[str, tuple[int, str]]) -> None:
    """Writes the manifest, after all other files, and syncs the folder. Raises OSError."""
    listed = {name: {"bytes": size, "sha256": hashed} for name, (size, hashed) in files.items()}
    with (folder / MANIFEST).open("w", encoding="utf-8") as file:
        json.dump({"format": FORMAT, **asdict(manifest), "files": listed}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def put_in_place(aside: Path, final: Path) -> None:
    """Renames a folder to its final name, and replaces one there; raises OSError."""
    remove(final)
    aside.rename(final)
    sync(final.parent)


def remove(folder: Path) -> None:
    """Deletes a checkpoint, if there is one; a half-deleted one never has its name."""
    aside = folder.with_name(folder.name + GONE)
    if folder.exists():
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
    shutil.rmtree(aside, ignore_errors=True)


def sync(folder: Path) -> None:
    """Syncs the names in a folder to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def save_import(
    weights: Weights, run: Path, imported: Imported, show: stored.Show | None = None
) -> Path:
    """Writes the checkpoint of an import in this process, one part of a weight at a time.

    run: a new folder, which the caller deletes on an error; show: as in `write_checkpoint`

    Raises OSError, and DataError for weights that cannot be read.
    """
    folder = folder_of(run, 0)
    folder.mkdir(parents=True)
    stored.write_checkpoint(weights, folder, show)
    files = {path.name: (path.stat().st_size, sha256(path)) for path in sorted(folder.iterdir())}
    write_manifest(folder, Manifest(0, 0, "", {}, imported=imported), files)
    return folder


def _values(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / MANIFEST).read_text("utf-8"))
        if values["format"] == FORMAT:
            return values
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise _no_manifest(folder)


def _no_manifest(folder: Path) -> DataError:
    return DataError(
        f"{folder / MANIFEST} is not the manifest of a checkpoint of format {FORMAT}; choose "
        f"another checkpoint, or delete this one to resume from the one before it"
    )
