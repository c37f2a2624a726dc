"""The documents of a source, each as its paragraphs: stripped, and never empty.

Text has a paragraph per line and a blank line between documents (the layout of CC-100), or a
document per line; JSON lines have an object per document, one field of which holds a paragraph per
line. In a tar each `.txt` and each `.json` is a document, and each `.jsonl` is some; in parquet and
in a saved dataset each row is one. Everything is
UTF-8 and is read as a stream.
"""

from collections.abc import Iterator

from mlm.errors import DataError
from mlm.text.lines import Lines, Skipped, json_lines, lines_of, split, stripped_lines
from mlm.text.sources import Source, Sources
from mlm.text.tables import dataset_documents, parquet_documents
from mlm.text.tars import tar_documents

MAX_DOCUMENT_CHARACTERS = 1 << 28  # a document is held in memory: this is about 1 GB of it


def documents(text: Sources, skipped: Skipped | None = None) -> Iterator[list[str]]:
    """The documents of all sources, one source after another.

    Raises DataError, with place and line, at invalid UTF-8 and at a line that is no JSON object
    with a `text`, unless `skipped` says otherwise; also at a source that cannot be read or
    unpacked, at a tar without text, and at a document too large for memory.
    """
    skipped = skipped or Skipped()
    for source in text:
        if source.kind == "tar":
            yield from tar_documents(source, skipped)
        elif source.kind == "datasets":
            yield from dataset_documents(source, skipped)
        elif source.kind == "parquet":
            yield from parquet_documents(source, skipped)
        else:
            yield from _file(source, skipped)


def _file(source: Source, skipped: Skipped) -> Iterator[list[str]]:
    lines = lines_of(source, skipped)
    if source.kind == "jsonl":
        return json_lines(source.place, lines, source.field, skipped)
    if source.form.document == "line":
        return _by_line(lines)
    return _blank_line(source.place, lines)


def _by_line(groups: Lines) -> Iterator[list[str]]:
    """A document for each line that is not blank."""
    for _, text in groups:
        for line in stripped_lines(split(text)):
            yield [line]


def _blank_line(place: str, groups: Lines) -> Iterator[list[str]]:
    """Documents that end at a line of white space alone."""
    document: list[str] = []
    open_characters = 0
    for number, text in groups:
        lines = list(map(str.strip, split(text)))
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


def _check_size(place: str, document: list[str], last: int) -> None:
    """Raises DataError where a document, whose last line so far is `last`, is too large."""
    characters = 0
    for before, paragraph in enumerate(document):
        characters += len(paragraph)
        if characters > MAX_DOCUMENT_CHARACTERS:
            raise DataError(
                f"{place}, line {last - len(document) + 1 + before}: the document that continues "
                f"here is longer than {MAX_DOCUMENT_CHARACTERS} characters; put blank lines "
                f"between documents, or add document=line where each line is one"
            )
