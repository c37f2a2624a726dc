"""Weights & Biases."""

import os
from dataclasses import asdict
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig
from mlm.tracking.tracker import Tracker


class WandbTracker(Tracker):
    """Sends metrics to Weights & Biases, or keeps them in the run folder for `wandb sync`."""

    def start(self, run: Path, config: TrainConfig, run_id: str) -> None:
        import wandb

        tracker = config.tracker
        self.run = wandb.init(
            id=run_id,
            resume="allow",
            mode=wandb_mode(),
            project=tracker.project,
            entity=tracker.entity,
            group=tracker.group,
            tags=list(tracker.tags),
            job_type="train",
            name=config.run.name,
            dir=run,
            config=asdict(config),
            settings=wandb.Settings(silent=True, console="off", disable_git=True),
        )
        self.run.define_metric("*", step_metric="tokens")

    def log(self, values: dict[str, Any]) -> None:
        self.run.log(values)

    def finish(self, code: int) -> None:
        self.run.finish(exit_code=code)


def wandb_mode() -> Any:
    """`WANDB_MODE` where it is set, online where there is a key, else offline."""
    given = os.environ.get("WANDB_MODE")
    if given:
        return given
    if os.environ.get("WANDB_API_KEY"):
        return "online"
    host = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai").split("//")[-1].split("/")[0]
    try:
        entry = netrc(os.environ.get("NETRC")).authenticators(host)
    except (OSError, NetrcParseError):
        entry = None
    return "online" if entry else "offline"
