"""What is finished of one split of a language, kept so that a killed process can go on.

A line of JSON for each whole tar, on the disk once the tar is. It has the tar's rows for the index
and a point from which the split's documents are to be tokenized again: a document's number, and
what was added before it. Documents that straddle the end of the tar lie behind that point.
"""

import sys
from dataclasses import asdict, astuple, dataclass
from pathlib import Path

from mlm.files.jsonl import append_row, read_rows, repair


@dataclass(frozen=True)
class Added:
    """Documents that were added to a split, and those that were not, since they have no tokens."""

    bytes: int = 0
    characters: int = 0
    documents: int = 0
    tokens: int = 0
    empty_documents: int = 0
    empty_characters: int = 0

    def __add__(self, other: "Added") -> "Added":
        return Added(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


@dataclass
class Read:
    """What was read of a language, and dropped before any of it was tokenized."""

    documents: int = 0
    repeated_documents: int = 0
    repeated_characters: int = 0
    bad_lines: int = 0
    bad_characters: int = 0


@dataclass(frozen=True)
class Shard:
    """A whole tar. row: bytes, tokens, documents, sha256; samples: rows as `SAMPLE_FIELDS`"""

    row: tuple[int, int, int, bytes]
    samples: list[tuple[int, ...]]


class Journal:
    """Of one split. `start` and `added` are the point to go on from, where `start` lies behind all
    documents once the split is `done`."""

    def __init__(self, path: Path) -> None:
        """Reads what is there; a last line that was cut short is taken away."""
        self._path = path
        self.shards: list[Shard] = []
        self.start, self.added, self.done = 0, Added(), False
        repair(path)
        for row in read_rows(path):
            self._take(row)

    def shard(self, shard: Shard, start: int, added: Added) -> None:
        """Adds a whole tar, and the point to go on from."""
        size, tokens, documents, sha256 = shard.row
        fields = [size, tokens, documents, sha256.hex()]
        row = {"shard": fields, "samples": shard.samples, "start": start}
        append_row(self._path, row | _point(added))
        self.shards.append(shard)

    def end(self, added: Added) -> None:
        """Marks the split as finished."""
        append_row(self._path, {"done": True} | _point(added))
        self.start, self.done = sys.maxsize, True

    def _take(self, line: dict) -> None:
        self.added = Added(**line["added"])
        if line.get("done"):
            self.start, self.done = sys.maxsize, True
            return
        size, tokens, documents, sha256 = line["shard"]
        row = (size, tokens, documents, bytes.fromhex(sha256))
        self.shards.append(Shard(row, [tuple(row) for row in line["samples"]]))
        self.start = line["start"]


def _point(added: Added) -> dict:
    return {"added": asdict(added)}
