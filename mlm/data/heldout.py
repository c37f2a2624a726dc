"""Which text is held out of training, decided by nothing but the text itself.

About 1 % of a language's documents: those whose hash falls below a hundredth of its range, or the
one with the smallest where none does. Where there are fewer than 20 different documents, the same
of paragraphs, at least one and at most a tenth of them. Text that occurs twice is on one side.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np

from mlm.errors import DataError
from mlm.text.corpus import documents
from mlm.text.hashing import HASH_BITS, text_hash

PURPOSE = "heldout"
THRESHOLD = (1 << HASH_BITS) // 100
FEW_DOCUMENTS = 20


@dataclass(frozen=True)
class HeldOut:
    """The rule of one language: texts of this unit whose hash is at most `cutoff` are held out.

    size: bytes of the language's text, both parts together
    """

    paragraphs: bool  # the unit: paragraphs where this is true, else documents
    cutoff: int
    size: int

    def split(self, document: list[str]) -> tuple[list[str], list[str]]:
        """The paragraphs of `document` that are trained on, and those that are held out."""
        if not self.paragraphs:
            held = text_hash(document, PURPOSE) <= self.cutoff
            return ([], document) if held else (document, [])
        parts: tuple[list[str], list[str]] = ([], [])
        for paragraph in document:
            parts[text_hash([paragraph], PURPOSE) <= self.cutoff].append(paragraph)
        return parts


def held_out(language: str, path: Path, report: Callable[[int], None]) -> HeldOut:
    """The rule for a language's file. Raises DataError where all of it is one paragraph.

    `report(0)` is called at every document, and may raise to end this early.
    """
    size, few, smallest = 0, set(), 1 << HASH_BITS
    for document in documents(path):
        report(0)
        size += sum(len(paragraph.encode()) for paragraph in document)
        hashed = text_hash(document, PURPOSE)
        smallest = min(smallest, hashed)
        if len(few) < FEW_DOCUMENTS:
            few.add(hashed)
    if len(few) == FEW_DOCUMENTS:
        return HeldOut(paragraphs=False, cutoff=max(smallest, THRESHOLD - 1), size=size)
    hashes = _different(text_hash([one], PURPOSE) for one in chain.from_iterable(documents(path)))
    if len(hashes) < 2:
        raise DataError(
            f"the language {language} ({path}) has {len(hashes)} different paragraphs, and one to "
            f"train on and one to hold out are needed; add text to the file or remove it"
        )
    below = int(np.searchsorted(hashes, np.uint64(THRESHOLD)))
    count = min(max(below, 1), max(len(hashes) // 10, 1))
    return HeldOut(paragraphs=True, cutoff=int(hashes[count - 1]), size=size)


def _different(hashes: Iterable[int]) -> np.ndarray:
    """Sorted, each once; uint64, so that a large file's fit in memory."""
    return np.unique(np.fromiter(hashes, dtype=np.uint64))
