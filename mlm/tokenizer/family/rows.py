"""The rows of a call: windows on texts, special tokens and pads, as lists or arrays of ids."""

from functools import cached_property
from typing import Any

import numpy as np

from mlm.tokenizer.encoding import Encoded
from mlm.tokenizer.family.encoding import Encoding
from mlm.tokenizer.family.shape import SIDES, Shape
from mlm.tokenizer.family.windows import Window, cut
from mlm.tokenizer.ids import BOS, EOS, PAD

Bounds = tuple[np.ndarray, np.ndarray]  # of windows: where each begins, and ends


class Rows:
    """The rows of `count` texts. What else `source` has are their pairs, as many.

    special: whether `<s>` and `</s>` are added
    shape: how rows are cut and padded; cut_side: at which end tokens are cut off
    places: whether `encodings` will be asked for; without, it is slower and all else faster
    Windows on texts are counted in the ids of all texts.
    """

    def __init__(
        self,
        source: Encoded,
        count: int,
        special: bool,
        shape: Shape,
        cut_side: str,
        places: bool,
    ) -> None:
        if cut_side not in SIDES:
            raise ValueError(f"truncation_side={cut_side!r} is not served; choose left or right")
        self.source, self.count, self.special = source, count, special
        self.shape, self.cut_side = shape, cut_side
        self.pair = source.count > count
        self.added = (4 if self.pair else 2) if special else 0
        alone = count == 1 and not (shape.overflow or shape.multiple)
        self.pads = bool(shape.padding) and not (alone and shape.padding == "longest")
        several = self.pair or shape.overflow or shape.truncation == "only_second"
        # Whether sentencepiece itself can make the rows, as it can those of single texts.
        self._closes = source.plain and special and not (several or places)

    def lists(self) -> list[list[int]]:
        """The ids of each row."""
        if self.pads:
            return self._trimmed(self.array())
        if self._closes:
            return self._closed
        ids = self.source.ids.tolist()
        texts = [
            [ids[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
            for starts, ends in self._windows[1]
        ]
        if not self.special:
            return texts[0] if not self.pair else [a + b for a, b in zip(*texts, strict=True)]
        if not self.pair:
            return [[BOS, *row, EOS] for row in texts[0]]
        return [[BOS, *a, EOS, EOS, *b, EOS] for a, b in zip(*texts, strict=True)]

    def array(self) -> np.ndarray:
        """The ids as (rows, longest row), int64; rows that are shorter end in pads."""
        width = int(self.totals.max(initial=0))
        made = np.full((len(self.totals), width), PAD, np.int64)
        if self._closes:
            made[self._real] = np.concatenate(self._closed) if len(made) else 0
            return made
        rows, at, places = np.arange(len(made)), self._left, np.arange(width)
        for place, (starts, ends) in enumerate(self._windows[1]):
            if self.special:
                made[rows, at] = EOS if place else BOS
                at = at + 1
            stop = at + ends - starts
            text = (places >= at[:, None]) & (places < stop[:, None])
            made[text] = self._ids(starts, ends)
            at = stop
            if self.special:
                made[rows, at] = EOS
                at = at + 1
        return made

    def mask(self) -> np.ndarray:
        """(rows, longest row), int64: 1 for each token, 0 for each pad."""
        return self._real.astype(np.int64)

    def masks(self, ids: list[list[int]]) -> list[list[int]]:
        """The same for the lists that `lists` made."""
        if self.pads:
            return self._trimmed(self.mask())
        return [[1] * len(row) for row in ids]

    @cached_property
    def samples(self) -> list[int]:
        """The text of each row."""
        return self._windows[0].tolist()

    @property
    def even(self) -> bool:
        """Whether all rows have one length."""
        return bool((self.totals == self.totals[:1]).all())

    @cached_property
    def totals(self) -> np.ndarray:
        """The tokens of each row, pads included."""
        width = self.shape.width(int(self._lengths.max(initial=0)))
        return np.maximum(self._lengths, width)

    def encodings(self) -> list[Encoding]:
        """Each row with all that is known of it."""
        if self._closes:  # from the texts again, since the caller has the rows and may change them
            again = self.source, self.count, self.special, self.shape, self.cut_side
            return Rows(*again, places=True).encodings()
        windows = [
            list(zip(starts.tolist(), ends.tolist(), strict=True))
            for starts, ends in self._windows[1]
        ]
        pairs = windows[1] if self.pair else [None] * len(windows[0])
        right = self.totals - self._lengths - self._left
        pads = zip(self._left.tolist(), right.tolist(), strict=True)
        rows = zip(self.samples, windows[0], pairs, pads, strict=True)
        return [
            Encoding(self.source, sample, window, pair, self.special, *pad)
            for sample, window, pair, pad in rows
        ]

    @cached_property
    def _closed(self) -> list[Any]:
        """The rows of single texts as sentencepiece gives them, cut; arrays where pads follow."""
        rows, most = self.source.closed(arrays=self.pads), self.shape.max_length
        if self.shape.truncation:
            self._room(0)
            right = self.cut_side == "right"
            for place, row in enumerate(rows):
                if len(row) > most:
                    rows[place] = cut = (row[:most] if right else row[-most:]).copy()
                    cut[-1 if right else 0] = EOS if right else BOS
        return rows

    def _room(self, least: int) -> int:
        """Tokens that a row has for its texts; raises ValueError for fewer than `least`."""
        room = self.shape.max_length - self.added
        if room < least:
            raise ValueError(
                f"max_length={self.shape.max_length} leaves no room beside {self.added} special "
                f"tokens; give at least {self.added + least}"
            )
        return room

    @cached_property
    def _windows(self) -> tuple[np.ndarray, list[Bounds]]:
        """The text of each row, and the bounds of its windows on the text and on its pair."""
        bounds, count = self.source.bounds, self.count
        windows = [(bounds[:count], bounds[1 : count + 1])]
        windows += [(bounds[count:-1], bounds[count + 1 :])] if self.pair else []
        samples = np.arange(count)
        if not self.shape.truncation:
            return samples, windows
        overflow = self.shape.overflow
        room = self._room(1 + self.pair if overflow else 0)  # windows of nothing cover nothing
        sizes = np.array([ends - starts for starts, ends in windows])
        found: dict[int, list[tuple[Window, Window | None]]] = {}
        for sample in np.flatnonzero(sizes.sum(axis=0) > room).tolist():
            lengths = sizes[:, sample].tolist()
            second = lengths[1] if self.pair else None
            shape = self.shape
            cuts = cut(lengths[0], second, room, shape.truncation, shape.stride, self.cut_side)
            found[sample] = list(cuts) if overflow else [next(cuts)]
        if not found:
            return samples, windows
        rows = np.ones(count, np.int64)
        rows[list(found)] = list(map(len, found.values()))
        each, first_row = np.repeat(samples, rows), np.cumsum(rows) - rows
        windows = [(starts[each], ends[each]) for starts, ends in windows]
        for sample, cuts in found.items():
            for row, chosen in enumerate(cuts, int(first_row[sample])):
                for (starts, ends), window in zip(windows, chosen, strict=False):
                    ends[row] = starts[row] + window[1]
                    starts[row] += window[0]
        return each, windows

    def _ids(self, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """The ids of windows, one behind another."""
        if np.array_equal(starts[1:], ends[:-1]):
            return self.source.ids[starts[0] : ends[-1]] if len(starts) else self.source.ids[:0]
        sizes = ends - starts
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return self.source.ids[np.repeat(starts, sizes) + within]

    @cached_property
    def _lengths(self) -> np.ndarray:
        """The tokens of each row without pads."""
        if self._closes:
            return np.fromiter(map(len, self._closed), np.int64, self.count)
        return sum((ends - starts for starts, ends in self._windows[1]), self.added)

    @cached_property
    def _real(self) -> np.ndarray:
        """Which places of the rows are no pads, bool (rows, longest row)."""
        places = np.arange(int(self.totals.max(initial=0)))
        real = places < (self._left + self._lengths)[:, None]
        return real & (places >= self._left[:, None]) if self.shape.side == "left" else real

    @cached_property
    def _left(self) -> np.ndarray:
        """The pads before each row."""
        return (self.totals - self._lengths) * (self.shape.side == "left")

    def _trimmed(self, array: np.ndarray) -> list[list[int]]:
        """The rows of an array as lists, each to its own length."""
        return [
            row[:total] for row, total in zip(array.tolist(), self.totals.tolist(), strict=True)
        ]
