"""Masking with a fixed number of positions, keyed by row.

Of each row a fixed part of the tokens becomes a target (BERT, section 3.1): 80 % of them show
`<mask>`, 10 % a random piece, 10 % what they are. XLM-R's code also masks `<s>` and `</s>` and
draws any id as a replacement; here no special id is a target, or a replacement. What is drawn is
single tokens, whole words (`words.py`), or spans of geometric length (SpanBERT, section 3.1); what
becomes of a word or a span is the same for all of it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mlm.batch.micro_batch import IGNORED
from mlm.data.draw import bits
from mlm.tokenizer.ids import BOS, EOS, FIRST_PIECE, PAD

Kind = Literal["token", "word", "span"]

_NEVER = np.uint32((1 << 32) - 1)  # the score of what is no target
_LOW, _HALF = np.uint64((1 << 32) - 1), np.uint64(32)
_MASKED, _REPLACED = (np.uint64(int(part * 2**32) << 32) for part in (0.8, 0.9))
_PLACES, _GROUPS = np.uint64(1 << 32), np.uint64(1 << 33)  # counters of draws of their own


@dataclass(frozen=True)
class Masking:
    """How rows are masked. `vocab_size` counts the real ids, of which `<mask>` is the last.

    schedule: (step, ratio) points behind (0, `ratio`), between which the ratio is on straight
    lines, and behind the last of which it stays
    words: of ids (rows, seq_len), where a word begins; for kind "word"
    span_p, span_max: the geometric distribution of the lengths of spans, and the longest
    room: the ratio that rows have room for, where it is above all others
    """

    ratio: float
    vocab_size: int
    schedule: tuple[tuple[int, float], ...] = ()
    kind: Kind = "token"
    words: Callable[[np.ndarray], np.ndarray] | None = None
    span_p: float = 0.2
    span_max: int = 10
    room: float = 0.0

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def ratio_at(self, step: int) -> float:
        """The part of a row's tokens that are targets in a step, from 0."""
        points = [(0, self.ratio), *self.schedule]
        steps, ratios = zip(*points, strict=True)
        return float(np.interp(step, steps, ratios))

    def positions(self, seq_len: int) -> int:
        """Targets that a row has room for, in all steps."""
        return masked_positions(seq_len, self._most)

    @property
    def _most(self) -> float:
        return max(self.room, self.ratio, *(ratio for _, ratio in self.schedule))

    def single(self) -> "Masking":
        """Of single tokens, with the first ratio, and as much room: for evaluation, so that runs
        compare."""
        return Masking(self.ratio, self.vocab_size, room=self._most)

    def __call__(
        self, ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray, step: int = 0
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Masks rows of ids, each by its key alone: (masked ids, positions, targets).

        ids: (rows, seq_len) integers; lengths: (rows,), tokens before the padding; keys: (rows,)
        masked ids: as `ids`; positions: (rows, `positions(seq_len)`) int64, ascending, 0 where
        unused at the end of a row; targets: int64, what stood there, -100 where unused
        A row has `ratio_at(step)` of its length, rounded, and at least one, as targets, and fewer
        only where fewer can be masked; with words fewer by less than a word.
        """
        seq_len, keys = ids.shape[1], np.asarray(keys, np.uint64)[:, None]
        possible, lengths = maskable(ids, self.mask_id), np.asarray(lengths)
        if not (lengths == seq_len).all():
            possible &= np.arange(seq_len) < lengths[:, None]
        scores = np.where(possible, self._scores(ids, keys), _NEVER)
        share = np.floor(self.ratio_at(step) * lengths + 0.5).astype(np.int64)
        counts = np.maximum(1, share)
        masked_ids, width = ids.copy(), self.positions(seq_len)
        positions = np.zeros((len(ids), width), np.int64)
        targets = np.full(positions.shape, IGNORED, np.int64)
        flat = _as_many(scores, counts)
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
        masked_ids.ravel()[flat] = self._shown(found, scores.ravel()[flat], places, keys)
        positions[slots], targets[slots] = places, found
        return masked_ids, positions, targets

    def _scores(self, ids: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """What is drawn has the smallest: uint32, as `ids`, the same for all of a word or span."""
        seq_len = ids.shape[1]
        if self.kind == "span":
            return self._of_spans(bits(keys, np.arange(seq_len, dtype=np.uint64)))
        # Two scores of 32 bits from each draw of 64.
        drawn = bits(keys, np.arange(-(-seq_len // 2), dtype=np.uint64))
        scores = np.minimum(drawn.astype("<u8", copy=False).view("<u4")[:, :seq_len], _NEVER - 1)
        if self.words is None:
            return scores
        begins = np.where(self.words(ids), np.arange(seq_len), 0)
        return np.take_along_axis(scores, np.maximum.accumulate(begins, axis=1), axis=1)

    def _of_spans(self, drawn: np.ndarray) -> np.ndarray:
        """A span begins at every place; what several hold has the smallest score of theirs."""
        scores = np.minimum((drawn & _LOW).astype(np.uint32), _NEVER - np.uint32(1))
        # The chance of a length above d is (1 - p)^d.
        rest = ((drawn >> _HALF).astype(np.float64) + 0.5) / 2**32
        found = scores.copy()
        for distance in range(1, min(self.span_max, drawn.shape[1])):
            longer = rest[:, :-distance] < (1 - self.span_p) ** distance
            here = np.where(longer, scores[:, :-distance], _NEVER)
            np.minimum(found[:, distance:], here, out=found[:, distance:])
        return found

    def _shown(
        self, targets: np.ndarray, scores: np.ndarray, places: np.ndarray, keys: np.ndarray
    ) -> np.ndarray:
        """What stands at the masked positions: `<mask>`, a random piece, or the token itself."""
        drawn = bits(keys, places.astype(np.uint64) + _PLACES)
        fate = drawn if self.kind == "token" else bits(keys, scores.astype(np.uint64) + _GROUPS)
        pieces = np.uint64(self.vocab_size - FIRST_PIECE - 1)  # without <mask>, the last id
        # The high bits decide the fate, and the low ones the piece.
        random = ((drawn & _LOW) * pieces >> _HALF).astype(np.int64) + FIRST_PIECE
        return np.where(fate < _MASKED, self.mask_id, np.where(fate < _REPLACED, random, targets))


def masked_positions(seq_len: int, ratio: float) -> int:
    """The positions of a full row that are targets: the nearest whole number, and at least one."""
    return max(1, int(ratio * seq_len + 0.5))


def maskable(ids: np.ndarray, mask_id: int) -> np.ndarray:
    """Where ids can be targets: not at `<s>`, `<pad>`, `</s>`, `<mask>`."""
    return (ids > max(BOS, PAD, EOS)) & (ids != mask_id)


def _as_many(scores: np.ndarray, counts: np.ndarray) -> np.ndarray | None:
    """Where, in `scores` as one row, the smallest of each row stand: (rows, count) int64.

    None where rows do not all have as many, or a word or span has to be cut for it.
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
    """Where the `counts[i]` smallest scores of each row i stand, bool.

    Of those that have the score of the last, as the rest of a span has, the first are taken; where
    `whole`, none of them, unless they are the only ones.
    """
    last = _at(scores, counts)[:, None]
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


def _at(scores: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The `counts[i]`-th smallest score of each row i, (rows,)."""
    places = np.maximum(counts, 1) - 1
    if (places == places[0]).all():
        return np.partition(scores, places[0], axis=1)[:, places[0]]
    return np.take_along_axis(np.sort(scores, axis=1), places[:, None], axis=1)[:, 0]
