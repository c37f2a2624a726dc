"""What a call of the tokenizer asks of its rows: padding and truncation, checked."""

import warnings
from dataclasses import dataclass
from typing import Any

STRATEGIES = ("longest_first", "only_first", "only_second")
SIDES = ("left", "right")


@dataclass(frozen=True)
class Shape:
    """How rows are cut and padded.

    padding: longest, max_length or None; truncation: one of STRATEGIES or None
    max_length: in tokens; given wherever padding or truncation needs it
    stride: tokens that a window has in common with the one before
    multiple: rows are padded to a multiple of it; side: where pads go
    overflow: whether what is cut off makes further rows
    """

    padding: str | None
    truncation: str | None
    max_length: int | None
    stride: int
    multiple: int | None
    side: str
    overflow: bool

    def width(self, longest: int) -> int:
        """To how many tokens shorter rows are padded; `longest` is the longest one."""
        if self.padding is None:
            return 0
        width = self.max_length if self.padding == "max_length" else longest
        return -(-width // self.multiple) * self.multiple if self.multiple else width


def checked_shape(
    padding: bool | str | None,
    truncation: bool | str | None,
    max_length: int | None,
    stride: int,
    multiple: int | None,
    side: str,
    overflow: bool,
    limit: int | None,
) -> Shape:
    """The shape that the options of a call ask for; raises ValueError, warns of idle options.

    limit: what the model takes, where max_length is needed and not given; None: not known
    """
    if truncation is None and padding is False and max_length is not None:
        truncation = True  # as in the reference
    padding = _chosen("padding", padding, ("longest", "max_length"), "do_not_pad")
    truncation = _chosen("truncation", truncation, STRATEGIES, "do_not_truncate")
    if side not in SIDES:
        raise ValueError(f"padding_side={side!r} is not served; choose 'left' or 'right'")
    _check_count("max_length", max_length, 1)
    _check_count("pad_to_multiple_of", multiple, 1)
    _check_count("stride", stride, 0)
    if max_length is not None and not (truncation or padding == "max_length"):
        _no_effect("max_length", max_length, "truncation=True or padding='max_length'")
    if multiple is not None and not padding:
        _no_effect("pad_to_multiple_of", multiple, "padding=True")
    if stride and not (truncation and overflow):
        _no_effect("stride", stride, "truncation=True and return_overflowing_tokens=True")
    if max_length is None and (truncation or padding == "max_length"):
        if limit is None:
            raise ValueError(
                f"truncation={truncation!r} with padding={padding!r} needs a length, and the "
                f"tokenizer's folder names no model_max_length; give max_length"
            )
        max_length = limit
    if truncation and padding and multiple and max_length % multiple:
        raise ValueError(
            f"rows cut to max_length={max_length} cannot be padded to pad_to_multiple_of="
            f"{multiple}; give a max_length that is a multiple of it"
        )
    return Shape(padding, truncation, max_length, stride, multiple, side, overflow)


def _chosen(name: str, value: Any, served: tuple[str, ...], none: str) -> str | None:
    """One of `served`, of which True means the first; None for None, False and `none`."""
    if value is None or value is False or value == none:
        return None
    if value is True:
        return served[0]
    if value not in served:
        raise ValueError(
            f"{name}={value!r} is not served; choose True, False or one of {', '.join(served)}"
        )
    return served[served.index(value)]


def _check_count(name: str, value: int | None, least: int) -> None:
    if value is not None and (not isinstance(value, int) or value < least):
        raise ValueError(f"{name}={value!r} is no number of tokens; give {least} or more")


def _no_effect(name: str, value: int, needs: str) -> None:
    warnings.warn(f"{name}={value} has no effect without {needs}", stacklevel=4)
