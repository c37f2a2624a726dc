"""How a text, or a pair, is cut to a number of tokens, as the reference does it."""

from collections.abc import Iterator

Window = tuple[int, int]  # from the first token to behind the last


def cut(
    first: int, second: int | None, room: int, strategy: str, stride: int, side: str
) -> Iterator[tuple[Window, Window | None]]:
    """The windows on a text and, where there is one, its pair; first the one that is kept.

    first, second: the tokens of the text, and of its pair or None
    room: tokens for both together
    stride: tokens that a window has in common with the one before
    side: at which end tokens are cut off
    Raises ValueError where the part that is to be cut would have nothing left of it.
    """
    most = _shares(first, second, room, strategy)
    windows = _windows(first, most[0], stride, side)
    if second is None:
        for window in windows:
            yield window, None
        return
    ours, others = list(windows), list(_windows(second, most[1], stride, side))
    yield ours[0], others[0]
    for window in ours[1:]:
        for other in others:
            yield window, other
    for other in others[1:]:
        yield ours[0], other


def _shares(first: int, second: int | None, room: int, strategy: str) -> tuple[int, int]:
    """The tokens that are left to each."""
    if room == 0:
        return 0, 0
    if strategy == "longest_first":
        if second is None:
            return room, 0
        short = min(first, second)
        if 2 * short > room:
            short = room // 2
        # Where both are cut, the longer one gets the odd token, and of equal ones the second.
        return (room - short, short) if first > second else (short, room - short)
    which, other = (first, second or 0) if strategy == "only_first" else (second, first)
    if which is None:
        raise ValueError("truncation='only_second' needs a text_pair; give one, or only_first")
    if room - other < 1:
        raise ValueError(
            f"truncation={strategy!r} cannot cut {which + other} tokens to {room}, since the other "
            f"text alone has {other}; give a larger max_length or truncation='longest_first'"
        )
    return (room - other, other) if strategy == "only_first" else (other, room - other)


def _windows(length: int, most: int, stride: int, side: str) -> Iterator[Window]:
    if length <= most or most == 0:
        yield 0, min(length, most)
        return
    if stride >= most:
        raise ValueError(
            f"stride={stride} is not below the {most} tokens that a window has room for; give a "
            f"smaller one or a larger max_length"
        )
    for behind in range(0, length, most - stride):
        end = min(behind + most, length)
        yield (behind, end) if side == "right" else (length - end, length - behind)
        if end == length:
            return
