"""Weights & Biases."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlm.config import TrainConfig
from mlm.errors import UserError
from mlm.files.jsonl import read_rows
from mlm.tracking.metrics import METRICS, flat
from mlm.tracking.tracker import Tracker
from mlm.tracking.wandb_file import histories

PROJECT = "polymlm"
MODES = ("online", "offline", "disabled", "shared", "dryrun", "run")
SECONDS_TO_START = 60.0
LONGEST = {"project": 128, "group": 128}
OF_KIND = ("tokens_per_second", "eval_loss")  # a figure in each row of a step, or an evaluation


class WandbTracker(Tracker):
    """Sends metrics to Weights & Biases, or keeps them in the run folder for `wandb sync`.

    Offline without a key, and where the service cannot be reached or breaks down: its points lie in
    the run folder then. No point is sent twice, and those that a service which was killed has not
    kept are sent again, from `metrics.jsonl`.
    """

    @classmethod
    def check(cls, config: TrainConfig) -> None:
        tracker, mode = config.tracker, os.environ.get("WANDB_MODE")
        if mode and mode not in MODES:
            raise UserError(
                f"WANDB_MODE={mode} is not a mode of W&B; choose from {', '.join(MODES)}, or unset "
                f"it"
            )
        project = _project(config)
        if found := re.search(r"[/\\#?%:]", project):
            raise UserError(
                f"tracker.project={project} has a {found[0]}, which W&B does not allow; take it out"
            )
        for name, text in (("project", project), ("group", tracker.group or "")):
            if len(text) > LONGEST[name]:
                raise UserError(
                    f"tracker.{name} has {len(text)} characters, and W&B takes {LONGEST[name]}; "
                    f"choose a shorter one"
                )
        for tag in tracker.tags:
            if not 1 <= len(tag) <= 64:
                raise UserError(
                    f"tracker.tags has {tag!r} of {len(tag)} characters, and W&B takes 1 to 64; "
                    f"choose another"
                )

    def start(self, run: Path, config: TrainConfig, run_id: str) -> None:
        self.folder, self.config, self.id = run, config, run_id
        self.had = set(_points(run, run_id))
        mode = wandb_mode()
        why = "WANDB_MODE asks for it" if os.environ.get("WANDB_MODE") else "it has no key here"
        failure = self._begin(mode)
        if failure and mode == "online":
            mode, why = "offline", f"it cannot be used: {failure}"
            failure = self._begin(mode)
        if failure:
            raise RuntimeError(failure)
        if mode == "online":
            self.say(f"W&B: {self.run.url}")
        elif mode == "offline":
            self.say(f"W&B is offline ({why}){self.remedy()}")
        self._send_missing()

    def log(self, values: dict[str, Any]) -> None:
        try:
            self._send(values)
        except OSError as error:  # its service was killed
            self.say(f"W&B has broken down ({error}), and continues offline{self.remedy()}")
            _end_service()
            self.had = set(_points(self.folder, self.id))
            failure = self._begin("offline")
            if failure:
                raise RuntimeError(failure) from None
            self._send_missing()
            self._send(values)

    def finish(self, code: int) -> None:
        self.run.finish(exit_code=code)
        _end_service()  # `finish` may return before the service has written its file

    def remedy(self) -> str:
        return f"; `wandb sync {self.folder}/wandb/*run-*-{self.id}` sends what is kept there"

    def _begin(self, mode: Any) -> str:
        """Begins a part of the run; returns why that failed."""
        import wandb

        config, tracker = self.config, self.config.tracker
        name = str(config.run.name)
        parts = self.folder.glob(f"wandb/*run-*-{self.id}")
        newest = max((path.stat().st_mtime for path in parts), default=0.0)
        time.sleep(max(0.0, min(1.1, newest + 1.1 - time.time())))  # else W&B writes over that part
        try:
            self.run = wandb.init(
                id=self.id,
                resume="allow",
                mode=mode,
                project=_project(config),
                entity=tracker.entity,
                group=tracker.group or name.rpartition("/")[0] or None,  # of a sweep's point
                tags=list(tracker.tags),
                job_type="train",
                name=name[-128:],
                dir=self.folder,
                config=asdict(config),
                reinit="create_new",
                settings=wandb.Settings(
                    silent=True, console="off", disable_git=True, init_timeout=SECONDS_TO_START
                ),
            )
        except Exception as error:
            _end_service()  # which still holds the run's id
            return (str(error).strip().splitlines() or [type(error).__name__])[0]
        self.run.define_metric("*", step_metric="tokens")
        return ""

    def _send(self, values: dict[str, Any]) -> None:
        point = _point(values)
        if point not in self.had:
            self.run.log(values, step=values["step"])
            self.had.add(point)

    def _send_missing(self) -> None:
        """What a service that was killed has taken and not kept."""
        for row in read_rows(self.folder / METRICS, skip_damaged=True):
            self._send(flat(row))


def _end_service() -> None:
    """Ends W&B's service, if it has not ended; where that was killed, W&B would exit with it."""
    import wandb

    with suppress(Exception, SystemExit):
        wandb.teardown()


def _project(config: TrainConfig) -> str:
    return config.tracker.project or os.environ.get("WANDB_PROJECT") or PROJECT


def _point(values: dict[str, Any]) -> tuple[int, bool]:
    return values["step"], OF_KIND[True] in values


def _points(run: Path, run_id: str) -> Iterator[tuple[int, bool]]:
    """The points that W&B has kept of a run: the step, and whether it is of an evaluation."""
    for path in run.glob(f"wandb/*run-*-{run_id}/run-{run_id}.wandb"):
        for step, figures in histories(path):
            yield from ((step, kind) for kind in (False, True) if OF_KIND[kind] in figures)


def wandb_mode() -> Any:
    """`WANDB_MODE` where it is set, online where W&B finds a key, else offline."""
    given = os.environ.get("WANDB_MODE")
    if given:
        return {"dryrun": "offline", "run": "online"}.get(given, given)
    return "online" if _has_key() else "offline"


def _has_key() -> bool:
    """Whether W&B finds a key for its host, wherever it looks for that; also a wrong one."""
    import wandb
    from wandb.errors import AuthenticationError

    try:
        from wandb.sdk import wandb_setup
        from wandb.sdk.lib.wbauth import authenticate_session
    except ImportError:  # before 0.23
        return bool(wandb.api.api_key)
    host = os.environ.get("WANDB_BASE_URL") or wandb_setup.singleton().settings.base_url
    try:
        found = authenticate_session(
            host=host, source="polymlm", prompt=False, update_session=False
        )
    except AuthenticationError:
        return True
    return found is not None
