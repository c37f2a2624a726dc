"""How a text, or a text and its pair, is cut to a number of tokens, as in transformers.

The tokenizers library does the same, but on encodings that only it can make, and it panics where
these functions raise.
"""

from collections.abc import Iterator
from itertools import product

Window = tuple[int, int]  # its first token, and the one after its last


def cut(
    lengths: list[int], room: int, strategy: str, stride: int, side: str
) -> Iterator[list[Window]]:
    """The windows on a text and, where there is one, its pair; first those that are kept.

    lengths: the tokens of the text, and of its pair
    room: tokens for both together
    stride: tokens that a window has in common with the one before
    side: the end at which tokens are cut off
    Raises ValueError where nothing would be left of the text that is cut.
    """
    shares = _shares(lengths, room, strategy)
    first, *others = [
        list(_windows(length, share, stride, side))
        for length, share in zip(lengths, shares, strict=True)
    ]
    yield [first[0], *(windows[0] for windows in others)]
    for window in first[1:]:
        for pair in product(*others):
            yield [window, *pair]
    for windows in others:
        for other in windows[1:]:
            yield [first[0], other]


def _shares(lengths: list[int], room: int, strategy: str) -> list[int]:
    """The tokens that are left to each."""
    if room == 0:
        return [0] * len(lengths)
    if strategy == "longest_first":
        if len(lengths) == 1:
            return [room]
        short = min(*lengths, room // 2)
        # Where both are cut, the longer one gets the odd token, and of equal ones the second.
        return [room - short, short] if lengths[0] > lengths[1] else [short, room - short]
    index = 0 if strategy == "only_first" else 1
    if index == len(lengths):
        raise ValueError("truncation='only_second' needs a text_pair; give one, or only_first")
    whole = sum(lengths) - lengths[index]
    if room - whole < 1:
        raise ValueError(
            f"truncation={strategy!r} cannot cut {sum(lengths)} tokens to {room}, since the other "
            f"text alone has {whole}; give a larger max_length or truncation='longest_first'"
        )
    return [room - whole if place == index else lengths[place] for place in range(len(lengths))]


def _windows(length: int, most: int, stride: int, side: str) -> Iterator[Window]:
    if length <= most or most == 0:
        yield 0, min(length, most)
        return
    if stride >= most:
        raise ValueError(
            f"stride={stride} is not below the {most} tokens that a window has room for; give a "
            f"smaller one or a larger max_length"
        )
    for start in range(0, length, most - stride):
        end = min(start + most, length)
        yield (start, end) if side == "right" else (length - end, length - start)
        if end == length:
            return
