"""Where the text of a language comes from: files, tars, URLs, commands, saved datasets."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, cast
from urllib.parse import urlsplit

from mlm.errors import DataError
from mlm.text.compressed import FORMATS, READ
from mlm.text.streams import UNREADABLE, is_remote, opened

SourceKind = Literal["txt", "jsonl", "parquet", "tar", "datasets"]
DocumentEnd = Literal["blank", "line"]
PACKED = rf"(\.(?P<packed>{'|'.join(FORMATS)}))?"
MARKS = ("state.json", "dataset_dict.json")  # in what `datasets` saved: one of them

# JSON lines that are compressed are often called .json.gz (C4, mC4); a .json is of one document.
_FILE = re.compile(
    rf"(?P<stem>.*)\.((?P<kind>txt|jsonl|ndjson|tar){PACKED}"
    rf"|(?P<parquet>parquet)|json\.(?P<packed_json>{'|'.join(FORMATS)}))",
    re.DOTALL,
)


@dataclass(frozen=True)
class TextForm:
    """How documents are kept.

    field: of the text in an object of JSON, and its column in parquet and saved datasets
    document: in plain text, the lines up to a blank one, or each line
    """

    field: str = "text"
    document: DocumentEnd = "blank"


USUAL_FORM = TextForm()


@dataclass(frozen=True)
class Source:
    """A part of a language's text. `place` is a path, an http URL or `pipe:COMMAND`.

    `split` is that of a saved dataset; so is `column`, where the corpus gives one in place of the
    field of `form`. `packed` is a key of `FORMATS`, or None where it is not compressed.
    """

    place: str
    kind: SourceKind
    packed: str | None = None
    split: str = "train"
    column: str | None = None
    form: TextForm = USUAL_FORM

    @property
    def field(self) -> str:
        return self.column or self.form.field

    @property
    def name(self) -> str:
        """What stays the same when a folder is moved."""
        return self.place if is_remote(self.place) else Path(self.place).name

    def size(self) -> int:
        """Bytes, compressed or not; 0 where the size is unknown before it is read."""
        return 0 if is_remote(self.place) else sum(p.stat().st_size for p in self._files())

    def fingerprint(self) -> list:
        """What changes when the source does, without reading its text: for files their names, sizes
        and times. A URL or a command is known by its text only."""
        made = [self.place, self.kind, self.split, self.field, self.form.document]
        if is_remote(self.place):
            return made
        stats = [(str(path), path.stat()) for path in self._files()]
        return [*made, *([name, of.st_size, of.st_mtime_ns] for name, of in stats)]

    def digest(self) -> str:
        """A hash of its bytes, which are fetched where the source is a URL or a command."""
        hashed = hashlib.blake2b()
        try:
            for place in [self.place] if is_remote(self.place) else map(str, self._files()):
                with opened(place, None) as stream:
                    while block := stream.read(READ):
                        hashed.update(block)
        except UNREADABLE as error:
            raise unreadable(self.place, "", error) from None
        if self.kind == "datasets":
            hashed.update(f"\n{self.split}\n{self.field}".encode())
        return hashed.hexdigest()

    def _files(self) -> list[Path]:
        path = Path(self.place)
        return (
            [path] if self.kind != "datasets" else sorted(p for p in path.rglob("*") if p.is_file())
        )


Sources = tuple[Source, ...]  # of one language, in order


def source(place: str) -> Source | None:
    """The source that a name stands for: a command, or by the ending of a file or a URL.

    A command's output is a tar, as in webdataset. None for an unknown ending.
    """
    if place.startswith("pipe:"):
        return Source(place, "tar")
    match = _match(urlsplit(place).path if is_remote(place) else place)
    if match is None:
        return None
    if match["parquet"]:
        return Source(place, "parquet")
    if match["packed_json"]:
        return Source(place, "jsonl", match["packed_json"])
    kind = "jsonl" if match["kind"] == "ndjson" else match["kind"]
    return Source(place, cast(SourceKind, kind), match["packed"])


def stem(name: str) -> str | None:
    """The name of a text file without the endings that say what it is; None: it is no text."""
    match = _match(name)
    return match and match["stem"]


def _match(place: str) -> re.Match[str] | None:
    return _FILE.fullmatch(re.sub(r"\.tgz$", ".tar.gz", PurePosixPath(place).name))


def saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the package datasets made this folder."""
    return any((folder / name).is_file() for name in MARKS)


def name_sources(text: Iterable[Source]) -> str:
    """The first of several sources, and how many more there are, for a sentence."""
    first, *others = [one.place for one in text]
    return f"{first} and {len(others)} more" if others else first


def unreadable(place: str, where: str, error: BaseException) -> DataError:
    """What is raised for a source that cannot be read; `where` is empty or begins with a blank."""
    cause = error if isinstance(error, OSError) and error.errno else (error.args or [error])[0]
    reason = str(cause).split(" @ ")[0]  # webdataset adds to the arguments what it was reading
    remedy = "make sure that it is whole and that you may read it"
    if place.startswith("pipe:"):
        remedy += "; a command writes a tar of .txt or .json files"
    return DataError(f"{place} cannot be read{where}: {reason}; {remedy}")
