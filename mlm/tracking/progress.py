"""How far a command is: a bar or a spinner on a terminal, elsewhere lines.

The title stands on a line of its own, so that a narrow terminal cuts neither words nor times.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0


class Shown(ABC):
    """What `progress` gives, to be told how far the work is."""

    @abstractmethod
    def __call__(self, done: int, total: int | None) -> None:
        """total: None while it is not known"""

    @abstractmethod
    def stage(self, title: str) -> None:
        """Begins a part of unknown length."""


@contextmanager
def progress(console: Console, title: str) -> Iterator[Shown]:
    """Shows how far something is; gives what is told so."""
    if not console.is_terminal:
        yield _Lines(console, title)
        return
    shown = _Bar(console, title)
    try:
        yield shown
    finally:
        shown.stop()


@contextmanager
def stage(console: Console, title: str) -> Iterator[None]:
    """Something of unknown length: a spinner with the seconds that it has taken, or a line."""
    if not console.is_terminal:
        console.print(title, soft_wrap=True)
        yield
        return
    spinner = _spinner(console, title)
    spinner.start()
    try:
        yield
    finally:
        spinner.stop()


class _Bar(Shown):
    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        console.print(title)
        self._start(_bar(console))

    def _start(self, shown: Progress) -> None:
        self._progress, self._task = shown, shown.task_ids[0]
        shown.start()

    def __call__(self, done: int, total: int | None) -> None:
        self._progress.update(self._task, completed=done, total=total)

    def stage(self, title: str) -> None:
        self.stop()
        self._start(_spinner(self._console, title))

    def stop(self) -> None:
        self._progress.stop()


def _bar(console: Console) -> Progress:
    bar = Progress(
        BarColumn(None, table_column=Column(ratio=1)),
        _Read(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        console=console,
        expand=True,
    )
    bar.add_task("", total=None)
    return bar


def _spinner(console: Console, title: str) -> Progress:
    spinner = Progress(
        SpinnerColumn(),
        TextColumn(title, markup=False, table_column=Column(overflow="fold")),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    spinner.add_task("", total=None)
    return spinner


class _Read(ProgressColumn):
    """The amount done, while the total is not known."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.completed:,.0f} read" if task.total is None and task.completed else "")


class _Lines(Shown):
    """A line at the start, and one every half minute."""

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self.stage(title)

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            read = f" ({done:,} read)" if done and total is None else ""
            rest = "" if total is None else f": {done / max(total, 1):.0%}"
            self._console.print(f"{self._title}{read}{rest}", soft_wrap=True)

    def stage(self, title: str) -> None:
        self._title, self._last = title, time.monotonic()
        self._console.print(title, soft_wrap=True)
