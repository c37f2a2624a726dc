"""Masking of a fixed number of positions, keyed by row.

A fixed share of the tokens of a row are targets (BERT, section 3.1): 80 % of them are replaced by
`<mask>`, 10 % by a random piece, and 10 % are kept. XLM-R's code also masks `<s>` and `</s>`, and
draws any id as a replacement; here, special ids, `<unk>` among them, are neither targets nor
replacements. Targets are
drawn as single tokens, whole words (`words.py`), or spans of geometric length (SpanBERT, section
3.1); all tokens of a word or span are treated alike.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlm.batch.micro_batch import IGNORED
from mlm.data.draw import bits
from mlm.tokenizer.ids import FIRST_PIECE

MaskedUnit = Literal["token", "word", "span"]

_NEVER = np.uint32((1 << 32) - 1)  # the score of what cannot be a target
_LOW, _HALF = np.uint64((1 << 32) - 1), np.uint64(32)
_MASKED, _REPLACED = (np.uint64(int(part * 2**32) << 32) for part in (0.8, 0.9))
_PLACES, _GROUPS = np.uint64(1 << 32), np.uint64(1 << 33)  # first counters of two further draws


@dataclass(frozen=True)
class Masking:
    """How rows are masked. `vocab_size` counts the real ids, of which `<mask>` is the last.

    schedule: (step, ratio) points after (0, `ratio`), between which the ratio is linear, and after
        which it is constant
    words: from ids (rows, seq_len) to whether a word begins at each; for kind "word"
    span_p, span_max: of the geometric distribution of span lengths, and the longest span
    room: a ratio for which rows have room, besides those of the schedule
    """

    ratio: float
    vocab_size: int
    schedule: tuple[tuple[int, float], ...] = ()
    kind: MaskedUnit = "token"
    words: Callable[[np.ndarray], np.ndarray] | None = None
    span_p: float = 0.2
    span_max: int = 10
    room: float = 0.0

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def ratio_at(self, step: int) -> float:
        """The share of a row's tokens that are targets in a step, counted from 0."""
        points = [(0, self.ratio), *self.schedule]
        steps, ratios = zip(*points, strict=True)
        return float(np.interp(step, steps, ratios))

    def max_targets(self, seq_len: int) -> int:
        """The targets that a row has room for, in all steps."""
        return max_targets(seq_len, self._max_ratio)

    @property
    def _max_ratio(self) -> float:
        return max(self.room, self.ratio, *(ratio for _, ratio in self.schedule))

    def single(self) -> "Masking":
        """The same room and first ratio with single tokens: for evaluation, so that runs are
        comparable."""
        return Masking(self.ratio, self.vocab_size, room=self._max_ratio)

    def __call__(
        self, ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray, step: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks rows of ids, each by its key alone: (masked ids, positions, targets).

        ids: (rows, seq_len) integers; lengths: (rows,), tokens before the padding; keys: (rows,)
        masked ids: as `ids`; positions: (rows, `max_targets(seq_len)`) int64, ascending, 0 where
        unused at the end of a row; targets: as positions, the original ids, -100 where unused
        A row has `ratio_at(step)` of its length as targets, rounded, and at least one. It has fewer
        where fewer can be masked, and with whole words by less than a word.
        """
        seq_len, keys = ids.shape[1], np.asarray(keys, np.uint64)[:, None]
        possible, lengths = maskable(ids, self.mask_id), np.asarray(lengths)
        if not (lengths == seq_len).all():
            possible &= np.arange(seq_len) < lengths[:, None]
        scores = np.where(possible, self._scores(ids, keys), _NEVER)
        share = np.floor(self.ratio_at(step) * lengths + 0.5).astype(np.int64)
        counts = np.maximum(1, share)
        masked_ids, width = ids.copy(), self.max_targets(seq_len)
        positions = np.zeros((len(ids), width), np.int64)
        targets = np.full(positions.shape, IGNORED, np.int64)
        flat = _equally_many(scores, counts)
        if flat is not None:
            places = flat - np.arange(0, ids.size, seq_len)[:, None]
            slots: tuple = np.s_[:, : flat.shape[1]]
        else:
            counts = np.minimum(counts, possible.sum(axis=1))
            chosen = _smallest(scores, counts, whole=self.kind == "word")
            flat, counts = np.flatnonzero(chosen), chosen.sum(axis=1)
            rows, places = np.divmod(flat, seq_len)
            slots = rows, np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
            keys = keys[rows, 0]
        found = ids.ravel()[flat]
        masked_ids.ravel()[flat] = self._replace(found, scores.ravel()[flat], places, keys)
        positions[slots], targets[slots] = places, found
        return masked_ids, positions, targets

    def _scores(self, ids: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Scores of which the smallest are targets: uint32, of the shape of `ids`, equal within a
        word or span."""
        seq_len = ids.shape[1]
        if self.kind == "span":
            return self._span_scores(bits(keys, np.arange(seq_len, dtype=np.uint64)))
        # Two scores of 32 bits from each draw of 64.
        drawn = bits(keys, np.arange(-(-seq_len // 2), dtype=np.uint64))
        scores = np.minimum(drawn.astype("<u8", copy=False).view("<u4")[:, :seq_len], _NEVER - 1)
        if self.words is None:
            return scores
        begins = np.where(self.words(ids), np.arange(seq_len), 0)
        return np.take_along_axis(scores, np.maximum.accumulate(begins, axis=1), axis=1)

    def _span_scores(self, drawn: np.ndarray) -> np.ndarray:
        """A span begins at every place; a token in several spans has the smallest of their
        scores."""
        scores = np.minimum((drawn & _LOW).astype(np.uint32), _NEVER - np.uint32(1))
        # The probability of a length above d is (1 - p)^d.
        rest = ((drawn >> _HALF).astype(np.float64) + 0.5) / 2**32
        found = scores.copy()
        for distance in range(1, min(self.span_max, drawn.shape[1])):
            longer = rest[:, :-distance] < (1 - self.span_p) ** distance
            here = np.where(longer, scores[:, :-distance], _NEVER)
            np.minimum(found[:, distance:], here, out=found[:, distance:])
        return found

    def _replace(
        self, targets: np.ndarray, scores: np.ndarray, places: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        """The ids at the masked positions: `<mask>`, a random piece, or the token itself."""
        drawn = bits(keys, places.astype(np.uint64) + _PLACES)
        fate = drawn if self.kind == "token" else bits(keys, scores.astype(np.uint64) + _GROUPS)
        pieces = np.uint64(self.vocab_size - FIRST_PIECE - 1)  # without <mask>, the last id
        # The high bits decide what happens, and the low ones which piece it is.
        random = ((drawn & _LOW) * pieces >> _HALF).astype(np.int64) + FIRST_PIECE
        return np.where(fate < _MASKED, self.mask_id, np.where(fate < _REPLACED, random, targets))


def max_targets(seq_len: int, ratio: float) -> int:
    """The number of targets in a full row: the nearest integer, and at least one."""
    return max(1, int(ratio * seq_len + 0.5))


def maskable(ids: np.ndarray, mask_id: int) -> np.ndarray:
    """Where ids can be targets: not at `<s>`, `<pad>`, `</s>`, `<unk>`, `<mask>`."""
    return (ids >= FIRST_PIECE) & (ids != mask_id)


def _equally_many(scores: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """The flat indices of the smallest scores of each row: (rows, count) int64.

    None where counts differ between rows, or a word or span would have to be cut.
    """
    count = int(counts[0])
    if (counts != count).any():
        return None
    last = np.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    flat = np.flatnonzero(scores <= last)
    if len(flat) != count * len(scores) or (last == _NEVER).any():
        return None
    return flat.reshape(len(scores), count)


def _smallest(scores: np.ndarray, counts: np.ndarray, whole: bool) -> np.ndarray:
    """Whether a score is among the `counts[i]` smallest of its row i, bool.

    Where there is no room for all scores equal to the last, as in a span, the first are taken; with
    `whole`, none of them, unless no others are.
    """
    last = _nth_smallest(scores, counts)[:, None]
    chosen = scores <= last
    chosen[counts == 0] = False
    cut = np.flatnonzero(chosen.sum(axis=1) != counts)
    if len(cut):
        below, same = scores[cut] < last[cut], scores[cut] == last[cut]
        room = (counts[cut] - below.sum(axis=1))[:, None]
        if whole:
            room[below.any(axis=1)] = 0
        chosen[cut] = below | (same & (same.cumsum(axis=1) <= room))
    return chosen


def _nth_smallest(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The `counts[i]`-th smallest score of each row i, (rows,)."""
    places = np.maximum(counts, 1) - 1
    if (places == places[0]).all():
        return np.partition(scores, places[0], axis=1)[:, places[0]]
    return np.take_along_axis(np.sort(scores, axis=1), places[:, None], axis=1)[:, 0]
