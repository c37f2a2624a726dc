"""The table of trackers, and those of a run as one."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig
from mlm.plugins import entry
from mlm.tracking.tracker import Tracker
from mlm.tracking.wandb_tracker import WandbTracker

TRACKERS: dict[str, Callable[[], Tracker]] = {"wandb": WandbTracker}


class Trackers:
    """The trackers of a run, in the order of `tracker=`. They share its id, which checkpoints keep,
    so that a run is one curve after a resume."""

    def __init__(self, trackers: Sequence[Tracker] = (), run_id: str | None = None) -> None:
        self.trackers, self.run_id = list(trackers), run_id

    def log(self, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(values)

    def finish(self, code: int) -> None:
        for tracker in self.trackers:
            tracker.finish(code)


def start_trackers(run: Path, config: TrainConfig, run_id: str | None) -> Trackers:
    """Starts the trackers that the config names, on rank 0.

    run_id: of the checkpoint that the run resumes from; None: a new one where there is a tracker
    """
    names = config.tracker.names
    if not names:
        return Trackers(run_id=run_id)
    run_id = run_id or secrets.token_hex(4)
    trackers = [entry(TRACKERS, "tracker.kind", name)() for name in names]
    for tracker in trackers:
        tracker.start(run, config, run_id)
    return Trackers(trackers, run_id)
