"""Standard output and error that end nothing."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from typing import Any


@contextmanager
def lasting_output() -> Iterator[None]:
    """Drops what standard output and error cannot show any more, since the reader has ended
    (`| head`) or the terminal is closed, and escapes characters that their encoding lacks."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:  # closed at the start: the next file opened would get the number
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    with open(os.devnull, "w") as nothing:
        out: Any = _Lasting(sys.stdout or nothing)
        err: Any = _Lasting(sys.stderr or nothing)
        with redirect_stdout(out), redirect_stderr(err):
            yield


class _Lasting:
    """A text stream whose writes raise no error."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._dropping():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._dropping():
            self._stream.flush()

    @contextmanager
    def _dropping(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError):  # of a closed file the latter
            with suppress(OSError, ValueError), open(os.devnull, "w") as nothing:
                # What is buffered would fail again at the end.
                os.dup2(nothing.fileno(), self._stream.fileno())
