"""Decoder mode against transformers: causal attention, its loss, cross attention."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.family.family_decoding import (
    CAUSAL,
    HIDDEN,
    SOURCE,
    cross,
    ids_and_mask,
    refusal,
    source_mask,
)
from tests.family.family_fixtures import (
    GRADIENTS,
    PAD,
    SEQ,
    TINY,
    VOCAB,
    additive,
    compare,
    noise,
    our_model,
    padded,
    pair,
    same,
    same_gradients,
    tokens,
)
from tests.family.family_loop import next_token_loss

MASKED, MODEL = "XLMRobertaXLForMaskedLM", "XLMRobertaXLModel"


def with_labels(side: str) -> dict[str, Tensor]:
    given = ids_and_mask(side=side)
    labels = given["input_ids"].masked_fill(given["attention_mask"] == 0, -100)
    labels[0, 3:9] = -100
    return {**given, "labels": labels}


def with_positions() -> dict[str, Tensor]:
    places = torch.randint(0, SEQ + 2, (3, SEQ), generator=torch.Generator().manual_seed(4))
    return {"input_ids": tokens(), "position_ids": places}


def of_each_query() -> Tensor:
    """(rows, queries, keys): every key, those up to the query, and a random choice."""
    ones = torch.ones(SEQ, SEQ)
    return torch.stack([ones, ones.tril(), (noise(SEQ, SEQ) > 0).float()]).long()


def more_places() -> dict[str, Tensor]:
    """Padding takes no position, so that rows may be longer than there are positions."""
    given = ids_and_mask(side="left")
    ids, mask = given["input_ids"], given["attention_mask"]
    return {"input_ids": F.pad(ids, (9, 0), value=PAD), "attention_mask": F.pad(mask, (9, 0))}


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "whole rows": lambda: {"input_ids": tokens()},
    "one token": lambda: {"input_ids": tokens(2, 1)},
    "right padding": ids_and_mask,
    "left padding": lambda: ids_and_mask(side="left"),
    "a row of padding": lambda: ids_and_mask((SEQ, 0, 7), "left"),
    "pads without a mask": lambda: {"input_ids": padded(side="left")[0]},
    "a mask of each query": lambda: {"input_ids": tokens(), "attention_mask": of_each_query()},
    "embeddings": lambda: {
        "inputs_embeds": noise(3, SEQ, HIDDEN),
        "attention_mask": padded(side="left")[1],
    },
    "own positions": with_positions,
    "token types": lambda: {**ids_and_mask(), "token_type_ids": (noise(3, SEQ) > 0).long()},
    "more places than positions": more_places,
    "labels": lambda: {"input_ids": tokens(), "labels": tokens(seed=9)},
    "labels, right padding": lambda: with_labels("right"),
    "labels, left padding": lambda: with_labels("left"),
}


def adapted(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """Masks of each query, as transformers takes them."""
    names = ("attention_mask", "encoder_attention_mask")
    return {
        name: additive(given[name]) for name in names if name in given and given[name].dim() > 2
    }


@pytest.mark.parametrize("case", CASES)
def test_causal_lm_equals_transformers(case):
    given = CASES[case]()
    compare(*pair(CAUSAL, is_decoder=True), given, **adapted(given))


@pytest.mark.parametrize("name", [MODEL, MASKED])
def test_other_classes_as_decoders_equal_transformers(name):
    compare(*pair(name, is_decoder=True), ids_and_mask(side="left"))


def test_causal_lm_that_is_no_decoder_sees_all_tokens():
    compare(*pair(CAUSAL, is_decoder=False), with_labels("right"))


def test_causal_lm_loss_is_that_of_the_next_token():
    model = our_model(CAUSAL, is_decoder=True)
    given = with_labels("right")
    out = model(**given)
    same(out.loss, next_token_loss(out.logits, given["labels"]))


@pytest.mark.parametrize("label", [-100, 5])
def test_causal_lm_loss_without_labels_is_zero(label):
    """The first label is nobody's next token."""
    model = our_model(CAUSAL, is_decoder=True).train()
    labels = torch.full((3, SEQ), -100)
    labels[:, 0] = label
    loss = model(tokens(), labels=labels).loss
    loss.backward()
    assert loss.item() == 0.0
    grads = [one.grad for one in model.parameters()]
    assert all(grad is None or not grad.any() for grad in grads)


def test_causal_lm_loss_is_smoothed():
    model = our_model(CAUSAL, is_decoder=True, label_smoothing=0.3).eval()
    labels = tokens(seed=9)
    out = model(tokens(), labels=labels)
    expected = F.cross_entropy(
        out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing=0.3
    )
    same(out.loss, expected)


def test_logits_to_keep_chooses_positions():
    model, given = our_model(CAUSAL, is_decoder=True).eval(), ids_and_mask()
    with torch.no_grad():
        full = model(**given).logits
        same(model(**given, logits_to_keep=3).logits, full[:, -3:])
        places = torch.tensor([0, 7, 4])
        same(model(**given, logits_to_keep=places).logits, full[:, places])
    labels = given["input_ids"]
    assert "labels" in refusal(lambda: model(**given, labels=labels, logits_to_keep=1))


def source_mask_of_each_query() -> Tensor:
    mask = (noise(3, SEQ, SOURCE, seed=8) > 0).long()
    mask[0, 5] = 0  # a query that sees nothing is spread evenly
    return mask


CROSS: dict[str, Callable[[], dict[str, Tensor]]] = {
    "no mask": lambda: {"input_ids": tokens(), **cross()},
    "right padding": lambda: {**ids_and_mask(), **cross(source_mask("right"))},
    "left padding": lambda: {**ids_and_mask(side="left"), **cross(source_mask("left"))},
    "a source that is all padding": lambda: {
        **ids_and_mask(side="left"),
        **cross(source_mask("right") * torch.tensor([[1], [1], [0]])),
    },
    "masks of each query": lambda: {
        "input_ids": tokens(),
        "attention_mask": of_each_query(),
        **cross(source_mask_of_each_query()),
    },
    "labels": lambda: {**with_labels("left"), **cross(source_mask("right"))},
    "no source": ids_and_mask,
}


@pytest.mark.parametrize("case", CROSS)
def test_cross_attention_equals_transformers(case):
    given = CROSS[case]()
    models = pair(CAUSAL, is_decoder=True, add_cross_attention=True)
    out = compare(*models, given, **adapted(given))
    if case != "no source":
        shape = (3, TINY["num_attention_heads"], SEQ, SOURCE)
        assert [tuple(one.shape) for one in out.cross_attentions] == [shape] * 3
    else:
        assert not out.cross_attentions


@pytest.mark.parametrize("name", [MODEL, MASKED])
def test_cross_attention_of_the_other_classes_equals_transformers(name):
    given = {**ids_and_mask(), **cross(source_mask("right"))}
    compare(*pair(name, is_decoder=True, add_cross_attention=True), given)


def test_cross_attention_source_has_the_gradient_of_transformers():
    grads = []
    models = pair(CAUSAL, is_decoder=True, add_cross_attention=True)
    given = {**with_labels("left"), **cross(source_mask("right"))}
    for model in models:
        source = given["encoder_hidden_states"].clone().requires_grad_()
        model(**{**given, "encoder_hidden_states": source}).loss.backward()
        grads.append(source.grad)
    assert grads[1].abs().max() > 1e-3
    same(grads[0], grads[1], GRADIENTS)
    same_gradients(*models)


def test_cross_attention_needs_a_decoder():
    text = refusal(lambda: our_model(CAUSAL, add_cross_attention=True))
    assert "add_cross_attention" in text
    assert "is_decoder" in text


@pytest.mark.parametrize(
    ("name", "config"),
    [(MODEL, {}), (MASKED, {}), (CAUSAL, {}), (CAUSAL, {"is_decoder": True})],
)
def test_encoder_hidden_states_without_cross_attention_are_refused(name, config):
    model = our_model(name, **config)
    assert "encoder_hidden_states" in refusal(lambda: model(tokens(), **cross()))


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("encoder_attention_mask", {"encoder_attention_mask": torch.ones(3, SOURCE)}),
        ("encoder_attention_mask", cross(torch.ones(3, SOURCE + 1))),
        ("encoder_attention_mask", cross(torch.ones(3, SEQ - 1, SOURCE))),
        ("encoder_attention_mask", cross(torch.ones(SOURCE))),
        ("encoder_hidden_states", {"encoder_hidden_states": noise(2, SOURCE, HIDDEN)}),
        ("encoder_hidden_states", {"encoder_hidden_states": noise(3, SOURCE, HIDDEN + 8)}),
        ("encoder_hidden_states", {"encoder_hidden_states": noise(3, HIDDEN)}),
        ("attention_mask", {"attention_mask": torch.ones(3, SEQ + 1)}),
        ("attention_mask", {"attention_mask": torch.ones(3, SEQ, SEQ + 1)}),
        ("attention_mask", {"attention_mask": torch.ones(2, SEQ)}),
        ("labels", {"labels": tokens(3, SEQ - 1)}),
        ("label", {"labels": tokens() + VOCAB}),
    ],
)
def test_decoder_refuses_arguments_that_do_not_fit(name, given):
    model = our_model(CAUSAL, is_decoder=True, add_cross_attention=True)
    assert name in refusal(lambda: model(tokens(), **given))


def test_decoder_refuses_a_row_longer_than_its_positions():
    model = our_model(CAUSAL, is_decoder=True)
    assert str(SEQ) in refusal(lambda: model(tokens(2, SEQ + 1)))


def test_decoder_sees_earlier_tokens_only():
    model = our_model(CAUSAL, is_decoder=True).eval()
    ids = tokens()
    changed = ids.clone()
    changed[:, 9] = (changed[:, 9] + 1).clamp(max=VOCAB - 1)
    with torch.no_grad():
        before, after = model(ids).logits, model(changed).logits
    assert torch.equal(before[:, :9], after[:, :9])
    assert ((before - after)[:, 9:].abs().amax(-1) > 1e-4).all()
    assert PAD not in ids


@pytest.mark.parametrize("kept", [-2, SEQ + 1])
def test_logits_to_keep_out_of_range_is_refused(kept):
    model = our_model(CAUSAL, is_decoder=True)
    assert f"logits_to_keep={kept}" in refusal(lambda: model(tokens(), logits_to_keep=kept))
