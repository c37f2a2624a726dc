"""Where commands print their answers."""

from typing import IO

from rich.console import Console


def plain_console(file: IO[str] | None = None) -> Console:
    """A console that prints text as it is: in `data [v2]`, rich would take a part for markup."""
    return Console(file=file, markup=False, emoji=False, highlight=False)
