"""Lines of bytes as text, the documents in JSON, and the lines that are bad."""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import IO

from mlm.errors import DataError
from mlm.text.sources import Source, unreadable
from mlm.text.streams import UNREADABLE, opened

BLOCK = 1 << 17  # bytes that are decoded at a time, and stay in the cache of a core


@dataclass
class BadLines:
    """Lines that were skipped, since they are not UTF-8 or not a JSON object with a text."""

    lines: int = 0
    characters: int = 0  # an invalid byte counts as one

    def add(self, line: str | bytes) -> None:
        self.lines += 1
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        self.characters += len(text.strip())


Skip = BadLines | None  # None: a bad line is an error
Lines = Iterator[tuple[int, str]]  # some at a time, with the number of the first, from 1


def lines_of(source: Source, bad: Skip) -> Lines:
    """The lines of a file, without a byte order mark."""
    reached = [0]
    try:
        with opened(source.place, source.packed) as stream:
            yield from decoded(source.place, _blocks(stream), bad, reached)
    except UNREADABLE as error:
        raise unreadable(source.place, f" after line {reached[0]}", error) from None


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    """Bytes that end where a line does, about `BLOCK` at a time."""
    rest: list[bytes] = []
    while block := stream.read(BLOCK):
        cut = block.rfind(b"\n") + 1
        if cut:
            yield b"".join([*rest, block[:cut]])
            rest = [block[cut:]]
        else:
            rest.append(block)
    if last := b"".join(rest):
        yield last


def decoded(place: str, blocks: Iterable[bytes], bad: Skip, reached: list[int]) -> Lines:
    """Whole lines as text; `reached` holds the number of the last one that was read."""
    for block in blocks:
        if not reached[0]:
            block = block.removeprefix(b"\xef\xbb\xbf")
        first = reached[0] + 1
        reached[0] += block.count(b"\n")
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError:
            yield from _good_lines(place, block, first, bad)
        else:
            yield first, text


def _good_lines(place: str, block: bytes, first: int, bad: Skip) -> Lines:
    """The lines of a block in which some are not UTF-8."""
    good: list[str] = []
    number = first
    for raw in io.BytesIO(block):
        try:
            good.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number - len(good), "".join(good)
            if bad is None:
                byte = error.object[error.start]
                raise DataError(
                    f"{place}, line {number}: byte 0x{byte:02x} at position {error.start + 1} is "
                    f"not valid UTF-8; convert it, remove the line, or add on_bad_line=skip"
                ) from None
            bad.add(raw)
            good = []
        number += 1
    yield number - len(good), "".join(good)


def split(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return lines


def json_lines(place: str, groups: Lines, bad: Skip) -> Iterator[list[str]]:
    for first, text in groups:
        for number, line in enumerate(split(text), first):
            if not line.strip():
                continue
            document = json_document(f"{place}, line {number}", line, bad)
            if document:
                yield document


def json_document(where: str, line: str, bad: Skip) -> list[str]:
    """The paragraphs of a JSON object; none where it is bad and `bad` counts that."""
    try:
        return paragraphs(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if bad is not None:
            bad.add(line)
            return []
        raise DataError(
            f"{where} is not a JSON object whose text is a string of valid Unicode; correct or "
            f"remove this line, or add on_bad_line=skip"
        ) from None


def paragraphs(text: str) -> list[str]:
    """Raises UnicodeEncodeError, a ValueError, at a lone surrogate: it can be escaped in JSON."""
    found = [stripped for part in text.split("\n") if (stripped := part.strip())]
    if not text.isascii():
        text.encode()
    return found
