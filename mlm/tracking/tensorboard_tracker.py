"""TensorBoard: event files in the run folder."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig
from mlm.errors import UserError
from mlm.tracking.tracker import Tracker

FOLDER = "tensorboard"


class TensorboardTracker(Tracker):
    """Writes events into `tensorboard/` of the run folder; its steps are those of the run.

    A step that comes again purges what was written from it on.
    """

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        if find_spec("tensorboard") is None:
            raise UserError(
                "tracker=tensorboard needs the package tensorboard, which is not installed; run "
                "`pip install tensorboard`, or choose another tracker"
            )

    def start(self, run: Path, config: TrainConfig, run_id: str) -> None:
        self.folder, self.writer, self.last = run / FOLDER, None, -1

    def log(self, values: dict[str, Any]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        step = values["step"]
        if self.writer is None or step < self.last:
            if self.writer is not None:
                self.writer.close()
            self.writer = SummaryWriter(str(self.folder), purge_step=step)
        self.last = step
        for name, value in values.items():
            if name != "step" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)
        self.writer.flush()

    def finish(self, code: int) -> None:
        if self.writer is not None:
            self.writer.close()
