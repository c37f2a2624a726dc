"""What a tokenizer returns: ids, masks and more by name, and where in its text a token stands."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from mlm.tokenizer.family.encoded_texts import EncodedTexts

Value = TypeVar("Value")


class CharSpan(NamedTuple):
    """Characters of a text: the first, and the one after the last."""

    start: int
    end: int


class TokenSpan(NamedTuple):
    """Tokens of a row: the first, and the one after the last."""

    start: int
    end: int


@dataclass
class Encoding:
    """One row: the tokens of a text, or of a window on it, maybe those of its pair, special tokens
    and pads.

    source: the texts; sample: the index of this one
    parts: where the values of its tokens are in those of `source`: the first, and the one after the
    last
    left, right: pads at each end
    """

    source: EncodedTexts
    sample: int
    parts: tuple[tuple[int, int], ...]
    left: int = 0
    right: int = 0

    @property
    def ids(self) -> list[int]:
        return self._row(self.source.ids)

    @property
    def tokens(self) -> list[str]:
        return self._row(self.source.tokens)

    @property
    def offsets(self) -> list[tuple[int, int]]:
        return self._row(self.source.offsets)

    @property
    def word_ids(self) -> list[int | None]:
        return self._row(self.source.word_ids)

    @property
    def sequence_ids(self) -> list[int | None]:
        return self._row(self.source.sequence_ids)

    @property
    def attention_mask(self) -> list[int]:
        tokens = len(self) - self.left - self.right
        return [0] * self.left + [1] * tokens + [0] * self.right

    @property
    def special_tokens_mask(self) -> list[int]:
        return self._row(self.source.special_tokens_mask)

    def __len__(self) -> int:
        return self.left + sum(end - start for start, end in self.parts) + self.right

    def pad(self, pads: int, side: str) -> None:
        """Adds pads at a side, none where `pads` is negative."""
        if side == "left":
            self.left = max(0, pads)
        else:
            self.right = max(0, pads)

    def span(self, sequence: int) -> tuple[int, int]:
        """The first token of a sequence, 0 or 1, and the one after its last."""
        found = [place for place, of in enumerate(self.sequence_ids) if of == sequence]
        return (found[0], found[-1] + 1) if found else (0, 0)

    def _row(self, values: list[Value]) -> list[Value]:
        row = values[-1:] * self.left
        for start, end in self.parts:
            row += values[start:end]
        row += values[-1:] * self.right
        return row


class BatchEncoding(UserDict):
    """The rows of a call by name, as lists or as tensors; also read as attributes.

    Its methods say where the tokens stand, of a row (the first where none is named). They need the
    texts, which it has when it comes from a tokenizer's call, in the process that made the call.
    """

    def __init__(
        self,
        data: dict[str, Any] | None = None,
        encodings: Callable[[], list[Encoding]] | None = None,
        tensors: str | None = None,
    ) -> None:
        """encodings: makes all that is known of each row, on the first request for it."""
        super().__init__(data)
        self._make, self._made = encodings, None
        self.convert_to_tensors(tensors)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or name == "data" or name not in self.data:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return self.data[name]

    def __getitem__(self, key: str | int | slice) -> Any:
        return self.data[key] if isinstance(key, str) else self.encodings[key]

    def __getstate__(self) -> dict[str, Any]:
        # The texts do not travel with each batch.
        return {"data": self.data, "_make": None, "_made": None}

    @property
    def encodings(self) -> list[Encoding]:
        """Every row with all that is known of it; raises ValueError for a batch without texts."""
        if self._make is None:
            raise ValueError(
                "this batch no longer knows its texts, since it was padded, copied or sent by "
                "another process; ask the batch that the tokenizer's call returned"
            )
        if self._made is None:
            self._made = self._make()
        return self._made

    @property
    def is_fast(self) -> bool:
        """Whether the offsets of tokens are known."""
        return self._make is not None

    @property
    def n_sequences(self) -> int | None:
        """1 for texts, 2 for pairs, None where it is unknown."""
        if self._make is None or not self.encodings:
            return None
        return 2 if self.encodings[0].source.has_pairs else 1

    def to(self, device: Any, *, non_blocking: bool = False) -> "BatchEncoding":
        """Moves every tensor to a device; returns the same batch."""
        for name, value in self.data.items():
            if hasattr(value, "to"):
                self.data[name] = value.to(device=device, non_blocking=non_blocking)
        return self

    def convert_to_tensors(self, tensor_type: str | None = None) -> "BatchEncoding":
        """Makes `pt` or `np` tensors of all lists; returns the same batch."""
        self.data = {name: to_tensor(name, self.data[name], tensor_type) for name in self.data}
        return self

    def tokens(self, batch_index: int = 0) -> list[str]:
        return self.encodings[batch_index].tokens

    def sequence_ids(self, batch_index: int = 0) -> list[int | None]:
        """0 or 1 for the tokens of the text or its pair, None for added ones."""
        return self.encodings[batch_index].sequence_ids

    def word_ids(self, batch_index: int = 0) -> list[int | None]:
        """The word of each token, counted in its text; None for added ones."""
        return self.encodings[batch_index].word_ids

    def token_to_sequence(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        return self._value(batch_or_token_index, token_index, "sequence_ids")

    def token_to_word(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> int | None:
        return self._value(batch_or_token_index, token_index, "word_ids")

    def token_to_chars(
        self, batch_or_token_index: int, token_index: int | None = None
    ) -> CharSpan | None:
        """The characters of a token; None for an added one."""
        if self._value(batch_or_token_index, token_index, "sequence_ids") is None:
            return None
        return CharSpan(*self._value(batch_or_token_index, token_index, "offsets"))

    def char_to_token(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        """The first token of a row that has a character of its text; None where none has."""
        row, place = _row(batch_or_char_index, char_index)
        offsets = self.encodings[row].offsets
        first, end = self.encodings[row].span(_sequence(sequence_index))
        found = (each for each in range(first, end) if offsets[each][0] <= place < offsets[each][1])
        return next(found, None)

    def char_to_word(
        self, batch_or_char_index: int, char_index: int | None = None, sequence_index: int = 0
    ) -> int | None:
        token = self.char_to_token(batch_or_char_index, char_index, sequence_index)
        row, _ = _row(batch_or_char_index, char_index)
        return None if token is None else self.token_to_word(row, token)

    def word_to_tokens(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> TokenSpan | None:
        """The tokens of a word; None where the row has none of it."""
        row, word = _row(batch_or_word_index, word_index)
        first, end = self.encodings[row].span(_sequence(sequence_index))
        words = self.encodings[row].word_ids
        found = [place for place in range(first, end) if words[place] == word]
        return TokenSpan(found[0], found[-1] + 1) if found else None

    def word_to_chars(
        self, batch_or_word_index: int, word_index: int | None = None, sequence_index: int = 0
    ) -> CharSpan | None:
        row, _ = _row(batch_or_word_index, word_index)
        tokens = self.word_to_tokens(batch_or_word_index, word_index, sequence_index)
        if tokens is None:
            return None
        offsets = self.encodings[row].offsets
        return CharSpan(offsets[tokens.start][0], offsets[tokens.end - 1][1])

    def _value(self, batch_or_index: int, index: int | None, values: str) -> Any:
        row, place = _row(batch_or_index, index)
        return getattr(self.encodings[row], values)[place]


def to_tensor(name: str, value: Any, kind: str | None) -> Any:
    """A value as int64 `pt` or `np` tensor, or as it is; raises ValueError for uneven rows."""
    if kind is None:
        return value
    if kind not in ("pt", "np"):
        raise ValueError(f"return_tensors={kind!r} is unsupported; choose 'pt', 'np' or None")
    if not hasattr(value, "shape"):
        value = _array(name, value)
    if kind == "np":
        return np.asarray(value)
    import torch  # here, since lists need no torch

    made = torch.as_tensor(value)
    return made.float() if made.dtype == torch.float64 else made


def _array(name: str, value: Any) -> np.ndarray:
    try:
        made = np.array(value)
    except ValueError:
        made = np.array(None)
    if made.dtype.kind not in "biuf":
        raise ValueError(
            f"{name} cannot be one tensor, since its rows differ in length or are not numbers; use "
            f"padding=True and truncation=True, or skip it"
        )
    return made if made.size else made.astype(np.int64)


def _row(batch_or_index: int, index: int | None) -> tuple[int, int]:
    return (0, batch_or_index) if index is None else (batch_or_index, index)


def _sequence(index: int) -> int:
    if index not in (0, 1):
        raise ValueError(f"sequence_index={index} is neither 0, the text, nor 1, its pair")
    return index
