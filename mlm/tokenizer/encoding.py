"""Texts to ids as transformers does it, and where in its text each id stands.

The ids are sentencepiece's. Their places are found when they are asked for, by rules that give
what transformers' XLMRobertaTokenizer gives: the blank before a word belongs to no id, a `▁` that
is an id of its own shares the first character of the word behind it, and where several characters
were made one (a letter and its accent), only the first counts.
"""

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import chain
from multiprocessing import parent_process
from typing import Any

import numpy as np

from mlm.tokenizer.ids import SPACE, UNK
from mlm.tokenizer.tokenizer import Tokenizer

MASK = "<mask>"
SPECIAL = re.compile("<s>|<pad>|</s>|<unk>|<mask>")
# What `<mask>` takes with it when it stands before it: Unicode's white space.
BLANKS = "\t\n\v\f\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000" + "".join(
    map(chr, range(0x2000, 0x200B))
)
CHARACTERS_PER_THREAD = 8192  # a thread for fewer takes longer to start than it saves


@dataclass
class Parts:
    """Texts cut at special tokens, or at the words that they are given in.

    strings: what sentencepiece is given, for all texts; "" for a special token
    counts: how many of them each text has; none: one each
    starts: at which character of its text (of its word) each begins; empty: all at 0
    words: the word that each belongs to; empty: words are counted by their blanks
    special: those that are special tokens, by their place: the id, the number of characters
    """

    strings: list[str]
    counts: list[int] | None = None
    starts: list[int] = field(default_factory=list)
    words: list[int] = field(default_factory=list)
    special: dict[int, tuple[int, int]] = field(default_factory=dict)


class Encoded:
    """The ids of several texts, found when they are asked for.

    count: of the texts
    plain: whether each text is one string for sentencepiece
    """

    def __init__(self, tokenizer: Tokenizer, parts: Parts) -> None:
        self._tokenizer, self._parts = tokenizer, parts
        self.plain = parts.counts is None
        self.count = len(parts.strings if self.plain else parts.counts)

    def closed(self, arrays: bool) -> list[Any]:
        """The ids of plain texts with `<s>` before and `</s>` behind each, as lists or as arrays,
        made by sentencepiece itself and so with no work beside its own."""
        return self._asked(partial(self._tokenizer.closed, arrays=arrays))

    @property
    def ids(self) -> np.ndarray:
        """int32 (ids of all texts,)"""
        return self._found[0]

    @cached_property
    def bounds(self) -> np.ndarray:
        """int64 (count + 1,): text i has ids[bounds[i] : bounds[i + 1]]."""
        ends = _ends(self._counts)
        return ends if self.plain else ends[_ends(np.array(self._parts.counts, np.int64))]

    @property
    def _counts(self) -> np.ndarray:
        """How many ids each part has."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        found = self._asked(self._tokenizer.encode)
        counts = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.concatenate(found) if found else np.empty(0, np.int32)
        if special := self._parts.special:
            places = list(special)
            before = (np.cumsum(counts) - counts)[places]
            ids = np.insert(ids, before, [id for id, _ in special.values()])
            counts[places] = 1
        return ids, counts

    def _asked(self, encode: Callable[..., Any]) -> Any:
        """What sentencepiece makes of the parts; raises ValueError for what is no text."""
        strings = self._parts.strings
        try:
            return encode(strings, threads=_threads(strings))
        except (RuntimeError, TypeError):  # which of them, depends on how many texts there are
            _check_characters(strings)
            raise

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """Of each id: its first character in its text (of a text in words: in its word), and the
        one behind its last."""
        starts, ends, _ = self._places
        return list(zip(starts.tolist(), ends.tolist(), strict=True))

    @cached_property
    def words(self) -> list[int]:
        """Of each id: the word of its text, counted from 0; a special token is one of its own."""
        if self._parts.words:
            return np.repeat(self._parts.words, self._counts).tolist()
        words = _ends(self._places[2])
        before = words[self.bounds[:-1]]
        return (words[1:] - 1 - np.repeat(before, np.diff(self.bounds))).tolist()

    @cached_property
    def tokens(self) -> list[str]:
        """Of each id: its piece, or for `<unk>` the characters that it stands for."""
        found = list(map(self._tokenizer.vocabulary.__getitem__, self.ids.tolist()))
        for place, surface in self._unknown.items():
            found[place] = surface
        return found

    @cached_property
    def _first(self) -> np.ndarray:
        """The place of each part's first id."""
        return np.cumsum(self._counts) - self._counts

    @cached_property
    def _unknown(self) -> dict[int, str]:
        """What each `<unk>` in a part stands for, by the place of its id."""
        unknown = np.flatnonzero(self.ids == UNK)
        parts = np.searchsorted(self._first, unknown, side="right") - 1
        found, current, surfaces = {}, -1, []
        for place, part in zip(unknown.tolist(), parts.tolist(), strict=True):
            if part in self._parts.special:
                continue
            if part != current:
                current, surfaces = part, self._tokenizer.surfaces(self._parts.strings[part])
            found[place] = surfaces[place - int(self._first[part])]
        return found

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each id: its first character, the one behind its last, whether it begins a word."""
        lines = self._parts.strings
        normal = [self._tokenizer.normalised(line) for line in lines]
        # As sentencepiece gives them, the places of a part's characters end with one entry more.
        text = np.frombuffer("".join(f"{each}\0" for each, _ in normal).encode("utf-32-le"), "<u4")
        at = np.fromiter(chain.from_iterable(place for _, place in normal), np.int64, len(text))
        closing = np.cumsum([len(place) for _, place in normal], dtype=np.int64) - 1
        first = np.append(-1, closing)[:-1] + 1
        starts, ends = _characters(at, first, closing)

        part = np.repeat(np.arange(len(lines)), self._counts)
        lengths = self._lengths()
        if not np.array_equal(np.bincount(part, lengths, len(lines)), closing - first):
            raise ValueError(
                f"the sentencepiece model {self._tokenizer.model_path} has pieces that are no part "
                f"of the text, such as bytes, and offsets are not served for it; ask for ids only"
            )
        begin = np.cumsum(lengths) - lengths + part  # in `text`, an entry more for each part
        spaced = text[begin] == ord(SPACE)
        last = begin + lengths - 1
        begin = np.minimum(begin + spaced, closing[part] - (lengths > 0))
        starts, ends = starts[begin], ends[np.maximum(begin, last)]
        if self._parts.starts:
            moved = np.asarray(self._parts.starts)[part]
            starts, ends = starts + moved, ends + moved
        for place, (_, width) in self._parts.special.items():
            id = self._first[place]
            spaced[id], starts[id] = True, self._parts.starts[place]
            ends[id] = starts[id] + width
        return starts, ends, spaced

    def _lengths(self) -> np.ndarray:
        """Characters of the normalised text that each id stands for."""
        found = self._tokenizer.piece_lengths[self.ids]
        for place, surface in self._unknown.items():
            found[place] = len(surface)
        found[self._first[list(self._parts.special)]] = 0
        return found


def _ends(sizes: np.ndarray) -> np.ndarray:
    """Where things of these sizes end when they are put one behind another, from 0 on."""
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def encode(tokenizer: Tokenizer, texts: list[str]) -> Encoded:
    """The ids of texts. What is written like a special token is one, and the parts of a text
    between them are tokenized each by itself. Raises ValueError for what is no text."""
    if any("<" in text and SPECIAL.search(text) for text in _checked(texts)):
        return _encode_parts(tokenizer, [[text] for text in texts], in_words=False)
    return Encoded(tokenizer, Parts(texts))


def encode_words(tokenizer: Tokenizer, texts: Sequence[Sequence[str]]) -> Encoded:
    """The ids of texts that are split into words, each of which is tokenized by itself."""
    for words in texts:
        _checked(words)
    return _encode_parts(tokenizer, texts, in_words=True)


def _encode_parts(tokenizer: Tokenizer, texts: Sequence[Sequence[str]], in_words: bool) -> Encoded:
    parts = Parts([], counts=[])
    for words in texts:
        before = len(parts.strings)
        for number, word in enumerate(words):
            for start, string, token in _cut(word):
                if token:
                    parts.special[len(parts.strings)] = tokenizer.special[token], len(string)
                parts.strings.append("" if token else string)
                parts.starts.append(start)
                if in_words:
                    parts.words.append(number)
        parts.counts.append(len(parts.strings) - before)
    return Encoded(tokenizer, parts)


def _check_characters(texts: Sequence[str]) -> None:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"a text holds {error.object[error.start]!r}, which is no character of Unicode; read "
            f"it as UTF-8"
        ) from None


def _cut(text: str) -> Iterator[tuple[int, str, str]]:
    """The parts of a text: where each starts, its characters, and the token that it is or ""."""
    place = 0
    for found in SPECIAL.finditer(text):
        token, start = found[0], found.start()
        before = text[place:start]
        if token == MASK:
            before = before.rstrip(BLANKS)
        if before:
            yield place, before, ""
        place += len(before)
        yield place, text[place : found.end()], token
        place = found.end()
    if place < len(text):
        yield place, text[place:], ""


def _checked(texts: Sequence[str]) -> Sequence[str]:
    for text in texts:
        if not isinstance(text, str):
            raise ValueError(
                f"{text!r:.80} is a {type(text).__name__} and not a text; give a string, a list of "
                f"them, or with is_split_into_words=True lists of words"
            )
    return texts


def _characters(
    at: np.ndarray, first: np.ndarray, closing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The character of its text that each of the normalised text comes from, as start and end.

    at: where the characters that each was made of start; those made together start together
    first, closing: of each part, its first entry and the one behind its last character
    """
    opens = np.append(True, at[1:] != at[:-1])
    opens[first] = opens[closing] = True
    opens[np.minimum(first + 1, closing)] = True  # the blank put before a part is nobody's
    groups = np.flatnonzero(opens)
    group = np.cumsum(opens) - 1
    width = np.append(at[groups], at[-1])[group + 1] - at
    starts = at + np.clip(np.arange(len(at)) - groups[group], 0, np.maximum(width - 1, 0))
    return starts, starts + (width > 0)


def _threads(strings: Sequence[str]) -> int:
    """How many threads a batch is worth; one in a worker process, of which there are several."""
    if parent_process() is not None:
        return 1
    work = sum(map(len, strings)) // CHARACTERS_PER_THREAD
    return max(1, min(len(os.sched_getaffinity(0)), work, len(strings)))
