"""The progress of training on the screen: a bar on a terminal, else a line per logged step."""

import sys
import time

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from mlm.console import plain_console


class Screen:
    """Shows a run of `steps` that stands at `start`; a context around the training."""

    def __init__(self, steps: int, start: int) -> None:
        self.console = plain_console(sys.stdout)
        self.steps = steps
        self.bar: Progress | None = None
        self.restart(start)

    def __enter__(self) -> "Screen":
        if self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}", markup=False),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=self.console,
            )
            self.task = self.bar.add_task("", total=self.steps, completed=self.start, figures="")
            self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.stop()

    def say(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def restart(self, step: int) -> None:
        """Training continues from `step`, from which the time that is left is counted."""
        self.start, self.began = step, time.monotonic()
        self.step(step)

    def step(self, done: int) -> None:
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def figures(self, done: int, text: str) -> None:
        """The figures of a logged step."""
        if self.bar is not None:
            self.bar.update(self.task, figures=text)
        else:
            self.say(f"step {done}/{self.steps}  {text}  {self.time_left(done)} left")

    def time_left(self, done: int) -> str:
        """Hours, minutes and seconds to the end, at the pace since the start."""
        pace = (time.monotonic() - self.began) / max(1, done - self.start)
        hours, rest = divmod(round(pace * (self.steps - done)), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"
