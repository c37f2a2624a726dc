"""The rows of a call: texts, or windows on them, with special tokens and pads."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np

from mlm.tokenizer.family.batch_encoding import Encoding
from mlm.tokenizer.family.encoded_texts import EncodedTexts
from mlm.tokenizer.family.options import Options
from mlm.tokenizer.family.padding import pad_row
from mlm.tokenizer.family.windows import Window, cut
from mlm.tokenizer.ids import BOS, EOS, PAD

Rows = list[Any] | np.ndarray  # lists of values, or an int64 array (rows, longest row)


def encode_rows(source: EncodedTexts, special: bool, options: Options) -> list[Encoding]:
    """The rows of all texts, each with its pair where there is one.

    special: whether `<s>` and `</s>` are added
    Raises ValueError where a text cannot be cut as the options say.
    """
    texts = list(pairwise(source.bounds))
    pairs = [texts[: source.count], texts[source.count :]] if source.has_pairs else [texts]
    rows: Iterable[tuple[int, tuple[Window, ...]]] = enumerate(zip(*pairs, strict=True))
    if options.truncation:
        # A further row must hold something of each text.
        least = len(pairs) if options.overflow else 0
        room = options.room(2 * len(pairs) if special else 0, least)
        rows = [(n, windows) for n, each in rows for windows in _windows(each, room, options)]
    if special:
        end = source.bounds[-1]
        rows = [(sample, _with_special(windows, end)) for sample, windows in rows]
    made = [Encoding(source, sample, parts) for sample, parts in rows]
    lengths = list(map(len, made))
    width = options.width(max(lengths, default=0))
    for row, length in zip(made, lengths, strict=True):
        row.pad(width - length, options.padding_side)
    return made


def ids_and_mask(rows: list[Encoding], tensors: bool) -> tuple[Rows, Rows]:
    """The ids and the attention mask of rows; arrays where they are to be tensors and can be."""
    if not tensors or not rows or any(len(row) != len(rows[0]) for row in rows):
        return [row.ids for row in rows], [row.attention_mask for row in rows]
    ids = np.array(rows[0].source.ids)
    lengths = [len(row) - row.left - row.right for row in rows]
    flat = np.concatenate([ids[start:end] for row in rows for start, end in row.parts])
    return _padded(
        flat, lengths, len(rows[0]), "left" if any(row.left for row in rows) else "right"
    )


def encode_plain(source: EncodedTexts, options: Options, tensors: bool) -> tuple[Rows, Rows]:
    """Ids and attention mask of single plain texts with `<s>` and `</s>`, in a fraction of the
    time of `encode_rows`, as sentencepiece itself makes the rows."""
    arrays = tensors and options.padding is not None
    rows = source.with_ends(arrays)
    if options.truncation:
        options.room(special=2)
        most = options.max_length or 0
        rows = [row if len(row) <= most else _cut_row(row, most, options) for row in rows]
    lengths = list(map(len, rows))
    longest = max(lengths, default=0)
    width, side = options.width(longest), options.padding_side
    if arrays and rows and width >= longest:
        return _padded(np.concatenate(rows), lengths, width, side)
    rows = [row.tolist() for row in rows] if arrays else rows
    mask = [[1] * length for length in lengths]
    if options.padding is None:
        return rows, mask
    mask = [pad_row(row, width, 0, side) for row in mask]
    return [pad_row(row, width, PAD, side) for row in rows], mask


def _padded(ids: np.ndarray, lengths: list[int], width: int, side: str) -> tuple[Rows, Rows]:
    """Ids of rows, one after another, as padded rows; and their attention mask."""
    columns, ends = np.arange(width), np.array(lengths)[:, None]
    mask = columns < ends if side == "right" else columns >= width - ends
    rows = np.full(mask.shape, PAD, np.int64)
    rows[mask] = ids
    return rows, mask.astype(np.int64)


def _cut_row(row: Any, most: int, options: Options) -> Any:
    """The first or last tokens of a row, of which `<s>` and `</s>` are two."""
    right = options.truncation_side == "right"
    row = (row[:most] if right else row[-most:]).copy()
    row[-1 if right else 0] = EOS if right else BOS
    return row


def _windows(
    texts: tuple[Window, ...], room: int, options: Options
) -> Iterable[tuple[Window, ...]]:
    """Of each row of a text: the window on the text, and the one on its pair."""
    lengths = [end - start for start, end in texts]
    if sum(lengths) <= room:
        return [texts]
    assert options.truncation is not None
    cuts = cut(lengths, room, options.truncation, options.stride, options.truncation_side)
    begins = [begin for begin, _ in texts]
    return [
        tuple(
            (begin + start, begin + end)
            for begin, (start, end) in zip(begins, windows, strict=True)
        )
        for windows in (cuts if options.overflow else [next(cuts)])
    ]


def _with_special(windows: tuple[Window, ...], end: int) -> tuple[Window, ...]:
    """`<s> A </s>`, or `<s> A </s></s> B </s>`. end: of the texts, after which are `<s>`, `</s>`"""
    bos, eos = (end, end + 1), (end + 1, end + 2)
    if len(windows) == 1:
        return bos, windows[0], eos
    return bos, windows[0], eos, eos, windows[1], eos
