"""Sampled generation: its draws by count, against the processors of transformers."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from tests.family.family_decoding import refusal
from tests.family.family_fixtures import VOCAB
from tests.family.family_prompts import NEW, decoder, prompts, source

DRAWS = 6_000
SAMPLING = [
    {"top_k": 0},
    {},
    {"top_k": 0, "temperature": 0.6},
    {"top_k": 0, "temperature": 3.0},
    {"top_k": 7},
    {"top_k": 0, "top_p": 0.6},
    {"top_k": 0, "top_p": 0.01},
    {"top_k": 1},
    {"top_k": 12, "top_p": 0.7, "temperature": 1.5},
    {"top_k": 2 * VOCAB},
]


def warped(logits: Tensor, temperature=1.0, top_k=50, top_p=1.0) -> Tensor:
    """Probabilities of the next token, by the processors of transformers, in their order."""
    steps = [transformers.TemperatureLogitsWarper(temperature)] if temperature != 1.0 else []
    steps += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    steps += [transformers.TopPLogitsWarper(top_p)] if top_p < 1 else []
    no_ids: Any = None
    for step in steps:
        logits = step(no_ids, logits)
    return logits.softmax(-1)


@pytest.mark.parametrize("asked", SAMPLING, ids=str)
def test_sampling_follows_the_probabilities_of_the_logits(asked):
    """By the chi-square of the counts, below its mean and five deviations: one in a million."""
    model, (ids, mask) = decoder(), prompts("left")
    row, seen = ids[1:2], mask[1:2]
    with torch.no_grad():
        expected = warped(model(row, attention_mask=seen).logits[:, -1], **asked)[0].double()
    found = model.generate(
        row,
        seen,
        max_new_tokens=1,
        do_sample=True,
        num_return_sequences=DRAWS,
        generator=torch.Generator().manual_seed(3),
        **asked,
    )
    counts = torch.bincount(found[:, -1], minlength=VOCAB).double()
    assert not counts[expected == 0].any(), "what is cut off is never drawn"
    likely = expected * DRAWS >= 5
    cells = [(counts[likely], expected[likely] * DRAWS)]
    rare = expected[~likely].sum() * DRAWS
    if rare >= 5:
        cells.append((counts[~likely].sum()[None], rare[None]))
    apart = sum(((seen - wanted) ** 2 / wanted).sum().item() for seen, wanted in cells)
    freedom = sum(len(wanted) for _, wanted in cells) - 1
    assert apart <= freedom + 5 * (2 * freedom) ** 0.5 + 1e-6


def test_sampling_is_repeated_by_a_generator():
    model, (ids, mask) = decoder(), prompts("left")

    def drawn(seed: int | None = None) -> Tensor:
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        return model.generate(ids, mask, max_new_tokens=6, do_sample=True, generator=generator)

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    torch.manual_seed(4)
    first, state = drawn(), torch.get_rng_state()
    assert not torch.equal(drawn(), first)
    torch.manual_seed(4)
    assert torch.equal(drawn(), first)
    assert torch.equal(torch.get_rng_state(), state)
    drawn(1)
    assert torch.equal(torch.get_rng_state(), state), "a generator of one's own leaves torch's"


def test_sampling_draws_later_tokens_after_earlier_ones():
    """With the likeliest token alone left to draw, draws are the greedy text, a row or three."""
    model, (ids, mask) = decoder(crossed=True), prompts("left")
    given = source()
    expected = model.generate(ids, mask, max_new_tokens=NEW, **given)
    found = model.generate(
        ids, mask, max_new_tokens=NEW, do_sample=True, top_k=1, num_return_sequences=3, **given
    )
    assert torch.equal(found, expected.repeat_interleave(3, dim=0))
    found = model.generate(
        ids[:1], max_new_tokens=NEW, do_sample=True, num_return_sequences=9, **source(1)
    )
    assert len(found.unique(dim=0)) > 5, "each sequence is a draw of its own"


def test_sampling_of_second_tokens_follows_their_probabilities():
    """P(first, second) = P(first) P(second | first), over the pairs that are likely enough."""
    model, ids = decoder(), prompts()[0][:1]
    found = model.generate(
        ids,
        max_new_tokens=2,
        do_sample=True,
        temperature=0.3,
        top_k=4,
        num_return_sequences=DRAWS,
        generator=torch.Generator().manual_seed(3),
    )
    asked = {"temperature": 0.3, "top_k": 4}
    with torch.no_grad():
        first = warped(model(ids).logits[:, -1], **asked)[0]
        kept = first.nonzero().flatten()
        longer = torch.cat([ids.expand(len(kept), -1), kept.unsqueeze(1)], dim=1)
        second = warped(model(longer).logits[:, -1], **asked)
    for token, share, rest in zip(kept, first[kept], second, strict=True):
        following = found[found[:, -2] == token, -1]
        expected = share.item() * DRAWS
        assert len(following) == pytest.approx(expected, abs=5 * expected**0.5)
        counts = torch.bincount(following, minlength=VOCAB)
        wanted = rest * len(following)
        assert ((counts - wanted).abs() <= 5 * wanted.sqrt()).all()


def test_sampling_repeats_a_source_for_each_draw():
    model, (ids, mask) = decoder(crossed=True), prompts("left")
    given = {"encoder_hidden_states": source()["encoder_hidden_states"], "max_new_tokens": 4}
    expected = model.generate(ids, mask, **given)
    found = model.generate(ids, mask, do_sample=True, top_k=1, num_return_sequences=3, **given)
    assert torch.equal(found, expected.repeat_interleave(3, dim=0))


@pytest.mark.parametrize(
    ("asked", "off"),
    [
        ({"top_k": None}, {"top_k": 0}),
        ({"top_k": None, "top_p": None, "temperature": None}, {"top_k": 0}),
        ({"top_p": None, "top_k": 5}, {"top_p": 1.0, "top_k": 5}),
        ({"temperature": None, "top_p": 0.7}, {"temperature": 1.0, "top_p": 0.7}),
        ({"num_return_sequences": None, "min_new_tokens": None}, {}),
    ],
    ids=str,
)
def test_sampling_takes_none_for_nothing(asked, off):
    """Of the likeliest tokens, of a part of the probability, of a temperature."""
    model, (ids, mask) = decoder(), prompts("left")
    found, expected = (
        model.generate(
            ids,
            mask,
            max_new_tokens=NEW,
            do_sample=True,
            generator=torch.Generator().manual_seed(5),
            **given,
        )
        for given in (asked, off)
    )
    assert torch.equal(found, expected)
    greedy = {**dict.fromkeys(asked), "do_sample": None}
    assert torch.equal(
        model.generate(ids, mask, max_new_tokens=NEW, **greedy),
        model.generate(ids, mask, max_new_tokens=NEW),
    )


def test_sampling_without_top_k_draws_from_all_tokens():
    """Flattened by the temperature, more of them come than the 50 of the default."""
    model, (ids, _) = decoder(), prompts()
    given = {"max_new_tokens": 1, "do_sample": True, "temperature": 100.0}
    found = model.generate(ids[:1], num_return_sequences=2_000, top_k=None, **given)
    assert len(found[:, -1].unique()) > 60
    found = model.generate(ids[:1], num_return_sequences=2_000, **given)
    assert len(found[:, -1].unique()) <= 50


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"max_length": 20.0}, "max_length=20.0 is not a whole number"),
        ({"max_new_tokens": 3.0}, "max_new_tokens=3.0 is not a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens='3' is not a whole number"),
        ({"min_new_tokens": 1.0}, "min_new_tokens=1.0 is not a whole number"),
        ({"top_k": 5.0}, "top_k=5.0 is not a whole number"),
        ({"top_p": "0.5"}, "top_p='0.5' is not a number"),
        ({"temperature": [1.0]}, "temperature=[1.0] is not a number"),
        ({"do_sample": "yes"}, "do_sample='yes' is not True or False"),
        ({"num_return_sequences": 2.0}, "num_return_sequences=2.0 is not a"),
        ({"eos_token_id": 2.0}, "eos_token_id=2.0 is not a whole number"),
        ({"eos_token_id": [2.0]}, "eos_token_id=[2.0] is not a whole number"),
        ({"pad_token_id": "1"}, "pad_token_id='1' is not a whole number"),
    ],
    ids=str,
)
def test_sampling_refuses_arguments_of_another_type(given, named):
    ids, _ = prompts()
    assert named in refusal(lambda: decoder().generate(ids, **given))
