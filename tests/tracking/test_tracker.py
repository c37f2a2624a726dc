"""Where W&B sends a run, and what the metrics look like to a tracker."""

import json
from types import SimpleNamespace

import pytest

from mlm.tracking.report import Report, _drop_after
from mlm.tracking.tracker import wandb_mode
from mlm.training.evaluate import Losses


@pytest.fixture
def no_key(monkeypatch, tmp_path):
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    return tmp_path / "netrc"


def test_offline_without_a_key_and_online_with_one(no_key, monkeypatch):
    assert wandb_mode() == "offline"
    no_key.write_text("machine api.wandb.ai login user password key\n")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert wandb_mode() == "offline"
    monkeypatch.setenv("WANDB_API_KEY", "key")
    assert wandb_mode() == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert wandb_mode() == "disabled"


class Kept:
    """A tracker that keeps what it is given."""

    run_id = "abc"

    def __init__(self):
        self.rows = []

    def log(self, values):
        self.rows.append(values)


ROW = {
    "step": 5,
    "loss": float("nan"),
    "tokens": 50,
    "tokens_per_second": 7.0,
    "mfu": None,
    "loss_by_language": {"sw": 1.5},
}


def test_metrics_are_strict_json_and_flat_for_the_tracker(tmp_path, capsys):
    tracker = Kept()
    report = Report(tmp_path, tracker, steps=10, start=0)
    report.step_metrics(ROW)
    report.evaluation(5, 50, Losses([3.0, 0.0], [2, 0], ["sw", "el"]), (2.0, {"sw": 1.0}))
    logged, scored = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert logged == ROW | {"loss": None}
    assert (scored["eval_loss"], scored["eval_loss_by_language"]) == (1.5, {"sw": 1.5})
    assert tracker.rows[0]["loss_by_language/sw"] == 1.5
    assert "mfu" not in tracker.rows[0]
    assert json.loads((tmp_path / "evaluation.json").read_text())["eval_tokens_by_language"] == {
        "sw": 2,
        "el": 0,
    }
    printed = capsys.readouterr().out
    assert "held-out loss 1.5000" in printed
    assert "unigram entropy of these tokens is 2.0000" in printed


def test_rows_after_the_checkpoint_are_dropped_at_a_resume(tmp_path):
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": 2, "loss": 1}, {"step": 4, "loss": 1}, {"step": 4, "eval_loss": 1}]
    rows += [{"step": 6, "loss": 1}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 8, "lo')
    Report(tmp_path, Kept(), steps=10, start=4)
    assert [json.loads(line) for line in path.open()] == rows[:3]
    Report(tmp_path, Kept(), steps=4, start=4)  # the run's last evaluation is made again
    assert [json.loads(line) for line in path.open()] == rows[:2]


def test_other_ranks_report_nothing(tmp_path, capsys):
    with Report(tmp_path, None, steps=10, start=0) as report:
        report.say("x")
        report.step(1)
        report.step_metrics(ROW)
    assert (list(tmp_path.iterdir()), capsys.readouterr().out) == ([], "")


def test_time_left_is_from_this_start_on(tmp_path, monkeypatch):
    report = Report(tmp_path, Kept(), steps=3700 + 100, start=100)
    monkeypatch.setattr(
        "mlm.tracking.report.time", SimpleNamespace(monotonic=lambda: report.began + 10.0)
    )
    assert report._left(110) == "1:01:30"  # ten steps in ten seconds, 3690 to go


@pytest.mark.parametrize("tail", [b"", b'{"step": 9, "lo', b'{"step": 4}'])
def test_a_start_drops_the_rows_that_come_again_and_reads_no_others(tail, tmp_path):
    rows = [{"step": step} for step in (1, 2, 3)]
    rows += [{"step": 3, "eval_loss": 1.0}, {"step": 4}, {"step": 4, "eval_loss": 2.0}]
    text = [json.dumps(row).encode() + b"\n" for row in rows]
    # A row that is not read is not looked at, whatever is in it.
    path, first = tmp_path / "metrics.jsonl", b"not JSON, and of no step\n"
    expected = {0: 0, 2: 3, 3: 5, 4: 7}
    for start, kept in expected.items():
        path.write_bytes(first + b"".join(text) + tail)
        _drop_after(path, start, 100)
        left = path.read_bytes().splitlines()
        more = tail == b'{"step": 4}' and start == 4
        assert left == [first.strip(), *(row.strip() for row in text)][:kept] + [tail] * more
        assert not left or path.read_bytes().endswith(b"\n")
    # The last evaluation is made again.
    path.write_bytes(first + b"".join(text))
    _drop_after(path, 4, 4)
    assert path.read_bytes() == first + b"".join(text[:-1])
    path.write_bytes(b"")
    _drop_after(path, 4, 4)
    assert path.read_bytes() == b""


def test_the_last_evaluation_is_made_again_of_a_run_that_is_to_be_shorter(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "eval_loss": 1}\n')
    Report(tmp_path, Kept(), steps=3, start=4)
    assert (tmp_path / "metrics.jsonl").read_text() == ""
