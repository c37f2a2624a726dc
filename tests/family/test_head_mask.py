"""Factors of attention heads, and masks per query, against a plain loop over queries.

transformers 5 takes no head_mask. In the reference's formula the factor is applied to the
probabilities, which are given back with it.
"""

import pytest
import torch
from torch import Tensor

from tests.family.family_fixtures import (
    GRADIENTS,
    SEQ,
    TINY,
    gradients_of,
    noise,
    padded,
    pair,
    same,
    scalar,
    tokens,
)
from tests.family.family_loop import Given, looped

LAYERS, HEADS, HIDDEN = (
    TINY[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
)
PER_LAYER = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0], [2.0, 1.0, 0.0, 0.25]])


def check(model, given: dict[str, Tensor], mask: Tensor, factors: Tensor) -> None:
    """Outputs and gradients, with the maps asked for and without.

    mask: (rows, queries, keys) and factors: (layers, heads), as the loop takes them
    """
    loop, weights = looped(model)
    x = loop.embeddings(given["input_ids"])
    expected = loop(x, Given(seen=mask, head_mask=factors))
    pooled = torch.tanh(loop.linear("pooler.dense", expected.last[:, 0]))
    plain = {"last_hidden_state": expected.last, "pooler_output": pooled}
    weighted(plain).backward()
    for maps in ({}, {"output_attentions": True}):
        found = model.train()(**given, **maps)
        for name, value in plain.items():
            same(found[name], value, what=name)
        for name, gradient in gradients_of(model, lambda out=found: weighted(out)).items():
            expected_gradient = weights[name].grad
            assert expected_gradient is not None
            same(gradient, expected_gradient, GRADIENTS, name)
    same(torch.stack(found.attentions), torch.stack(expected.attentions))
    with torch.no_grad():
        same(model.eval()(**given).last_hidden_state, expected.last)


def weighted(output) -> Tensor:
    return scalar({name: output[name] for name in ("last_hidden_state", "pooler_output")})


@pytest.mark.parametrize("path", ["fused", "unfused"])
def test_attention_mask_of_queries_and_keys_equals_the_loop(path):
    model = pair("XLMRobertaXLModel", init={"attention": path})[0]
    mask = torch.stack([torch.ones(SEQ, SEQ).tril(), noise(SEQ, SEQ) > 0])
    mask[1, 4:7] = 0  # what sees nothing sees everything alike
    given = {"input_ids": tokens(2), "attention_mask": mask}
    check(model, given, mask, torch.ones(LAYERS, HEADS))


@pytest.mark.parametrize("factors", [PER_LAYER[0], PER_LAYER], ids=["per head", "per layer"])
def test_head_mask_equals_the_loop(factors):
    model = pair("XLMRobertaXLModel")[0]
    seen = padded((SEQ, 13))[1]
    given = {"input_ids": tokens(2), "attention_mask": seen, "head_mask": factors}
    mask = seen.unsqueeze(1).expand(-1, SEQ, -1)
    check(model, given, mask, factors.expand(LAYERS, HEADS))


def test_head_mask_has_the_gradient_of_the_loop():
    """What says how much a head matters."""
    model = pair("XLMRobertaXLModel")[0]
    mine, plain = (PER_LAYER.clone().requires_grad_() for _ in range(2))
    scalar(model(tokens(2), head_mask=mine)).backward()
    loop, _ = looped(model)
    last = loop(loop.embeddings(tokens(2)), Given(head_mask=plain)).last
    pooled = torch.tanh(loop.linear("pooler.dense", last[:, 0]))
    weighted({"last_hidden_state": last, "pooler_output": pooled}).backward()
    assert mine.grad is not None
    assert plain.grad is not None
    same(mine.grad, plain.grad, GRADIENTS)


@pytest.mark.parametrize("dtype", [torch.long, torch.bool])
def test_head_mask_may_be_of_integers(dtype):
    model = pair("XLMRobertaXLModel")[0]
    kept = torch.tensor([1, 0, 0, 1])
    with torch.no_grad():
        found = model(tokens(), head_mask=kept.to(dtype)).last_hidden_state
        expected = model(tokens(), head_mask=kept.float()).last_hidden_state
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    ("cls_name", "field"),
    [
        ("XLMRobertaXLForMaskedLM", "logits"),
        ("XLMRobertaXLForSequenceClassification", "logits"),
        ("XLMRobertaXLForMultipleChoice", "logits"),
        ("XLMRobertaXLForTokenClassification", "logits"),
        ("XLMRobertaXLForQuestionAnswering", "end_logits"),
    ],
)
def test_head_mask_is_passed_on_by_every_class(cls_name, field):
    """A head without a factor is one whose value projection gives zeros."""
    model = pair(cls_name)[0]
    ids = tokens(4)
    ids = ids.view(2, 2, SEQ) if "MultipleChoice" in cls_name else ids
    factors = torch.ones(LAYERS, HEADS)
    factors[1, 2] = 0.0
    size = HIDDEN // HEADS
    with torch.no_grad():
        whole = model(input_ids=ids)[field]
        found = model(input_ids=ids, head_mask=factors)[field]
        value = model.roberta.encoder.layer[1].attention.self.value
        for parameter in value.parameters():
            parameter[2 * size : 3 * size] = 0.0
        expected = model(input_ids=ids)[field]
    same(found, expected)
    assert (found - whole).abs().max() > 1e-3
