"""Text to ids, a batch of documents at a time, read and tokenized ahead of who takes them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from mlm.data.heldout import FirstPass
from mlm.data.index import SPLITS
from mlm.data.journal import Added
from mlm.data.prefetch import Prefetcher
from mlm.data.tars import Ids
from mlm.text.documents import BadLines, documents
from mlm.text.sources import Text
from mlm.text.tokenizer import Tokenizer

BATCH_CHARACTERS = 1 << 20  # that are tokenized in one call
AHEAD = 2  # batches that are read, and tokenized, before they are asked for


@dataclass
class Part:
    """Documents of a batch that belong to one split."""

    lines: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)  # lines of each document
    bytes: int = 0
    characters: int = 0


@dataclass
class Batch:
    """Documents from the one with number `first` on. size: bytes of those that are in no part"""

    first: int
    parts: tuple[Part, Part] = field(default_factory=lambda: (Part(), Part()))
    size: int = 0


class Work:
    """The documents of a language that are to be tokenized, split.

    Those before `starts[split]` are passed over in that split. `documents` are all that were read.
    """

    def __init__(
        self, text: Text, found: FirstPass, starts: list[int], skip_bad_lines: bool = False
    ) -> None:
        self._text, self._found, self._starts = text, found, starts
        self._bad = BadLines() if skip_bad_lines else None
        self.documents = 0

    def batches(self) -> Iterator[Batch]:
        """Some documents at a time, since sentencepiece is fast on many lines in one call."""
        held, repeated = iter(self._found.held.tolist()), iter(self._found.repeated.tolist())
        next_held, next_repeated = next(held, -1), next(repeated, -1)
        by_paragraph = self._found.rule.paragraphs
        batch, characters = Batch(0), 0
        for number, document in enumerate(documents(self._text, self._bad)):
            split: tuple[list[str], list[str]] = (document, [])
            if number == next_held:
                next_held = next(held, -1)
                split = ([], document)
            if number == next_repeated:
                next_repeated = next(repeated, -1)
                split = ([], [])
                batch.size += _bytes(document)
            elif by_paragraph:
                split = self._found.rule.split(document)
            for lines, part, start in zip(split, batch.parts, self._starts, strict=True):
                if lines and number >= start:
                    part.lines += lines
                    part.lengths.append(len(lines))
                elif lines:
                    batch.size += _bytes(lines)
            characters += sum(map(len, document))
            self.documents = number + 1
            if characters >= BATCH_CHARACTERS:
                yield _counted(batch)
                batch, characters = Batch(number + 1), 0
        yield _counted(batch)


def tokenized(
    work: Work, tokenizer: Tokenizer, threads: Callable[[], int]
) -> Iterator[tuple[int, list[Ids]]]:
    """Batches as bytes of text and the ids of each split.

    `threads()` says how many sentencepiece may use. Once there is more than one, reading and
    tokenizing go on in the background while the last batch is used.
    """
    batches = work.batches()

    def ids_of(batch: Batch) -> tuple[int, list[Ids]]:
        size = batch.size + sum(part.bytes for part in batch.parts)
        return size, encoded(batch, tokenizer, threads())

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
        joined = []
        for length in part.lengths:
            joined += arrays[first : first + length]
            joined.append(end)
            first += length
        ids = np.concatenate(joined) if joined else np.empty(0, np.int32)
        made.append(_without_empty(batch.first, part, ids, tokenizer.eos))
    assert len(made) == len(SPLITS)
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
            lines = part.lines[lasts[number] - part.lengths[number] : lasts[number]]
            size += _bytes(lines)
            characters += sum(map(len, lines))
    added = Added(
        bytes=part.bytes - size,
        characters=part.characters - characters,
        documents=len(part.lengths) - len(empty),
        tokens=len(ids),
        empty_documents=len(empty),
        empty_characters=characters,
    )
    return Ids(ids, first, added)


def _counted(batch: Batch) -> Batch:
    for part in batch.parts:
        text = "".join(part.lines)
        part.characters, part.bytes = len(text), len(text.encode())
    return batch


def _bytes(lines: list[str]) -> int:
    return len("".join(lines).encode())
