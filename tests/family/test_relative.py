"""Relative positions against a plain loop of the formulas: transformers 5 has none.

Shaw et al. 2018 (`relative_key`) and Huang et al. 2020 (`relative_key_query`).
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.family.family_decoding import CAUSAL, cross, refusal, source_mask
from tests.family.family_fixtures import (
    GRADIENTS,
    PAD,
    SEQ,
    TINY,
    gradients_of,
    noise,
    our_model,
    padded,
    randomise,
    same,
    tokens,
)
from tests.family.family_loop import (
    Given,
    Looped,
    PlainLoop,
    causal,
    language_logits,
    looped,
    next_token_loss,
)

MODEL, MASKED = "XLMRobertaXLModel", "XLMRobertaXLForMaskedLM"
KINDS = ["relative_key", "relative_key_query"]
LAYERS, HEADS, HIDDEN, MOST = (
    TINY[key]
    for key in (
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "max_position_embeddings",
    )
)
MAPS = {"output_hidden_states": True, "output_attentions": True}


def made(cls_name: str, kind: str, **config: Any) -> Any:
    model = our_model(cls_name, position_embedding_type=kind, **config)
    randomise(model)
    return model


def same_maps(found: Any, expected: Looped) -> None:
    """States and attentions of all layers."""
    pairs = {"hidden_states": expected.hidden_states, "attentions": expected.attentions}
    if expected.cross_attentions:
        pairs["cross_attentions"] = expected.cross_attentions
    for name, values in pairs.items():
        assert len(found[name]) == len(values)
        for place, (one, other) in enumerate(zip(found[name], values, strict=True)):
            same(one, other, what=f"{name}[{place}]")


def same_grads(model: Any, loss: Tensor, weights: dict[str, Tensor], expected: Tensor) -> None:
    """Of every parameter, after both scalars agree; what the loop has not used has none."""
    same(loss, expected, GRADIENTS)
    mine = gradients_of(model, lambda: loss)
    expected.backward()
    for name, weight in weights.items():
        if weight.grad is None:
            assert name not in mine or not mine[name].any(), name
        else:
            same(mine[name], weight.grad, GRADIENTS, name)


def of_tokens(cls_name: str) -> list[tuple[str, dict[str, Tensor]]]:
    ids, mask = padded(side="left")
    types = (noise(3, SEQ, seed=5) > 0).long()
    return [
        ("whole rows", {"input_ids": tokens()}),
        ("right padding", dict(zip(("input_ids", "attention_mask"), padded(), strict=True))),
        ("left padding", {"input_ids": ids, "attention_mask": mask}),
        ("token types", {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}),
        ("pads without a mask", {"input_ids": ids}),
        ("embeddings", {"inputs_embeds": noise(3, SEQ, HIDDEN), "attention_mask": mask}),
        ("one token", {"input_ids": tokens(2, 1)}),
        ("as many tokens as positions", {"input_ids": tokens(2, MOST)}),
    ]


def pass_of(loop: PlainLoop, given: dict[str, Tensor], order: bool = False, **more: Any) -> Looped:
    """The loop on the arguments of a call; order: whether queries see earlier tokens only."""
    words = given.get("input_ids", given.get("inputs_embeds"))
    assert words is not None
    rows, length = words.shape[:2]
    mask = given.get("attention_mask", torch.ones(rows, length))
    if mask.dim() == 2:
        mask = causal(mask) if order else mask.unsqueeze(1).expand(-1, length, -1)
    return loop(loop.embeddings(words, given.get("token_type_ids")), Given(seen=mask, **more))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", range(8), ids=[name for name, _ in of_tokens(MODEL)])
def test_relative_positions_of_an_encoder_equal_the_loop(case, kind):
    given = of_tokens(MODEL)[case][1]
    model = made(MODEL, kind)
    loop, weights = looped(model)
    expected = pass_of(loop, given)
    pooled = torch.tanh(loop.linear("pooler.dense", expected.last[:, 0]))
    by_states, by_pooled = noise(*expected.last.shape), noise(*pooled.shape) / 10

    def scalar(states: Tensor, vector: Tensor) -> Tensor:
        return (states * by_states).sum() / 30 + (vector * by_pooled).sum()

    found = model.train()(**given, **MAPS)
    same_maps(found, expected)
    same(found.pooler_output, pooled)
    same_grads(
        model,
        scalar(found.last_hidden_state, found.pooler_output),
        weights,
        scalar(expected.last, pooled),
    )
    with torch.no_grad():
        same(model.eval()(**given).last_hidden_state, expected.last)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", ["none", "left"])
def test_relative_positions_with_cross_attention_equal_the_loop(side, kind):
    """Cross attention has no distances, and no vectors for them."""
    ids, mask = padded((SEQ, SEQ, SEQ) if side == "none" else (SEQ, 13, 2), "left")
    labels = ids.masked_fill(mask == 0, -100)
    model = made(CAUSAL, kind, is_decoder=True, add_cross_attention=True)
    loop, weights = looped(model)
    source, kept = cross()["encoder_hidden_states"], source_mask("right")
    factors = torch.tensor([[1.0, 0.5, 0.0, 1.0], [1.0] * 4, [0.0, 1.0, 2.0, 1.0]])
    expected = pass_of(
        loop,
        {"input_ids": ids, "attention_mask": mask},
        order=True,
        source=source,
        source_seen=kept.unsqueeze(1).expand(-1, SEQ, -1),
        head_mask=factors,
    )
    logits = language_logits(loop, expected.last)
    found = model.train()(
        ids,
        mask,
        encoder_hidden_states=source,
        encoder_attention_mask=kept,
        labels=labels,
        head_mask=factors,
        use_cache=True,
        **MAPS,
    )
    same(found.logits, logits)
    same_maps(found, expected)
    for mine, theirs in zip(found.past_key_values, expected.pasts, strict=True):
        for one, other in zip(mine, theirs, strict=True):
            same(one, other)
    same_grads(model, found.loss, weights, next_token_loss(logits, labels))
    named = [name for name, _ in model.named_parameters() if "distance" in name]
    assert named == [
        f"roberta.encoder.layer.{layer}.attention.self.distance_embedding.weight"
        for layer in range(LAYERS)
    ]


def test_loop_equals_the_model_with_absolute_positions():
    """Which is held to transformers, so that the loop is, too."""
    model = made(CAUSAL, "absolute", is_decoder=True, add_cross_attention=True)
    ids, mask = padded(side="left")
    loop, weights = looped(model)
    source = cross()["encoder_hidden_states"]
    given = {"input_ids": ids, "attention_mask": mask}
    expected = pass_of(loop, given, order=True, source=source)
    found = model(**given, encoder_hidden_states=source, labels=ids, **MAPS)
    logits = language_logits(loop, expected.last)
    same(found.logits, logits)
    same_maps(found, expected)
    same_grads(model, found.loss, weights, next_token_loss(logits, ids))


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_take_a_3d_mask(kind):
    mask = (noise(3, SEQ, SEQ, seed=8) > 0).long()
    mask[1, 4] = 0
    model = made(MASKED, kind).eval()
    loop, _ = looped(model)
    given = {"input_ids": tokens(), "attention_mask": mask}
    same(model(**given).logits, language_logits(loop, pass_of(loop, given).last))


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_are_recomputed_with_the_same_gradients(kind):
    model = made(MASKED, kind).train()
    given = dict(zip(("input_ids", "attention_mask"), padded(), strict=True))
    expected = gradients_of(model, lambda: model(**given, labels=given["input_ids"]).loss)
    model.gradient_checkpointing_enable()
    found = gradients_of(model, lambda: model(**given, labels=given["input_ids"]).loss)
    assert set(found) == set(expected)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_depend_on_distances_only(kind):
    """Padding on the left moves all tokens, and changes nothing; the order of tokens does."""
    model, ids = made(MODEL, kind).eval(), tokens(2, 9)
    moved = torch.cat([torch.full((2, 8), PAD), ids], dim=1)
    with torch.no_grad():
        before = model(ids).last_hidden_state
        after = model(moved, attention_mask=(moved != PAD).long()).last_hidden_state
        swapped = model(ids.flip(1)).last_hidden_state.flip(1)
    same(after[:, 8:], before)
    assert (swapped - before).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_leave_the_absolute_table_unused(kind):
    model = made(MODEL, kind)
    table = model.embeddings.position_embeddings.weight
    before = model.eval()(tokens()).last_hidden_state
    model.train()(tokens()).last_hidden_state.sum().backward()
    assert table.grad is None or not table.grad.any()
    with torch.no_grad():
        table.add_(noise(*table.shape))
    assert torch.equal(model.eval()(tokens()).last_hidden_state, before)
    places = torch.arange(2, SEQ + 2).expand(3, -1)
    assert "position_ids" in refusal(lambda: model(tokens(), position_ids=places))


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_have_a_vector_for_every_distance(kind):
    """A row of the longest length uses each of them, and a shorter one those that occur in it."""
    model = made(MODEL, kind).train()
    for length in (MOST, 5, 1):
        model.zero_grad()
        (model(tokens(2, length)).last_hidden_state * noise(2, length, HIDDEN)).sum().backward()
        for layer in model.encoder.layer:
            used = layer.attention.self.distance_embedding.weight.grad.abs().sum(1) > 0
            assert len(used) == 2 * MOST - 1
            assert used[MOST - length : MOST + length - 1].all() or length == 1
            assert not used[: MOST - length].any()
            assert not used[MOST + length - 1 :].any()


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_refuse_too_many_tokens(kind):
    model = made(MODEL, kind)
    assert str(MOST) in refusal(lambda: model(tokens(2, MOST + 1)))
    assert str(MOST) in refusal(lambda: model(inputs_embeds=noise(2, MOST + 1, HIDDEN)))


def test_relative_positions_of_an_unknown_kind_are_refused():
    assert "position_embedding_type" in refusal(lambda: made(MODEL, "rotary"))


@pytest.mark.parametrize("kind", KINDS)
def test_relative_positions_survive_saving(tmp_path, kind):
    model = made(MASKED, kind).eval()
    model.save_pretrained(tmp_path / "model")
    again = type(model).from_pretrained(tmp_path / "model")
    assert again.config.position_embedding_type == kind
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
