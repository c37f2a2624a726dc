"""How commands print their answers."""

from typing import IO

from rich.console import Console


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plain_console(file: IO[str] | None = None) -> Console:
    """A console that prints text as it is: in `data [v2]`, rich would take a part for markup."""
    return Console(file=file, markup=False, emoji=False, highlight=False)
