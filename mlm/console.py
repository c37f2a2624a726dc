"""How commands print their answers."""

import io
from datetime import datetime
from typing import IO, Any

from rich.console import Console
from rich.table import Table


def counted(count: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def plain_console(file: IO[str] | None = None) -> Console:
    """A console that prints text as it is: in `data [v2]`, rich would take a part for markup."""
    return Console(file=file, markup=False, emoji=False, highlight=False)


class KeepingConsole(Console):
    """A plain console that keeps, with their times, the lines and tables that it has printed.

    What moves on a terminal, bars and spinners, is not kept.
    """

    def __init__(self) -> None:
        super().__init__(markup=False, emoji=False, highlight=False)
        self.kept: list[tuple[datetime, str]] = []

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*objects, **options)
        if objects and all(isinstance(each, str | Table) for each in objects):
            text = io.StringIO()
            plain_console(text).print(*objects, soft_wrap=True)
            self.kept.append((datetime.now(), text.getvalue()))
