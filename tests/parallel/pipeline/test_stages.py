"""The cut of a list of layers into stages."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm.model.config import ModelConfig
from mlm.model.masked_lm import masked_lm_layers
from parallel.pipeline.cut import balance
from parallel.pipeline.stages import StageLayer, canonical_name


def layer(flops: float, parameters: int, joined: bool = False) -> StageLayer:
    return StageLayer("x", torch.nn.Identity, parameters, flops, joined=joined)


def heaviest(layers: list[StageLayer], bounds: list[int]) -> float:
    flops = sum(item.flops for item in layers) or 1.0
    parameters = sum(item.parameters for item in layers) or 1
    runs = [layers[a:b] for a, b in itertools.pairwise(bounds)]
    return max(sum(i.flops / flops + i.parameters / parameters for i in run) for run in runs)


@given(
    st.lists(
        st.tuples(st.integers(0, 9), st.integers(0, 9), st.booleans()), min_size=1, max_size=7
    ),
    st.integers(1, 4),
)
def test_balance_finds_the_lightest_cut(items, stages):
    from itertools import combinations

    layers = [layer(f, p, joined=j and i > 0) for i, (f, p, j) in enumerate(items)]
    places = [i for i, item in enumerate(layers) if i > 0 and not item.joined]
    if stages > len(places) + 1:
        with pytest.raises(ValueError, match=f"{stages} stages cannot be cut"):
            balance(layers, stages)
        return
    bounds = balance(layers, stages)
    assert bounds[0] == 0
    assert bounds[-1] == len(layers)
    assert all(b in places for b in bounds[1:-1])
    assert bounds == sorted(set(bounds))
    options = combinations(places, stages - 1)
    best = min(heaviest(layers, [0, *cut, len(layers)]) for cut in options)
    assert heaviest(layers, bounds) == pytest.approx(best)


def test_balance_gives_fewer_layers_to_stages_with_a_large_vocabulary():
    """250,880 embeddings weigh as much as several layers of base: the middle stages get more."""
    config = ModelConfig(
        vocab_size=250880,
        hidden_size=768,
        num_hidden_layers=12,
        num_attention_heads=12,
        intermediate_size=3072,
    )
    layers = masked_lm_layers(config)
    bounds = balance(layers, 4)
    counts = [sum(item.recompute for item in layers[a:b]) for a, b in itertools.pairwise(bounds)]
    assert sum(counts) == 12
    assert counts[0] < counts[1]
    assert counts[3] < counts[2]


def test_canonical_name_gives_published_names():
    config = ModelConfig(vocab_size=128, hidden_size=16, num_hidden_layers=2, intermediate_size=32)
    layers = masked_lm_layers(config)
    assert canonical_name(layers, "2.attention.self.query.weight") == (
        "roberta.encoder.layer.0.attention.self.query.weight"
    )
    assert canonical_name(layers, "tied_modules.words.weight") == (
        "roberta.embeddings.word_embeddings.weight"
    )
    assert canonical_name(layers, "5.bias") == "lm_head.bias"
