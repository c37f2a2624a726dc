"""What a run tells as it goes: `metrics.jsonl`, the tracker, and a line or a bar on the screen."""

import json
import math
import sys
import time
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.progress import TimeRemainingColumn as TimeLeft

from mlm.tracking.tracker import Tracker
from mlm.training.evaluate import Losses

METRICS, EVALUATION = "metrics.jsonl", "evaluation.json"


class Report:
    """Rank 0's report. Other ranks make one without a tracker, and it does nothing."""

    def __init__(self, run: Path, tracker: Tracker | None, steps: int, start: int):
        self.tracker, self.steps, self.start = tracker, steps, start
        self.run, self.path = run, run / METRICS
        self.console = Console(file=sys.stdout, highlight=False)
        self.began = time.monotonic()
        self.bar: Progress | None = None
        if self.shown:
            _drop_after(self.path, start, max(start, steps))

    @property
    def shown(self) -> bool:
        return self.tracker is not None

    @property
    def tracker_id(self) -> str | None:
        """The tracker's id of this run, to go on with after a resume."""
        return None if self.tracker is None else self.tracker.run_id

    def __enter__(self) -> "Report":
        if self.shown and self.console.is_terminal:
            self.bar = Progress(
                TextColumn("training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeLeft(),
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
        """A line for people."""
        if self.shown:
            self.console.print(text, soft_wrap=True, markup=False)

    def step(self, done: int) -> None:
        """Moves the bar to `done` steps."""
        if self.bar is not None:
            self.bar.update(self.task, completed=done)

    def back(self, step: int) -> None:
        """The run has gone back to `step`: what it told of later ones is told again."""
        if self.shown:
            _drop_after(self.path, step, max(step, self.steps))
            self.start, self.began = step, time.monotonic()
            self.step(step)

    def step_metrics(self, row: dict[str, Any]) -> None:
        """The figures of a logged step."""
        self._keep(row)
        figures = f"loss {row['loss']:.4f}  {row['tokens_per_second']:,.0f} tokens/s"
        if self.bar is not None:
            self.bar.update(self.task, figures=figures)
        else:
            done = row["step"]
            self.say(f"step {done}/{self.steps}  {figures}  {self._left(done)} left")

    def evaluation(
        self, step: int, tokens: int, losses: Losses, entropy: tuple[float, dict[str, float]]
    ) -> None:
        """An evaluation, beside the entropy of the same tokens; the last is in a file, too."""
        row = {
            "step": step,
            "tokens": tokens,
            "eval_loss": losses.mean,
            "eval_unigram_entropy": entropy[0],
            "eval_loss_by_language": losses.by_language,
        }
        self._keep(row)
        if self.shown:
            row["eval_unigram_entropy_by_language"] = entropy[1]
            row["eval_tokens_by_language"] = dict(zip(losses.languages, losses.counts, strict=True))
            (self.run / EVALUATION).write_text(json.dumps(_plain(row), indent=1) + "\n", "utf-8")
        self.say(
            f"step {step}: held-out loss {losses.mean:.4f} nats a token; the unigram entropy of "
            f"these tokens is {entropy[0]:.4f}"
        )

    def _keep(self, row: dict[str, Any]) -> None:
        if self.tracker is not None:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(row)) + "\n")
            self.tracker.log(_flat(row))

    def _left(self, done: int) -> str:
        pace = (time.monotonic() - self.began) / max(1, done - self.start)
        hours, rest = divmod(round(pace * (self.steps - done)), 3600)
        return f"{hours}:{rest // 60:02d}:{rest % 60:02d}"


def _drop_after(path: Path, start: int, steps: int) -> None:
    """Drops the rows that will be written again after a resume at `start`, and a half-written one.

    They are the last ones, and no others are read, so that a start takes as long at any step. The
    last evaluation of a run of `steps` is made at every start of it.
    """
    if not path.is_file() or not path.stat().st_size:
        return
    with path.open("r+b") as file, mmap(file.fileno(), 0, access=ACCESS_READ) as content:
        end = len(content)
        while end:
            begin = content.rfind(b"\n", 0, end - 1) + 1
            if not _again(content[begin:end], start, steps):
                break
            end = begin
        whole = not end or content[end - 1 : end] == b"\n"
    with path.open("r+b") as file:
        file.truncate(end)
        if not whole:
            file.seek(end)
            file.write(b"\n")


def _again(line: bytes, start: int, steps: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return True  # half-written
    return row["step"] > start or ("eval_loss" in row and row["step"] == steps)


def _plain(value: Any) -> Any:
    """JSON has no NaN; null stands for what is not a number."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Trackers name the figures of a language `eval_loss_by_language/sw`."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= {f"{name}/{inner}": item for inner, item in value.items()}
        elif value is not None:
            flat[name] = value
    return flat
