"""A corpus folder: a file of text per language, read as documents of paragraphs.

`<lang>.txt[.xz|.gz|.zst]` has a paragraph per line and a blank line between documents (the layout
of CC-100); `<lang>.jsonl[.xz|.gz|.zst]` has a JSON object per document, whose `text` holds a
paragraph per line. Everything is UTF-8 and is read as a stream.
"""

import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from mlm.errors import DataError

SAMPLE = "sample"
MAX_DOCUMENT_CHARACTERS = 1 << 28  # a document is held in memory: this is about 1 GB of it

_TEXT = re.compile(r"(?P<language>.+?)\.(?P<kind>txt|jsonl)(\.(?P<packed>xz|gz|zst))?")
_LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")
_READ = 1 << 18  # bytes at a time
_OPEN = {"xz": lzma.open, "gz": gzip.open}
_UNREADABLE = (OSError, EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError)


def sample_corpus() -> Path:
    """The folder of the corpus that comes with the package."""
    return Path(__file__).resolve().parent.parent / "sample"


def resolve(corpus: str) -> Path:
    """The folder that `corpus` means: the word "sample" stands for the one in the package."""
    return sample_corpus() if corpus == SAMPLE else Path(corpus)


def languages(corpus: Path) -> dict[str, Path]:
    """The file of each language in a corpus folder, sorted by language.

    Files of other kinds are passed over. Raises DataError where the folder is missing or has no
    text, where a language has two files, and where a name is not one that a language can have.
    """
    corpus = Path(corpus)
    if not corpus.is_dir():
        raise DataError(
            f"the corpus {corpus} is not a folder; give one that holds a file such as en.txt for "
            f"each language, or the word {SAMPLE}"
        )
    found: dict[str, Path] = {}
    for path in sorted(corpus.iterdir()):
        match = _TEXT.fullmatch(path.name)
        if match is None or path.name.startswith(".") or not path.is_file():
            continue
        language = match["language"]
        if not _LANGUAGE.fullmatch(language):
            raise DataError(
                f"{path} names the language {language!r}, and only letters of ASCII, digits, - "
                f"and _ can stand in such a name; rename the file"
            )
        if language in found:
            raise DataError(
                f"{found[language].name} and {path.name} in {corpus} are both of the language "
                f"{language}, which can have one file; join them into one"
            )
        found[language] = path
    if not found:
        raise DataError(
            f"the corpus {corpus} holds no text; put a <language>.txt or <language>.jsonl there "
            f"for each language, as it is or packed as .xz, .gz or .zst"
        )
    return dict(sorted(found.items()))


def documents(path: Path) -> Iterator[list[str]]:
    """The documents of a file, each as its paragraphs: stripped, and never empty.

    Raises DataError, with file and line, at invalid UTF-8, at a line that is not a JSON object
    with a `text`, at a file that cannot be unpacked, and at a document too large for memory.
    """
    match = _TEXT.fullmatch(Path(path).name)
    assert match is not None, path
    lines = _lines(Path(path), match["packed"])
    return _json_documents(path, lines) if match["kind"] == "jsonl" else _blank_line(path, lines)


def _blank_line(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[list[str]]:
    """Documents that end at a line of nothing but white space."""
    document: list[str] = []
    characters = 0
    for number, line in lines:
        paragraph = line.strip()
        if paragraph:
            document.append(paragraph)
            characters += len(paragraph)
            if characters > MAX_DOCUMENT_CHARACTERS:
                raise DataError(
                    f"{path}, line {number}: the document that goes on here is longer than "
                    f"{MAX_DOCUMENT_CHARACTERS} characters; put blank lines between documents"
                )
        elif document:
            yield document
            document, characters = [], 0
    if document:
        yield document


def _json_documents(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[list[str]]:
    for number, line in lines:
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            document = [stripped for part in text.split("\n") if (stripped := part.strip())]
            "".join(document).encode()  # a lone surrogate can be escaped in JSON; it is no text
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise DataError(
                f"{path}, line {number} is not a JSON object whose text is a string of valid "
                f"Unicode; mend or remove this line"
            ) from None
        if document:
            yield document


def _lines(path: Path, packed: str | None) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1; a byte order mark is left out."""
    number = 0
    try:
        with _stream(path, packed) as stream:
            for raw in stream:
                number += 1
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield number, raw.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{path}, line {number}: byte 0x{byte:02x} at place {error.start + 1} is not valid "
            f"UTF-8; convert the file to UTF-8, or remove the line"
        ) from None
    except _UNREADABLE as error:
        raise DataError(
            f"{path} cannot be read after line {number}: {error}; make sure that the file is "
            f"whole and that you may read it"
        ) from None


def _stream(path: Path, packed: str | None) -> IO[bytes]:
    if packed == "zst":
        return io.BufferedReader(_Zstandard(path), _READ)
    return _OPEN[packed](path, "rb") if packed else path.open("rb", buffering=_READ)


class _Zstandard(io.RawIOBase):
    """A zstandard file of any number of frames; EOFError where the last one is cut short.

    The package's own stream reader takes a cut frame for the end of the file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False
        self._plain = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        while not self._plain:
            packed = self._file.read(_READ)
            if not packed:
                if self._begun:
                    raise EOFError("the last zstandard frame is cut short")
                return 0
            self._plain = self._unpacked(packed)
        count = min(len(buffer), len(self._plain))
        buffer[:count] = self._plain[:count]
        self._plain = self._plain[count:]
        return count

    def close(self) -> None:
        self._file.close()
        super().close()

    def _unpacked(self, packed: bytes) -> bytes:
        parts = []
        while packed:
            parts.append(self._frame.decompress(packed))
            self._begun, packed = not self._frame.eof, self._frame.unused_data
            if self._frame.eof:
                self._frame = zstandard.ZstdDecompressor().decompressobj()
        return b"".join(parts)
