"""Masking with a fixed number of positions, keyed by row.

Of each row a fixed part of the tokens becomes a target (BERT, section 3.1): 80 % of them show
`<mask>`, 10 % a random piece, 10 % what they are. XLM-R's code also masks `<s>` and `</s>` and
draws any id as a replacement; here no special id is a target, or a replacement.
"""

from dataclasses import dataclass

import numpy as np

from mlm.batch import IGNORED
from mlm.data.draw import bits
from mlm.text.ids import BOS, EOS, FIRST_PIECE, PAD

_POSITION_BITS = 16  # the low bits of a score hold its position, so that no two are equal
_POSITION = np.uint64((1 << _POSITION_BITS) - 1)
_NEVER = np.uint64((1 << 64) - 1)
_MASKED, _REPLACED = (np.uint64(int(part * 2**64)) for part in (0.8, 0.9))


@dataclass(frozen=True)
class Masking:
    """How rows are masked. `vocab_size` counts the real ids, of which `<mask>` is the last."""

    ratio: float
    vocab_size: int

    @property
    def mask_id(self) -> int:
        return self.vocab_size - 1

    def __call__(
        self, ids: np.ndarray, lengths: np.ndarray, keys: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """`mask` with these settings."""
        return mask(ids, lengths, keys, self.ratio, self.mask_id, self.vocab_size)


def masked_positions(seq_len: int, ratio: float) -> int:
    """The positions of a full row that are targets: the nearest whole number, and at least one."""
    return max(1, int(ratio * seq_len + 0.5))


def maskable(ids: np.ndarray, mask_id: int) -> np.ndarray:
    """Where ids can be targets: not at `<s>`, `<pad>`, `</s>`, `<mask>`."""
    return (ids != BOS) & (ids != PAD) & (ids != EOS) & (ids != mask_id)


def mask(
    ids: np.ndarray,
    lengths: np.ndarray,
    keys: np.ndarray,
    ratio: float,
    mask_id: int,
    vocab_size: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masks rows of ids, each by its key alone: (masked ids, positions, targets).

    ids: (rows, seq_len) integers; lengths: (rows,), tokens before the padding; keys: (rows,) uint64
    masked ids: as `ids`; positions: (rows, masked) int64, ascending, 0 where unused at the end of a
    row; targets: (rows, masked) int64, what stood there, -100 where unused
    `masked` is `ratio * seq_len`, rounded; a shorter row has that part of its own length, and any
    row fewer only where it has fewer that can be masked.
    """
    seq_len = ids.shape[1]
    assert seq_len <= _POSITION, seq_len
    width = masked_positions(seq_len, ratio)
    keys = np.asarray(keys, np.uint64)[:, None]
    places = np.arange(seq_len, dtype=np.uint64)
    possible = maskable(ids, mask_id) & (places < np.asarray(lengths, np.uint64)[:, None])
    scores = bits(keys, places) & ~_POSITION | places
    scores[~possible] = _NEVER
    wanted = np.maximum(1, np.floor(ratio * np.asarray(lengths) + 0.5)).astype(np.int64)
    counts = np.minimum(np.minimum(wanted, width), possible.sum(axis=1))

    # The smallest scores are a random choice without replacement.
    chosen = np.partition(scores, width - 1, axis=1)[:, :width]
    chosen.sort(axis=1)
    used = np.arange(width) < counts[:, None]
    positions = np.where(used, (chosen & _POSITION).astype(np.int64), seq_len)
    positions.sort(axis=1)
    positions[~used] = 0

    targets = np.where(used, np.take_along_axis(ids, positions, axis=1), IGNORED).astype(np.int64)
    shown = _shown(targets, positions, keys, seq_len, mask_id, vocab_size)
    masked_ids = ids.copy()
    row, slot = np.nonzero(used)
    masked_ids[row, positions[row, slot]] = shown[row, slot]
    return masked_ids, positions, targets


def _shown(
    targets: np.ndarray,
    positions: np.ndarray,
    keys: np.ndarray,
    seq_len: int,
    mask_id: int,
    vocab_size: int,
) -> np.ndarray:
    """What stands at the masked positions: `<mask>`, a random piece, or the token itself."""
    fate = bits(keys, positions.astype(np.uint64) + np.uint64(seq_len))
    drawn = bits(keys, positions.astype(np.uint64) + np.uint64(2 * seq_len))
    pieces = np.uint64(vocab_size - FIRST_PIECE - 1)  # without <mask>
    random = (drawn % pieces).astype(np.int64) + FIRST_PIECE
    random += random >= mask_id
    return np.where(fate < _MASKED, mask_id, np.where(fate < _REPLACED, random, targets))
