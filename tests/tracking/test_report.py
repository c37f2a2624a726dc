"""What a run reports: to the metrics, to trackers and on the screen."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlm.tracking.report import Report
from mlm.tracking.scores import Scores
from mlm.tracking.screen import Screen
from mlm.tracking.tracker import Tracker
from mlm.tracking.trackers import Trackers

ROW = {
    "step": 5,
    "loss": float("nan"),
    "tokens": 50,
    "tokens_per_second": 7.0,
    "mfu": None,
    "loss_by_language": {"sw": 1.5},
}
FIGURES = {"eval_loss": 1.5, "eval_loss_by_language": {"sw": 1.5}}
FOUND = Scores(1.5, FIGURES, "held-out loss 1.5", {"eval_tokens_by_language": {"sw": 2, "el": 0}})


class Kept(Tracker):
    """A tracker that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def start(self, run, config, run_id) -> None:
        pass

    def log(self, values: dict[str, Any]) -> None:
        self.rows.append(values)

    def finish(self, code: int) -> None:
        pass


def report(folder: Path, *trackers: Tracker, main: bool = True, steps: int = 10, start: int = 0):
    return Report(folder, Trackers(trackers, "abc"), steps, start, main=main)


def test_report_writes_strict_json_and_flat_rows_for_trackers(tmp_path, capsys):
    first, second = Kept(), Kept()
    made = report(tmp_path, first, second)
    made.step_metrics(ROW)
    made.evaluation(5, 50, FOUND)
    logged, scored = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert logged == ROW | {"loss": None}
    assert scored == {"step": 5, "tokens": 50, **FIGURES}
    assert first.rows == second.rows
    assert first.rows[0]["loss_by_language/sw"] == 1.5
    assert "mfu" not in first.rows[0]
    kept = json.loads((tmp_path / "evaluation.json").read_text())
    assert kept == scored | FOUND.details
    assert "step 5: held-out loss 1.5\n" in capsys.readouterr().out


def test_report_writes_metrics_without_trackers(tmp_path, capsys):
    with report(tmp_path) as made:
        made.step_metrics(ROW)
    assert (tmp_path / "metrics.jsonl").is_file()
    assert "step 5/10" in capsys.readouterr().out


def test_report_back_drops_the_rows_that_are_written_again(tmp_path):
    with report(tmp_path) as made:
        for step in (1, 2, 3):
            made.step_metrics(ROW | {"step": step})
        made.evaluation(3, 30, FOUND)
        made.back(1)
        made.step_metrics(ROW | {"step": 2})
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert steps == [1, 2]


def test_report_is_silent_on_other_ranks(tmp_path, capsys):
    (tmp_path / "metrics.jsonl").write_text('{"step": 7}\n')
    with report(tmp_path, main=False) as made:
        made.say("x")
        made.step(1)
        made.step_metrics(ROW)
        made.evaluation(5, 50, FOUND)
        made.back(0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 7}\n'
    assert capsys.readouterr().out == ""


def test_report_repeats_the_last_evaluation_of_a_shortened_run(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "eval_loss": 1}\n')
    report(tmp_path, steps=3, start=4)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_time_left_counts_from_this_start(monkeypatch):
    screen = Screen(steps=3700 + 100, start=100)
    clock = SimpleNamespace(monotonic=lambda: screen.began + 10.0)
    monkeypatch.setattr("mlm.tracking.screen.time", clock)
    assert screen.time_left(110) == "1:01:30"  # ten steps in ten seconds, 3690 to go
