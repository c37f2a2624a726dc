"""What became of a corpus's text: how much was read, kept, and dropped for which reason."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from mlm.data.heldout import FirstPass
from mlm.data.index import SPLITS
from mlm.data.journal import Added

REASONS = ("duplicate", "no tokens", "bad line")
Counts = dict[str, Any]


def report_of(found: dict[str, FirstPass], added: dict[str, tuple[Added, Added]]) -> Counts:
    """Documents and characters by language, and of all; bad lines count as lines.

    What was read is what was kept and dropped, but for bad lines, which come on top. A document
    whose paragraphs are in both splits counts in both.
    """
    languages = {name: _of_language(found[name], added[name]) for name in added}
    return {"total": _sum(list(languages.values())), "languages": languages}


def _of_language(found: FirstPass, added: tuple[Added, Added]) -> Counts:
    splits = zip(SPLITS, added, strict=True)
    kept = {name: _counts(split.documents, split.characters) for name, split in splits}
    dropped = {
        "duplicate": _counts(len(found.repeated), found.repeated_characters),
        "no tokens": _counts(
            sum(split.empty_documents for split in added),
            sum(split.empty_characters for split in added),
        ),
        "bad line": {"lines": found.bad_lines, "characters": found.bad_characters},
    }
    return _counts(found.documents, found.characters) | kept | {"dropped": dropped}


def _counts(documents: int, characters: int) -> Counts:
    return {"documents": documents, "characters": characters}


def _sum(rows: list[Counts]) -> Counts:
    first = rows[0]
    return {
        name: _sum([row[name] for row in rows])
        if isinstance(first[name], dict)
        else sum(row[name] for row in rows)
        for name in first
    }


def table(report: Counts) -> Table:
    """The languages of which something was dropped, and the total."""
    shown = Table("language", *("documents", *SPLITS), *REASONS)
    for column in shown.columns[1:]:
        column.justify = "right"
    for name, row in report["languages"].items():
        if any(any(of.values()) for of in row["dropped"].values()):
            shown.add_row(name, *_cells(row))
    shown.add_row("total", *_cells(report["total"]))
    return shown


def _cells(row: Counts) -> Iterator[str]:
    yield f"{row['documents']:,}"
    for split in SPLITS:
        yield f"{row[split]['documents']:,}"
    for reason in REASONS:
        count, characters = row["dropped"][reason].values()
        yield f"{count:,} ({characters:,} characters)" if count else "0"
