"""What a run reports as it trains: `metrics.jsonl`, trackers, and the screen."""

import json
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from mlm.tracking.metrics import METRICS, append, drop_after, flat, plain
from mlm.tracking.scores import Scores
from mlm.tracking.screen import Screen
from mlm.tracking.trackers import Trackers

EVALUATION = "evaluation.json"


class Report:
    """The report of a run, which only its main rank writes; on the others it does nothing."""

    def __init__(
        self, run: Path, trackers: Trackers, screen: Screen, steps: int, start: int, *, main: bool
    ) -> None:
        self.run, self.trackers, self.steps, self.main = run, trackers, steps, main
        self.path, self.screen = run / METRICS, screen
        self._open = ExitStack()
        if main:
            drop_after(self.path, start, max(start, steps))

    @property
    def tracker_id(self) -> str | None:
        """The id of this run at its trackers, which a resume keeps."""
        return self.trackers.run_id

    def __enter__(self) -> "Report":
        if self.main:
            self._open.enter_context(self.screen)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def say(self, text: str) -> None:
        """A line for people."""
        if self.main:
            self.screen.say(text)

    def step(self, done: int) -> None:
        """`done` steps are made."""
        if self.main:
            self.screen.step(done)

    def back(self, step: int) -> None:
        """The run has returned to `step`: later steps are reported again."""
        if self.main:
            drop_after(self.path, step, max(step, self.steps))
            self.screen.restart(step)

    def step_metrics(self, row: dict[str, Any]) -> None:
        """The figures of a logged step."""
        if self.main:
            self._write(row)
            self.screen.figures(row["step"], _figures(row))

    def evaluation(self, step: int, tokens: int, scores: Scores) -> None:
        """An evaluation after `step`; `evaluation.json` keeps the last one."""
        if self.main:
            row = {"step": step, "tokens": tokens, **scores.metrics}
            self._write(row)
            whole = json.dumps(plain(row | scores.details), indent=1)
            (self.run / EVALUATION).write_text(whole + "\n", "utf-8")
            self.screen.say(f"step {step}: {scores.sentence}")

    def _write(self, row: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        append(self.path, row | {"time": now})
        self.trackers.log(flat(row))


def _figures(row: dict[str, Any]) -> str:
    """What of a logged step people watch; `lr` and the norm are of the step itself."""
    text = f"loss {row['loss']:.4f}"
    if "lr" in row:
        text += f"  lr {row['lr']:.2e}  gradient {row['grad_norm']:.3g}"
    text += f"  {row['tokens_per_second']:,.0f} tokens/s"
    return text + (f"  {row['memory_peak'] / 1e9:.2f} GB" if "memory_peak" in row else "")
