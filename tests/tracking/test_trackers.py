"""The table of trackers, and where Weights & Biases sends a run."""

import json
import random
import sys
import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import wandb
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mlm.config import RunConfig, TrackerConfig, TrainConfig
from mlm.errors import UserError
from mlm.plugins import import_plugins
from mlm.tracking import feed, wandb_tracker
from mlm.tracking.metrics import METRICS, append, drop_after
from mlm.tracking.tensorboard_tracker import TensorboardTracker
from mlm.tracking.tracker import Tracker
from mlm.tracking.trackers import TRACKERS, check_trackers, start_trackers
from mlm.tracking.wandb_file import histories
from mlm.tracking.wandb_tracker import WandbTracker, wandb_mode

KEY = "a" * 40

PLUGIN = '''
"""A tracker of the user's own: one line of JSON for each call."""

import json

from mlm.tracking.tracker import Tracker
from mlm.tracking.trackers import TRACKERS


class Lines(Tracker):
    def start(self, run, config, run_id):
        self.file = (run / "lines.jsonl").open("a")
        self._write({"id": run_id, "project": config.tracker.project})

    def log(self, values):
        self._write(values)

    def finish(self, code):
        self._write({"code": code})
        self.file.close()

    def _write(self, values):
        self.file.write(json.dumps(values) + "\\n")


TRACKERS["lines"] = Lines
'''


def tracked(*kinds: str) -> TrainConfig:
    return replace(TrainConfig(), tracker=TrackerConfig(kind=kinds, project="theirs"))


@pytest.fixture
def lines(tmp_path, monkeypatch) -> Path:
    (tmp_path / "my_tracker.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_tracker", raising=False)
    monkeypatch.setitem(TRACKERS, "lines", TRACKERS["wandb"])  # removes the entry afterwards
    import_plugins(["my_tracker"])
    return tmp_path / "lines.jsonl"


def test_tracker_from_a_plugin_follows_a_run(lines):
    trackers = start_trackers(lines.parent, tracked("lines", "none"), "abc")
    trackers.log({"step": 1, "loss": 2.5})
    trackers.finish(75)
    assert [json.loads(line) for line in lines.open()] == [
        {"id": "abc", "project": "theirs"},
        {"step": 1, "loss": 2.5},
        {"code": 75},
    ]


def test_trackers_start_in_order_with_one_id(lines):
    trackers = start_trackers(lines.parent, tracked("lines", "lines"), None)
    trackers.finish(0)
    values = [json.loads(line) for line in lines.open()]
    assert trackers.run_id
    assert [value["id"] for value in values if "id" in value] == [trackers.run_id] * 2


def test_trackers_start_log_and_finish_each_in_order(tmp_path, monkeypatch):
    calls: list[str] = []

    def named(name: str) -> type[Tracker]:
        class Named(Tracker):
            def start(self, run, config, run_id):
                calls.append(f"{name} starts")

            def log(self, values):
                calls.append(f"{name} logs")

            def finish(self, code):
                calls.append(f"{name} ends")

        return Named

    for name in ("a", "b"):
        monkeypatch.setitem(TRACKERS, name, named(name))
    trackers = start_trackers(tmp_path, tracked("b", "a"), None)
    trackers.log({})
    trackers.finish(0)
    for name in ("a", "b"):
        assert [call for call in calls if call[0] == name] == [
            f"{name} {does}" for does in ("starts", "logs", "ends")
        ]


def test_trackers_keep_the_id_of_the_checkpoint_without_a_tracker(tmp_path):
    for config in (tracked("none"), replace(TrainConfig(), tracker=TrackerConfig(kind="none"))):
        assert start_trackers(tmp_path, config, "abc").run_id == "abc"
        assert start_trackers(tmp_path, config, None).run_id is None


class Broken(Tracker):
    """Its calls of a name fail, or wait for ever."""

    fails = waits = ""

    def _call(self, name):
        if name == self.waits:
            threading.Event().wait()
        if name == self.fails:
            raise OSError("the service is gone")

    def start(self, run, config, run_id):
        self._call("start")

    def log(self, values):
        self._call("log")

    def finish(self, code):
        self._call("finish")


@pytest.mark.parametrize("does", ["fails", "waits"])
@pytest.mark.parametrize("call", ["start", "log", "finish"])
def test_tracker_that_breaks_ends_nothing(does, call, lines, monkeypatch):
    monkeypatch.setitem(TRACKERS, "broken", type("B", (Broken,), {does: call}))
    monkeypatch.setattr(feed, "SECONDS_TO_FINISH", 0.5)
    said: list[str] = []
    trackers = start_trackers(lines.parent, tracked("broken", "lines"), "abc", said.append)
    for step in range(3):
        trackers.log({"step": step})
    trackers.finish(0)
    assert len(said) == 1, said  # once, however much fails
    expected = {
        "fails": "broken has failed (the service is gone); training goes on without it",
        "waits": "broken has not taken everything after 0 s, and is left behind",
    }
    assert said[0].startswith(expected[does])
    rows = [json.loads(line) for line in lines.open()]
    assert [row["step"] for row in rows if "step" in row] == [0, 1, 2]
    assert rows[-1] == {"code": 0}


def test_trackers_refuse_an_unknown_name_in_one_sentence(tmp_path):
    with pytest.raises(
        UserError, match=r"tracker.kind=wnadb is not known; choose from tensorboard, w"
    ):
        start_trackers(tmp_path, tracked("wnadb"), None)


def test_import_plugins_reports_a_failed_import_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"plugins=no_such_plugin cannot be imported \(ModuleNot"):
        import_plugins(["no_such_plugin"])
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"broken_plugin cannot be imported \(ZeroDivisionError"):
        import_plugins(["broken_plugin"])


@pytest.fixture
def no_key(tmp_path, monkeypatch) -> Path:
    """The file in which W&B would keep its key."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").touch(0o600)
    wandb_tracker._end_service()  # it remembers variables of the tests before
    return tmp_path / "netrc"


@pytest.mark.parametrize(
    ("host", "variables", "mode"),
    [
        (None, {}, "offline"),
        ("api.wandb.ai", {}, "online"),
        ("other.org", {}, "offline"),
        ("other.org", {"WANDB_BASE_URL": "https://other.org"}, "online"),
        ("api.wandb.ai", {"WANDB_BASE_URL": "https://other.org"}, "offline"),
        (None, {"WANDB_API_KEY": KEY}, "online"),
        (None, {"WANDB_API_KEY": "too short"}, "online"),  # W&B says what is wrong with it
        (None, {"WANDB_API_KEY": KEY, "WANDB_MODE": "disabled"}, "disabled"),
        (None, {"WANDB_MODE": "dryrun"}, "offline"),
    ],
)
def test_wandb_is_online_where_it_has_a_key(host, variables, mode, no_key, monkeypatch):
    if host:
        no_key.write_text(f"machine {host} login user password {KEY}\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert wandb_mode() == mode


@pytest.mark.parametrize(
    ("settings", "variables", "reason"),
    [
        ({"project": "a/b"}, {}, "tracker.project=a/b has a /, which W&B does not allow"),
        ({}, {"WANDB_PROJECT": "a?b"}, r"tracker.project=a\?b has a \?"),
        ({"project": "a" * 129}, {}, "tracker.project has 129 characters, and W&B takes 128"),
        ({"tags": ("a" * 65,)}, {}, "of 65 characters, and W&B takes 1 to 64"),
        ({}, {"WANDB_MODE": "foo"}, "WANDB_MODE=foo is not a mode of W&B; choose from online"),
    ],
)
def test_wandb_refuses_what_it_could_not_start_with(settings, variables, reason, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=reason):
        check_trackers(replace(TrainConfig(), tracker=TrackerConfig(**settings)))


def row_of(step: int, **more: float) -> dict:
    return {"step": step, "tokens": 10 * step, "loss": 1.0 + step, "tokens_per_second": 1.0, **more}


def points(run: Path) -> list[tuple[int, bool]]:
    """The points in W&B's files: the step, and whether it is of an evaluation; sorted."""
    return sorted(
        (step, kind)
        for path in run.glob("wandb/*run-*-abc/run-abc.wandb")
        for step, figures in histories(path)
        for kind in (False, True)
        if ("loss", "eval_loss")[kind] in figures
    )


def services() -> list[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return [child for child in children if "wandb" in child.name()]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("starts", [3, pytest.param(10, marks=pytest.mark.slow)])
def test_wandb_has_each_point_once_after_any_number_of_starts(starts, tmp_path, no_key):
    """Each start but the last ends with a kill of W&B's service, and goes back a few steps."""
    config, dice = tracked("wandb"), random.Random(starts)
    metrics, step, tracker = tmp_path / METRICS, 0, WandbTracker()
    for number in range(starts):
        drop_after(metrics, step, 10**6)
        tracker = WandbTracker()
        tracker.say = lambda text: None
        tracker.start(tmp_path, config, "abc")
        for _ in range(dice.randrange(3, 9)):
            step += 1
            for row in (row_of(step), {"step": step, "tokens": 10 * step, "eval_loss": 2.0}):
                append(metrics, row)
                tracker.log(row)
            if number == 1 and dice.random() < 0.5:  # in the middle, too
                for process in services():
                    process.kill()
        if number < starts - 1:
            for process in services():
                process.kill()
            with suppress(Exception, SystemExit):
                wandb.teardown()
            step -= dice.randrange(3)
    tracker.finish(0)
    assert points(tmp_path) == [
        (each, kind) for each in range(1, step + 1) for kind in (False, True)
    ]


def test_wandb_without_network_keeps_the_run_offline(tmp_path, no_key, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(wandb_tracker, "SECONDS_TO_START", 3.0)
    said: list[str] = []
    trackers = start_trackers(tmp_path, tracked("wandb"), "abc", said.append)
    trackers.log(row_of(1))
    trackers.finish(0)
    assert len(said) == 1
    assert said[0].startswith("W&B is offline (it cannot be used: ")
    assert said[0].endswith(f"; `wandb sync {tmp_path}/wandb/*run-*-abc` sends what is kept there")
    assert points(tmp_path) == [(1, False)]


def test_wandb_has_the_sweep_as_group_and_the_project_of_its_variable(
    tmp_path, no_key, monkeypatch
):
    monkeypatch.setenv("WANDB_PROJECT", "of-the-variable")
    tracker = WandbTracker()
    tracker.say = lambda text: None
    config = replace(TrainConfig(), run=RunConfig(name="lr/003"))
    tracker.start(tmp_path, config, "abc")
    found = (tracker.run.project, tracker.run.group, tracker.run.name)
    tracker.finish(0)
    assert found == ("of-the-variable", "lr", "lr/003")


def test_tensorboard_has_each_step_once_after_going_back(tmp_path):
    for steps in (range(1, 8), [4, 5, 6, 9, 10, 8, 9]):
        tracker = TensorboardTracker()
        tracker.start(tmp_path, TrainConfig(), "abc")
        for step in steps:
            tracker.log(row_of(step, loss=100.0 * len(steps) + step))
        tracker.finish(0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6, 8, 9]
