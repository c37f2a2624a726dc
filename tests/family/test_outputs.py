"""Outputs as dicts, tuples, dataclasses and pytrees, beside those of transformers."""

import copy
import dataclasses
import io
import pickle
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch.utils import _pytree as pytree

from mlm.family.outputs import CausalOutput, EncoderOutput, HeadOutput, SpanOutput
from tests.family.family_fixtures import pair
from tests.family.family_wrapped import CLASSES, inputs_of

A, B = torch.tensor(1.5), torch.arange(6.0).view(2, 3)
KINDS = [EncoderOutput, HeadOutput, CausalOutput, SpanOutput]


@pytest.mark.parametrize("cls_name", CLASSES)
def test_output_is_the_dict_that_transformers_gives(cls_name):
    models = pair(cls_name, **CLASSES[cls_name])
    found, expected = (
        model(**inputs_of(cls_name), output_hidden_states=True, output_attentions=True)
        for model in models
    )
    cached = {"past_key_values", "cache", "cross_attentions"}  # empty there, or under new names
    assert [name for name in found if name not in cached] == [
        name for name in expected if name not in cached
    ]
    assert isinstance(found, dict)
    assert dict(**found).keys() == found.keys()
    leaves = [leaf for leaf in pytree.tree_leaves(found) if leaf.requires_grad]
    total = sum(leaf.sum() for leaf in leaves)
    assert torch.is_tensor(total)
    assert len(leaves) >= len([one for one in found.values() if torch.is_tensor(one)])


@pytest.mark.parametrize("kind", KINDS)
def test_output_is_made_as_a_dataclass_a_mapping_or_pairs(kind):
    names = [field.name for field in dataclasses.fields(kind)]
    values = dict(zip(names, (A, B), strict=False))
    ways = [
        kind(*values.values()),
        kind(**values),
        kind(values),
        kind(OrderedDict(values)),
        kind(list(values.items())),
        kind((name, value) for name, value in values.items()),
    ]
    for made in ways:
        assert list(made) == names[:2]
        assert made[names[1]] is getattr(made, names[1]) is made[1] is made.get(names[1]) is B
        assert made[:2] == made.to_tuple() == (A, B)
        assert getattr(made, names[2]) is None
        assert names[2] not in made
        assert len(made) == 2
    assert len(kind()) == 0


def copies(made: Any) -> list[Any]:
    buffer = io.BytesIO()
    torch.save(made, buffer)
    buffer.seek(0)
    return [
        copy.copy(made),
        copy.deepcopy(made),
        pickle.loads(pickle.dumps(made)),
        torch.load(buffer, weights_only=False),
        dataclasses.replace(made),
        made.copy(),
        type(made)(made),
        pytree.tree_map(lambda leaf: leaf, made),
    ]


def test_output_is_copied_and_pickled_whole():
    made: Any = HeadOutput(A, B, hidden_states=(A, B))
    assert {type(other) for other in copies(made)} == {HeadOutput}
    for other in copies(made):
        assert list(other) == list(made)
        assert torch.equal(other.logits, B)
        assert torch.equal(other.hidden_states[1], B)
        assert other.attentions is None


def test_output_follows_what_is_put_into_it():
    made: Any = HeadOutput(logits=B)
    made.loss = A
    made["attentions"] = (B,)
    made["other"] = B
    assert set(made) == {"logits", "loss", "attentions", "other"}
    assert made["loss"] is A
    assert made.attentions[0] is B
    made.loss = None
    del made["attentions"]
    assert set(made) == {"logits", "other"}
    assert made.attentions is None
    made.update(loss=A)
    assert made.loss is A
    with pytest.raises(TypeError, match="a HeadOutput keeps its fields"):
        made.pop("loss")
    with pytest.raises(KeyError):
        made["hidden_states"]
    with pytest.raises(AttributeError):
        made.nothing  # noqa: B018


def test_output_of_numbers_and_of_nothing_survives_a_map():
    numbers: Any = {"loss": 0.5, "logits": [1, 2]}  # as after a gather into plain values
    made = HeadOutput(**numbers)
    assert made.to_tuple() == (0.5, [1, 2])
    empty = pytree.tree_map(lambda _: None, HeadOutput(A, B))
    assert list(empty) == ["loss", "logits"]


def test_cache_is_a_pytree():
    model = pair("XLMRobertaXLForCausalLM", is_decoder=True)[0]
    cache = model(torch.tensor([[5, 6, 7]])).past_key_values
    leaves, tree = pytree.tree_flatten(cache)
    assert len(leaves) == 2 * len(cache) + 1
    again = pytree.tree_unflatten(leaves, tree)
    assert type(again) is type(cache)
    assert again.get_seq_length() == 3
    assert torch.equal(again.tokens, cache.tokens)
