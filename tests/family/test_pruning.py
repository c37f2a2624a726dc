"""Attention heads taken out of a model that is there."""

import copy
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.family.family_decoding import CAUSAL, POSITIONS, by_chunks, cross, logits_of, refusal
from tests.family.family_fixtures import (
    GRADIENTS,
    SEQ,
    TINY,
    gradients_of,
    our_model,
    padded,
    randomise,
    same,
    tokens,
)
from tests.ranks import run_ranks

MASKED, MODEL = "XLMRobertaXLForMaskedLM", "XLMRobertaXLModel"
LAYERS, HEADS, HIDDEN = (
    TINY[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
)
SIZE = HIDDEN // HEADS
GONE = {0: [1], 2: [0, 3]}
KEPT = torch.ones(LAYERS, HEADS)
for _layer, _heads in GONE.items():
    KEPT[_layer, _heads] = 0.0


def made(cls_name: str = MASKED, init: dict[str, Any] | None = None, **config: Any) -> Any:
    model = our_model(cls_name, init=init, **config)
    randomise(model)
    return model.eval()


def pruned(model: Any, heads: dict[int, list[int]] = GONE) -> Any:
    other = copy.deepcopy(model)
    other.prune_heads(heads)
    return other


def cut(name: str, tensor: Tensor) -> Tensor:
    """What is left of a parameter (or its gradient) of the whole model."""
    for layer, heads in GONE.items():
        if f"layer.{layer}.attention." not in name:
            continue
        kept = [head for head in range(HEADS) if head not in heads]
        if any(f".self.{part}." in name for part in ("query", "key", "value")):
            return tensor.unflatten(0, (HEADS, SIZE))[kept].flatten(0, 1)
        if name.endswith("attention.output.dense.weight"):
            return tensor.unflatten(1, (HEADS, SIZE))[:, kept].flatten(1, 2)
    return tensor


@pytest.mark.parametrize("path", ["fused", "unfused"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_prune_heads_equals_heads_without_a_weight(positions, path):
    """Outputs, attentions and gradients, against head_mask and against zeros in the projection."""
    whole = made(position_embedding_type=positions, init={"attention": path})
    small = pruned(whole)
    ids, mask = padded()
    given = {"input_ids": ids, "attention_mask": mask, "labels": ids}
    expected = gradients_of(whole, lambda: whole(**given, head_mask=KEPT).loss)
    found = gradients_of(small, lambda: small(**given).loss)
    assert set(found) == set(expected)
    for name, grad in expected.items():
        same(found[name], cut(name, grad), GRADIENTS, name)
    weights = dict(whole.named_parameters())
    for name, parameter in small.named_parameters():
        assert torch.equal(parameter, cut(name, weights[name])), name
    with torch.no_grad():
        out = small(**given, output_attentions=True)
        maps = whole(**given, head_mask=KEPT, output_attentions=True)
        for layer in range(LAYERS):
            heads = KEPT[layer].bool()
            same(out.attentions[layer], maps.attentions[layer][:, heads])
        for layer, heads in GONE.items():
            dense = whole.roberta.encoder.layer[layer].attention.output.dense
            for head in heads:
                dense.weight[:, head * SIZE : (head + 1) * SIZE] = 0.0
        same(small(**given).logits, whole(**given).logits)
        same(out.logits, whole(**given).logits)


def test_prune_heads_keeps_the_numbering_of_head_masks():
    whole = made()
    small = pruned(whole)
    factors = torch.rand(LAYERS, HEADS, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        for mask in (factors, factors[1]):
            expected = whole(tokens(), head_mask=mask * KEPT).logits
            same(small(tokens(), head_mask=mask).logits, expected)
        one = pruned(whole, {1: [0, 1, 3]})
        alone = torch.ones(LAYERS, HEADS)
        alone[1] = torch.tensor([0.0, 0.0, 1.0, 0.0])
        expected = whole(tokens(), head_mask=factors * alone).logits
        same(one(tokens(), head_mask=factors).logits, expected)


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
def test_prune_heads_keeps_caches_working(crossed):
    """Only the heads of self attention are taken out, those of cross attention stay."""
    whole = made(CAUSAL, is_decoder=True, add_cross_attention=crossed)
    small = pruned(whole)
    given: dict[str, Any] = cross() if crossed else {}
    ids, mask = padded((SEQ, 13, 2), "left")
    for layer, block in enumerate(small.roberta.encoder.layer):
        assert block.attention.self.query.weight.shape[0] == KEPT[layer].sum() * SIZE
        assert not crossed or block.crossattention.self.query.weight.shape[0] == HIDDEN
    with torch.no_grad():
        full = small(ids, mask, **given).logits
        outputs, past = by_chunks(small, [0, 7, 8, SEQ], mask, input_ids=ids, **given)
    same(logits_of(outputs)[mask.bool()], full[mask.bool()])
    assert [layer[0].shape[1] for layer in past] == [3, 4, 2]
    if not crossed:  # the factor is for both attentions
        with torch.no_grad():
            same(full, whole(ids, mask, head_mask=KEPT).logits)


def test_prune_heads_keeps_numbers_when_called_again():
    whole, small = made(), made()
    at_once = pruned(whole, {0: [0, 1, 3], 1: [2]})
    small.prune_heads({0: [1]})
    assert small.config.pruned_heads == {0: [1]}
    small.prune_heads({0: [3, 1], 1: {2}})
    small.prune_heads({0: [0], 1: [2], 2: []})
    with torch.no_grad():
        assert torch.equal(small(tokens()).logits, at_once(tokens()).logits)
    found = {layer: heads for layer, heads in small.config.pruned_heads.items() if heads}
    assert found == at_once.config.pruned_heads == {0: [0, 1, 3], 1: [2]}


@pytest.mark.parametrize(
    ("heads", "named"),
    [
        ({1: [2], 0: [0, 1, 2, 3]}, "0"),
        ({1: [2], 0: [4]}, "4"),
        ({1: [2], 0: [-1]}, "-1"),
        ({1: [2], 3: [0]}, "3"),
        ({1: [2], -1: [0]}, "-1"),
    ],
)
def test_prune_heads_refuses_a_whole_request(heads, named):
    model = made()
    before, config = model(tokens()).logits, model.config.to_dict()
    assert named in refusal(lambda: model.prune_heads(heads))
    assert torch.equal(model(tokens()).logits, before)
    assert model.config.to_dict() == config
    model.prune_heads({0: [0, 1, 2]})
    assert "3" in refusal(lambda: model.prune_heads({0: [3]}))


@pytest.mark.parametrize("cls_name", [MASKED, MODEL])
def test_prune_heads_survives_saving(tmp_path, cls_name):
    small = pruned(made(cls_name))
    small.save_pretrained(tmp_path / "model")
    again = type(small).from_pretrained(tmp_path / "model")
    assert again.config.pruned_heads == GONE
    assert torch.equal(again(tokens())[0], small(tokens())[0])
    again.prune_heads({0: [2]})
    small.prune_heads({0: [2]})
    assert torch.equal(again(tokens())[0], small(tokens())[0])


def test_prune_heads_removes_parameters():
    whole, small = made(), pruned(made())
    of_a_head = 3 * SIZE * (HIDDEN + 1) + HIDDEN * SIZE
    assert whole.num_parameters() - small.num_parameters() == 3 * of_a_head
    frozen = made()
    frozen.requires_grad_(False)
    frozen.prune_heads(GONE)
    assert not any(parameter.requires_grad for parameter in frozen.parameters())


def _pruned_over_ranks() -> tuple[Tensor, str]:
    """Logits after one head of each rank is gone, and what is said to a rank without heads."""
    model = our_model(MASKED, init={"group": dist.group.WORLD, "seed": 3}).eval()
    said = refusal(lambda: model.prune_heads({1: [1, 2], 0: [0, 1]}))
    model.prune_heads({0: [0, 3], 2: [1, 2]})
    with torch.no_grad():
        return model(tokens()).logits, said


@pytest.mark.ranks
@pytest.mark.timeout(60)  # a rank that waits for one that has refused would wait for long
def test_prune_heads_prunes_each_rank():
    """And nothing of what leaves a rank without heads, on any rank."""
    whole = our_model(MASKED, init={"seed": 3}).eval()
    whole.prune_heads({0: [0, 3], 2: [1, 2]})
    with torch.no_grad():
        expected = whole(tokens()).logits
    for logits, said in run_ranks(2, _pruned_over_ranks):
        same(logits, expected)
        assert "0, 1" in said


def _pruned_unevenly() -> tuple[str, dict, int]:
    model = our_model(MASKED, init={"group": dist.group.WORLD, "seed": 3})
    said = refusal(lambda: model.prune_heads({1: [1, 2], 2: [0]}))
    return said, model.config.pruned_heads, model.roberta.encoder.layer[1].attention.self.heads


@pytest.mark.ranks
@pytest.mark.timeout(60)
def test_prune_heads_refuses_uneven_ranks():
    for said, gone, heads in run_ranks(2, _pruned_unevenly):
        assert "1, 2 heads" in said
        assert (gone, heads) == ({}, HEADS // 2)
