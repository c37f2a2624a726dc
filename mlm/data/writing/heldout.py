"""The first look at a language's text: what is held out of training, and what occurs twice.

Held out is about 1 % of the documents, decided by nothing but the text itself: those whose hash
falls below a hundredth of its range, or the one with the smallest where none does. Where there are
fewer than 20 different documents, the same of paragraphs, at least one and at most a tenth of them.
Text that occurs twice is on one side.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import xxhash

from mlm.errors import DataError
from mlm.text.documents import check, documents
from mlm.text.hashing import HASH_BITS, bytes_hash, text_hash
from mlm.text.lines import BadLines
from mlm.text.sources import Text, shown
from mlm.text.streams import is_remote

PURPOSE = "heldout"
THRESHOLD = (1 << HASH_BITS) // 100
FEW_DOCUMENTS = 20
TOLD = 1 << 20  # characters that are reported at once


@dataclass(frozen=True)
class HeldOut:
    """The rule of one language: texts of this unit whose hash is at most `cutoff` are held out."""

    paragraphs: bool  # the unit: paragraphs where this is true, else documents
    cutoff: int

    def holds(self, text: bytes) -> bool:
        """Whether a text of the unit, with a line end behind each paragraph, is held out."""
        return bytes_hash(text, PURPOSE) <= self.cutoff

    def split(self, document: list[str]) -> tuple[list[str], list[str]]:
        """The paragraphs of `document` that are trained on, and those that are held out."""
        assert self.paragraphs, "documents are held out as a whole"
        parts: tuple[list[str], list[str]] = ([], [])
        for paragraph in document:
            parts[text_hash([paragraph], PURPOSE) <= self.cutoff].append(paragraph)
        return parts


@dataclass(frozen=True)
class FirstPass:
    """What is known of a language's text before any of it is tokenized.

    repeated: numbers of documents that occurred before, counted from 0 as they are read, where they
    are looked for, (repeated documents,) int64, sorted; characters: about; digest: of all documents
    in order, where nothing else tells whether a second reading gives the same, else 0
    """

    rule: HeldOut
    repeated: np.ndarray
    characters: int
    digest: int = 0


def first_pass(
    language: str,
    text: Text,
    report: Callable[[int], None],
    find_repeated: bool = False,
    skip_bad_lines: bool = False,
) -> FirstPass:
    """Reads all of a language's text. Raises DataError where all of it is one paragraph.

    `report(characters)` is called now and then, and may raise to end this early.
    """
    bad = BadLines() if skip_bad_lines else None
    remote = any(is_remote(source.place) for source in text)
    every, count = find_repeated or remote, _Count(report)
    few: set[int] = set()
    smallest, digests, digest = 1 << HASH_BITS, bytearray(), xxhash.xxh3_64()
    for document in documents(text, bad):
        count.add(sum(map(len, document)) if every else 0)
        raw = joined(document).encode()
        hashed = bytes_hash(raw, PURPOSE)
        smallest = min(smallest, hashed)
        if len(few) < FEW_DOCUMENTS:
            few.add(hashed)
        if remote:
            digest.update(raw)
        if find_repeated:
            digests += xxhash.xxh3_128_digest(raw)
        if not every and len(few) == FEW_DOCUMENTS and smallest < THRESHOLD:
            break  # whatever comes, these two decide
    for part in () if every else check(text, BadLines() if skip_bad_lines else None):
        count.add(part)
    if len(few) == FEW_DOCUMENTS:
        rule = HeldOut(paragraphs=False, cutoff=max(smallest, THRESHOLD - 1))
    else:
        rule = _of_paragraphs(language, text, skip_bad_lines)
    seen = digest.intdigest() if remote else 0
    return FirstPass(rule, _repeated(digests), count.characters, seen)


class _Count:
    """Characters, which are reported some at a time."""

    def __init__(self, report: Callable[[int], None]) -> None:
        self.characters = self._told = 0
        self._report = report

    def add(self, characters: int) -> None:
        self.characters += characters
        news = self.characters - self._told
        news = news if news >= TOLD else 0
        self._told += news
        self._report(news)


def joined(document: list[str]) -> str:
    """A document as it is hashed, with a line end behind each paragraph."""
    return "\n".join(document) + "\n"


def _of_paragraphs(language: str, text: Text, skip_bad_lines: bool) -> HeldOut:
    read = documents(text, BadLines() if skip_bad_lines else None)
    hashes = _different(text_hash([one], PURPOSE) for one in chain.from_iterable(read))
    if len(hashes) < 2:
        raise DataError(
            f"the language {language} ({shown(text)}) has {len(hashes)} different paragraphs, and "
            f"one to train on and one to hold out are needed; add text to the file or remove it"
        )
    below = int(np.searchsorted(hashes, np.uint64(THRESHOLD)))
    count = min(max(below, 1), max(len(hashes) // 10, 1))
    return HeldOut(paragraphs=True, cutoff=int(hashes[count - 1]))


def _different(hashes: Iterable[int]) -> np.ndarray:
    """Sorted, each once; uint64, so that a large file's fit in memory."""
    return np.unique(np.fromiter(hashes, dtype=np.uint64))


def _repeated(digests: bytearray) -> np.ndarray:
    """The numbers of 128-bit hashes that occurred before, sorted."""
    low, high = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable: of equal ones the first stays first
    low, high = low[order], high[order]
    again = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return np.sort(order[1:][again])
