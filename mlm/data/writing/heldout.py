"""The first pass over a language's text: what is held out of training, and what occurs twice.

About 1 % of the documents are held out, chosen by their text alone: those whose hash falls below a
hundredth of its range, or the one with the smallest hash where none does. With fewer than 20
different documents, paragraphs are chosen in the same way, at least one and at most a tenth of
them. Text that occurs twice is always in one split.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import xxhash

from mlm.errors import DataError
from mlm.text.documents import check_text, documents
from mlm.text.hashing import HASH_BITS, bytes_hash, text_hash
from mlm.text.lines import Skipped
from mlm.text.sources import Sources, name_sources
from mlm.text.streams import is_remote

PURPOSE = "heldout"
THRESHOLD = (1 << HASH_BITS) // 100
FEW_DOCUMENTS = 20
REPORTED = 1 << 20  # characters between two reports of progress


@dataclass(frozen=True)
class HeldOutRule:
    """The rule of one language: units of text whose hash is at most `cutoff` are held out."""

    paragraphs: bool  # whether the unit is a paragraph; else it is a document
    cutoff: int

    def holds(self, text: bytes) -> bool:
        """Whether a unit of text, with a line end after each paragraph, is held out."""
        return bytes_hash(text, PURPOSE) <= self.cutoff

    def split(self, document: list[str]) -> tuple[list[str], list[str]]:
        """The paragraphs of `document` that are trained on, and those that are held out."""
        assert self.paragraphs, "documents are held out as a whole"
        splits: tuple[list[str], list[str]] = ([], [])
        for paragraph in document:
            splits[text_hash([paragraph], PURPOSE) <= self.cutoff].append(paragraph)
        return splits


@dataclass(frozen=True)
class FirstPass:
    """What is known of a language's text before any of it is tokenized.

    repeated: the numbers of documents that occurred before, (repeated documents,) int64, ascending,
    counted from 0 as they are read; empty unless they were searched for
    characters: approximately
    digest: of all documents in order, where only this shows that a second reading is the same; else
    0
    """

    rule: HeldOutRule
    repeated: np.ndarray
    characters: int
    digest: int = 0


def first_pass(
    language: str,
    text: Sources,
    report: Callable[[int], None],
    find_repeated: bool = False,
    skip_bad_lines: bool = False,
) -> FirstPass:
    """Reads all of a language's text. Raises DataError where all of it is one paragraph.

    `report(characters)` is called from time to time, and may raise to stop the pass.
    """
    remote = any(is_remote(source.place) for source in text)
    read_all, count = find_repeated or remote, _Count(report)
    few: set[int] = set()
    smallest, digests, digest = 1 << HASH_BITS, bytearray(), xxhash.xxh3_64()
    for document in documents(text, Skipped(skip_bad_lines)):
        count.add(sum(map(len, document)) if read_all else 0)
        raw = joined(document).encode()
        hashed = bytes_hash(raw, PURPOSE)
        smallest = min(smallest, hashed)
        if len(few) < FEW_DOCUMENTS:
            few.add(hashed)
        if remote:
            digest.update(raw)
        if find_repeated:
            digests += xxhash.xxh3_128_digest(raw)
        if not read_all and len(few) == FEW_DOCUMENTS and smallest < THRESHOLD:
            break  # the documents that follow cannot change the rule
    for characters in () if read_all else check_text(text, Skipped(skip_bad_lines)):
        count.add(characters)
    if len(few) == FEW_DOCUMENTS:
        rule = HeldOutRule(paragraphs=False, cutoff=max(smallest, THRESHOLD - 1))
    else:
        rule = _paragraph_rule(language, text, skip_bad_lines)
    return FirstPass(
        rule, _repeated(digests), count.characters, digest.intdigest() if remote else 0
    )


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


def joined(document: list[str]) -> str:
    """A document as it is hashed, with a line end after each paragraph."""
    return "\n".join(document) + "\n"


def _paragraph_rule(language: str, text: Sources, skip_bad_lines: bool) -> HeldOutRule:
    read = documents(text, Skipped(skip_bad_lines))
    paragraphs = (text_hash([paragraph], PURPOSE) for paragraph in chain.from_iterable(read))
    # As an array of uint64, the hashes of a large file fit in memory.
    hashes = np.unique(np.fromiter(paragraphs, dtype=np.uint64))
    if len(hashes) < 2:
        raise DataError(
            f"the language {language} ({name_sources(text)}) has {len(hashes)} different "
            f"paragraphs, and one to train on and one to hold out are needed; "
            f"add text to the file or remove it"
        )
    below = int(np.searchsorted(hashes, np.uint64(THRESHOLD)))
    count = min(max(below, 1), max(len(hashes) // 10, 1))
    return HeldOutRule(paragraphs=True, cutoff=int(hashes[count - 1]))


def _repeated(digests: bytearray) -> np.ndarray:
    """The indices of 128-bit hashes that occurred before, ascending."""
    low, high = np.frombuffer(digests, "<u8").reshape(-1, 2).T
    order = np.lexsort((low, high))  # stable, so the first of equal hashes stays first
    low, high = low[order], high[order]
    equal = (low[1:] == low[:-1]) & (high[1:] == high[:-1])
    return np.sort(order[1:][equal])
