"""The table of trackers, and where Weights & Biases sends a run."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from mlm.config import TrackerConfig, TrainConfig
from mlm.errors import UserError
from mlm.plugins import import_plugins
from mlm.tracking.tracker import Tracker
from mlm.tracking.trackers import TRACKERS, start_trackers
from mlm.tracking.wandb_tracker import wandb_mode

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


def test_trackers_start_log_and_finish_in_the_order_of_the_setting(tmp_path, monkeypatch):
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
    assert calls == [f"{name} {does}" for does in ("starts", "logs", "ends") for name in ("b", "a")]


def test_trackers_keep_the_id_of_the_checkpoint_without_a_tracker(tmp_path):
    for config in (tracked("none"), replace(TrainConfig(), tracker=TrackerConfig(kind="none"))):
        assert start_trackers(tmp_path, config, "abc").run_id == "abc"
        assert start_trackers(tmp_path, config, None).run_id is None


def test_trackers_refuse_an_unknown_name_in_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"tracker.kind=wnadb is not known; choose from wandb"):
        start_trackers(tmp_path, tracked("wnadb"), None)


def test_import_plugins_reports_a_failed_import_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError, match=r"plugins=no_such_plugin cannot be imported \(ModuleNot"):
        import_plugins(["no_such_plugin"])
    (tmp_path / "broken_plugin.py").write_text("1 / 0\n")
    with pytest.raises(UserError, match=r"broken_plugin cannot be imported \(ZeroDivisionError"):
        import_plugins(["broken_plugin"])


def test_wandb_is_offline_without_a_key_and_online_with_one(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert wandb_mode() == "offline"
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password key\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"
