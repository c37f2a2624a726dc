"""Saving: a checkpoint is written aside, verified and renamed, at once or in the background."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save

from mlm.checkpoint.folder import (
    PARTIAL,
    Manifest,
    all_checkpoints,
    fault,
    folder_of,
    newest,
    put_in_place,
    remove,
    step_of,
    write_manifest,
)
from mlm.checkpoint.state import pieces_to_write, tiles
from mlm.errors import UserError
from mlm.weights import stored
from mlm.weights.tiles import SaveTiles, Tile
from parallel.engine.interface import Engine, Piece

Result = TypeVar("Result")


@dataclass(frozen=True)
class Keep:
    """Which checkpoints stay: the `newest` ones, and those whose step is a multiple of `every`.

    every: 0: no further ones
    """

    newest: int
    every: int = 0


class Saver:
    """Writes the checkpoints of a run; every rank has one and makes the same calls.

    background: training continues as soon as a rank has copied its state, and the copy is written
        meanwhile. A save waits for the one before it.
    on_progress: is called repeatedly during writing
    """

    def __init__(
        self,
        engine: Engine,
        run: Path,
        keep: Keep,
        background: bool = False,
        on_progress: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine, self.run, self.keep, self.background = engine, run, keep, background
        self.on_progress = on_progress
        # A separate group, so that collectives of the thread do not meet those of training.
        self.group: Any = dist.new_group(backend="gloo")
        self.thread: Thread | None = None
        self.failed: Exception | None = None
        self.copies: dict[str, Tensor] = {}
        found = newest(run)
        self.last = None if found is None else step_of(found)  # step of the newest whole checkpoint

    def save(self, manifest: Manifest) -> None:
        """Writes a checkpoint; a collective.

        Raises `UserError` on every rank where it, or the one before it, could not be written;
        existing checkpoints stay.
        """
        self.wait()
        found = pieces_to_write(self.engine)
        if not self.background:
            self._write(list(tiles(found)), manifest)
            return
        copied = list(tiles([self._copied(piece) for piece in found]))
        self.thread = Thread(target=self._run, args=(copied, manifest), daemon=True)
        self.thread.start()

    def wait(self) -> None:
        """Waits for a save in the background; raises as `save` does if it failed."""
        if self.thread is not None:
            self.thread.join()
            self.thread = None
        if self.failed is not None:
            failed, self.failed = self.failed, None
            raise failed

    def failure(self) -> UserError | None:
        """The error of a save in the background that has failed, on which ranks must agree."""
        return self.failed if isinstance(self.failed, UserError) else None

    def _run(self, found: list[Tile], manifest: Manifest) -> None:
        try:
            self._write(found, manifest)
        except Exception as error:
            self.failed = error

    def _copied(self, piece: Piece) -> Piece:
        """A copy of a piece in memory that the next save reuses."""
        tensors = {}
        for kind, tensor in piece.tensors.items():
            label = f"{kind}/{piece.name}"
            if label not in self.copies:
                self.copies[label] = torch.empty_like(tensor, device="cpu")
            tensors[kind] = self.copies[label].copy_(tensor)
        return replace(piece, tensors=tensors)

    def _write(self, found: list[Tile], manifest: Manifest) -> None:
        final = folder_of(self.run, manifest.step)
        aside = final.with_name(final.name + PARTIAL)
        first = dist.get_rank() == 0
        try:
            self._together(lambda: _begin(aside) if first else None)
            written = self._together(lambda: self._write_files(found, aside))
            listed = {name: file for files in written for name, file in files.items()}
            self._together(lambda: _finish(aside, final, manifest, listed) if first else None)
        except _NotWritten as error:
            if first:
                shutil.rmtree(aside, ignore_errors=True)
            dist.barrier(group=self.group)  # other ranks may need the space
            raise UserError(
                f"the checkpoint of step {manifest.step} could not be written to {final} "
                f"({error}); free space, and start the run again: it resumes from "
                f"{newest(self.run) or 'its first step'}"
            ) from None
        self.last = manifest.step
        if first:
            prune(self.run, self.keep)

    def _write_files(self, found: list[Tile], aside: Path) -> dict[str, tuple[int, str]]:
        """Writes this rank's files; returns (bytes, sha256) by name.

        They are read again to verify that the disk has what was written.
        """
        writer = _Writer(aside, per_thread_copy_ahead=0)
        planner = SaveTiles(found, self.on_progress)
        save({}, storage_writer=writer, planner=planner, process_group=self.group)
        if wrong := fault(aside, writer.disk.files.items()):
            raise UserError(wrong)
        return writer.disk.files

    def _together(self, act: Callable[[], Result]) -> list[Result]:
        """The results of `act` on every rank; raises _NotWritten on all if it fails on one."""
        result, reason = None, None
        try:
            result = act()
        except (OSError, UserError, CheckpointException) as error:
            reason = _reason(stored.cause_of(error, self.run))
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, (result, reason), group=self.group)
        for _, why in found:
            if why is not None:
                raise _NotWritten(why)
        return [item for item, _ in found]


def prune(run: Path, keep: Keep) -> list[Path]:
    """Deletes all checkpoints but those that `keep` names, and returns them; on one rank."""
    old = [
        folder
        for folder in all_checkpoints(run)[: -keep.newest]
        if not (keep.every and step_of(folder) and step_of(folder) % keep.every == 0)
    ]
    for folder in old:
        remove(folder)
    return old


class _NotWritten(Exception):
    """Why a checkpoint is missing, raised on every rank."""


class _Writer(FileSystemWriter):
    """Torch's writer of files, which hashes each file while it is written."""

    def __init__(self, path: Path, **options: Any) -> None:
        super().__init__(path, **options)
        self.fs = self.disk = _Disk()


class _Disk(FileSystem):
    """files: (bytes, sha256) of each file that was written, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, tuple[int, str]] = {}

    @contextmanager
    def create_stream(self, path: str | os.PathLike, mode: str) -> Iterator[Any]:
        with super().create_stream(path, mode) as stream:
            hashed = _HashedStream(stream)
            yield hashed
        if "w" in mode:
            self.files[Path(path).name] = (hashed.size, hashed.hash.hexdigest())

    def rename(self, path: str | os.PathLike, new_path: str | os.PathLike) -> None:
        super().rename(path, new_path)
        self.files[Path(new_path).name] = self.files.pop(Path(path).name)


class _HashedStream:
    """A file that is written from start to end, with its size and hash."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.size, self.hash = stream, 0, hashlib.sha256()

    def write(self, data: Any) -> int:
        written = self.stream.write(data)
        self.hash.update(data)
        self.size += written
        return written

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _begin(aside: Path) -> None:
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)


def _finish(
    aside: Path, final: Path, manifest: Manifest, files: dict[str, tuple[int, str]]
) -> None:
    write_manifest(aside, manifest, files)
    put_in_place(aside, final)


def _reason(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return (str(error).splitlines() or [type(error).__name__])[0]
