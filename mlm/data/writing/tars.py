"""The tars of one split of one language, as they are written."""

import hashlib
import os
import tarfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import webdataset

from mlm.data.index import Totals, ids_check, shard_name
from mlm.data.writing.journal import Added, Journal, Shard
from mlm.tokenizer.ids import EOS

SAMPLE_IDS = 1 << 18  # of int32: 1 MiB
SHARD_SAMPLES = 255  # with their headers just below 256 MiB
WRITE = 1 << 20  # bytes at a time: tarfile writes 10 kB, and calls of the system cost more
OWNER = {"mtime": 0, "user": "polymlm", "group": "polymlm", "mode": 0o644}  # equal bytes each time


@dataclass(frozen=True)
class Ids:
    """Tokenized documents, one behind another, each ended by `</s>`.

    first: the number of the document that the batch of text began with; added: what comes to the
    totals of the split
    """

    ids: np.ndarray  # (tokens,) int32
    first: int
    added: Added


class TokenTars:
    """Cuts a stream of token ids into samples of 1 MiB, and writes them into tars of 256 MiB.

    A context: what is left over is written at its end. Then `shards` and `samples` are rows for
    the index, where shards count from 0 in this split. Tars that the journal has are kept: of the
    documents from `start` on, which are to be added again, the ids that lie in them are left out.
    """

    def __init__(self, folder: Path, language: str, split: str, journal: Journal) -> None:
        self._folder, self._language, self._split = folder, language, split
        self._journal = journal
        self.start, self._added = journal.start, journal.added
        self.shards = [shard.row for shard in journal.shards]
        self.samples = [row for shard in journal.shards for row in shard.samples]
        self._closed = sum(row[1] for row in self.shards)  # tokens in whole tars
        self._left_out = self._closed - self._added.tokens
        self._waiting: list[np.ndarray] = []
        self._waiting_ids = 0
        self._before = self.start, self._added  # the batch that is being added
        self._file: _Hashed | None = None
        # Tokens, documents' ends and hashes of the samples of the open tar.
        self._written: list[tuple[int, int, int]] = []

    def __enter__(self) -> "TokenTars":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            if self._file is not None:
                self._file.give_up()
        elif not self._journal.done:
            if self._waiting_ids:
                self._write(np.concatenate(self._waiting))
            self._close()
            self._journal.end(self._added)

    @property
    def done(self) -> bool:
        """Whether nothing is left to be added."""
        return self._journal.done

    @property
    def added(self) -> Added:
        """What was added so far, here and before a restart."""
        return self._added

    @property
    def totals(self) -> Totals:
        """What was added, and in how many samples and tars."""
        return Totals(
            bytes=self._added.bytes,
            characters=self._added.characters,
            documents=self._added.documents,
            tokens=self._added.tokens,
            samples=len(self.samples),
            shards=len(self.shards),
        )

    def add(self, batch: Ids) -> None:
        """Adds documents."""
        self._before = max(batch.first, self.start), self._added
        self._added += batch.added
        ids = batch.ids[self._left_out :]
        self._left_out -= len(batch.ids) - len(ids)
        self._waiting.append(ids)
        self._waiting_ids += len(ids)
        if self._waiting_ids >= SAMPLE_IDS:
            joined = np.concatenate(self._waiting)
            whole = len(joined) // SAMPLE_IDS * SAMPLE_IDS
            for first in range(0, whole, SAMPLE_IDS):
                self._write(joined[first : first + SAMPLE_IDS])
            self._waiting, self._waiting_ids = [joined[whole:]], len(joined) - whole

    def _write(self, ids: np.ndarray) -> None:
        if self._file is None:
            name = shard_name(self._language, self._split, len(self.shards))
            self._file = _Hashed(self._folder / name)
            self._writer = webdataset.TarWriter(self._file, **OWNER)
        number = len(self.samples) + len(self._written)
        mark = "" if self._split == "train" else f"{self._split}-"
        ids = ids.astype("<i4", copy=False)
        self._writer.write({"__key__": f"{self._language}-{mark}{number:08d}", "npy": ids})
        self._written.append((len(ids), int(np.count_nonzero(ids == EOS)), ids_check(ids)))
        if len(self._written) == SHARD_SAMPLES:
            self._close()

    def _close(self) -> None:
        """Ends the open tar, and looks up where in it the ids have come to lie."""
        if self._file is None:
            return
        self._writer.close()
        path, sha256 = self._file.path, self._file.sha256
        self._file.close()
        self._file = None
        rows = []
        for (tokens, _, check), offset in zip(self._written, _offsets(path), strict=True):
            rows.append((len(self.shards), offset, tokens, self._closed, check))
            self._closed += tokens
        tokens, documents = (sum(column) for column in list(zip(*self._written, strict=True))[:2])
        shard = Shard((path.stat().st_size, tokens, documents, sha256.digest()), rows)
        self._journal.shard(shard, *self._before)
        self.shards.append(shard.row)
        self.samples += rows
        self._written = []


class _Hashed:
    """A new file that is hashed while it is written, and is on the disk once it is closed."""

    def __init__(self, path: Path) -> None:
        self.path, self.sha256 = path, hashlib.sha256()
        self._file: IO[bytes] = path.open("wb", buffering=WRITE)
        self._given_up = False

    def write(self, data: bytes) -> int:
        if self._given_up:  # tarfile writes a last time when it is collected
            return len(data)
        self.sha256.update(data)
        return self._file.write(data)

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def give_up(self) -> None:
        self._given_up = True
        with suppress(OSError):  # a disk that is full is full at the end, too
            self._file.close()


def _offsets(path: Path) -> list[int]:
    """The byte at which the ids of each member of a tar begin."""
    offsets = []
    with tarfile.open(path, "r:") as tar:
        for member in tar:
            file = tar.extractfile(member)
            np.lib.format.read_magic(file)
            np.lib.format.read_array_header_1_0(file)
            offsets.append(member.offset_data + file.tell())
    return offsets
