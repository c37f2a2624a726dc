"""A bounded folder of samples that the processes of a machine share.

`<root>/<index>/samples/<sample>` is a sample, whole or not there; `<root>/<index>/locks/` has the
locks under which one process fetches it; `<root>/bytes` is about what all below `root` takes, and
its lock is that of taking more. A sample is used when its file's time says so; the oldest go first.
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
BLOCK = 4096  # bytes, of which a file takes a whole number
ENTRY = 64  # bytes that a file's name takes in its folder, or so
FULL = 0.9  # of the limit, that stays when room is made
USED_AGAIN = 60  # seconds after which a use is noted anew


class SampleCache:
    """The samples of one index in it. Threads and processes may use the same at once."""

    def __init__(self, root: Path, index: str, limit: int) -> None:
        """limit: bytes that all below `root`, of every index, may take"""
        self.root, self.limit = root, limit
        self._samples, self._locks = root / index / SAMPLES, root / index / LOCKS

    def path(self, sample: int) -> Path:
        return self._samples / str(sample)

    def lock(self, sample: int) -> AbstractContextManager[IO[str]]:
        """A context in which no other process or thread fetches this sample."""
        return self._locked(self._locks / f"{sample % LOCK_FILES:02x}")

    def used(self, sample: int) -> None:
        """Notes that a sample is in use, unless that was noted just now."""
        with suppress(FileNotFoundError):  # deleted since; a map of it goes on
            if time.time() - self.path(sample).stat().st_mtime > USED_AGAIN:
                os.utime(self.path(sample))

    def put(self, sample: int, content: bytes) -> None:
        """Writes a sample; the caller holds its lock. Raises UserError where it has no room."""
        part = self.path(sample).with_suffix(f".{os.getpid()}-{get_ident()}")
        with told(self.root):
            self._samples.mkdir(parents=True, exist_ok=True)
            self._make_room(on_disk(len(content)) + ENTRY)
            try:
                part.write_bytes(content)
                part.replace(self.path(sample))
            except BaseException:
                part.unlink(missing_ok=True)
                raise

    def drop(self, sample: int) -> None:
        """Deletes a sample."""
        with told(self.root):
            self.path(sample).unlink(missing_ok=True)

    def _make_room(self, wanted: int) -> None:
        """Counts `wanted` bytes as taken, and deletes the oldest samples if they do not fit."""
        with self._locked(self.root / BYTES) as file:
            text = file.read(32)
            taken = int(text) if text.isdigit() else None
            if taken is None or taken + wanted > self.limit:
                taken = self._delete(wanted)
            file.seek(0)
            file.write(f"{taken + wanted}")
            file.truncate()

    def _delete(self, wanted: int) -> int:
        """Counts what is taken, and deletes the oldest samples until `wanted` bytes fit well."""
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
                f"no room for a sample beside them; give it more, or delete the folders of indexes "
                f"that are not used any more"
            )
        return taken

    @contextmanager
    def _locked(self, path: Path) -> Iterator[IO[str]]:
        with told(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            file = path.open("r+")
        with file:
            with told(self.root):
                lock(file)
            yield file


def held_in(folder: Path) -> int:
    """Bytes on the disk of all below a folder, counted file by file."""
    return sum(bytes for _, bytes, _ in _walk(folder))


def on_disk(size: int) -> int:
    """The bytes that a file of a size takes."""
    return -(-size // BLOCK) * BLOCK


@contextmanager
def told(root: Path) -> Iterator[None]:
    """Raises UserError, in one sentence, for what the disk of the cache refuses."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the cache {root} cannot be written ({error.strerror}); free space there, or give "
            f"another folder as data.cache"
        ) from None


def _walk(top: Path) -> Iterator[tuple[int, int, str]]:
    """Time of use, bytes on the disk and path of all below a folder, and of the folder."""
    waiting = [str(top)]
    while waiting:
        folder = waiting.pop()
        with suppress(FileNotFoundError):  # deleted as we look
            found = os.stat(folder)
            yield found.st_mtime_ns, found.st_blocks * 512, folder
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
                        continue
                    with suppress(FileNotFoundError):
                        stat = entry.stat(follow_symlinks=False)
                        yield stat.st_mtime_ns, on_disk(stat.st_size), entry.path
