"""What a rank holds of a parameter that is sharded over data ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from parallel.layout import Layout


@pytest.mark.parametrize(("dp_rank", "held"), [(0, 4), (1, 4), (2, 1), (3, 0)])
def test_held_part_ends_where_the_parameter_ends(dp_rank, held):
    """Nine numbers over four ranks: the last two parts are padded with anything."""
    grid = SimpleNamespace(layout=Layout(dp=4, zero=3), dp_rank=dp_rank)
    engine: Any = SimpleNamespace(grid=grid)
    parameter = SimpleNamespace(ds_tensor=torch.arange(4.0), ds_numel=9)
    found = DeepSpeedEngine.held_part(engine, parameter)
    assert found.tolist() == list(range(held))
