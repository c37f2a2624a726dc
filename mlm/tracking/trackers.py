"""The table of trackers, and those of a run as one."""

import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig
from mlm.plugins import entry
from mlm.tracking.feed import Feed
from mlm.tracking.tensorboard_tracker import TensorboardTracker
from mlm.tracking.tracker import Tracker
from mlm.tracking.wandb_tracker import WandbTracker

TRACKERS: dict[str, type[Tracker]] = {"wandb": WandbTracker, "tensorboard": TensorboardTracker}
ID = "tracker_id"  # of the run folder; checkpoints have it, too


class Trackers:
    """The trackers of a run, in the order of `tracker=`. They share its id, so that a run is one
    curve after any number of starts."""

    def __init__(self, trackers: Sequence[Feed | Tracker] = (), run_id: str | None = None) -> None:
        self.trackers, self.run_id = list(trackers), run_id

    def log(self, values: dict[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.log(values)

    def finish(self, code: int) -> None:
        for tracker in self.trackers:
            tracker.finish(code)


def start_trackers(
    run: Path, config: TrainConfig, run_id: str | None, say: Callable[[str], None] = print
) -> Trackers:
    """Starts the trackers that the config names, on rank 0.

    run_id: of the checkpoint that the run resumes from; None: that of the run folder, or, where
    there is a tracker, a new one
    """
    file, names = run / ID, config.tracker.names
    if run_id is None and file.is_file():
        run_id = file.read_text("utf-8").strip() or None
    if not names:
        return Trackers(run_id=run_id)
    run_id = run_id or secrets.token_hex(4)
    feeds = [Feed(name, entry(TRACKERS, "tracker.kind", name)(), say) for name in names]
    for feed in feeds:
        feed.start(run, config, run_id)
    return Trackers(feeds, run_id)


def check_trackers(config: TrainConfig) -> None:
    """Raises `UserError` for a tracker that is not known, or cannot work."""
    for name in config.tracker.names:
        entry(TRACKERS, "tracker.kind", name).check(config)
