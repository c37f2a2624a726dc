"""What a call of the tokenizer asks of its rows: padding and truncation, checked."""

import warnings
from dataclasses import dataclass
from typing import Any

STRATEGIES = ("longest_first", "only_first", "only_second")
SIDES = ("left", "right")


@dataclass(frozen=True)
class Options:
    """How rows are cut and padded.

    padding: longest, max_length or None; truncation: one of STRATEGIES or None
    max_length: in tokens; given wherever padding or truncation needs it
    stride: tokens that a window has in common with the one before
    multiple: rows are padded to a multiple of it
    padding_side, truncation_side: where pads are put, and where tokens are cut off
    overflow: whether the tokens that are cut off make further rows
    """

    padding: str | None
    truncation: str | None
    max_length: int | None
    stride: int
    multiple: int | None
    padding_side: str
    truncation_side: str
    overflow: bool

    def width(self, longest: int) -> int:
        """The tokens that shorter rows are padded to; `longest`: those of the longest row."""
        if self.padding is None:
            return 0
        width = longest
        if self.padding == "max_length":
            assert self.max_length is not None
            width = self.max_length
        return -(-width // self.multiple) * self.multiple if self.multiple else width

    def room(self, special: int, least: int = 0) -> int:
        """The tokens that a row has for its texts besides `special` ones; raises ValueError for
        fewer than `least`."""
        assert self.max_length is not None
        room = self.max_length - special
        if room < least:
            raise ValueError(
                f"max_length={self.max_length} leaves no room beside {special} special tokens; "
                f"give at least {special + least}"
            )
        return room


def checked_options(
    padding: bool | str | None,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    multiple: int | None,
    sides: tuple[str, str],
    overflow: bool,
    limit: int | None,
) -> Options:
    """The options of a call; raises ValueError, warns of those without effect.

    sides: of padding and of truncation
    limit: what the model takes, where max_length is needed and not given; None: not known
    """
    if truncation is None and padding is False and max_length is not None:
        truncation = True  # as in transformers
    padding = _chosen("padding", padding, ("longest", "max_length"), "do_not_pad")
    truncation = _chosen("truncation", truncation, STRATEGIES, "do_not_truncate")
    for name, side in zip(("padding_side", "truncation_side"), sides, strict=True):
        check_side(name, side)
    _check_count("max_length", max_length, 1)
    _check_count("pad_to_multiple_of", multiple, 1)
    _check_count("stride", stride, 0)
    if max_length is not None and not (truncation or padding == "max_length"):
        _warn_no_effect("max_length", max_length, "truncation=True or padding='max_length'")
    if multiple is not None and not padding:
        _warn_no_effect("pad_to_multiple_of", multiple, "padding=True")
    if stride and not (truncation and overflow):
        _warn_no_effect("stride", stride, "truncation=True and return_overflowing_tokens=True")
    if max_length is None and (truncation or padding == "max_length"):
        if limit is None:
            raise ValueError(
                f"truncation={truncation!r} with padding={padding!r} needs a length, and the "
                f"tokenizer's folder names no model_max_length; give max_length"
            )
        max_length = limit
    if truncation and padding and multiple and max_length and max_length % multiple:
        raise ValueError(
            f"rows cut to max_length={max_length} cannot be padded to pad_to_multiple_of="
            f"{multiple}; give a max_length that is a multiple of it"
        )
    return Options(padding, truncation, max_length, stride, multiple, *sides, overflow)


def check_side(name: str, side: Any) -> None:
    """Raises ValueError for what is not a side."""
    if side not in SIDES:
        raise ValueError(f"{name}={side!r} is unsupported; choose 'left' or 'right'")


def _chosen(name: str, value: Any, supported: tuple[str, ...], none: str) -> str | None:
    """One of `supported`, of which True means the first; None for None, False and `none`."""
    if value is None or value is False or value == none:
        return None
    if value is True:
        return supported[0]
    if value not in supported:
        raise ValueError(
            f"{name}={value!r} is unsupported; choose True, False or one of {', '.join(supported)}"
        )
    return supported[supported.index(value)]


def _check_count(name: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise ValueError(f"{name}={value!r} is not a number of tokens; give {least} or more")


def _warn_no_effect(name: str, value: int, needs: str) -> None:
    warnings.warn(f"{name}={value} has no effect without {needs}", stacklevel=4)
