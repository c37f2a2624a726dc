"""A DeepSpeed that lacks what the adapter reads is reported in one sentence."""

import deepspeed
import pytest
import torch

from parallel.engine.build import build_engine
from parallel.engine.deepspeed_adapter import expected
from parallel.engine.deepspeed_adapter.expected import DeepSpeedChanged, expect
from parallel.engine.deepspeed_adapter.zero import Zero1And2, Zero1Bf16, Zero3, ZeroOptimizer
from parallel.engine.interface import EngineSettings
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.pipeline.stages import StageLayer
from tests.ranks import run_ranks

TABLES = [name for name in dir(expected) if name.isupper() and name != "VERSION"]
KINDS = {"zero 1": (1, torch.float32), "bf16": (1, torch.bfloat16), "zero 3": (3, torch.float32)}


def test_expect_names_what_is_missing_and_the_version_to_install():
    class Other:
        overflow = False

    with pytest.raises(DeepSpeedChanged) as raised:
        expect(Other(), ("overflow", "averaged_gradients", "_hp_mapping"))
    assert str(raised.value) == (
        f"Other of deepspeed {deepspeed.__version__} has no averaged_gradients, _hp_mapping, which "
        f"parallel/engine/deepspeed_adapter reads; install deepspeed==0.19.8"
    )


def test_expected_version_is_the_pinned_one():
    assert deepspeed.__version__ == expected.VERSION


def test_wrapped_optimizers_expect_the_names_of_their_own_stage():
    """The test below puts a changed table into these classes itself."""
    assert Zero1Bf16.names == expected.ZERO_1_BF16
    assert Zero1And2.names == expected.ZERO_1_AND_2
    assert Zero3.names == expected.ZERO_3
    assert Zero1Bf16.parameter_names == expected.PARAMETER_ZERO_1_AND_2
    assert Zero1And2.parameter_names == expected.PARAMETER_ZERO_1_AND_2
    assert Zero3.parameter_names == expected.PARAMETER_ZERO_3


def failures(table: str) -> list[str]:
    """The errors of building an engine of each kind when a name of a table is missing."""
    setattr(expected, table, (*getattr(expected, table), "gone_in_this_version"))
    Zero1Bf16.names, Zero1And2.names = expected.ZERO_1_BF16, expected.ZERO_1_AND_2
    Zero3.names, Zero3.parameter_names = expected.ZERO_3, expected.PARAMETER_ZERO_3
    ZeroOptimizer.parameter_names = expected.PARAMETER_ZERO_1_AND_2
    found = []
    for zero, dtype in KINDS.values():
        layers = [
            StageLayer(
                "a", lambda: torch.nn.Linear(2, 2), 6, 8.0, lambda m, x, _: (m(x).sum(), {})
            ),
        ]
        grid = make_grid(Layout(zero=zero))
        try:
            engine = build_engine(
                layers,
                grid,
                lambda named: torch.optim.AdamW([p for _, p in named]),
                EngineSettings(1, 1, dtype=dtype),
            )
            engine.pieces()
        except DeepSpeedChanged as error:
            found.append(str(error))
    return found


@pytest.mark.ranks
@pytest.mark.parametrize("table", TABLES)
def test_build_engine_checks_every_table_of_names(table):
    (found,) = run_ranks(1, failures, table)
    assert found
    assert all("has no gone_in_this_version, which parallel/engine" in each for each in found)
