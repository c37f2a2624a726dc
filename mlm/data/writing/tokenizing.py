"""Text to ids, a batch of documents at a time, in the background of whoever takes the ids."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash

from mlm.data.prefetch import Prefetcher
from mlm.data.writing.first_pass import FirstPass
from mlm.data.writing.heldout import HeldOutRule, joined
from mlm.data.writing.journal import ReadCounts, SplitCounts
from mlm.data.writing.tars import SplitIds
from mlm.text.documents import documents
from mlm.text.lines import Skipped
from mlm.text.sources import Sources
from mlm.tokenizer.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # tokenized in one call
DEPTH = 2  # batches read, and batches tokenized, ahead of the one in use


@dataclass
class SplitText:
    """The documents of a batch that belong to one split. lengths: the lines of each document"""

    lines: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    bytes: int = 0
    characters: int = 0

    def add(self, lines: list[str], size: int, characters: int) -> None:
        self.lines += lines
        self.lengths.append(len(lines))
        self.bytes += size
        self.characters += characters


@dataclass
class TextBatch:
    """Documents from number `first` on. characters: all that were read, kept in a split or not"""

    first: int
    splits: tuple[SplitText, SplitText] = field(default_factory=lambda: (SplitText(), SplitText()))
    characters: int = 0


class TextBatches:
    """The documents of a language to be tokenized, by split.

    counts: of what was read so far; digest: of all documents read, in order
    """

    def __init__(
        self,
        text: Sources,
        found: FirstPass,
        rule: HeldOutRule,
        starts: list[int],
        skip_bad_lines: bool = False,
    ) -> None:
        """starts: the first document of each split that is to be tokenized"""
        self._text, self._found, self._rule, self._starts = text, found, rule, starts
        self._skipped = Skipped(skip_bad_lines)
        self.counts, self.digest = ReadCounts(), xxhash.xxh3_64()

    def __iter__(self) -> Iterator[TextBatch]:
        """Batches of many lines, since sentencepiece is fast on many in one call."""
        read = self.counts
        repeated = iter(self._found.repeated.tolist())
        next_repeated = next(repeated, -1)
        batch = TextBatch(0)
        for number, document in enumerate(documents(self._text, self._skipped)):
            text = joined(document)
            raw = text.encode()
            characters, size = len(text) - len(document), len(raw) - len(document)
            self.digest.update(raw)
            if number == next_repeated:
                next_repeated = next(repeated, -1)
                read.repeated_documents += 1
                read.repeated_characters += characters
            else:
                by_split = self._rule.split(document, raw)
                for lines, split, start in zip(by_split, batch.splits, self._starts, strict=True):
                    if lines is document and number >= start:
                        split.add(document, size, characters)
                    elif lines and number >= start:
                        split.add(lines, len("".join(lines).encode()), sum(map(len, lines)))
            batch.characters += characters
            read.documents = number + 1
            if batch.characters >= BATCH_CHARACTERS:
                yield batch
                batch = TextBatch(number + 1)
        read.bad_lines, read.bad_characters = self._skipped.lines, self._skipped.characters
        read.skipped_members = dict(sorted(self._skipped.members.items()))
        yield batch


def tokenized(
    text: TextBatches, tokenizer: Tokenizer, threads: Callable[[], int]
) -> Generator[tuple[int, list[SplitIds]], None, None]:
    """The characters of each batch of text, and the ids of its splits.

    `threads()` says how many threads sentencepiece may use. From the first time that it is more
    than one, reading and tokenization run in the background.
    """
    batches = iter(text)

    def ids_of(batch: TextBatch) -> tuple[int, list[SplitIds]]:
        return batch.characters, encoded(batch, tokenizer, threads())

    def next_ids(_: int) -> tuple[int, list[SplitIds]] | None:
        batch = read.next()
        return None if batch is None else ids_of(batch)

    while threads() == 1:
        batch = next(batches, None)
        if batch is None:
            return
        yield ids_of(batch)
    with (
        Prefetcher(lambda _: next(batches, None), 0, DEPTH) as read,
        Prefetcher(next_ids, 0, DEPTH) as ids,
    ):
        while (batch_ids := ids.next()) is not None:
            yield batch_ids


def encoded(batch: TextBatch, tokenizer: Tokenizer, threads: int) -> list[SplitIds]:
    """The ids of each split of a batch."""
    lines = [line for split in batch.splits for line in split.lines]
    arrays = tokenizer.encode(lines, threads)
    end = np.array([tokenizer.eos], np.int32)
    by_split, first = [], 0
    for split in batch.splits:
        pieces = []
        for length in split.lengths:
            pieces += arrays[first : first + length]
            pieces.append(end)
            first += length
        ids = np.frombuffer(b"".join(pieces), np.int32)
        by_split.append(_without_empty(batch.first, split, ids, tokenizer.eos))
    return by_split


def _without_empty(first: int, split: SplitText, ids: np.ndarray, eos: int) -> SplitIds:
    """Drops documents of nothing but `</s>`: text of invisible characters has no ids."""
    ends = np.flatnonzero(ids == eos)
    empty = np.flatnonzero(np.diff(ends, prepend=-1) == 1)
    size, characters = 0, 0
    if len(empty):
        ids = np.delete(ids, ends[empty])
        line_ends = np.cumsum(split.lengths)
        for number in empty.tolist():
            end = line_ends[number]
            text = "".join(split.lines[end - split.lengths[number] : end])
            size += len(text.encode())
            characters += len(text)
    added = SplitCounts(
        bytes=split.bytes - size,
        characters=split.characters - characters,
        documents=len(split.lengths) - len(empty),
        tokens=len(ids),
        empty_documents=len(empty),
        empty_characters=characters,
    )
    return SplitIds(ids, first, added)
