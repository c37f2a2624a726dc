"""The first pass over a language's text: what may be held out, and what occurs twice."""

import heapq
from array import array
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xxhash

from mlm.data.writing.heldout import (
    MOST,
    PURPOSE,
    LanguageText,
    Paragraphs,
    Units,
    hash_cutoff,
    joined,
)
from mlm.text.documents import documents
from mlm.text.hashing import HASH_BITS, bytes_hash, text_hash
from mlm.text.lines import Skipped
from mlm.text.sources import Sources
from mlm.text.streams import is_remote

REPORTED = 1 << 20  # characters between two reports of progress
MANY = 1 << 20  # units, after which those are dropped whose hashes are too large to be chosen


@dataclass(frozen=True)
class FirstPass:
    """What is known of a language's text before any of it is tokenized.

    repeated: the numbers of documents that occurred before, (repeated documents,) int64, ascending,
    counted from 0 as they are read; empty unless they were searched for
    text: of the documents that are not repeated
    characters: of all documents, without line ends
    digest: of all documents in order, where only this shows that a second reading is the same; else
    0
    """

    text: LanguageText
    repeated: np.ndarray
    characters: int
    digest: int = 0


def first_pass(
    language: str,
    text: Sources,
    report: Callable[[int], None],
    share: float,
    find_repeated: bool = False,
    skip_bad_lines: bool = False,
) -> FirstPass:
    """Reads all of a language's text; share: the part of it to hold out.

    `report(characters)` is called from time to time, and may raise to stop the pass.
    """
    remote = any(is_remote(source.place) for source in text)
    count, lengths, hashes = _Count(report), _Lengths(share, find_repeated), _Hashes(share)
    digests, digest = bytearray(), xxhash.xxh3_64()
    for document in documents(text, Skipped(skip_bad_lines)):
        characters, raw = sum(map(len, document)), joined(document).encode()
        count.add(characters)
        lengths.add(characters)
        hashes.add(bytes_hash(raw, PURPOSE), characters)
        if remote:
            digest.update(raw)
        if find_repeated:
            digests += xxhash.xxh3_128_digest(raw)
    repeated = _repeated(digests)
    characters, long = lengths.without(repeated, count.characters)
    by_paragraph = 0 < share < 1 and 2 * long >= characters
    parts = _paragraphs(text, share, repeated, skip_bad_lines, report) if by_paragraph else None
    known = LanguageText(
        language,
        characters,
        Units.of(*hashes.arrays()[:2], once=find_repeated),
        None if parts is None else Paragraphs(*parts.arrays()),
        hashes.complete and (parts is None or parts.complete),
    )
    return FirstPass(known, repeated, count.characters, digest.intdigest() if remote else 0)


def _paragraphs(
    text: Sources,
    share: float,
    repeated: np.ndarray,
    skip_bad_lines: bool,
    report: Callable[[int], None],
) -> "_Hashes":
    hashes, without = _Hashes(share), set(repeated.tolist())
    for number, document in enumerate(documents(text, Skipped(skip_bad_lines))):
        report(0)  # it may ask to stop
        if number not in without:
            of_document = bytes_hash(joined(document).encode(), PURPOSE)
            for paragraph in document:
                hashes.add(text_hash([paragraph], PURPOSE), len(paragraph), of_document)
    return hashes


class _Count:
    """Counts characters, and reports many at a time."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.characters = self._reported = 0
        self._report = report

    def add(self, characters: int) -> None:
        self.characters += characters
        new = self.characters - self._reported
        new = new if new >= REPORTED else 0
        self._reported += new
        self._report(new)  # also 0, since the report may ask to stop


class _Lengths:
    """The lengths of documents: of all, or of the longest, as many as can exceed a language's
    limit."""

    def __init__(self, share: float, all: bool) -> None:
        self._share, self._all = share, all
        self._most = min(int(1 / (MOST * share)) + 1, MANY) if share else 1
        self._lengths, self._longest = array("Q"), list[int]()  # one of them is used

    def add(self, characters: int) -> None:
        if self._all:
            self._lengths.append(characters)
        elif len(self._longest) < self._most:
            heapq.heappush(self._longest, characters)
        elif characters > self._longest[0]:
            heapq.heapreplace(self._longest, characters)

    def without(self, repeated: np.ndarray, total: int) -> tuple[int, int]:
        """The characters of documents that are not `repeated`, and of those above the limit.

        total: the characters of all documents
        """
        lengths = np.array(self._longest, np.int64)
        if self._all:
            lengths = np.delete(np.array(self._lengths, np.int64), repeated)
            total = int(lengths.sum())
        return total, int(lengths[lengths > MOST * self._share * total].sum())


class _Hashes:
    """Hash, length and document of units; of many, those with a hash that may be chosen."""

    def __init__(self, share: float) -> None:
        self.complete, self._largest = True, (1 << HASH_BITS) - 1
        # Units past four times the share are chosen where there are few in all.
        self._chosen = min(4 * max(hash_cutoff(share), 0), self._largest)
        self._columns = array("Q"), array("Q"), array("Q")

    def add(self, hashed: int, characters: int, document: int = 0) -> None:
        if hashed > self._largest:
            return
        for column, value in zip(self._columns, (hashed, characters, document), strict=True):
            column.append(value)
        if len(self._columns[0]) == MANY and self._largest > self._chosen:
            self.complete, self._largest = False, self._chosen
            hashes, *_ = arrays = self.arrays()
            kept = hashes <= np.uint64(self._chosen)
            self._columns = tuple(array("Q", each[kept].tobytes()) for each in arrays)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        hashes, characters, documents = (
            np.array(np.frombuffer(column, np.uint64)) for column in self._columns
        )
        return hashes, characters.astype(np.int64), documents


def _repeated(digests: bytearray) -> np.ndarray:
    """The indices of 128-bit hashes that occurred before, ascending."""
    low, high = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable, so the first of equal hashes stays first
    low, high = low[order], high[order]
    equal = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return np.sort(order[1:][equal])
