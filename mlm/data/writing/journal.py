"""The finished tars of one split of a language, recorded so that a killed command can resume.

A line of JSON per finished tar, written once the tar is on the disk. It holds the tar's rows for
the index, and the point from which the split's documents are tokenized again: the number of a
document, and the counts of all documents before it. Documents that straddle the end of the tar come
after that point.
"""

import sys
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path

from mlm.files.jsonl import append_row, read_rows, repair


@dataclass(frozen=True)
class SplitCounts:
    """What was added to a split, and the documents that were dropped since they have no tokens."""

    bytes: int = 0
    characters: int = 0
    documents: int = 0
    tokens: int = 0
    empty_documents: int = 0
    empty_characters: int = 0

    def __add__(self, other: "SplitCounts") -> "SplitCounts":
        return SplitCounts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class ReadCounts:
    """What was read of a language, and what was dropped before tokenization."""

    documents: int = 0
    repeated_documents: int = 0
    repeated_characters: int = 0
    bad_lines: int = 0
    bad_characters: int = 0
    skipped_members: dict[str, int] = field(default_factory=dict)  # of tars, by why


@dataclass(frozen=True)
class FinishedTar:
    """row: bytes, tokens, documents, sha256; samples: a row of `SAMPLE_FIELDS` for each"""

    row: tuple[int, int, int, bytes]
    samples: list[tuple[int, ...]]


class Journal:
    """The journal of one split. It resumes from document `start`, with the counts `added` of those
    before it; once the split is `done`, `start` is past all documents."""

    def __init__(self, path: Path) -> None:
        """Reads the journal, and removes a last line that was only written in part."""
        self._path = path
        self.tars: list[FinishedTar] = []
        self.start, self.added, self.done = 0, SplitCounts(), False
        repair(path)
        for line in read_rows(path):
            self._take(line)

    def add_tar(self, tar: FinishedTar, start: int, added: SplitCounts) -> None:
        """Records a finished tar, and the point to resume from."""
        size, tokens, documents, sha256 = tar.row
        row = [size, tokens, documents, sha256.hex()]
        line = {"shard": row, "samples": tar.samples, "start": start, "added": asdict(added)}
        append_row(self._path, line)
        self.tars.append(tar)

    def end(self, added: SplitCounts) -> None:
        """Records that the split is finished."""
        append_row(self._path, {"done": True, "added": asdict(added)})
        self.start, self.done = sys.maxsize, True

    def _take(self, line: dict) -> None:
        self.added = SplitCounts(**line["added"])
        if line.get("done"):
            self.start, self.done = sys.maxsize, True
            return
        size, tokens, documents, sha256 = line["shard"]
        row = (size, tokens, documents, bytes.fromhex(sha256))
        self.tars.append(FinishedTar(row, [tuple(sample) for sample in line["samples"]]))
        self.start = line["start"]
