"""ZeRO saves what it divides: the tensors of a rank over what its state needs."""

import pytest
import torch

from parallel.engine.deepspeed_adapter import buffers
from parallel.engine.deepspeed_adapter.buffers import buffer_sizes
from parallel.layout import Layout
from tests.live_tensors import LiveTensors
from tests.parallel.engine.engine_memory import build, model, step, theory
from tests.ranks import run_ranks

CONFIG = model(vocab_size=1024, hidden=128, layers=6)  # 1.3 million parameters, a tenth in words


def peak(layout: Layout, dtype: torch.dtype) -> tuple[float, float, int]:
    """Bytes that were held at most while building and in steps with moments; those of the state."""
    with LiveTensors() as live:
        engine = build(CONFIG, layout, dtype)
        building = live.peak
        step(engine, CONFIG, 0)
        live.peak = live.now
        step(engine, CONFIG, 1)
    return building, live.peak, theory(engine)


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("layout", "dtype"),
    [
        (Layout(dp=2, zero=1), "float32"),
        (Layout(dp=2, zero=2), "float32"),
        (Layout(dp=2, zero=3), "float32"),
        (Layout(dp=2, zero=1), "bfloat16"),
        (Layout(dp=2, zero=3), "bfloat16"),
    ],
    ids=lambda value: value if isinstance(value, str) else f"z{value.zero}",
)
def test_engine_holds_little_more_than_its_state(layout, dtype, monkeypatch):
    monkeypatch.setattr(buffers, "LEAST_BUCKET", 1024)  # which is nothing to a model that is used
    for building, training, state in run_ranks(2, peak, layout, getattr(torch, dtype)):
        assert building <= 1.5 * state
        assert training <= 1.5 * state


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_buffer_sizes_follow_the_model_up_to_the_defaults(zero):
    xl = [642_252_800, *[26_214_400] * 108]
    for sizes, bucket in (
        ([300], 300),
        ([8_000_000, *[1_000_000] * 32], 625_000),
        (xl, sum(xl) // 64),
        ([10**9] * 100, 500_000_000),
    ):
        found = buffer_sizes(zero, sizes)
        assert found["reduce_bucket_size"] == found["allgather_bucket_size"] == bucket
        if zero == 3:
            # What is always in use, the largest, leaves room for what is fetched ahead.
            room = found["stage3_max_live_parameters"] - max(sizes)
            assert room >= found["stage3_prefetch_bucket_size"] > 0
            assert found["stage3_prefetch_bucket_size"] <= 50_000_000
            assert found["stage3_param_persistence_threshold"] <= 100_000
            assert found["stage3_max_reuse_distance"] <= bucket


def test_buffer_sizes_are_even():
    assert buffer_sizes(1, [301])["reduce_bucket_size"] == 302
