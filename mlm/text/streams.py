"""Bytes of a file, a URL or a command, unpacked as they are read."""

import gzip
import io
import lzma
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any

import zstandard

REMOTE = ("pipe:", "http://", "https://")
READ = 1 << 18  # bytes at a time
UNREADABLE = (
    OSError,
    EOFError,
    lzma.LZMAError,
    zlib.error,
    zstandard.ZstdError,
    tarfile.TarError,
)

_OPEN = {"xz": lzma.open, "gz": gzip.open}


def is_remote(place: str) -> bool:
    """Whether a place is a URL or a command, and not a file."""
    return place.startswith(REMOTE)


@contextmanager
def opened(place: str, packed: str | None) -> Iterator[IO[bytes]]:
    """A path, an http URL or `pipe:COMMAND` as unpacked bytes; `packed` is xz, gz, zst or None.

    Raises one of `UNREADABLE` where it cannot be opened, and at the end of what is read where a
    command or a transfer ended with an error.
    """
    with ExitStack() as stack:
        raw: IO[bytes]
        if is_remote(place):
            raw = io.BufferedReader(stack.enter_context(_Command(place)), READ)
        else:
            raw = stack.enter_context(open(place, "rb", buffering=READ))
        if packed == "zst":
            raw = io.BufferedReader(_Zstandard(raw), READ)
        elif packed:
            raw = stack.enter_context(_OPEN[packed](raw, "rb"))
        yield raw


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


class _Zstandard(io.RawIOBase):
    """Any number of Zstandard frames; EOFError where the last one is cut short.

    The package's own stream reader takes a cut frame for the end of the file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            packed = self._file.read(READ)
            if not packed:
                if self._begun:
                    raise EOFError("the last zstandard frame is cut short")
                return 0
            self._plain = self._unpacked(packed)
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def _unpacked(self, packed: bytes) -> bytes:
        parts = []
        while packed:
            parts.append(self._frame.decompress(packed))
            self._begun, packed = not self._frame.eof, self._frame.unused_data
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        return b"".join(parts)
