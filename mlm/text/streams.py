"""Bytes of a file, a URL or a command, unpacked as they are read."""

import io
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

from mlm.text.compressed import ERRORS, READ, unpacked

REMOTE = ("pipe:", "http://", "https://")
UNREADABLE = (*ERRORS, tarfile.TarError)


def is_remote(place: str) -> bool:
    """Whether a place is a URL or a command, and not a file."""
    return place.startswith(REMOTE)


@contextmanager
def opened(place: str, packed: str | None) -> Iterator[IO[bytes]]:
    """A path, an http URL or `pipe:COMMAND` as plain bytes.

    packed: a key of `FORMATS`; None: it is not compressed
    Raises one of `UNREADABLE` where it cannot be opened, and at the end of what is read where a
    command or a transfer ended with an error.
    """
    with ExitStack() as stack:
        if is_remote(place):
            raw = io.BufferedReader(stack.enter_context(_Command(place)), READ)
        else:
            raw = stack.enter_context(open(place, "rb", buffering=READ))
        yield unpacked(raw, packed)


class _Command(io.RawIOBase):
    """The output of a command that webdataset starts; OSError at its end if the command failed."""

    def __init__(self, place: str) -> None:
        from webdataset.gopen import gopen  # takes seconds to import, and most text is in files

        self._pipe: Any = gopen(place)  # a Pipe of webdataset
        self._ended = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        # Not webdataset's own `read`: it checks the exit code before the output ends and not after
        # it, so that a transfer that broke off can pass for a whole one.
        count = self._pipe.stream.readinto(buffer)
        if not count and not self._ended:
            self._ended = True
            code = self._pipe.proc.wait()
            if code:
                raise OSError(f"the command that reads it ended with exit code {code}")
        return count

    def close(self) -> None:
        if not self.closed:
            if not self._ended:
                self._pipe.proc.terminate()
            self._pipe.stream.close()
            self._pipe.proc.wait()
        super().close()
