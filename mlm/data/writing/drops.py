"""The report of `mlm shards`: how much text was read, kept, and dropped for which reason."""

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from mlm.data.index import SPLITS
from mlm.data.writing.journal import ReadCounts, SplitCounts

REASONS = ("duplicate", "no tokens", "bad line")
Counts = dict[str, Any]


def report_of(counts: dict[str, tuple[ReadCounts, tuple[SplitCounts, SplitCounts]]]) -> Counts:
    """Documents and characters by language, and in total; bad lines are counted as lines.

    The characters read are those kept and those dropped, without bad lines. A document with
    paragraphs in both splits is counted in both. Members of tars that are not text are counted by
    why.
    """
    languages = {name: _of_language(*of) for name, of in counts.items()}
    report = {"total": _sum(list(languages.values())), "languages": languages}
    for name, (read, _) in counts.items():
        if read.skipped_members:
            languages[name]["skipped members"] = read.skipped_members
    return report


def skipped_members(report: Counts) -> list[str]:
    """A line for each language whose tars have members that are not text."""
    return [
        f"Skipped in the tars of {name}: "
        + ", ".join(f"{count:,} x {why}" for why, count in row["skipped members"].items())
        for name, row in report["languages"].items()
        if "skipped members" in row
    ]


def _of_language(read: ReadCounts, added: tuple[SplitCounts, SplitCounts]) -> Counts:
    kept = {
        name: _counts(split.documents, split.characters)
        for name, split in zip(SPLITS, added, strict=True)
    }
    dropped = {
        "duplicate": _counts(read.repeated_documents, read.repeated_characters),
        "no tokens": _counts(
            sum(split.empty_documents for split in added),
            sum(split.empty_characters for split in added),
        ),
        "bad line": {"lines": read.bad_lines, "characters": read.bad_characters},
    }
    characters = sum(of["characters"] for of in kept.values())
    characters += sum(dropped[reason]["characters"] for reason in ("duplicate", "no tokens"))
    return _counts(read.documents, characters) | kept | {"dropped": dropped}


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
    """A row for each language with dropped text, and one for the total."""
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
