"""The tars of one split of one language, as they are written."""

import hashlib
import tarfile
from pathlib import Path
from typing import IO

import numpy as np
import webdataset

from mlm.data.index import Totals, ids_check, shard_name
from mlm.text.ids import EOS

SAMPLE_IDS = 1 << 18  # of int32: 1 MiB
SHARD_SAMPLES = 255  # with their headers just below 256 MiB
OWNER = {"mtime": 0, "user": "polymlm", "group": "polymlm", "mode": 0o644}  # equal bytes each time


class TokenTars:
    """Cuts a stream of token ids into samples of 1 MiB, and writes them into tars of 256 MiB.

    A context: what is left over is written at its end. Then `shards` and `samples` are rows for
    the index, where shards count from 0 in this split.
    """

    def __init__(self, folder: Path, language: str, split: str) -> None:
        self._folder, self._language, self._split = folder, language, split
        self._waiting: list[np.ndarray] = []
        self._waiting_ids = 0
        self._file: IO[bytes] | None = None
        # Tokens, documents' ends and hashes of the samples of the open tar.
        self._written: list[tuple[int, int, int]] = []
        self._bytes = self._characters = self._documents = self._tokens = 0
        self.shards: list[tuple[int, int, int, bytes]] = []
        self.samples: list[tuple[int, int, int, int, int]] = []

    def __enter__(self) -> "TokenTars":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is None:
            if self._waiting_ids:
                self._write(np.concatenate(self._waiting))
            self._close()
        elif self._file is not None:
            self._file.close()

    @property
    def totals(self) -> Totals:
        """What was added, and in how many samples and tars."""
        return Totals(
            bytes=self._bytes,
            characters=self._characters,
            documents=self._documents,
            tokens=self._tokens,
            samples=len(self.samples),
            shards=len(self.shards),
        )

    def add(self, ids: list[np.ndarray], text: list[str]) -> None:
        """Adds a document: the ids of its paragraphs, and the `</s>` that ends it."""
        self._waiting += ids
        self._waiting_ids += sum(map(len, ids))
        self._bytes += sum(len(paragraph.encode()) for paragraph in text)
        self._characters += sum(map(len, text))
        self._documents += 1
        if self._waiting_ids >= SAMPLE_IDS:
            joined = np.concatenate(self._waiting)
            whole = len(joined) // SAMPLE_IDS * SAMPLE_IDS
            for first in range(0, whole, SAMPLE_IDS):
                self._write(joined[first : first + SAMPLE_IDS])
            self._waiting, self._waiting_ids = [joined[whole:]], len(joined) - whole

    def _write(self, ids: np.ndarray) -> None:
        if self._file is None:
            name = shard_name(self._language, self._split, len(self.shards))
            self._file = (self._folder / name).open("wb")
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
        self._file.close()
        path = Path(self._file.name)
        self._file = None
        for (tokens, _, check), offset in zip(self._written, _offsets(path), strict=True):
            self.samples.append((len(self.shards), offset, tokens, self._tokens, check))
            self._tokens += tokens
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").digest()
        tokens, documents = (sum(column) for column in list(zip(*self._written, strict=True))[:2])
        row = (path.stat().st_size, tokens, documents, np.frombuffer(sha256, np.uint8))
        self.shards.append(row)
        self._written = []


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
