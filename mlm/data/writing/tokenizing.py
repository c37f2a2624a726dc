"""Text to ids, a batch of documents at a time, read and tokenized ahead of who takes them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import xxhash

from mlm.data.prefetch import Prefetcher
from mlm.data.writing.heldout import FirstPass, joined
from mlm.data.writing.journal import Added, Read
from mlm.data.writing.tars import Ids
from mlm.text.documents import documents
from mlm.text.lines import BadLines
from mlm.text.sources import Text
from mlm.tokenizer.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # that are tokenized in one call
AHEAD = 2  # batches that are read, and tokenized, before they are asked for


@dataclass
class Part:
    """Documents of a batch that belong to one split."""

    lines: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # lines of each document
    bytes: int = 0
    characters: int = 0

    def add(self, lines: list[str], size: int, characters: int) -> None:
        self.lines += lines
        self.lengths.append(len(lines))
        self.bytes += size
        self.characters += characters


@dataclass
class Batch:
    """Documents from the one with number `first` on. characters: that were read, be they in a part
    or not"""

    first: int
    parts: tuple[Part, Part] = field(default_factory=lambda: (Part(), Part()))
    characters: int = 0


class Work:
    """The documents of a language that are to be tokenized, split.

    Those before `starts[split]` are passed over in that split. `read` counts what was read.
    """

    def __init__(
        self, text: Text, found: FirstPass, starts: list[int], skip_bad_lines: bool = False
    ) -> None:
        self._text, self._found, self._starts = text, found, starts
        self._bad = BadLines() if skip_bad_lines else None
        self.read, self.digest = Read(), xxhash.xxh3_64()  # of all documents, in order

    def batches(self) -> Iterator[Batch]:
        """Some documents at a time, since sentencepiece is fast on many lines in one call."""
        rule, read, (train_start, heldout_start) = self._found.rule, self.read, self._starts
        repeated = iter(self._found.repeated.tolist())
        next_repeated = next(repeated, -1)
        batch = Batch(0)
        for number, document in enumerate(documents(self._text, self._bad)):
            text = joined(document)
            raw = text.encode()
            characters, size = len(text) - len(document), len(raw) - len(document)
            self.digest.update(raw)
            if number == next_repeated:
                next_repeated = next(repeated, -1)
                read.repeated_documents += 1
                read.repeated_characters += characters
            elif rule.paragraphs:
                for lines, part, start in zip(
                    rule.split(document), batch.parts, self._starts, strict=True
                ):
                    if lines and number >= start:
                        part.add(lines, len("".join(lines).encode()), sum(map(len, lines)))
            elif rule.holds(raw):
                if number >= heldout_start:
                    batch.parts[1].add(document, size, characters)
            elif number >= train_start:
                batch.parts[0].add(document, size, characters)
            batch.characters += characters
            read.documents = number + 1
            if batch.characters >= BATCH_CHARACTERS:
                yield batch
                batch = Batch(number + 1)
        if self._bad is not None:
            read.bad_lines, read.bad_characters = self._bad.lines, self._bad.characters
        yield batch


def tokenized(
    work: Work, tokenizer: Tokenizer, threads: Callable[[], int]
) -> Iterator[tuple[int, list[Ids]]]:
    """Batches as characters of text and the ids of each split.

    `threads()` says how many sentencepiece may use. Once there is more than one, reading and
    tokenizing go on in the background while the last batch is used.
    """
    batches = work.batches()

    def ids_of(batch: Batch) -> tuple[int, list[Ids]]:
        return batch.characters, encoded(batch, tokenizer, threads())

    def next_ids(number: int) -> tuple[int, list[Ids]] | None:
        batch = read.next()
        return None if batch is None else ids_of(batch)

    while threads() == 1:
        batch = next(batches, None)
        if batch is None:
            return
        yield ids_of(batch)
    with (
        Prefetcher(lambda number: next(batches, None), 0, AHEAD) as read,
        Prefetcher(next_ids, 0, AHEAD) as made,
    ):
        yield from iter(made.next, None)


def encoded(batch: Batch, tokenizer: Tokenizer, threads: int) -> list[Ids]:
    """The ids of each split of a batch."""
    lines = [line for part in batch.parts for line in part.lines]
    arrays = tokenizer.encode(lines, threads)
    end = np.array([tokenizer.eos], np.int32)
    made, first = [], 0
    for part in batch.parts:
        parts = []
        for length in part.lengths:
            parts += arrays[first : first + length]
            parts.append(end)
            first += length
        ids = np.frombuffer(b"".join(parts), np.int32)
        made.append(_without_empty(batch.first, part, ids, tokenizer.eos))
    return made


def _without_empty(first: int, part: Part, ids: np.ndarray, eos: int) -> Ids:
    """Leaves out documents of nothing but `</s>`: text of invisible characters has no ids."""
    ends = np.flatnonzero(ids == eos)
    empty = np.flatnonzero(np.diff(ends, prepend=-1) == 1)
    size, characters = 0, 0
    if len(empty):
        ids = np.delete(ids, ends[empty])
        lasts = np.cumsum(part.lengths)
        for number in empty.tolist():
            text = "".join(part.lines[lasts[number] - part.lengths[number] : lasts[number]])
            size += len(text.encode())
            characters += len(text)
    added = Added(
        bytes=part.bytes - size,
        characters=part.characters - characters,
        documents=len(part.lengths) - len(empty),
        tokens=len(ids),
        empty_documents=len(empty),
        empty_characters=characters,
    )
    return Ids(ids, first, added)
