"""Weights & Biases, from rank 0 alone."""

import os
import secrets
from dataclasses import asdict
from netrc import NetrcParseError, netrc
from pathlib import Path
from typing import Any

from mlm.config.settings import TrainConfig


class Tracker:
    """Sends metrics to a tracker; with `tracker=none`, nowhere.

    A run that goes on keeps its id, so it is one curve. The x-axis is the number of tokens.
    """

    def __init__(self, config: TrainConfig, run: Path, run_id: str | None):
        self.run_id, self.run = run_id, None
        if config.tracker.kind == "none":
            return
        import wandb

        tracker = config.tracker
        self.run_id = run_id or secrets.token_hex(4)
        self.run = wandb.init(
            id=self.run_id,
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
        if self.run is not None:
            self.run.log(values)

    def finish(self, code: int) -> None:
        """Ends the tracker's run; what is not 0 is shown as failed."""
        if self.run is not None:
            self.run.finish(exit_code=code)


def wandb_mode() -> str:
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
