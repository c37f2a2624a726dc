"""Lines of bytes as text, the documents in JSON, and what is not read."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import IO

from mlm.errors import DataError
from mlm.text.sources import Source, unreadable
from mlm.text.streams import UNREADABLE, opened

BLOCK = 1 << 17  # bytes that are decoded at a time, and stay in the cache of a core


@dataclass
class Skipped:
    """What is not read of some text.

    bad_lines: whether lines that are not UTF-8, or not a JSON object with a text, are skipped, and
        not an error; lines, characters: how much that was, where an invalid byte counts as one
    members: of tars that are not text, by why
    """

    bad_lines: bool = False
    lines: int = 0
    characters: int = 0
    members: Counter[str] = field(default_factory=Counter)

    def add_line(self, line: str | bytes) -> None:
        self.lines += 1
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        self.characters += len(text.strip())


Lines = Iterator[tuple[int, str]]  # some at a time, with the number of the first, from 1


def lines_of(source: Source, skipped: Skipped) -> Lines:
    """The lines of a file, without a byte order mark."""
    reached = [0]
    try:
        with opened(source.place, source.packed) as stream:
            yield from decoded(source.place, blocks_of(stream), skipped, reached)
    except UNREADABLE as error:
        raise unreadable(source.place, f" after line {reached[0]}", error) from None


def blocks_of(stream: IO[bytes]) -> Iterator[bytes]:
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


def decoded(place: str, blocks: Iterable[bytes], skipped: Skipped, reached: list[int]) -> Lines:
    """Whole lines as text; `reached` holds the number of the last one that was read."""
    for block in blocks:
        if not reached[0]:
            block = block.removeprefix(b"\xef\xbb\xbf")
        first = reached[0] + 1
        reached[0] += block.count(b"\n")
        try:
            text = block.decode("utf-8")
        except UnicodeDecodeError:
            yield from _good_lines(place, block, first, skipped)
        else:
            yield first, text


def _good_lines(place: str, block: bytes, first: int, skipped: Skipped) -> Lines:
    """The lines of a block in which some are not UTF-8."""
    good: list[str] = []
    number = first
    for raw in io.BytesIO(block):
        try:
            good.append(raw.decode("utf-8"))
        except UnicodeDecodeError as error:
            yield number - len(good), "".join(good)
            if not skipped.bad_lines:
                byte = error.object[error.start]
                raise DataError(
                    f"{place}, line {number}: byte 0x{byte:02x} at position {error.start + 1} is "
                    f"not valid UTF-8; convert it, remove the line, or add on_bad_line=skip"
                ) from None
            skipped.add_line(raw)
            good = []
        number += 1
    yield number - len(good), "".join(good)


def split(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return lines


def json_lines(place: str, groups: Lines, field: str, skipped: Skipped) -> Iterator[list[str]]:
    for first, text in groups:
        for number, line in enumerate(split(text), first):
            if not line.strip():
                continue
            document = json_document(f"{place}, line {number}", line, field, skipped)
            if document:
                yield document


def json_document(where: str, line: str, field: str, skipped: Skipped) -> list[str]:
    """The paragraphs of a field of a JSON object; none where it is bad and skipped."""
    try:
        return paragraphs(json.loads(line)[field])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if skipped.bad_lines:
            skipped.add_line(line)
            return []
        raise DataError(
            f"{where} is not a JSON object whose {field} is a string of valid Unicode; correct or "
            f"remove this line, give field=NAME where the text has another name, or add "
            f"on_bad_line=skip"
        ) from None


def paragraphs(text: str) -> list[str]:
    """Raises UnicodeEncodeError, a ValueError, at a lone surrogate: it can be escaped in JSON."""
    found = stripped_lines(text.split("\n"))
    if not text.isascii():
        text.encode()
    return found


def stripped_lines(lines: Iterable[str]) -> list[str]:
    """The lines that are not empty, without white space at their ends."""
    return [stripped for line in lines if (stripped := line.strip())]
