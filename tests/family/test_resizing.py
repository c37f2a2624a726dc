"""Models with more or fewer tokens, and weights that are tied again."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from tests.family.family_decoding import refusal
from tests.family.family_fixtures import (
    PAD,
    SEQ,
    TINY,
    VOCAB,
    compare,
    our_model,
    pair,
    randomise,
    same,
    tokens,
)

MASKED, MODEL = "XLMRobertaXLForMaskedLM", "XLMRobertaXLModel"
HIDDEN = TINY["hidden_size"]


def made(cls_name: str = MASKED, **config: Any) -> Any:
    model = our_model(cls_name, **config)
    randomise(model)
    return model.eval()


@pytest.mark.parametrize(
    ("asked", "rows"),
    [
        ({"new_num_tokens": 140}, 140),
        ({"new_num_tokens": 100}, 100),
        ({"new_num_tokens": VOCAB}, VOCAB),
        ({"new_num_tokens": 130, "pad_to_multiple_of": 64}, 192),
        ({"pad_to_multiple_of": 50}, 150),
        ({}, VOCAB),
    ],
    ids=str,
)
@pytest.mark.parametrize("cls_name", [MASKED, MODEL])
def test_resize_equals_transformers(cls_name, asked, rows):
    """Theirs draws new rows around the mean, with a deviation below 1e-4; then all is the same,
    gradients too: none goes to the row of padding."""
    ours, theirs = pair(cls_name)
    old = {name: tensor.clone() for name, tensor in ours.state_dict().items()}
    expected = theirs.resize_token_embeddings(**asked)
    found = ours.resize_token_embeddings(**asked)
    assert found is ours.get_input_embeddings()
    assert found.weight.shape == expected.weight.shape == (rows, HIDDEN)
    assert ours.config.vocab_size == theirs.config.vocab_size == rows
    state = ours.state_dict()
    assert set(state) == set(old)
    for name, tensor in theirs.state_dict().items():
        same(state[name], tensor, 1e-4, name)
        both = min(len(tensor), len(old[name]))
        assert torch.equal(state[name][:both], old[name][:both]), name
    theirs.load_state_dict(state, strict=True)
    given = {"input_ids": tokens().clamp(max=rows - 1)}
    if rows > VOCAB:
        given["input_ids"][0, 4] = rows - 1
    given["input_ids"][1, 5:] = PAD
    if cls_name == MASKED:
        given["labels"] = given["input_ids"].clone()
    compare(ours, theirs, given)


def test_resize_keeps_ties_and_changes_the_vocabulary():
    model = made()
    model.resize_token_embeddings(150)
    words, head = model.get_input_embeddings(), model.lm_head
    assert head.decoder.weight is words.weight
    assert head.decoder.bias is head.bias
    assert model.get_output_embeddings().weight is words.weight
    names = [name for name, _ in model.named_parameters()]
    assert "lm_head.decoder.weight" not in names
    assert len(names) == len(set(names))
    ids = tokens()
    ids[0, 0] = 149
    assert model(ids).logits.shape == (3, SEQ, 150)
    model.resize_token_embeddings(40)
    assert "40" in refusal(lambda: model(ids))
    assert model(ids.clamp(max=39), labels=ids.clamp(max=39)).loss > 0


def test_resize_draws_new_rows():
    drawn = []
    for seed in (6, 6, 7):
        model = made()
        torch.manual_seed(seed)
        added = model.resize_token_embeddings(VOCAB + 2000, mean_resizing=False).weight[VOCAB:]
        assert added.std().item() == pytest.approx(TINY["initializer_range"], rel=0.02)
        assert added.mean().item() == pytest.approx(0.0, abs=0.005)
        assert len(added.unique(dim=0)) == 2000
        assert not model.lm_head.bias[VOCAB:].any()
        drawn.append(added)
    assert torch.equal(drawn[0], drawn[1]), "torch's generator is what they are drawn from"
    assert not torch.equal(drawn[0], drawn[2])


def test_resize_keeps_dtype_and_requires_grad():
    model = made().to(torch.bfloat16)
    model.roberta.embeddings.requires_grad_(False)
    model.resize_token_embeddings(150)
    words = model.get_input_embeddings().weight
    assert words.dtype == model.lm_head.bias.dtype == torch.bfloat16
    assert not words.requires_grad
    assert model.lm_head.bias.requires_grad


@pytest.mark.parametrize(
    ("asked", "named"),
    [
        ({"new_num_tokens": 0}, "new_num_tokens"),
        ({"new_num_tokens": -3}, "new_num_tokens"),
        ({"new_num_tokens": 10.5}, "new_num_tokens"),
        ({"new_num_tokens": 1}, "pad_token_id"),
        ({"pad_to_multiple_of": 0}, "pad_to_multiple_of"),
        ({"pad_to_multiple_of": 1.5}, "pad_to_multiple_of"),
    ],
)
def test_resize_refuses_invalid_numbers(asked, named):
    model = made()
    assert named in refusal(lambda: model.resize_token_embeddings(**asked))
    assert model.config.vocab_size == len(model.get_input_embeddings().weight) == VOCAB


@pytest.mark.parametrize("positions", ["absolute", "relative_key"])
def test_resize_and_pruning_survive_saving(tmp_path, positions):
    model = made(position_embedding_type=positions)
    model.resize_token_embeddings(150)
    model.prune_heads({0: [1], 2: [0, 3]})
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert again.config.vocab_size == 150
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)


def test_tie_weights_ties_replaced_parameters():
    model = made()
    expected = model(tokens()).logits
    words, head = model.get_input_embeddings(), model.lm_head
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for replace in (
        lambda: setattr(words, "weight", nn.Parameter(words.weight.detach().clone())),
        lambda: model.load_state_dict(state, assign=True),
        lambda: model.to_empty(device="cpu").load_state_dict(state),
    ):
        replace()
        model.tie_weights()
        assert head.decoder.weight is words.weight
        assert head.decoder.bias is head.bias
        same(model(tokens()).logits, expected, 0.0)
    other = copy.deepcopy(model)
    assert other.lm_head.decoder.weight is other.get_input_embeddings().weight
    assert other.lm_head.decoder.weight is not words.weight
