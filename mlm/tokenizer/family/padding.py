"""Samples collated to a batch: rows of ids padded to one length."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from mlm.tokenizer.family.batch_encoding import BatchEncoding
from mlm.tokenizer.family.options import Options
from mlm.tokenizer.ids import PAD

PADS = {"input_ids": PAD, "attention_mask": 0, "token_type_ids": 0, "special_tokens_mask": 1}


def pad_batch(given: Any, options: Options, with_mask: bool, tensors: str | None) -> BatchEncoding:
    """The rows of a batch, given by name or as a list of samples, padded.

    with_mask: add an attention_mask of ones where it is missing
    Rows given as tensors are returned as tensors. Raises ValueError.
    """
    columns = _columns(given)
    ids = columns.get("input_ids")
    if ids is None:
        raise ValueError(f"input_ids are not among {', '.join(columns) or 'nothing'}; give them")
    tensors = tensors or _kind(ids)
    data = {name: _as_lists(values) for name, values in columns.items()}
    single = bool(data["input_ids"]) and not isinstance(data["input_ids"][0], list)
    if single:
        data = {name: [values] for name, values in data.items()}
    lengths = [len(row) for row in data["input_ids"]]
    if with_mask and "attention_mask" not in data:
        data["attention_mask"] = [[1] * length for length in lengths]
    width = options.width(max(lengths, default=0))
    for name in PADS.keys() & data.keys():
        if [len(row) for row in data[name]] != lengths:
            raise ValueError(
                f"{name} has rows of other lengths than input_ids; give rows of equal lengths"
            )
        data[name] = [pad_row(row, width, PADS[name], options.padding_side) for row in data[name]]
    if single:
        data = {name: values[0] for name, values in data.items()}
    return BatchEncoding(data, tensors=tensors)


def _columns(given: Any) -> dict[str, Any]:
    if isinstance(given, Mapping):
        return dict(given)
    samples = list(given) if isinstance(given, list | tuple) else [given]
    for sample in samples:
        if not isinstance(sample, Mapping):
            raise ValueError(
                f"{sample!r:.80} is not a sample; give what the tokenizer returned, or a list of it"
            )
        if missing := sample.keys() ^ samples[0].keys():
            raise ValueError(f"{min(missing)} is not in every sample; give it in all or none")
    return {name: [sample[name] for sample in samples] for name in samples[0]} if samples else {}


def _as_lists(values: Any) -> Any:
    if hasattr(values, "tolist"):
        return values.tolist()
    return [_as_lists(each) for each in values] if isinstance(values, list | tuple) else values


def _kind(values: Any) -> str | None:
    """Whether values are `np` or `pt` tensors, or a list of them."""
    if isinstance(values, list | tuple):
        return _kind(values[0]) if len(values) else None
    if isinstance(values, np.ndarray | np.integer):
        return "np"
    return "pt" if hasattr(values, "device") else None


def pad_row(row: list[int], width: int, pad: int, side: str) -> list[int]:
    """A row with pads at one side up to `width` tokens."""
    pads = [pad] * (width - len(row))
    return pads + row if side == "left" else row + pads
