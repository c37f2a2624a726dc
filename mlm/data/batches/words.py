"""Where words begin among sentencepiece's pieces.

A piece that begins with sentencepiece's word mark begins a word, and so does one where letters and
punctuation meet. Scripts that are written without spaces have no marks inside a sentence: there a
change of script begins a word, and a run of pieces of one script is cut so that a word has about as
many characters as words of that script have.
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
_SPACED, _PUNCTUATION, _SPECIAL, _ANY = range(4)  # and from 4 on those of UNSPACED
_RUN = np.array([0] * 4 + [size for size, _ in UNSPACED.values()], np.int64)


class Words:
    """Says of ids where words begin."""

    def __init__(self, pieces: Sequence[str]) -> None:
        """pieces: the piece of every id, the special ones first and `<mask>` last"""
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
                first[id], last[id] = _kind(text[0]), _kind(text[-1])
            characters[id] = 1 if id == UNK else len(text)
        self._first, self._last, self._characters = first, last, characters

    def __call__(self, ids: np.ndarray) -> np.ndarray:
        """Where a word begins: (rows, seq_len) bool of ids (rows, seq_len). A row's first id does,
        and every special one."""
        begins = self._marked[ids]
        first, last = self._first[ids], self._last[ids]
        begins[:, 0] = True
        # What is unknown goes with its neighbours, and a mark alone with the piece behind it.
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


def _kind(character: str) -> int:
    """Which of the kinds above a character is of."""
    if unicodedata.category(character)[0] in "PSZ":
        return _PUNCTUATION
    point = ord(character)
    for number, (_, blocks) in enumerate(UNSPACED.values(), _ANY + 1):
        if any(low <= point <= high for low, high in blocks):
            return number
    return _SPACED
