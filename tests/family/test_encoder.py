"""XLMRobertaXLModel and XLMRobertaXLForMaskedLM against transformers with the same weights."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mlm
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
    same_outputs,
    scalar,
    their_model,
    tokens,
)

MODEL, MASKED = "XLMRobertaXLModel", "XLMRobertaXLForMaskedLM"
LAYERS, HEADS, HIDDEN = (
    TINY[key] for key in ("num_hidden_layers", "num_attention_heads", "hidden_size")
)


def ids_and_mask(lengths=(SEQ, 13, 1), side: str = "right", dtype=torch.long) -> dict[str, Tensor]:
    ids, mask = padded(lengths, side)
    return {"input_ids": ids, "attention_mask": mask.to(dtype)}


def pads_inside() -> dict[str, Tensor]:
    ids = tokens()
    ids[0, 3:6] = ids[1, 0] = ids[1, 10] = ids[2, 1:] = PAD
    return {"input_ids": ids}


def more_places(side: str) -> dict[str, Tensor]:
    """Padding takes no position, so a row may be longer than there are positions."""
    ids, mask = padded((SEQ + 9, SEQ), side)
    ids[0, :9] = PAD
    mask[0, :9] = 0
    return {"input_ids": ids, "attention_mask": mask}


def with_positions(rows: int) -> dict[str, Tensor]:
    """In any order, some twice, with the position of padding among them."""
    places = torch.randint(0, SEQ + 2, (rows, SEQ), generator=torch.Generator().manual_seed(4))
    places[0, 5] = PAD
    return {**ids_and_mask(), "position_ids": places}


def with_types() -> dict[str, Tensor]:
    return {**ids_and_mask(), "token_type_ids": (noise(3, SEQ, seed=5) > 0).long()}


def queries_and_keys() -> Tensor:
    """(rows, queries, keys): lower triangle, random, and one with queries that see nothing."""
    mask = torch.stack([torch.ones(SEQ, SEQ).tril(), noise(SEQ, SEQ) > 0, torch.ones(SEQ, SEQ)])
    mask[2, 4:7] = 0
    return mask.long()


CASES: dict[str, Callable[[], dict[str, Tensor]]] = {
    "whole rows": lambda: {"input_ids": tokens()},
    "right padding": ids_and_mask,
    "left padding": lambda: ids_and_mask(side="left"),
    "a mask of bools": lambda: ids_and_mask(dtype=torch.bool),
    "a mask of floats": lambda: ids_and_mask(dtype=torch.float32),
    "a mask over no padding": lambda: {**ids_and_mask(), "input_ids": tokens()},
    "pads without a mask": lambda: {"input_ids": padded()[0]},
    "pads inside, without a mask": pads_inside,
    "a row of padding": lambda: ids_and_mask((SEQ, 0, 7)),
    "more places than positions": lambda: more_places("right"),
    "more places than positions, left": lambda: more_places("left"),
    "embeddings": lambda: {"inputs_embeds": noise(3, SEQ, HIDDEN)},
    "embeddings, left padding": lambda: {
        "inputs_embeds": noise(3, SEQ, HIDDEN),
        "attention_mask": padded(side="left")[1],
    },
    "own positions": lambda: with_positions(3),
    "positions of one row": lambda: with_positions(1),
    "embeddings with positions": lambda: {
        "inputs_embeds": noise(3, SEQ, HIDDEN),
        "position_ids": with_positions(3)["position_ids"],
    },
    "token types": with_types,
    "token types of one row": lambda: {
        **ids_and_mask(),
        "token_type_ids": with_types()["token_type_ids"][:1],
    },
    "queries and keys": lambda: {"input_ids": tokens(), "attention_mask": queries_and_keys()},
    "one token": lambda: {"input_ids": tokens(2, 1)},
    "one token that is padding": lambda: {"input_ids": torch.full((1, 1), PAD)},
}


def as_theirs(given: dict[str, Tensor]) -> dict[str, Tensor]:
    """What transformers takes in another form: 3-D masks as 4-D ones to add."""
    mask = given.get("attention_mask")
    return {"attention_mask": additive(mask)} if mask is not None and mask.dim() == 3 else {}


def some_labels(given: dict[str, Tensor]) -> Tensor:
    """(rows, seq_len), about a third of them not ignored, the first always."""
    shape = next(iter(given.values())).shape[:2]
    labels = tokens(*shape, seed=8).masked_fill(noise(*shape, seed=9) > -0.4, -100)
    labels[0, 0] = 0
    return labels


@pytest.mark.parametrize("case", CASES)
def test_model_equals_transformers(case):
    ours, theirs = pair(MODEL)
    given = CASES[case]()
    found = compare(ours, theirs, given, **as_theirs(given))
    shape = next(iter(given.values())).shape[:2]
    assert found.last_hidden_state.shape == (*shape, HIDDEN)
    assert found.last_hidden_state.std() > 0.1, "all hidden states alike would agree, too"
    assert len(found.hidden_states) == LAYERS + 1
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    assert [tuple(a.shape) for a in found.attentions] == [
        (shape[0], HEADS, *shape[1:] * 2)
    ] * LAYERS


@pytest.mark.parametrize("case", CASES)
def test_masked_lm_equals_transformers(case):
    ours, theirs = pair(MASKED)
    given = CASES[case]()
    with_loss = given | {"labels": some_labels(given)}
    found = compare(ours, theirs, with_loss, **as_theirs(given))
    assert found.loss.item() > 1.0
    assert found.logits.shape == (*with_loss["labels"].shape, VOCAB)
    with torch.no_grad():
        same_outputs(ours(**given), theirs(**given | as_theirs(given)))


@pytest.mark.parametrize("path", ["fused", "unfused"])
@pytest.mark.parametrize("case", ["left padding", "a row of padding", "queries and keys"])
def test_attention_kernels_equal_transformers(case, path):
    ours, theirs = pair(MODEL, init={"attention": path})
    given = CASES[case]()
    compare(ours, theirs, given, **as_theirs(given))


def test_inputs_embeds_have_the_gradient_of_transformers():
    found = []
    for model in pair(MODEL):
        words = noise(3, SEQ, HIDDEN).requires_grad_()
        scalar(model(inputs_embeds=words, attention_mask=padded()[1])).backward()
        found.append(words.grad)
    ours, theirs = found
    same(ours, theirs, GRADIENTS)


def test_model_takes_512_tokens_with_514_positions():
    shape: dict[str, Any] = {"max_position_embeddings": 514, "num_hidden_layers": 1}
    ours, theirs = pair(MASKED, **shape)
    given = ids_and_mask((512, 300))
    compare(ours, theirs, {**given, "labels": some_labels(given)})


@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "gelu_new"])
def test_activations_equal_transformers(activation):
    """The head's own is gelu, whatever the layers have."""
    ours, theirs = pair(MASKED, hidden_act=activation)
    given = ids_and_mask()
    compare(ours, theirs, {**given, "labels": some_labels(given)})


def test_activation_may_be_a_function():
    ours, theirs = our_model(MASKED, hidden_act=torch.tanh), their_model(MASKED, hidden_act="tanh")
    theirs.load_state_dict(ours.state_dict())
    given = ids_and_mask()
    compare(ours, theirs, {**given, "labels": some_labels(given)})


def test_initial_weights_load_into_transformers():
    ours, theirs = our_model(MASKED, init={"seed": 3}), their_model(MASKED)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    given = ids_and_mask()
    compare(ours, theirs, {**given, "labels": some_labels(given)})


def test_tied_weights_are_one_parameter():
    model = our_model(MASKED)
    words = model.roberta.embeddings.word_embeddings.weight
    assert model.lm_head.decoder.weight is words
    assert model.lm_head.decoder.bias is model.lm_head.bias
    assert not list(model.buffers())
    theirs = dict(their_model(MASKED).named_parameters())
    mine = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert mine == {name: tuple(p.shape) for name, p in theirs.items()}
    copied = copy.deepcopy(model)
    assert copied.lm_head.decoder.weight is copied.roberta.embeddings.word_embeddings.weight
    with torch.device("meta"):
        empty = our_model(MASKED)
    empty.to_empty(device="cpu").tie_weights()
    assert empty.lm_head.decoder.weight is empty.roberta.embeddings.word_embeddings.weight
    assert empty.lm_head.decoder.bias is empty.lm_head.bias


@pytest.mark.parametrize(
    ("parameters", "hidden", "layers", "inner"),
    [(3_482_741_760, 2560, 36, 10240), (10_712_994_816, 4096, 48, 16384)],
)
def test_num_parameters_of_the_published_sizes(parameters, hidden, layers, inner):
    config = mlm.XLMRobertaXLConfig(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=inner
    )
    with torch.device("meta"):
        model = mlm.XLMRobertaXLForMaskedLM(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert model.num_parameters() == parameters
    assert all(p.is_meta for p in model.parameters())


def test_model_without_a_pooler_gives_no_pooler_output():
    whole, _ = pair(MODEL)
    bare = our_model(MODEL, init={"add_pooling_layer": False}).eval()
    bare.load_state_dict({k: v for k, v in whole.state_dict().items() if "pooler" not in k})
    given = ids_and_mask()
    with torch.no_grad():
        found, expected = bare(**given), whole(**given)
    assert found.pooler_output is None
    assert expected.pooler_output.shape == (3, HIDDEN)
    assert torch.equal(found.last_hidden_state, expected.last_hidden_state)


@pytest.mark.parametrize("cls_name", [MODEL, MASKED])
def test_output_tuple_has_the_fields_that_are_not_none(cls_name):
    model = pair(cls_name)[0]
    given = ids_and_mask()
    if cls_name == MASKED:
        given["labels"] = some_labels(given)
    maps = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        output = model(**given, **maps)
        plain = model(**given, **maps, return_dict=False)
        model.config.return_dict = False
        by_config = model(**given, **maps)
        shorter = model(**given)
    first = "loss" if cls_name == MASKED else "last_hidden_state"
    second = "logits" if cls_name == MASKED else "pooler_output"
    assert list(output.keys()) == [first, second, "hidden_states", "attentions"]
    assert type(plain) is type(by_config) is tuple
    assert len(plain) == len(by_config) == len(output.to_tuple()) == 4
    assert len(shorter) == 2
    for given_back in (plain, by_config, output.to_tuple(), output[:]):
        assert torch.equal(given_back[0], getattr(output, first))
        assert torch.equal(given_back[1], output[second])
        assert torch.equal(given_back[2][0], output.hidden_states[0])
        assert torch.equal(given_back[3][-1], output["attentions"][-1])
    output["attentions"] = None  # a caller may change what it was given
    assert list(output.keys()) == [first, second, "hidden_states"]
    output["other"] = output[0]  # as pipelines do
    assert output[-1] is output[0]
    assert torch.equal(output[1], output[1:3][0])
    with pytest.raises(KeyError):
        output["cross_attentions"]


def test_output_defaults_stand_in_the_config():
    model = pair(MODEL)[0]
    given = ids_and_mask()
    model.config.output_attentions = model.config.output_hidden_states = True
    with torch.no_grad():
        both = model(**given)
        neither = model(**given, output_attentions=False, output_hidden_states=False)
    assert len(both.hidden_states) == LAYERS + 1
    assert len(both.attentions) == LAYERS
    assert neither.hidden_states is None
    assert neither.attentions is None
    same(neither.last_hidden_state, both.last_hidden_state)


def test_bf16_is_as_exact_as_that_of_transformers():
    """As weights, and by autocast over fp32 ones."""
    ours, theirs = pair(MASKED)
    given = ids_and_mask()

    def off(model, exact: Tensor) -> float:
        output = model(**given, output_attentions=True)
        assert output.logits.dtype == model(**given).logits.dtype == torch.bfloat16
        return (output.logits.float() - exact).abs().mean().item()

    with torch.no_grad():
        exact = ours(**given).logits
        with torch.autocast("cpu", torch.bfloat16):
            assert 0 < off(ours, exact) < 1.5 * off(theirs, exact)
        ours.to(torch.bfloat16)
        theirs.to(torch.bfloat16)
        assert 0 < off(ours, exact) < 1.5 * off(theirs, exact)
    assert ours.dtype == torch.bfloat16
