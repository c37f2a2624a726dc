"""The terminal while a bar is on it."""

import os
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def terminal_for_bars() -> Iterator[None]:
    """Keeps the terminal from writing `^C` into a bar when that is pressed."""
    before = _attributes()
    if before is not None:
        _set([*before[:3], before[3] & ~termios.ECHOCTL, *before[4:]])
    try:
        yield
    finally:
        if before is not None and _attributes() is not None:
            _set(before)


def _attributes() -> list | None:
    """Of the terminal that this process reads from in the foreground: in the background, setting
    them would stop it."""
    try:
        descriptor = sys.stdin.fileno()
        if os.tcgetpgrp(descriptor) == os.getpgrp():
            return termios.tcgetattr(descriptor)
    except (OSError, ValueError, AttributeError, termios.error):
        pass
    return None


def _set(attributes: list) -> None:
    termios.tcsetattr(sys.stdin.fileno(), termios.TCSANOW, attributes)
