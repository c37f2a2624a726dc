"""A progress bar on a terminal; elsewhere a line at the start and one every half minute."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 30.0


@contextmanager
def progress(console: Console, title: str) -> Iterator[Callable[[int, int | None], None]]:
    """Shows how far something is; gives a function that is called with (done, total), where a total
    of None is one that is not known yet."""
    if not console.is_terminal:
        console.print(title)
        yield _lines(console, title)
        return
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(
            task, description=_line(title, done, total), completed=done, total=total
        )


def _line(title: str, done: int, total: int | None) -> str:
    return f"{title} ({done:,} read)" if done and total is None else title


def _lines(console: Console, title: str) -> Callable[[int, int | None], None]:
    last = time.monotonic()

    def show(done: int, total: int | None) -> None:
        nonlocal last
        if time.monotonic() - last >= SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            rest = "" if total is None else f": {done / max(total, 1):.0%}"
            console.print(f"{_line(title, done, total)}{rest}")

    return show
