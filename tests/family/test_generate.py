"""generate against plain loops of full passes, and against transformers."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.family.family_decoding import CAUSAL, HIDDEN, POSITIONS, SOURCE, refusal
from tests.family.family_fixtures import PAD, SEQ, TINY, VOCAB, noise, our_model, randomise, tokens
from tests.family.family_prompts import NEW, PROMPT, both, decoder, lively, prompts, source

LAST = VOCAB - 1


@torch.no_grad()
def greedy(model: Any, ids: Tensor, mask: Tensor, new: int, **given: Tensor) -> Tensor:
    """The likeliest next token of a full pass over all before it, `new` times."""
    for _ in range(new):
        token = model(ids, attention_mask=mask, use_cache=False, **given).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, token.unsqueeze(1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return ids


def of_transformers(model: Any, ids: Tensor, mask: Tensor, **given: Any) -> Tensor:
    """transformers' generate; it is given the positions, which it would count from 0, and makes no
    caches with cross attention."""
    asked = {
        "position_ids": mask.cumsum(1) * mask + PAD,
        "use_cache": not model.config.add_cross_attention,
    }
    return model.generate(
        ids, attention_mask=mask, do_sample=False, pad_token_id=PAD, **asked, **given
    )


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["none", "left"])
def test_generate_equals_full_passes(side, positions, crossed):
    model, (ids, mask) = decoder(positions, crossed), prompts(side)
    given = source() if crossed else {}
    expected = greedy(model, ids, mask, NEW, **given)
    assert len(expected[:, PROMPT:].unique()) > 4, "one token over and over would agree, too"
    for asked in ({}, {"use_cache": False}):
        found = model.generate(ids, mask, max_new_tokens=NEW, **given, **asked)
        assert torch.equal(found, expected)
    assert torch.equal(model.generate(ids, max_new_tokens=NEW, **given), expected), "the pads' mask"


def test_generate_with_a_cache_computes_new_tokens_only():
    model, (ids, _) = decoder(), prompts()
    lengths: list[int] = []

    def seen(module: Any, given: tuple[Tensor, ...], named: dict[str, Any]) -> None:
        lengths.append(given[0].shape[1])

    handle = model.register_forward_pre_hook(seen, with_kwargs=True)
    try:
        model.generate(ids, max_new_tokens=3)
        model.generate(ids, max_new_tokens=3, use_cache=False)
    finally:
        handle.remove()
    assert lengths == [PROMPT, 1, 1, PROMPT, PROMPT + 1, PROMPT + 2]


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("side", ["none", "left"])
def test_generate_equals_transformers(side, crossed):
    (ours, theirs), (ids, mask) = both(crossed), prompts(side)
    given = source() if crossed else {}
    found = ours.generate(ids, mask, max_new_tokens=NEW, **given)
    expected = of_transformers(theirs, ids, mask, max_new_tokens=NEW, eos_token_id=None, **given)
    assert torch.equal(found, expected)
    end = int(found[1, PROMPT + 2])
    found = ours.generate(ids, mask, max_new_tokens=NEW, eos_token_id=end, **given)
    expected = of_transformers(theirs, ids, mask, max_new_tokens=NEW, eos_token_id=end, **given)
    assert (found[1] == PAD).any()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("positions", POSITIONS)
def test_generate_continues_a_left_padded_row_as_alone(positions):
    model, (ids, mask) = decoder(positions), prompts("left")
    found = model.generate(ids, mask, max_new_tokens=NEW)
    for row, length in enumerate(mask.sum(1)):
        alone = model.generate(ids[row : row + 1, PROMPT - length :], max_new_tokens=NEW)
        assert torch.equal(found[row, PROMPT - length :], alone[0])


def test_generate_stops_when_all_rows_have_ended():
    model, (ids, mask) = decoder(), prompts()
    whole = model.generate(ids, mask, max_new_tokens=NEW)[:, PROMPT:]
    end = int(whole[0, 2])
    found = model.generate(ids, mask, max_new_tokens=NEW, eos_token_id=end)[:, PROMPT:]
    stops = [(row == end).nonzero()[0, 0].item() if end in row else NEW for row in whole]
    assert len(set(stops)) > 1
    assert found.shape[1] == min(NEW, max(stops) + 1)
    for row, stop in enumerate(stops):
        until = min(stop + 1, NEW)
        assert torch.equal(found[row, :until], whole[row, :until])
        assert (found[row, until:] == PAD).all()
    other = model.generate(ids, mask, max_new_tokens=NEW, eos_token_id=end, pad_token_id=LAST)
    assert torch.equal(other[:, PROMPT:], found.masked_fill(found == PAD, LAST))
    first = model.generate(ids[:1], max_new_tokens=NEW, eos_token_id=end)
    assert first[0, PROMPT:].tolist() == whole[0, : stops[0] + 1].tolist()


def test_generate_takes_several_ends():
    (ours, theirs), (ids, mask) = both(), prompts("left")
    whole = ours.generate(ids, mask, max_new_tokens=NEW)[:, PROMPT:]
    ends = [int(whole[0, 2]), int(whole[1, 3])]
    for given in ({}, {"min_new_tokens": 4}):
        asked = {"max_new_tokens": NEW, "eos_token_id": ends, **given}
        found = ours.generate(ids, mask, **asked)
        assert torch.equal(found, of_transformers(theirs, ids, mask, **asked))
        alone = ours.generate(ids, mask, **asked | {"eos_token_id": ends[:1]})
        assert not torch.equal(found, alone)
    assert f"eos_token_id={VOCAB} is not an id" in refusal(
        lambda: ours.generate(ids, eos_token_id=[3, VOCAB])
    )


def test_generate_takes_the_end_of_the_config():
    model = our_model(CAUSAL, is_decoder=True, eos_token_id=17).eval()
    with torch.no_grad():
        model.lm_head.bias[17] = 100.0
    assert model.generate(tokens(2, 4), max_new_tokens=5).tolist() == [
        [*row, 17] for row in tokens(2, 4).tolist()
    ]


def test_generate_without_an_end_fills_the_length():
    model = our_model(CAUSAL, is_decoder=True, eos_token_id=None).eval()
    with torch.no_grad():
        model.lm_head.bias[2] = 100.0  # what the usual end is
    ids = tokens(2, 4)
    found = model.generate(ids, max_new_tokens=5, min_new_tokens=2)
    assert torch.equal(found, torch.cat([ids, torch.full((2, 5), 2)], dim=1))
    assert model.generate(ids, max_new_tokens=5, eos_token_id=2).shape == (2, 5)
    assert model.generate(ids, max_new_tokens=5, eos_token_id=torch.tensor([9, 2])).shape == (2, 5)


def test_generate_takes_the_prompt_as_inputs():
    model, (ids, mask) = decoder(), prompts("left")
    found = model.generate(inputs=ids, attention_mask=mask, token_type_ids=None)
    assert torch.equal(found, model.generate(ids, mask))


def test_generate_keeps_to_min_new_tokens():
    (ours, theirs), (ids, mask) = both(), prompts("left")
    end = int(ours.generate(ids, mask, max_new_tokens=2)[0, PROMPT + 1])
    given = {"max_new_tokens": NEW, "min_new_tokens": 4, "eos_token_id": end}
    found = ours.generate(ids, mask, **given)
    assert not (found[:, PROMPT : PROMPT + 4] == end).any()
    assert torch.equal(found, of_transformers(theirs, ids, mask, **given))
    assert not torch.equal(found, ours.generate(ids, mask, **{**given, "min_new_tokens": 0}))


@pytest.mark.parametrize(
    ("given", "length"),
    [({}, 20), ({"max_length": 11}, 11), ({"max_new_tokens": 3}, PROMPT + 3)],
)
def test_generate_gives_the_length_asked_for(given, length):
    ids, _ = prompts()
    assert decoder().generate(ids, **given).shape == (4, length)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_length": PROMPT}, "max_length"),
        ({"max_length": 3}, "max_length"),
        ({"max_length": 0}, "max_length"),
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 3, "min_new_tokens": 4}, "min_new_tokens"),
        ({"min_new_tokens": -1}, "min_new_tokens"),
        ({"max_new_tokens": 3, "max_length": 30}, "max_length"),
        ({"eos_token_id": VOCAB}, "eos_token_id"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"pad_token_id": VOCAB}, "pad_token_id"),
        ({"do_sample": True, "temperature": 0.0}, "temperature"),
        ({"do_sample": True, "temperature": -1.0}, "temperature"),
        ({"do_sample": True, "temperature": math.nan}, "temperature"),
        ({"do_sample": True, "top_k": -1}, "top_k"),
        ({"do_sample": True, "top_p": 0.0}, "top_p"),
        ({"do_sample": True, "top_p": 1.1}, "top_p"),
        ({"do_sample": True, "num_return_sequences": 0}, "num_return_sequences"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"temperature": 0.5}, "temperature"),
        ({"attention_mask": torch.ones(4, PROMPT + 1)}, "attention_mask"),
        ({"attention_mask": torch.ones(4, PROMPT, PROMPT)}, "attention_mask"),
        ({"encoder_hidden_states": noise(4, SOURCE, HIDDEN)}, "encoder_hidden_states"),
        ({"encoder_attention_mask": torch.ones(4, SOURCE)}, "encoder_attention_mask"),
        ({"input_ids": tokens(4, PROMPT) + VOCAB}, "input_ids"),
        ({"input_ids": tokens(1, 4)[0]}, "input_ids"),
        ({"input_ids": tokens(2, 0)}, "input_ids"),
        ({"input_ids": None}, "neither of input_ids and inputs"),
        ({"inputs": tokens(4, PROMPT)}, "both of input_ids and inputs"),
        ({"attention_mask": [[1] * PROMPT] * 4}, "attention_mask is of the type list"),
        ({"encoder_hidden_states": [[1.0]]}, "encoder_hidden_states is of the type list"),
        (
            {"token_type_ids": torch.zeros(4, PROMPT).long()},
            "token_type_ids=<Tensor> is unsup",
        ),
        ({"position_ids": torch.zeros(4, PROMPT).long()}, "position_ids=<Tensor> is unsupported"),
        ({"head_mask": torch.ones(3, 4)}, "head_mask=<Tensor> is unsupported"),
        ({"past_key_values": ()}, "past_key_values=() is unsupported"),
    ],
)
def test_generate_refuses_unsupported_arguments(given, named):
    ids, _ = prompts()
    assert named in refusal(lambda: decoder().generate(**({"input_ids": ids} | given)))


def test_generate_refuses_unknown_arguments():
    ids, _ = prompts()
    for name, value in {"num_beams": 4, "num_beam": 4, "repetition_penalty": 1.0}.items():
        assert f"{name}={value} is unsupported by generate, which takes the" in refusal(
            lambda given={name: value}: decoder().generate(ids, **given)
        )
    assert (
        "type dict, and a tensor of ids is expected; give what a tokenizer returns as"
        in refusal(lambda: decoder().generate({"input_ids": ids}))
    )


def test_generate_refuses_a_prompt_that_ends_in_padding():
    ids, mask = prompts("left")
    ids, mask = ids.flip(1), mask.flip(1)
    for given in ({"attention_mask": mask}, {}):
        assert "left" in refusal(lambda given=given: decoder().generate(ids, **given))


@pytest.mark.parametrize("positions", POSITIONS)
def test_generate_refuses_too_many_tokens_before_it_computes(positions, monkeypatch):
    model, (ids, mask) = decoder(positions), prompts()
    most = SEQ if positions == "absolute" else TINY["max_position_embeddings"]
    assert model.generate(ids, mask, max_length=most).shape[1] == most

    def computed(*given: Any, **named: Any) -> None:
        raise AssertionError("the model was called")

    monkeypatch.setattr(type(model), "forward", computed)
    text = refusal(lambda: model.generate(ids, mask, max_length=most + 2))
    assert str(TINY["max_position_embeddings"]) in text


def test_generate_is_refused_by_an_encoder():
    with pytest.warns(UserWarning, match="is_decoder"):
        model = our_model(CAUSAL)
    assert "is_decoder" in refusal(lambda: model.generate(tokens(2, 4)))
    assert not hasattr(our_model("XLMRobertaXLForMaskedLM"), "generate")


def test_generate_restores_the_modes_of_modules():
    """It computes without dropout; what is frozen in evaluation mode is not put into training."""
    model = our_model(
        CAUSAL, is_decoder=True, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5
    )
    randomise(model, seed=4)
    lively(model)
    expected = model.eval().generate(tokens(2, 4), max_new_tokens=8)
    model.train().roberta.encoder.layer[0].eval()
    before = [module.training for module in model.modules()]
    found = model.generate(tokens(2, 4), max_new_tokens=8)
    assert torch.equal(found, expected)
    assert [module.training for module in model.modules()] == before
    assert all(parameter.grad is None for parameter in model.parameters())
    refusal(lambda: model.generate(tokens(2, 4), max_new_tokens=80))
    assert [module.training for module in model.modules()] == before


def test_generate_takes_ids_of_zero():
    model, (ids, mask) = decoder(), prompts()
    whole = model.generate(ids, mask, max_new_tokens=NEW)[:, PROMPT:]
    given = {"max_new_tokens": NEW, "eos_token_id": int(whole[0, 2]), "pad_token_id": 0}
    assert not model.generate(ids, mask, **given)[0, PROMPT + 3 :].any()
    other = our_model(CAUSAL, is_decoder=True).eval()
    with torch.no_grad():
        other.lm_head.bias[0] = 100.0
    assert other.generate(tokens(2, 4), max_new_tokens=5, eos_token_id=0).shape == (2, 5)


def test_generate_counts_padding_among_relative_positions(monkeypatch):
    """Other than places in a table, which are counted over real tokens."""
    model, most = decoder("relative_key"), TINY["max_position_embeddings"]
    ids = torch.cat([torch.full((2, 4), PAD), tokens(2, 3)], dim=1)
    assert model.generate(ids, max_length=most).shape[1] == most

    def computed(*given: Any, **named: Any) -> None:
        raise AssertionError("the model was called")

    monkeypatch.setattr(type(model), "forward", computed)
    assert str(most) in refusal(lambda: model.generate(ids, max_length=most + 1))
