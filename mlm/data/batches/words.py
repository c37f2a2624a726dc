"""Where words begin among sentencepiece's pieces.

A word begins at a piece with sentencepiece's word mark, and where letters and punctuation meet.
Scripts written without spaces have no marks inside a sentence: there, a word begins at a change of
script, and a run of pieces of one script is cut into words of that script's typical length.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np

from mlm.tokenizer.ids import FIRST_PIECE, SPACE, UNK

# Code points of the scripts that are written without spaces (Unicode 15.1, Blocks.txt), and the
# characters of a word.
UNSPACED = {
    "han": (2, ((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
                (0xF900, 0xFAFF), (0x20000, 0x3FFFF))),
    "hiragana": (3, ((0x3041, 0x309F),)),
    "katakana": (8, ((0x30A1, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F))),
    "thai": (4, ((0x0E01, 0x0E7F),)),
    "lao": (4, ((0x0E81, 0x0EFF),)),
    "tibetan": (8, ((0x0F00, 0x0FFF),)),
    "myanmar": (4, ((0x1000, 0x109F), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F))),
    "khmer": (4, ((0x1780, 0x17FF), (0x19E0, 0x19FF))),
}  # fmt: skip
_SPACED, _PUNCTUATION, _SPECIAL, _ANY = range(4)  # character classes; 4 and above: UNSPACED
_RUN = np.array([0] * 4 + [size for size, _ in UNSPACED.values()], np.int64)


class Words:
    """Finds where words begin in rows of ids."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """pieces: the piece of every id, special ones first and `<mask>` last"""
        size = len(pieces)
        self._marked = np.array([piece.startswith(SPACE) for piece in pieces])
        first, last = np.empty(size, np.uint8), np.empty(size, np.uint8)
        characters = np.zeros(size, np.int32)
        for id, piece in enumerate(pieces):
            text = piece.lstrip(SPACE)
            if id == UNK or not text:
                first[id] = last[id] = _ANY
            elif id < FIRST_PIECE or id == size - 1:
                first[id] = last[id] = _SPECIAL
            else:
                first[id], last[id] = _character_class(text[0]), _character_class(text[-1])
            characters[id] = 1 if id == UNK else len(text)
        self._first, self._last, self._characters = first, last, characters

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Whether a word begins: (rows, seq_len) bool for ids (rows, seq_len). True for the first
        id of a row and for every special id."""
        begins = self._marked[ids]
        first, last = self._first[ids], self._last[ids]
        begins[:, 0] = True
        # An unknown id belongs to its neighbours, and a mark alone to the piece after it.
        known = (first[:, 1:] != _ANY) & (last[:, :-1] != _ANY)
        begins[:, 1:] |= known & (first[:, 1:] != last[:, :-1])
        begins |= first == _SPECIAL
        runs = _RUN[first]
        if not runs.any():
            return begins
        characters = self._characters[ids]
        offsets = np.cumsum(characters, axis=1) - characters
        offsets -= np.maximum.accumulate(np.where(begins, offsets, 0), axis=1)
        parts = offsets // np.maximum(runs, 1)
        begins[:, 1:] |= (runs[:, 1:] > 0) & (parts[:, 1:] != parts[:, :-1])
        return begins


def _character_class(character: str) -> int:
    if unicodedata.category(character)[0] in "PSZ":
        return _PUNCTUATION
    point = ord(character)
    for number, (_, blocks) in enumerate(UNSPACED.values(), _ANY + 1):
        if any(low <= point <= high for low, high in blocks):
            return number
    return _SPACED
