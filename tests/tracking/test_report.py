"""What a run reports: to the metrics, to trackers and on the screen."""

import io
import json
import os
import pty
import re
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mlm.tracking.progress import progress, stage
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
    screen = Screen(folder, steps, start)
    return Report(folder, Trackers(trackers, "abc"), screen, steps, start, main=main)


def test_report_writes_strict_json_and_flat_rows_for_trackers(tmp_path, capsys):
    first, second = Kept(), Kept()
    made = report(tmp_path, first, second)
    made.step_metrics(ROW)
    made.evaluation(5, 50, FOUND)
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    times = [datetime.fromisoformat(row.pop("time")) for row in rows]
    assert abs((datetime.now(UTC) - times[0]).total_seconds()) < 60
    assert times == sorted(times)
    logged, scored = rows
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


def test_time_left_counts_from_this_start(tmp_path, monkeypatch):
    screen = Screen(tmp_path, steps=3700 + 100, start=100)
    clock = SimpleNamespace(monotonic=lambda: screen.began + 10.0)
    monkeypatch.setattr("mlm.tracking.screen.time", clock)
    assert screen.time_left(110) == "1:01:30"  # ten steps in ten seconds, 3690 to go


def test_report_shows_and_logs_the_figures_of_a_step(tmp_path, capsys):
    figures = {"lr": 4e-3, "grad_norm": 1.234, "memory_peak": 1_500_000_000}
    with report(tmp_path) as made:
        made.say("one\ntwo")
        made.step_metrics(ROW | figures | {"loss": 2.0})
    shown = "step 5/10  loss 2.0000  lr 4.00e-03  gradient 1.23  7 tokens/s  1.50 GB"
    assert shown in capsys.readouterr().out
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert [line[21:] for line in lines[:2]] == ["one", "two"]
    assert lines[2][21:].startswith(shown)
    for line in lines:
        assert datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")


def test_report_survives_a_log_that_cannot_be_written(tmp_path, capsys):
    (tmp_path / "train.log").mkdir()
    with report(tmp_path) as made:
        made.say("still shown")
    assert "still shown" in capsys.readouterr().out


def on_terminal(columns: int, show) -> list[str]:
    """The lines that a call leaves on a terminal of so many columns, without control sequences."""
    ours, theirs = pty.openpty()
    with open(theirs, "w", closefd=True) as file:
        show(Console(file=file, width=columns, force_terminal=True, markup=False, highlight=False))
    os.set_blocking(ours, False)
    raw = b""
    with suppress(OSError):
        while part := os.read(ours, 1 << 16):
            raw += part
    os.close(ours)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode())
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_screen_cuts_no_words_and_no_times(tmp_path, columns):
    text = "loss 7.3123  lr 4.00e-03  gradient 1.23  9,120 tokens/s  0.52 GB"

    def show(console: Console) -> None:
        screen = Screen(tmp_path, 120_000, 0)
        screen.console = console
        with screen:
            screen.step(61_000)
            screen.figures(61_000, text)

    lines = on_terminal(columns, show)
    assert all(len(line) <= columns for line in lines)
    for word in text.split():
        assert any(word in line.split() for line in lines)
    assert any(
        re.search(r"training .*61000/120000 .*(-:--:--|\d:\d\d:\d\d) left", line) for line in lines
    )


@pytest.mark.parametrize("columns", [40, 60, 200])
def test_progress_cuts_no_words_and_no_times(columns):
    title = "Training a tokenizer of 250,002 ids: reading the corpus"

    def show(console: Console) -> None:
        with progress(console, title) as shown:
            shown(5, None)
            shown(50, 100)
            shown.stage("Fitting it to 100.0 MB of text")
        with stage(console, "Starting the processes"):
            pass

    lines = on_terminal(columns, show)
    assert all(len(line) <= columns for line in lines)
    words = " ".join(lines).split()
    for word in (*title.split(), "Fitting", "text", "Starting", "processes", "0:00:00", "-:--:--"):
        assert word in words
    assert "50%" in words


def test_progress_says_lines_where_there_is_no_terminal():
    file = io.StringIO()
    console = Console(file=file, width=40)
    with progress(console, "A title that is longer than forty columns are") as shown:
        shown(50, 100)
        shown.stage("Another part")
    with stage(console, "Last"):
        pass
    assert file.getvalue().splitlines() == [
        "A title that is longer than forty columns are",
        "Another part",
        "Last",
    ]
