"""The documents of a source, each as its paragraphs: stripped, and never empty.

Text has a paragraph per line and a blank line between documents (the layout of CC-100); JSON lines
have an object per document, whose `text` holds a paragraph per line. In a tar each `.txt` and each
`.json` is a document, and each `.jsonl` is some; in a saved dataset each row is one. Everything is
UTF-8 and is read as a stream.
"""

import io
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO

from mlm.errors import DataError
from mlm.text.sources import Source, Text, unreadable
from mlm.text.streams import READ, UNREADABLE, opened

MAX_DOCUMENT_CHARACTERS = 1 << 28  # a document is held in memory: this is about 1 GB of it
BLOCK = 1 << 17  # bytes that are decoded at a time, and stay in the cache of a core
MEMBERS = ("txt", "json", "jsonl")
ROWS = 1000  # of a saved dataset, at a time


@dataclass
class BadLines:
    """Lines that were left out, since they are not UTF-8 or no JSON object with a text."""

    lines: int = 0
    characters: int = 0  # an invalid byte counts as one

    def add(self, line: str | bytes) -> None:
        self.lines += 1
        text = line.decode("utf-8", "replace") if isinstance(line, bytes) else line
        self.characters += len(text.strip())


Skip = BadLines | None  # None: a bad line is an error
Lines = Iterator[tuple[int, str]]  # some at a time, with the number of the first, from 1


def documents(text: Text, bad: Skip = None) -> Iterator[list[str]]:
    """The documents of all sources, one source after another.

    Raises DataError, with place and line, at invalid UTF-8 and at a line that is no JSON object
    with a `text`, unless `bad` counts them; also at a source that cannot be read or unpacked, at a
    tar without text, and at a document too large for memory.
    """
    for source in text:
        if source.kind == "tar":
            yield from _tar(source, bad)
        elif source.kind == "datasets":
            yield from _dataset(source, bad)
        else:
            yield from _file(source, bad)


def check(text: Text, bad: Skip = None) -> Iterator[int]:
    """Reads all of the text for what `documents` raises, but for the size of documents.

    Gives characters, some at a time, line ends among them or not.
    """
    for source in text:
        if source.kind == "txt":
            for _, lines in _lines(source, bad):
                yield len(lines)
        else:
            for document in documents((source,), bad):
                yield sum(map(len, document))


def _file(source: Source, bad: Skip) -> Iterator[list[str]]:
    lines = _lines(source, bad)
    place = source.place
    return _blank_line(place, lines) if source.kind == "txt" else _json_lines(place, lines, bad)


def _blank_line(place: str, groups: Lines) -> Iterator[list[str]]:
    """Documents that end at a line of nothing but white space."""
    document: list[str] = []
    open_characters = 0
    for number, text in groups:
        lines = list(map(str.strip, _split(text)))
        small = len(text) + open_characters <= MAX_DOCUMENT_CHARACTERS
        start, count = 0, len(lines)
        while start < count:
            try:
                end = lines.index("", start)
            except ValueError:
                end = count
            document += lines[start:end]
            if not small:
                _check_size(place, document, number + end - 1)
            if end < count and document:
                yield document
                document = []
            start = end + 1
        open_characters = sum(map(len, document))
    if document:
        yield document


def _split(text: str) -> list[str]:
    lines = text.split("\n")
    if not lines[-1]:
        del lines[-1]
    return lines


def _check_size(place: str, document: list[str], last: int) -> None:
    """Raises DataError where a document, whose last line so far is `last`, is too large."""
    characters = 0
    for before, paragraph in enumerate(document):
        characters += len(paragraph)
        if characters > MAX_DOCUMENT_CHARACTERS:
            raise DataError(
                f"{place}, line {last - len(document) + 1 + before}: the document that goes on "
                f"here is longer than {MAX_DOCUMENT_CHARACTERS} characters; put blank lines "
                f"between documents"
            )


def _json_lines(place: str, groups: Lines, bad: Skip) -> Iterator[list[str]]:
    for first, text in groups:
        for number, line in enumerate(_split(text), first):
            if not line.strip():
                continue
            document = _json_document(f"{place}, line {number}", line, bad)
            if document:
                yield document


def _json_document(where: str, line: str, bad: Skip) -> list[str]:
    """The paragraphs of a JSON object; none where it is bad and `bad` counts that."""
    try:
        return _paragraphs(json.loads(line)["text"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        if bad is not None:
            bad.add(line)
            return []
        raise DataError(
            f"{where} is not a JSON object whose text is a string of valid Unicode; mend or "
            f"remove this line, or add on_bad_line=skip"
        ) from None


def _paragraphs(text: str) -> list[str]:
    """Raises UnicodeEncodeError, a ValueError, at a lone surrogate: it can be escaped in JSON."""
    found = [stripped for part in text.split("\n") if (stripped := part.strip())]
    if not text.isascii():
        text.encode()
    return found


def _lines(source: Source, bad: Skip) -> Lines:
    """The lines of a file; a byte order mark is left out."""
    reached = [0]
    try:
        with opened(source.place, source.packed) as stream:
            yield from _decoded(source.place, _blocks(stream), bad, reached)
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


def _decoded(place: str, blocks: Iterable[bytes], bad: Skip, reached: list[int]) -> Lines:
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
                    f"{place}, line {number}: byte 0x{byte:02x} at place {error.start + 1} is not "
                    f"valid UTF-8; convert it to UTF-8, remove the line, or add on_bad_line=skip"
                ) from None
            bad.add(raw)
            good = []
        number += 1
    yield number - len(good), "".join(good)


def _tar(source: Source, bad: Skip) -> Iterator[list[str]]:
    """Documents of the members of a tar, which webdataset reads."""
    from webdataset.tariterators import group_by_keys, tar_file_expander

    key, found = "", False
    try:
        with opened(source.place, source.packed) as stream:
            opened_tar = [{"url": source.place, "stream": stream}]
            files = tar_file_expander(opened_tar, select_files=lambda name: bool(_ending(name)))
            for sample in group_by_keys(files):
                key = sample["__key__"]
                for suffix, raw in sample.items():
                    if ending := _ending(f".{suffix}"):
                        found = True
                        where = f"{source.place}, {key}.{suffix}"
                        yield from _member(where, ending, raw, bad)
            # Behind its end a tar is filled up with zeros; other bytes would never be read.
            while block := stream.read(READ):
                if block.count(0) != len(block):
                    raise ValueError("something is behind the end of the tar, such as another one")
    except (*UNREADABLE, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after {key}" if key else "", error) from None
    if not found:
        raise DataError(
            f"{source.place} holds no text; give tars with members that end in .txt, .json or "
            f".jsonl"
        )


def _ending(name: str) -> str | None:
    ending = PurePosixPath(name).name.rpartition(".")[2].lower()
    return ending if "." in name and ending in MEMBERS else None


def _member(where: str, ending: str, raw: bytes, bad: Skip) -> Iterator[list[str]]:
    groups = _decoded(where, [raw] if raw else [], bad, [0])
    if ending == "jsonl":
        yield from _json_lines(where, groups, bad)
        return
    lines = [line for _, text in groups for line in _split(text)]
    if ending == "json":
        document = _json_document(where, "\n".join(lines), bad) if lines else []
    else:
        document = [stripped for line in lines if (stripped := line.strip())]
    if document:
        yield document


def _dataset(source: Source, bad: Skip) -> Iterator[list[str]]:
    """The rows of a folder that `save_to_disk` of the package datasets made."""
    try:
        from datasets import Dataset, DatasetDict, load_from_disk
    except ImportError:
        raise DataError(
            f"{source.place} is a saved dataset, and the package datasets, which reads it, is not "
            f"installed; run pip install 'polymlm[datasets]'"
        ) from None
    number = 0
    try:
        saved = load_from_disk(source.place)
        if isinstance(saved, DatasetDict):
            _check_has(source.place, "split", source.split, list(saved))
            saved = saved[source.split]
        assert isinstance(saved, Dataset), saved
        _check_has(source.place, "column", source.column, saved.column_names)
        for rows in saved.select_columns([source.column]).iter(ROWS):
            for text in rows[source.column]:
                number += 1
                if document := _row(f"{source.place}, row {number}", text, bad):
                    yield document
    except (*UNREADABLE, ValueError) as error:  # pyarrow's errors are of these
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after row {number}", error) from None


def _row(where: str, text: object, bad: Skip) -> list[str]:
    if isinstance(text, str):
        return _paragraphs(text)
    if bad is None:
        raise DataError(
            f"{where} has {type(text).__name__} in place of a text; give the column that holds "
            f"text, mend the row, or add on_bad_line=skip"
        )
    bad.add("" if text is None else str(text))
    return []


def _check_has(place: str, what: str, name: str, names: list[str]) -> None:
    if name not in names:
        raise DataError(
            f"{place} has no {what} {name}, and it has {', '.join(names)}; give one of these as "
            f"{{datasets: {place}, {what}: {names[0]}}}"
        )
