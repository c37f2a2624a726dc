"""Stragglers: which rank is slow, and what the metrics report."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm.errors import DONE
from mlm.health.stragglers import FACTOR, ROWS, Pace, Stragglers
from mlm.tracking.report import Report
from mlm.training.throughput import Stopwatch
from parallel.groups import make_grid
from parallel.layout import Layout
from tests.ranks import run_ranks
from tests.training_fixtures import config, metrics, run


def named_ranks(stages, rows):
    stragglers = Stragglers(stages)
    return [stragglers.update(row) for row in rows]


SLOW, EVEN = [1.0, 1.0, 1.6], [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("stages", "rows", "named"),
    [
        ([0, 0, 0], [SLOW] * 5, [None, None, 2, None, None]),
        ([0, 0, 0], [[1.0, 1.0, 1.5]] * 5, [None] * 5),
        ([0, 0, 0], [SLOW, SLOW, EVEN, SLOW, SLOW, SLOW], [None] * 5 + [2]),
        ([0, 0, 0], [SLOW] * 3 + [EVEN] + [SLOW] * 3, [None, None, 2, None, None, None, 2]),
        ([0, 0, 0, 0, 0], [[1, 3, 1, 2, 1]] * 5, [None, None, 1, 3, None]),
        ([0, 0], [[3.0, 1.0]] * 3, [None, None, 0]),  # against the faster of two
        ([0, 0, 1, 1], [[1.0, 1.0, 9.0, 9.0]] * 3, [None] * 3),  # a stage has its own work
        ([0, 0, 1, 1], [[9.0, 9.0, 1.0, 1.6]] * 3, [None, None, 3]),
        ([0], [[1.0]] * 3, [None] * 3),
    ],
)
def test_stragglers_names_the_slow_rank_of_a_stage(stages, rows, named):
    assert named_ranks(stages, rows) == named


@given(
    st.lists(st.lists(st.floats(0, 10), min_size=4, max_size=4), max_size=12),
    st.lists(st.integers(0, 1), min_size=4, max_size=4),
)
def test_stragglers_names_a_rank_only_after_several_slow_rows(rows, stages):
    for number, rank in enumerate(named_ranks(stages, rows)):
        if rank is not None:
            assert number >= ROWS - 1
            for row in rows[number - ROWS + 1 : number + 1]:
                stage = sorted(s for s, n in zip(row, stages, strict=True) if n == stages[rank])
                assert row[rank] > FACTOR * stage[(len(stage) - 1) // 2]


def three_rows():
    pace = Pace(make_grid(Layout(dp=3)), torch.device("cpu"))
    return [pace.figures([0.5, 2.0, 0.25][pace.rank], 1000 + pace.rank) for _ in range(ROWS)]


@pytest.mark.ranks
def test_pace_gives_all_ranks_the_same_figures():
    found = run_ranks(3, three_rows)
    assert found[0] == found[1] == found[2]
    times = {"min": 0.25, "max": 2.0, "slowest": 1}
    row = {"seconds_rank": times, "memory_peak": 1002}
    assert [row for row, _ in found[0]] == [row, row, row | {"straggler": 1}]
    lines = [line for _, line in found[0]]
    assert lines[:2] == [None, None]
    assert lines[2].startswith("rank 1 on ")
    assert "takes 2 s of a step, 0.5 s on the ranks of its stage" in lines[2]


@pytest.mark.ranks
def test_straggler_is_reported_once_by_a_run(tmp_path, monkeypatch):
    """Rank 1's stopwatch adds 100 s to the time that the rank works."""
    lap, say = Stopwatch.lap, Report.say

    def slower(self):
        seconds, data, working = lap(self)
        return seconds, data, working + 100 * torch.distributed.get_rank()

    def recording(self, text):
        if self.main:
            with (tmp_path / "messages").open("a") as file:
                file.write(text + "\n")
        say(self, text)

    monkeypatch.setattr(Stopwatch, "lap", slower)
    monkeypatch.setattr(Report, "say", recording)
    assert run(tmp_path, config(parallel={"tp": 2}, train={"steps": 4}))["code"] == DONE
    rows = metrics(tmp_path)
    assert [row.get("straggler") for row in rows] == [None, None, 1, None]
    for row in rows:
        times = row["seconds_rank"]
        assert times["slowest"] == 1
        assert times["max"] > 100 > times["min"] >= 0
    assert (tmp_path / "messages").read_text().count("is a straggler") == 1
