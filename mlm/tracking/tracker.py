"""What a tracker is: a service or a file that follows the metrics of a run."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig


class Tracker(ABC):
    """Follows one run, from rank 0 alone. The x-axis of its curves is the number of tokens."""

    @abstractmethod
    def start(self, run: Path, config: TrainConfig, run_id: str) -> None:
        """Begins, or continues after a resume: then `run_id` is that of the first start.

        run: the run folder, for files of the tracker's own
        """

    @abstractmethod
    def log(self, values: dict[str, Any]) -> None:
        """Takes the metrics of one step, `step` and `tokens` among them."""

    @abstractmethod
    def finish(self, code: int) -> None:
        """Ends with the exit code of the run; one other than 0 is a failure."""
