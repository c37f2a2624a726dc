"""When a decoder gives a cache, and which ones it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from mlm.family.cache import KeyValues
from tests.family.family_decoding import CAUSAL, PADDING, POSITIONS, cross, decoder, refusal
from tests.family.family_fixtures import SEQ, TINY, our_model, same, tokens

LAYERS = TINY["num_hidden_layers"]


@pytest.mark.parametrize(
    ("config", "given", "due"),
    [
        ({"is_decoder": True}, {}, True),
        ({"is_decoder": True}, {"use_cache": False}, False),
        ({"is_decoder": True, "use_cache": False}, {}, False),
        ({"is_decoder": True, "use_cache": False}, {"use_cache": True}, True),
        ({"is_decoder": True}, {"labels": tokens()}, False),
        ({"is_decoder": True}, {"labels": tokens(), "use_cache": True}, True),
        ({}, {}, False),
        ({}, {"use_cache": False}, False),
    ],
)
def test_use_cache_decides_whether_a_cache_is_returned(config, given, due):
    model = our_model(CAUSAL, **config)
    out = model(tokens(), **given)
    assert isinstance(out.past_key_values, KeyValues) == due
    assert (out.past_key_values is not None) == due
    assert ("past_key_values" in out.keys()) == due  # noqa: SIM118
    assert len(model(tokens(), **given, return_dict=False)) == len(out)


def with_change(past: Any, layer: int, item: int, change: Callable[[Tensor], Tensor]) -> Any:
    changed = [list(tensors) for tensors in past]
    changed[layer][item] = change(changed[layer][item])
    return tuple(map(tuple, changed))


MISFITS: dict[str, Callable[[Any], Any]] = {
    "a layer too few": lambda past: past[:-1],
    "a layer too many": lambda past: (*past, past[0]),
    "no layers": lambda past: (),
    "without cross attention": lambda past: tuple(layer[:2] for layer in past),
    "keys only": lambda past: tuple(layer[:1] for layer in past),
    "one row fewer": lambda past: tuple(tuple(one[:2] for one in layer) for layer in past),
    "one head fewer": lambda past: with_change(past, 1, 0, lambda one: one[:, 1:]),
    "a smaller head": lambda past: with_change(past, 2, 1, lambda one: one[..., 1:]),
    "a dimension fewer": lambda past: with_change(past, 0, 0, lambda one: one[:, 0]),
    "keys without values": lambda past: with_change(past, 0, 1, lambda one: one[:, :, 1:]),
    "layers of two lengths": lambda past: tuple(
        tuple(one[:, :, number:] for one in layer[:2]) + layer[2:]
        for number, layer in enumerate(past)
    ),
    "cross values of another length": lambda past: with_change(
        past, 1, 3, lambda one: one[:, :, 1:]
    ),
    "cross keys of a length": lambda past: with_change(past, 1, 2, lambda one: one[:, :, 1:]),
    "another source": lambda past: tuple(
        (*layer[:2], *(one[:, :, 1:] for one in layer[2:])) for layer in past
    ),
    "no tensors": lambda past: ((1, 2, 3, 4),) * LAYERS,
    "a number": lambda past: 3,
    "a cache of transformers": lambda past: DynamicCache(),
}


@pytest.mark.parametrize("misfit", MISFITS)
def test_past_key_values_of_another_shape_are_refused(misfit):
    model = decoder(crossed=True)
    with torch.no_grad():
        past = model(tokens(3, 5), **cross()).past_key_values
    given = {"past_key_values": MISFITS[misfit](past), **cross(torch.ones(3, 7))}
    text = refusal(lambda: model(tokens(3, 2), **given))
    assert "past_key_values" in text or "encoder_attention_mask" in text


def test_past_key_values_are_refused_by_an_encoder():
    past = decoder()(tokens(3, 5)).past_key_values
    for name in (CAUSAL, "XLMRobertaXLModel"):
        model = our_model(name)
        text = refusal(lambda model=model: model(tokens(3, 2), past_key_values=past))
        assert "past_key_values" in text
        text = refusal(lambda model=model: model(tokens(3, 2), use_cache=True))
        assert "use_cache" in text


@pytest.mark.parametrize("positions", POSITIONS)
def test_past_key_values_that_leave_too_few_positions_are_refused(positions):
    most = SEQ if positions == "absolute" else TINY["max_position_embeddings"]
    model = decoder(positions)
    with torch.no_grad():
        past = model(tokens(2, 15)).past_key_values
        model(tokens(2, most - 15), past_key_values=past)
        text = refusal(lambda: model(tokens(2, most - 14), past_key_values=past))
    assert str(most) in text


def test_attention_mask_without_the_cached_tokens_is_refused():
    """It is expected for earlier tokens, too: their padding is theirs to say."""
    model = decoder()
    with torch.no_grad():
        past = model(tokens(3, 5)).past_key_values
    for mask in (torch.ones(3, 2), torch.ones(3, 2, 2), torch.ones(3, 6)):
        given = {"attention_mask": mask, "past_key_values": past}
        assert "attention_mask" in refusal(lambda given=given: model(tokens(3, 2), **given))


def test_cache_select_keeps_the_padding_of_rows():
    model, (ids, _) = decoder(), PADDING["left"]()
    rows = torch.tensor([2, 0, 1])
    with torch.no_grad():
        past = model(ids[:, :9]).past_key_values.select(rows)
        found = model(ids[rows, 9:], past_key_values=past).logits
        same(found, model(ids[rows]).logits[:, 9:])
