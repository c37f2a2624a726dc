"""Documents in the members of a tar, of webdataset's or of any other program's."""

import re
import tarfile
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import IO, Any

from mlm.errors import DataError
from mlm.text.compressed import READ, unpacked
from mlm.text.lines import (
    Skipped,
    blocks_of,
    decoded,
    json_document,
    json_lines,
    split,
    stripped_lines,
)
from mlm.text.sources import PACKED, Source, unreadable
from mlm.text.streams import UNREADABLE, opened

KINDS = ("txt", "json", "jsonl", "ndjson")
_NAME = re.compile(rf".*\.(?P<kind>{'|'.join(KINDS)}){PACKED}", re.DOTALL)
LONGEST_ENDING = 8  # of a member that is no text, as it is counted; longer ones are parts of names


def tar_documents(source: Source, skipped: Skipped) -> Iterator[list[str]]:
    """The documents of a tar, read as a stream; other members are counted in `skipped`.

    Raises DataError where the tar is damaged, cut short, or followed by something.
    """
    last, found = "", False
    try:
        with opened(source.place, source.packed) as stream:
            # In single blocks, so that nothing after the end is read and dropped.
            size = tarfile.BLOCKSIZE
            with tarfile.open(fileobj=stream, mode="r|", bufsize=size, tarinfo=_Header) as tar:
                while (member := tar.next()) is not None:
                    # Or all of them stay in memory; undocumented, and what webdataset does.
                    tar.members = []  # pyright: ignore[reportAttributeAccessIssue]
                    if member.isdir():
                        continue
                    if why := _no_text(member):
                        skipped.members[why] += 1
                        continue
                    found, last = True, member.name
                    file = tar.extractfile(member)
                    assert file is not None
                    where = f"{source.place}, {member.name}"
                    yield from _member(where, file, source.field, skipped)
            # After its end a tar is padded with zeros; other bytes would never be read.
            while block := stream.read(READ):
                if block.count(0) != len(block):
                    raise ValueError("something is after the end of the tar, such as another tar")
    except (*UNREADABLE, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise unreadable(source.place, f" after {last}" if last else "", error) from None
    if not found:
        raise DataError(
            f"{source.place} holds no text; give tars with members that end in .txt, .json or "
            f".jsonl, or in one of these and .xz, .gz, .bz2 or .zst"
        )


class _Header(tarfile.TarInfo):
    """Raises ReadError for a header that is damaged or cut, or missing where no end is marked.

    The library itself takes all of them for the end of the tar, except in the first header.
    """

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        if not buf:
            raise tarfile.ReadError("it is cut short: the blocks that mark its end are missing")
        if len(buf) != tarfile.BLOCKSIZE:
            raise tarfile.ReadError("it is cut short in a header")
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if not any(buf):
                raise  # the mark of the end
            raise tarfile.ReadError(f"a header is damaged ({error})") from None


def _no_text(member: tarfile.TarInfo) -> str | None:
    """Why a member is not read, in the words of the report; None: it is text."""
    if not member.isfile():
        return "link" if member.issym() or member.islnk() else "special file"
    parts = PurePosixPath(member.name).parts
    # macOS keeps attributes of a file a.txt as ._a.txt, and in archives in a folder __MACOSX.
    if "__MACOSX" in parts or any(part.startswith(".") and part != ".." for part in parts):
        return "hidden file"
    if _kind(member.name) is not None:
        return None
    ending = PurePosixPath(member.name).suffix.lower()
    return ending if 1 < len(ending) <= LONGEST_ENDING else "other file"


def _kind(name: str) -> tuple[str, str | None] | None:
    """The kind of text that a member is by its name, and how it is compressed."""
    match = _NAME.fullmatch(PurePosixPath(name).name.lower())
    return match and (match["kind"], match["packed"])


def _member(where: str, file: IO[bytes], field: str, skipped: Skipped) -> Iterator[list[str]]:
    found = _kind(where)
    assert found is not None
    kind, packed = found
    groups = decoded(where, blocks_of(unpacked(file, packed)), skipped, [0])
    if kind in ("jsonl", "ndjson"):
        yield from json_lines(where, groups, field, skipped)
        return
    lines = [line for _, text in groups for line in split(text)]
    if kind == "json":
        document = json_document(where, "\n".join(lines), field, skipped) if lines else []
    else:
        document = stripped_lines(lines)
    if document:
        yield document
