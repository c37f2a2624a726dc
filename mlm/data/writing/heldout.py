"""Which text of a corpus is held out of training: about a given share of each language's text.

Text is held out in units: documents, or paragraphs in a language most of whose text is in documents
that are longer than its share. The choice is by hash: a unit is held out if its hash is in that
part of the range of hashes, in every language alike. Where this gives a language less than half of
its share, the units with the next hashes are added; where it gives more than one and a half, or one
unit is longer than that, those with the largest hashes are removed. All languages follow all of
these exceptions, so that text that several languages have is on one side in all of them.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np

from mlm.errors import DataError
from mlm.text.hashing import HASH_BITS, bytes_hash, text_hash

PURPOSE = "heldout"
MOST = 1.5  # times its share that a language may hold out
LEAST = 0.5


def hash_cutoff(share: float) -> int:
    """The largest hash of the units that are held out where a language has no exceptions."""
    return round(share * (1 << HASH_BITS)) - 1


def joined(document: list[str]) -> str:
    """A document as it is hashed, with a line end after each paragraph."""
    return "\n".join(document) + "\n"


@dataclass(frozen=True)
class Units:
    """Different units of text, by ascending hash.

    hashes: (units,) uint64; characters: of all occurrences of each, (units,) int64
    """

    hashes: np.ndarray
    characters: np.ndarray

    @staticmethod
    def of(hashes: np.ndarray, characters: np.ndarray, once: bool = False) -> "Units":
        """hashes, characters: of each occurrence, in any order; once: only one of them counts"""
        different, first, where = np.unique(hashes, return_index=True, return_inverse=True)
        if once:
            return Units(different, characters[first])
        counts = np.zeros(len(different), np.int64)
        np.add.at(counts, where, characters)
        return Units(different, counts)


@dataclass(frozen=True)
class Paragraphs:
    """Paragraphs in the order of the text.

    hashes: (paragraphs,) uint64; characters: (paragraphs,) int64; documents: the hash of the
    document of each, (paragraphs,) uint64
    """

    hashes: np.ndarray
    characters: np.ndarray
    documents: np.ndarray


@dataclass(frozen=True)
class LanguageText:
    """What the choice knows of a language.

    paragraphs: None where its units are documents
    complete: whether these are all; of very many, there are those that may be chosen
    """

    name: str
    characters: int
    documents: Units
    paragraphs: Paragraphs | None
    complete: bool = True


@dataclass(frozen=True)
class HeldOutRule:
    """What of a language is held out.

    cutoff: units with a hash up to this one are held out, unless they are `removed`
    added: hashes of units that are held out, too
    divided: hashes of documents that are divided into paragraphs; `paragraphs`: all are
    """

    cutoff: int
    added: frozenset[int] = frozenset()
    removed: frozenset[int] = frozenset()
    divided: frozenset[int] = frozenset()
    paragraphs: bool = False

    def facts(self) -> list:
        """For JSON."""
        exceptions = (sorted(each) for each in (self.added, self.removed, self.divided))
        return [self.cutoff, *exceptions, self.paragraphs]

    def of(self, text: LanguageText) -> "HeldOutRule":
        """The same rule for a language, without the exceptions that do not occur in it."""
        rule = replace(self, paragraphs=text.paragraphs is not None)
        if not text.complete:
            return rule
        units = set(text.documents.hashes.tolist())
        rule = replace(rule, divided=self.divided & units)
        if text.paragraphs is not None:
            units.update(text.paragraphs.hashes.tolist())
        elif rule.divided:
            return rule  # any paragraph may be in these documents
        return replace(rule, added=self.added & units, removed=self.removed & units)

    def holds(self, hashed: int) -> bool:
        """Whether the unit with this hash is held out."""
        return (hashed <= self.cutoff and hashed not in self.removed) or hashed in self.added

    def split(self, document: list[str], raw: bytes) -> tuple[list[str], list[str]]:
        """The paragraphs of a document that are trained on, and those that are held out.

        raw: the document as `joined`, in UTF-8
        """
        hashed = bytes_hash(raw, PURPOSE)
        if self.holds(hashed):
            return [], document
        if not self.paragraphs and hashed not in self.divided:
            return document, []
        splits: tuple[list[str], list[str]] = ([], [])
        for paragraph in document:
            splits[self.holds(text_hash([paragraph], PURPOSE))].append(paragraph)
        return splits


def choose(texts: Iterable[LanguageText], share: float) -> dict[str, HeldOutRule]:
    """The rule of each language; share: of its text, from 0 to 1 (all of it).

    Raises DataError for a language that is one paragraph.
    """
    ordered = sorted(texts, key=lambda text: (text.characters, text.name))
    if share in (0, 1):
        return {text.name: HeldOutRule(hash_cutoff(share)) for text in ordered}
    removed: set[int] = set()
    while True:
        choice = _Choice(max(hash_cutoff(share), 0), share, set(removed))
        for text in ordered:
            choice.add(text)
        for text in ordered:  # again: a later language may have added a paragraph of theirs
            choice.divide(text)
        if choice.removed <= removed:
            break
        removed |= choice.removed  # a language chosen before may have counted on some of them
    rule = HeldOutRule(
        choice.cutoff,
        frozenset(choice.added),
        frozenset(choice.removed),
        frozenset(choice.divided),
    )
    return {text.name: rule.of(text) for text in ordered}


@dataclass
class _Choice:
    """The exceptions, language after language, the smallest first."""

    cutoff: int
    share: float
    removed: set[int]
    added: set[int] = field(default_factory=set)
    divided: set[int] = field(default_factory=set)

    def add(self, text: LanguageText) -> None:
        wanted, parts = self.share * text.characters, text.paragraphs
        total = self._remove_what_exceeds(text.documents, 0, wanted)
        if parts is None:
            self._add_what_lacks(text.documents, total, wanted)
            return
        rest = self._divisible(text, parts)
        paragraphs = Units.of(parts.hashes[rest], parts.characters[rest])
        total = self._remove_what_exceeds(paragraphs, total, wanted)
        total = self._add_what_lacks(paragraphs, total, wanted)
        if not total:
            self._add_one(text, paragraphs)
        self.divide(text)

    def divide(self, text: LanguageText) -> None:
        """Has all languages divide the documents of which this one holds out a paragraph."""
        if (parts := text.paragraphs) is not None:
            held = self._divisible(text, parts) & self._held(parts.hashes)
            self.divided.update(parts.documents[held].tolist())

    def _divisible(self, text: LanguageText, parts: Paragraphs) -> np.ndarray:
        """Which paragraphs are not in a document that is held out as a whole, as booleans."""
        documents = text.documents.hashes
        return ~np.isin(parts.documents, documents[self._held(documents)])

    def _remove_what_exceeds(self, units: Units, total: int, wanted: float) -> int:
        """Adds the units that are held out by now to `total`, which is returned."""
        held = self._held(units.hashes)
        hashes, characters = units.hashes[held], units.characters[held]
        if total + characters.sum() <= MOST * wanted:
            return total + int(characters.sum())
        for hashed, size in zip(hashes.tolist(), characters.tolist(), strict=True):
            if total + size <= MOST * wanted:
                total += size
            else:
                self.removed.add(hashed)
                self.added.discard(hashed)
        return total

    def _add_what_lacks(self, units: Units, total: int, wanted: float) -> int:
        if total >= LEAST * wanted:
            return total
        for hashed, size in zip(units.hashes.tolist(), units.characters.tolist(), strict=True):
            if total >= wanted:
                break
            known = hashed <= self.cutoff or hashed in self.added or hashed in self.removed
            if not known and hashed not in self.divided and total + size <= MOST * wanted:
                self.added.add(hashed)
                total += size
        return total

    def _add_one(self, text: LanguageText, paragraphs: Units) -> None:
        """Of a language whose paragraphs are all longer than its share."""
        hashes, characters = paragraphs.hashes, paragraphs.characters
        if len(hashes) < 2:
            raise DataError(
                f"the language {text.name} has {len(hashes)} different paragraphs, and one to "
                f"train on and one to hold out are needed; add text to it, remove it, or hold "
                f"nothing out (heldout=0)"
            )
        short = np.flatnonzero(characters <= text.characters // 10)
        hashed = int(hashes[short[0] if len(short) else np.argmin(characters)])
        self.removed.discard(hashed)
        self.added.add(hashed)

    def _held(self, hashes: np.ndarray) -> np.ndarray:
        """Which units are held out by now, as booleans."""
        held = hashes <= np.uint64(self.cutoff)
        held &= ~np.isin(hashes, _array(self.removed))
        return held | np.isin(hashes, _array(self.added))


def _array(hashes: set[int]) -> np.ndarray:
    return np.array(sorted(hashes), np.uint64)
