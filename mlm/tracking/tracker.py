"""What a tracker is: a service or a file that follows the metrics of a run."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig


class Tracker(ABC):
    """Follows one run, from rank 0 alone, in a thread of its own: it may take its time, and what it
    raises ends no run. The x-axis of its curves is the number of tokens.

    say: shows a line to people, and keeps it in `train.log`
    """

    say: Callable[[str], None] = print

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        """Raises `UserError` for what can be known to fail before anything starts."""
        return

    @abstractmethod
    def start(self, run: Path, config: TrainConfig, run_id: str) -> None:
        """Begins, or continues after a resume: then `run_id` is that of the first start.

        run: the run folder, for files of the tracker's own
        """

    @abstractmethod
    def log(self, values: dict[str, Any]) -> None:
        """Takes the metrics of one step, `step` and `tokens` among them. Steps that it has had
        come again after a resume and after a return to a checkpoint."""

    @abstractmethod
    def finish(self, code: int) -> None:
        """Ends with the exit code of the run; one other than 0 is a failure."""

    def remedy(self) -> str:
        """What to do for what it has not taken, as the end of a sentence."""
        return ""
