"""A bounded folder of samples that the processes of a machine share.

`<root>/<index>/samples/<sample>` is a sample, which is whole if it exists; under the locks in
`<root>/<index>/locks/` one process fetches it. `<root>/bytes` holds approximately the bytes of all
files below `root`, and whoever adds to them holds its lock. A file's time is when the sample was
last used, and the least recently used are deleted first.
"""

import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from threading import get_ident
from typing import IO

from mlm.errors import UserError
from mlm.files.locks import lock

SAMPLES, LOCKS, BYTES = "samples", "locks", "bytes"
LOCK_FILES = 256
BLOCK = 4096  # bytes; a file takes a whole number of blocks
ENTRY = 64  # bytes that a file's name takes in its folder, approximately
FULL = 0.9  # share of the limit that remains in use after samples were deleted
USED_AGAIN = 60  # seconds after which another use of a sample is recorded


class SampleCache:
    """The samples of one index in the cache. Threads and processes may share a cache."""

    def __init__(self, root: Path, index: str, limit: int) -> None:
        """limit: bytes that all files below `root`, of every index, may take"""
        self.root, self.limit = root, limit
        self._samples, self._locks = root / index / SAMPLES, root / index / LOCKS

    def path(self, sample: int) -> Path:
        return self._samples / str(sample)

    def lock(self, sample: int) -> AbstractContextManager[IO[str]]:
        """A context in which no other process or thread fetches this sample."""
        return self._locked(self._locks / f"{sample % LOCK_FILES:02x}")

    def used(self, sample: int) -> None:
        """Records a use of a sample, unless one was recorded just now."""
        with suppress(FileNotFoundError):  # deleted since; maps of it stay valid
            if time.time() - self.path(sample).stat().st_mtime > USED_AGAIN:
                os.utime(self.path(sample))

    def put(self, sample: int, content: bytes) -> None:
        """Writes a sample; the caller holds its lock. Raises UserError where there is no room."""
        part = self.path(sample).with_suffix(f".{os.getpid()}-{get_ident()}")
        with cache_errors(self.root):
            self._samples.mkdir(parents=True, exist_ok=True)
            self._make_room(disk_bytes(len(content)) + ENTRY)
            try:
                part.write_bytes(content)
                part.replace(self.path(sample))
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def drop(self, sample: int) -> None:
        """Deletes a sample."""
        with cache_errors(self.root):
            self.path(sample).unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Counts `wanted` bytes as taken, and first deletes old samples if they do not fit."""
        with self._locked(self.root / BYTES) as file:
            text = file.read(32)
            taken = int(text) if text.isdigit() else None
            if taken is None or taken + wanted > self.limit:
                taken = self._delete(wanted)
            file.seek(0)
            file.write(f"{taken + wanted}")
            file.truncate()

    def _delete(self, wanted: int) -> int:
        """Deletes the least recently used samples if `wanted` bytes do not fit, until they fit
        easily; returns the bytes that are then taken, counted file by file."""
        rows = sorted(_walk(self.root))
        taken = sum(bytes for _, bytes, _ in rows)
        if taken + wanted <= self.limit:
            return taken
        for _, bytes, path in rows:
            if taken + wanted <= FULL * self.limit:
                break
            if os.path.basename(os.path.dirname(path)) == SAMPLES:
                with suppress(FileNotFoundError):
                    os.unlink(path)
                taken -= bytes
        if taken + wanted > self.limit:
            raise UserError(
                f"the cache {self.root} holds {taken:,} bytes of indexes, and data.cache_gb leaves "
                f"no room for a sample besides; increase it, or delete the folders of indexes that "
                f"are no longer used"
            )
        return taken

    @contextmanager
    def _locked(self, path: Path) -> Iterator[IO[str]]:
        with cache_errors(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            file = path.open("r+")
        with file:
            with cache_errors(self.root):
                lock(file)
            yield file


def bytes_below(folder: Path) -> int:
    """The bytes on disk of a folder and everything below it, counted file by file."""
    return sum(bytes for _, bytes, _ in _walk(folder))


def disk_bytes(size: int) -> int:
    """The bytes on disk of a file of `size` bytes."""
    return -(-size // BLOCK) * BLOCK


@contextmanager
def cache_errors(root: Path) -> Iterator[None]:
    """Raises UserError for every OSError inside."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {root} cannot be written ({error.strerror}); free space there, or give "
            f"another folder as data.cache"
        ) from None


def _walk(top: Path) -> Iterator[tuple[int, int, str]]:
    """Modification time (ns), bytes on disk and path of a folder and of everything below it."""
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        with suppress(FileNotFoundError):  # deleted meanwhile
            found = os.stat(folder)
            yield found.st_mtime_ns, found.st_blocks * 512, folder
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        yield stat.st_mtime_ns, disk_bytes(stat.st_size), entry.path
