"""Ids of texts, and where in its text each id stands.

The ids are sentencepiece's. Their offsets are found when they are asked for, by rules that give
what transformers' XLMRobertaTokenizer gives: the blank before a word belongs to no id, a `▁` that
is an id of its own shares the first character of the word after it, and where several characters
were made one (a letter and its accent), only the first counts.
"""

import os
from collections.abc import Callable
from functools import cached_property, partial
from itertools import chain
from multiprocessing import parent_process
from typing import Any

import numpy as np

from mlm.tokenizer.family.segments import Segments, check_characters
from mlm.tokenizer.ids import BOS, EOS, PAD, SPACE, UNK
from mlm.tokenizer.tokenizer import Tokenizer

CHARACTERS_PER_THREAD = 8192  # a thread for fewer takes longer to start than it saves


class EncodedTexts:
    """The ids of several texts, one after another, and what is known of each id.

    count: texts that are not the pair of another; the other texts are their pairs, as many or none
    plain: whether each text is one segment
    Each list of values has three more at its end: those of `<s>`, `</s>` and `<pad>`.
    """

    def __init__(self, tokenizer: Tokenizer, segments: Segments, count: int) -> None:
        self._tokenizer, self._segments, self.count = tokenizer, segments, count
        self.plain = segments.counts is None
        texts = segments.strings if segments.counts is None else segments.counts
        self.has_pairs = len(texts) > count

    def with_ends(self, arrays: bool) -> list[Any]:
        """The ids of plain texts with `<s>` before and `</s>` after each, as lists or as arrays:
        sentencepiece adds them in its batch call, faster than they can be added afterwards."""
        return self._encoded(partial(self._tokenizer.encode_with_ends, arrays=arrays))

    @cached_property
    def bounds(self) -> list[int]:
        """Text i, pairs included, has the ids from bounds[i] to bounds[i + 1]."""
        ends, counts = _ends(self._lengths), self._segments.counts
        return (ends if counts is None else ends[_ends(counts)]).tolist()

    @cached_property
    def ids(self) -> list[int]:
        return [*self._ids.tolist(), BOS, EOS, PAD]

    @cached_property
    def special_tokens_mask(self) -> list[int]:
        return [*[0] * len(self._ids), 1, 1, 1]

    @cached_property
    def sequence_ids(self) -> list[int | None]:
        """0 for texts, 1 for their pairs."""
        first = self.bounds[self.count]
        return [*[0] * first, *[1] * (len(self._ids) - first), None, None, None]

    @cached_property
    def tokens(self) -> list[str]:
        """The piece of each id, or for `<unk>` the characters that it stands for."""
        found = list(map(self._tokenizer.vocabulary.__getitem__, self.ids))
        for index, characters in self._unknown.items():
            found[index] = characters
        return found

    @cached_property
    def offsets(self) -> list[tuple[int, int]]:
        """Of each id: its first character in its text (of a text in words: in its word), and the
        one after its last."""
        starts, ends, _ = self._places
        return [*zip(starts.tolist(), ends.tolist(), strict=True), (0, 0), (0, 0), (0, 0)]

    @cached_property
    def word_ids(self) -> list[int | None]:
        """The word of each id in its text, from 0; a special token in a text is a word."""
        if self._segments.words:
            words = np.repeat(self._segments.words, self._lengths)
        else:
            begun = _ends(self._places[2])
            words = begun[1:] - 1 - np.repeat(begun[self.bounds[:-1]], np.diff(self.bounds))
        return [*words.tolist(), None, None, None]

    @property
    def _ids(self) -> np.ndarray:
        """int32 (ids of all texts,)"""
        return self._found[0]

    @property
    def _lengths(self) -> np.ndarray:
        """int64 (segments,): the ids of each."""
        return self._found[1]

    @cached_property
    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        found = self._encoded(self._tokenizer.encode)
        lengths = np.fromiter(map(len, found), np.int64, len(found))
        ids = np.concatenate(found) if found else np.empty(0, np.int32)
        if special := self._segments.special:
            segments = list(special)
            before = (np.cumsum(lengths) - lengths)[segments]
            ids = np.insert(ids, before, [id for id, _ in special.values()])
            lengths[segments] = 1
        return ids, lengths

    def _encoded(self, encode: Callable[..., list[Any]]) -> list[Any]:
        """The ids of each segment; raises ValueError for characters that are not Unicode's."""
        strings = self._segments.strings
        try:
            return encode(strings, threads=_threads(strings))
        except (RuntimeError, TypeError):  # which of them depends on the number of texts
            check_characters(strings)
            raise

    @cached_property
    def _first(self) -> np.ndarray:
        """int64 (segments,): the index of each segment's first id."""
        return np.cumsum(self._lengths) - self._lengths

    @cached_property
    def _unknown(self) -> dict[int, str]:
        """The characters that each `<unk>` stands for, by its index."""
        unknown = np.flatnonzero(self._ids == UNK)
        segments = np.searchsorted(self._first, unknown, side="right") - 1
        found, current, surfaces = {}, -1, []
        for index, segment in zip(unknown.tolist(), segments.tolist(), strict=True):
            if segment in self._segments.special:
                continue
            if segment != current:
                string = self._segments.strings[segment]
                current, surfaces = segment, self._tokenizer.surfaces(string)
            found[index] = surfaces[index - int(self._first[segment])]
        return found

    @cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each id: its first character, the one after its last, whether it begins a word."""
        strings, special = self._segments.strings, self._segments.special
        normal = [self._tokenizer.normalised(string) for string in strings]
        # Sentencepiece gives one place more than the text has characters: that of its end.
        text = np.frombuffer("".join(f"{each}\0" for each, _ in normal).encode("utf-32-le"), "<u4")
        places = np.fromiter(chain.from_iterable(place for _, place in normal), np.int64, len(text))
        ends_at = np.cumsum([len(place) for _, place in normal], dtype=np.int64) - 1
        first = np.append(-1, ends_at)[:-1] + 1
        starts, ends = _characters(places, first, ends_at)

        segment = np.repeat(np.arange(len(strings)), self._lengths)
        widths = self._tokenizer.piece_lengths[self._ids]
        widths[list(self._unknown)] = list(map(len, self._unknown.values()))
        widths[self._first[list(special)]] = 0
        if not np.array_equal(np.bincount(segment, widths, len(strings)), ends_at - first):
            raise ValueError(
                f"the sentencepiece model {self._tokenizer.model_path} has pieces that are not "
                f"part of the text, such as bytes, so that offsets are unknown; ask for ids only"
            )
        begin = np.cumsum(widths) - widths + segment  # in `text`, with one end per segment
        spaced = text[begin] == ord(SPACE)
        last = begin + widths - 1
        begin = np.minimum(begin + spaced, ends_at[segment] - (widths > 0))
        starts, ends = starts[begin], ends[np.maximum(begin, last)]
        if self._segments.starts:
            moved = np.asarray(self._segments.starts)[segment]
            starts, ends = starts + moved, ends + moved
        for place, (_, width) in special.items():
            index = self._first[place]
            spaced[index], starts[index] = True, self._segments.starts[place]
            ends[index] = starts[index] + width
        return starts, ends, spaced


def _characters(
    places: np.ndarray, first: np.ndarray, ends_at: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The character that each of the normalised text comes from, as start and end.

    places: where the characters that each was made of start; those made together start together
    first, ends_at: of each segment, its first place and the one after its last character
    """
    opens = np.append(True, places[1:] != places[:-1])
    opens[first] = opens[ends_at] = True
    opens[np.minimum(first + 1, ends_at)] = True  # the blank put before a text is none of its own
    groups = np.flatnonzero(opens)
    group = np.cumsum(opens) - 1
    width = np.append(places[groups], places[-1])[group + 1] - places
    within = np.arange(len(places)) - groups[group]
    starts = places + np.clip(within, 0, np.maximum(width - 1, 0))
    return starts, starts + (width > 0)


def _ends(sizes: Any) -> np.ndarray:
    """Sums of the first 0, 1, 2... sizes, int64."""
    ends = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=ends[1:])
    return ends


def _threads(strings: list[str]) -> int:
    """How many threads a batch is worth; one in a worker process, of which there are several."""
    if parent_process() is not None:
        return 1
    work = sum(map(len, strings)) // CHARACTERS_PER_THREAD
    return max(1, min(len(os.sched_getaffinity(0)), work, len(strings)))
