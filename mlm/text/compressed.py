"""Compressed files as a stream of plain bytes; one that is cut short or damaged is an error.

Every format allows several compressed streams in a file, one after another. The readers of Python's
library and of zstandard take whatever follows a stream for the end of the file if they do not know
it, and text would be lost in silence: only gzip's reader is strict.
"""

import bz2
import gzip
import io
import lzma
import zlib
from collections.abc import Callable
from typing import IO, Any

import zstandard

READ = 1 << 18  # bytes at a time
ERRORS = (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)

ZSTD_WINDOW = 1 << 31  # bytes, of `zstd --long=31`, the longest


class _Streams(io.RawIOBase):
    """The content of compressed streams, one after another.

    Raises EOFError where the last one is cut short, and OSError where anything but another stream
    or padding follows one.
    """

    def __init__(self, file: IO[bytes], name: str, new: Callable[[], Any], magic: bytes) -> None:
        """new: a decompressor with the interface of `lzma.LZMADecompressor`; magic: the first
        bytes of a stream."""
        self._file, self._name, self._new, self._magic = file, name, new, magic
        self._stream = new()
        self._packed = b""  # read, and not yet given to the decompressor

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while True:
            if self._stream.eof and not self._begin_next():
                return 0
            if self._stream.needs_input:
                packed, self._packed = self._packed or self._file.read(READ), b""
                if not packed:
                    raise EOFError(f"its last stream of {self._name} is cut short")
            else:
                packed = b""
            plain = self._stream.decompress(packed, len(buffer))
            if plain:
                buffer[: len(plain)] = plain
                return len(plain)

    def _begin_next(self) -> bool:
        """Begins the stream that follows; false at the end of the file."""
        rest = self._stream.unused_data
        padding = 0
        while block := rest or self._file.read(READ):
            rest = block.lstrip(b"\0")
            padding += len(block) - len(rest)
            if rest:
                break
        if padding and (self._name != "xz" or padding % 4):
            raise OSError(f"{padding} bytes of 0, which are not padding, follow its data")
        if not rest:
            return False
        while len(rest) < len(self._magic) and (block := self._file.read(READ)):
            rest += block
        if not rest.startswith(self._magic):
            raise OSError(f"something that is not {self._name} follows its data")
        self._stream, self._packed = self._new(), rest
        return True


class _Zstandard(io.RawIOBase):
    """Any number of Zstandard frames; EOFError where the last one is cut short.

    The package's own stream reader takes a cut frame for the end of the file.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._frame, self._between = _zstandard_frame(), False
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._plain:
            packed = self._file.read(READ)
            if not packed:
                if not self._between:
                    raise EOFError("its last frame of zstandard is cut short")
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
            self._between, packed = self._frame.eof, self._frame.unused_data
            if self._frame.eof:
                self._frame = _zstandard_frame()
        return b"".join(parts)


def _zstandard_frame() -> Any:
    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW).decompressobj()


def _xz(file: IO[bytes]) -> io.RawIOBase:
    return _Streams(file, "xz", lzma.LZMADecompressor, b"\xfd7zXZ\0")


def _bz2(file: IO[bytes]) -> io.RawIOBase:
    return _Streams(file, "bz2", bz2.BZ2Decompressor, b"BZh")


# By the last part of a file's name, from compressed bytes to plain ones.
FORMATS: dict[str, Callable[[IO[bytes]], Any]] = {
    "xz": _xz,
    "gz": lambda file: gzip.GzipFile(fileobj=file, mode="rb"),
    "zst": _Zstandard,
    "bz2": _bz2,
}


def unpacked(file: Any, packed: str | None) -> IO[bytes]:
    """The plain bytes of a buffered reader, of format `packed`; None: it is not compressed.

    Raises one of `ERRORS`, here or when it is read, where the file is damaged or cut short.
    """
    if packed is None:
        return file
    if not file.peek(1):
        raise EOFError("it is empty, and not even compressed")
    return io.BufferedReader(FORMATS[packed](file), READ)
