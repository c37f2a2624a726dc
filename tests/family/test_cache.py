"""Decoding with keys and values of earlier calls: by one and by several it equals the full pass."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, EncoderDecoderCache

from tests.family.family_decoding import (
    CAUSAL,
    CUTS,
    HIDDEN,
    PADDING,
    POSITIONS,
    by_chunks,
    cross,
    decoder,
    logits_of,
    source_mask,
)
from tests.family.family_fixtures import (
    GRADIENTS,
    PAD,
    SEQ,
    TINY,
    gradients_of,
    noise,
    our_model,
    padded,
    pair,
    randomise,
    same,
    tokens,
)
from tests.family.family_loop import causal

HEADS, LAYERS = TINY["num_attention_heads"], TINY["num_hidden_layers"]


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", PADDING)
def test_cache_in_chunks_equals_the_full_pass(side, positions, crossed):
    """At every real token; without a mask, padding is attended to and counts, too."""
    model = decoder(positions, crossed)
    ids, real = PADDING[side]()
    given: dict[str, Any] = {"input_ids": ids, **(cross(source_mask("left")) if crossed else {})}
    for mask in (None, real):
        with torch.no_grad():
            full = model(**given, attention_mask=mask)
            counts = torch.ones_like(ids).bool() if mask is None else mask.bool()
            for name, cuts in CUTS.items():
                outputs, last = by_chunks(model, cuts, mask, **given)
                same(logits_of(outputs)[counts], full.logits[counts], what=name)
                for mine, whole in zip(last, full.past_key_values, strict=True):
                    for one, other in zip(mine[:2], whole[:2], strict=True):
                        same(one.transpose(1, 2)[counts], other.transpose(1, 2)[counts], what=name)


@pytest.mark.parametrize("positions", POSITIONS)
def test_cache_with_a_3d_mask_equals_the_full_pass(positions):
    ids, real = padded((SEQ, 13, 2), "left")
    mask = causal(real).long()
    mask[0, 15:, :4] = mask[0, 9, 2] = 0
    mask[1, 10, 15] = 1  # a later one, in the same call
    model = decoder(positions)
    with torch.no_grad():
        full = model(ids, attention_mask=mask).logits
        outputs, _ = by_chunks(model, [0, 7, 8, SEQ], mask, input_ids=ids)
    same(logits_of(outputs)[real.bool()], full[real.bool()])
    with torch.no_grad():
        assert (full - model(ids, attention_mask=real).logits)[0, 15:].abs().max() > 1e-3


@pytest.mark.parametrize("positions", POSITIONS)
def test_cache_continues_embeddings_at_the_next_position(positions):
    model, words = decoder(positions), noise(3, SEQ, HIDDEN)
    with torch.no_grad():
        full = model(inputs_embeds=words).logits
        outputs, _ = by_chunks(model, [0, 6, 7, SEQ], inputs_embeds=words)
        plain, _ = by_chunks(model, [0, 6, 7, SEQ], inputs_embeds=words, plain=True)
    same(logits_of(outputs), full)
    same(logits_of(plain), full)


def test_cache_continues_embeddings_with_ids():
    model, ids = decoder(), tokens()
    with torch.no_grad():
        words = model.get_input_embeddings()(ids[:, :8])
        past = model(inputs_embeds=words).past_key_values
        same(model(ids[:, 8:], past_key_values=past).logits, model(ids).logits[:, 8:])


def test_cache_select_chooses_rows():
    """As where the likeliest beginnings of several go on."""
    model, (ids, mask) = decoder(crossed=True), PADDING["left"]()
    rows = torch.tensor([2, 0, 2, 1])
    source = cross()["encoder_hidden_states"][rows]
    with torch.no_grad():
        past = model(ids[:, :9], mask[:, :9], **cross()).past_key_values.select(rows)
        given = {"encoder_hidden_states": source, "attention_mask": mask[rows]}
        found = model(ids[rows, 9:], past_key_values=past, **given).logits
        expected = model(ids[rows], **given).logits[:, 9:]
    real = mask[rows, 9:].bool()
    same(found[real], expected[real])


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_cache_may_be_a_tuple_of_tensors(side, positions):
    """It does not know of padding, so positions are those of the tokens that the mask leaves."""
    model, (ids, mask) = decoder(positions, crossed=True), PADDING[side]()
    given: dict[str, Any] = {"input_ids": ids, **cross()}
    with torch.no_grad():
        full = model(**given, attention_mask=mask).logits
        outputs, past = by_chunks(model, [0, 9, 10, SEQ], mask, plain=True, **given)
        as_lists = [list(layer) for layer in outputs[0].past_key_values]
        again = model(ids[:, 9:], mask, past_key_values=as_lists, **cross())
    assert all(type(layer) is tuple for layer in past)
    same(logits_of(outputs)[mask.bool()], full[mask.bool()])
    same(again.logits[mask[:, 9:].bool()], full[:, 9:][mask[:, 9:].bool()])


@pytest.mark.parametrize("crossed", [False, True], ids=["self", "cross"])
@pytest.mark.parametrize("side", ["none", "right", "left"])
def test_cache_equals_that_of_transformers(side, crossed):
    """transformers is given the positions, which its cached calls count wrongly after padding."""
    ours, theirs = pair(CAUSAL, is_decoder=True, add_cross_attention=crossed)
    ids, mask = PADDING[side]()
    places = mask.cumsum(1) * mask + PAD
    given = cross(source_mask("right")) if crossed else {}
    kept: Any = DynamicCache(config=theirs.config)
    if crossed:
        kept = EncoderDecoderCache(kept, DynamicCache(config=theirs.config))
    past = None
    for start, end in pairwise([0, 8, 9, SEQ]):
        now = slice(start, end)
        asked = {"attention_mask": mask[:, :end], **given}
        with torch.no_grad():
            out = ours(ids[:, now], past_key_values=past, **asked)
            expected = theirs(
                ids[:, now], position_ids=places[:, now], past_key_values=kept, **asked
            )
        past = out.past_key_values
        real = mask[:, now].bool()
        same(out.logits[real], expected.logits[real])
        of_self = kept.self_attention_cache if crossed else kept
        for number, layer in enumerate(past):
            held = [of_self.layers[number].keys, of_self.layers[number].values]
            if crossed:
                source = kept.cross_attention_cache.layers[number]
                held += [source.keys, source.values]
            assert len(layer) == len(held)
            for one, other in zip(layer[2:], held[2:], strict=True):
                same(one, other, what=f"cross, layer {number}")
            for one, other in zip(layer[:2], held[:2], strict=True):
                assert one.shape == (3, HEADS, end, HIDDEN // HEADS)
                seen = mask[:, None, :end, None].bool().expand_as(one)
                same(one[seen], other[seen], what=f"layer {number}")
    assert past is not None
    assert past.get_seq_length() == SEQ
    assert past.tokens.tolist() == mask.sum(1, keepdim=True).tolist()


def test_cache_gives_the_maps_and_states_of_the_full_pass():
    model = decoder("relative_key_query", crossed=True)
    given = {**cross(source_mask("left")), "head_mask": torch.rand(LAYERS, HEADS)}
    maps: dict[str, Any] = {"output_attentions": True, "output_hidden_states": True}
    with torch.no_grad():
        full = model(tokens(), **given, **maps)
        outputs, _ = by_chunks(model, [0, 6, 11, SEQ], input_ids=tokens(), **given, **maps)
    now = slice(6, 11)
    for layer in range(LAYERS):
        same(outputs[1].attentions[layer], full.attentions[layer][:, :, now, :11])
        same(outputs[1].cross_attentions[layer], full.cross_attentions[layer][:, :, now])
    assert len(outputs[1].hidden_states) == LAYERS + 1
    for one, other in zip(outputs[1].hidden_states, full.hidden_states, strict=True):
        same(one, other[:, now])


def test_cache_takes_position_ids():
    model, ids = decoder(), tokens()
    places = torch.randint(PAD + 1, SEQ + 2, (3, SEQ), generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        full = model(ids, position_ids=places).logits
        first = model(ids[:, :8], position_ids=places[:, :8])
        past = first.past_key_values
        rest = model(ids[:, 8:], position_ids=places[:, 8:], past_key_values=past)
        assert (full - model(ids).logits).abs().max() > 1e-2
    same(rest.logits, full[:, 8:])


def test_cache_may_be_continued_twice():
    """A call leaves the cache that it is given as it is."""
    model, ids = decoder(crossed=True), tokens()
    with torch.no_grad():
        past = model(ids[:, :9], **cross()).past_key_values
        kept = [[one.clone() for one in layer] for layer in past]
        first = model(ids[:, 9:], past_key_values=past, **cross()).logits
        second = model(ids[:, 9:], past_key_values=past, **cross()).logits
    assert torch.equal(first, second)
    for layer, before in zip(past, kept, strict=True):
        assert all(map(torch.equal, layer, before))


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("positions", ["absolute", "relative_key_query"])
def test_cache_has_the_gradients_of_the_full_pass(positions, checkpointing):
    """Also where layers are computed again in the backward pass."""
    model = our_model(
        CAUSAL, is_decoder=True, add_cross_attention=True, position_embedding_type=positions
    )
    randomise(model)
    ids, mask = padded((SEQ, 13, 2), "left")
    weights = noise(3, SEQ, TINY["vocab_size"]) * mask.unsqueeze(-1) / 30
    given: dict[str, Any] = {"input_ids": ids, **cross()}

    def in_chunks() -> Tensor:
        outputs, last = by_chunks(model.train(), [0, 8, 9, SEQ], mask, **given)
        assert last.get_seq_length() == SEQ
        return (logits_of(outputs) * weights).sum()

    expected = gradients_of(
        model, lambda: (model(**given, attention_mask=mask).logits * weights).sum()
    )
    if checkpointing:
        model.gradient_checkpointing_enable()
    found = gradients_of(model, in_chunks)
    assert set(found) == set(expected)
    for name, grad in expected.items():
        same(found[name], grad, GRADIENTS, name)
