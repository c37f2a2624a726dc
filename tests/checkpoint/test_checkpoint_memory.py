"""What saving and loading add to a rank's memory: little, or one copy of its own state."""

import pytest

from mlm.model.config import ModelConfig
from mlm.weights import tiles
from parallel.layout import Layout
from tests.checkpoint.checkpoint_memory import cost
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

LAYOUTS = [Layout(tp=2, pp=1, dp=2), Layout(tp=1, pp=2, dp=2), Layout(tp=2, pp=1, dp=2, zero=3)]


def model(vocab_size: int, hidden: int, layers: int) -> ModelConfig:
    return ModelConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=8,
        intermediate_size=4 * hidden,
        max_position_embeddings=66,
    )


def check(config: ModelConfig, layout: Layout, folder) -> None:
    for rank in run_ranks(4, cost, config, layout, folder):
        assert rank.state_bytes + rank.save <= 1.3 * rank.state_bytes, rank
        assert rank.state_bytes + rank.background <= 2.1 * rank.state_bytes, rank
        # A rank copies all but what another rank writes (for the tied weight, the first stage).
        assert rank.background >= 0.5 * rank.state_bytes, rank
        assert rank.state_bytes + rank.load <= 1.3 * rank.state_bytes, rank


@pytest.mark.parametrize(
    "layout",
    [LAYOUTS[0], *(pytest.param(layout, marks=pytest.mark.slow) for layout in LAYOUTS[1:])],
    ids=["2-1-2-z1", "1-2-2-z1", "2-1-2-z3"],
)
def test_save_and_restore_add_little_memory(layout, tmp_path, monkeypatch):
    monkeypatch.setattr(tiles, "PART", 1 << 20)
    monkeypatch.setattr("mlm.checkpoint.state.PART", 1 << 20)
    check(model(8192, 512, 12), layout, tmp_path)


@pytest.mark.slow
def test_save_and_restore_of_a_gigabyte_add_little_memory(tmp_path):
    config = model(48_000, 1024, 16)
    assert 0.98e9 < 4 * config.parameters() < 1.02e9
    check(config, LAYOUTS[0], tmp_path)
