"""Writing the tars of one split of a language."""

import hashlib
import os
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from webdataset.writer import TarWriter

from mlm.data.index import Totals, ids_check, shard_name
from mlm.data.writing.journal import FinishedTar, Journal, SplitCounts
from mlm.tokenizer.ids import EOS

SAMPLE_IDS = 1 << 18  # of int32: 1 MiB
SHARD_SAMPLES = 255  # just below 256 MiB, headers included
BUFFER = 1 << 20  # bytes: tarfile writes 10 kB at a time, and system calls cost more than copies
OWNER = {"mtime": 0, "user": "polymlm", "group": "polymlm", "mode": 0o644}  # equal bytes each time


@dataclass(frozen=True)
class SplitIds:
    """The token ids of some documents of a split, one after another, each ended by `</s>`.

    ids: (tokens,) int32; first: the index, in its batch of text, of the first document; added:
    counts of these documents
    """

    ids: np.ndarray
    first: int
    added: SplitCounts


class TokenTars:
    """Cuts a stream of token ids into samples of 1 MiB, and writes them into tars of 256 MiB.

    A context: at its end, the remaining ids are written. Then `shards` and `samples` are rows for
    the index, with shards counted from 0 in this split. Tars in the journal are kept: the documents
    from `start` on are added again, and the ids of theirs that are in these tars are skipped.
    """

    def __init__(self, folder: Path, language: str, split: str, journal: Journal) -> None:
        self._folder, self._language, self._split = folder, language, split
        self._journal = journal
        self.start, self.added = journal.start, journal.added
        self.shards = [tar.row for tar in journal.tars]
        self.samples = [row for tar in journal.tars for row in tar.samples]
        self._finished_tokens = sum(row[1] for row in self.shards)
        self._ids_to_skip = self._finished_tokens - self.added.tokens
        self._waiting: list[np.ndarray] = []
        self._waiting_ids = 0
        self._resume_point = self.start, self.added  # before the batch that is being added
        self._file: _HashedFile | None = None
        self._writer: TarWriter | None = None
        # Of each sample of the open tar: its tokens, document ends and hash.
        self._written: list[tuple[int, int, int]] = []

    def __enter__(self) -> "TokenTars":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            if self._file is not None:
                self._file.abandon()
        elif not self.done:
            if self._waiting_ids:
                self._write(np.concatenate(self._waiting))
            self._close()
            self._journal.end(self.added)

    @property
    def done(self) -> bool:
        """Whether the split was finished before this command."""
        return self._journal.done

    @property
    def totals(self) -> Totals:
        """What was added, here and before a restart, and in how many samples and tars."""
        return Totals(
            bytes=self.added.bytes,
            characters=self.added.characters,
            documents=self.added.documents,
            tokens=self.added.tokens,
            samples=len(self.samples),
            shards=len(self.shards),
        )

    def add(self, batch: SplitIds) -> None:
        """Adds the documents of a batch."""
        self._resume_point = max(batch.first, self.start), self.added
        self.added += batch.added
        ids = batch.ids[self._ids_to_skip :]
        self._ids_to_skip -= len(batch.ids) - len(ids)
        self._waiting.append(ids)
        self._waiting_ids += len(ids)
        if self._waiting_ids >= SAMPLE_IDS:
            joined = np.concatenate(self._waiting)
            whole = len(joined) // SAMPLE_IDS * SAMPLE_IDS
            for first in range(0, whole, SAMPLE_IDS):
                self._write(joined[first : first + SAMPLE_IDS])
            self._waiting, self._waiting_ids = [joined[whole:]], len(joined) - whole

    def _write(self, ids: np.ndarray) -> None:
        if self._writer is None:
            name = shard_name(self._language, self._split, len(self.shards))
            self._file = _HashedFile(self._folder / name)
            self._writer = TarWriter(cast(BinaryIO, self._file), **OWNER)
        number = len(self.samples) + len(self._written)
        mark = "" if self._split == "train" else f"{self._split}-"
        ids = ids.astype("<i4", copy=False)
        self._writer.write({"__key__": f"{self._language}-{mark}{number:08d}", "npy": ids})
        self._written.append((len(ids), int(np.count_nonzero(ids == EOS)), ids_check(ids)))
        if len(self._written) == SHARD_SAMPLES:
            self._close()

    def _close(self) -> None:
        """Finishes the open tar, and records it in the journal with the offsets of its ids."""
        if self._file is None or self._writer is None:
            return
        self._writer.close()
        self._file.close()
        path, samples = self._file.path, []
        for (tokens, _, check), offset in zip(self._written, _offsets(path), strict=True):
            samples.append((len(self.shards), offset, tokens, self._finished_tokens, check))
            self._finished_tokens += tokens
        tokens, documents, _ = (sum(column) for column in zip(*self._written, strict=True))
        row = (path.stat().st_size, tokens, documents, self._file.sha256.digest())
        self._journal.add_tar(FinishedTar(row, samples), *self._resume_point)
        self.shards.append(row)
        self.samples += samples
        self._file, self._writer, self._written = None, None, []


class _HashedFile:
    """A new file that is hashed while it is written, and is on the disk once it is closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, hashlib.sha256()
        self._file: IO[bytes] = path.open("wb", buffering=BUFFER)
        self._abandoned = False

    def write(self, data: bytes) -> int:
        if self._abandoned:  # tarfile writes once more when it is garbage-collected
            return len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def abandon(self) -> None:
        self._abandoned = True
        with suppress(OSError):  # closing writes what is buffered, and the disk may be full
            self._file.close()


def _offsets(path: Path) -> list[int]:
    """The byte at which the ids of each member of a tar begin."""
    offsets = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, "every member is a file"
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            offsets.append(member.offset_data + file.tell())
    return offsets
