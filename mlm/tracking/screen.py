"""The progress of training: lines on the screen and in `train.log`, and a bar on a terminal."""

import sys
import time
from datetime import datetime
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from mlm.console import plain_console

LOG = "train.log"


def log_line(run: Path, text: str, time: datetime | None = None) -> None:
    """Adds lines to the log of a run, each with the time (None: now); where it cannot be written,
    to nothing: the loss of a line ends no run."""
    now = f"{time or datetime.now():%Y-%m-%d %H:%M:%S}"
    try:
        with (run / LOG).open("a", encoding="utf-8") as file:
            file.writelines(f"{now}  {line}\n" for line in text.splitlines())
    except OSError:
        return


class Screen:
    """Shows a run of `steps` that stands at `start`; a context around the training.

    run: the run folder, whose `train.log` gets every line
    """

    def __init__(self, run: Path, steps: int, start: int) -> None:
        self.console = plain_console(sys.stdout)
        self.run, self.steps = run, steps
        self.bar: Progress | None = None
        self.restart(start)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(None, table_column=Column(ratio=1)),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
                expand=True,
            )
            self.task = self.bar.add_task("", total=self.steps, completed=self.start)
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        """A line; a terminal breaks it between words, and nothing else does."""
        self.console.print(text, soft_wrap=not self.console.is_terminal)
        log_line(self.run, text)

    def restart(self, step: int) -> None:
        """Training continues from `step`, from which the time that is left is counted."""
        self.start, self.began = step, time.monotonic()
        self.step(step)

    def step(self, done: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def figures(self, done: int, text: str) -> None:
        """The figures of a logged step."""
        self.say(f"step {done}/{self.steps}  {text}  {self.time_left(done)} left")

    def time_left(self, done: int) -> str:
        """Hours, minutes and seconds to the end, at the pace since the start."""
        pace = (time.monotonic() - self.began) / max(1, done - self.start)
        hours, rest = divmod(round(pace * (self.steps - done)), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
