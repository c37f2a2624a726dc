"""What every task shares: an evaluation spread over data ranks."""

from types import SimpleNamespace
from typing import Any

import pytest

from mlm.tasks.task import evaluated
from parallel.layout import Layout


@pytest.mark.parametrize(
    ("dp_rank", "fillings"), [(0, [[0, 3], [6]]), (1, [[1, 4], [7]]), (2, [[2, 5], [8]])]
)
def test_evaluated_gives_all_data_ranks_as_many_micro_batches(dp_rank, fillings):
    """Seven over three ranks, two at once; the watchdog hears of each filling before it runs."""
    run: list[list[int]] = []
    moves: list[int] = []

    def evaluate(batches):
        run.append(batches)
        return [{"doubled": 2 * batch} for batch in batches]

    grid = SimpleNamespace(layout=Layout(dp=3), dp_rank=dp_rank)
    engine: Any = SimpleNamespace(grid=grid, evaluate=evaluate)
    found = list(evaluated(engine, 7, lambda k: k, lambda: moves.append(len(run)), at_once=2))
    assert run == fillings
    assert found == [(k, {"doubled": 2 * k}) for filling in fillings for k in filling]
    assert moves == [0, 1]
