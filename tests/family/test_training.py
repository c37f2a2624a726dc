"""What training needs of the family: initial weights, keyed dropout, recomputed activations."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.family.family_decoding import CAUSAL, cross
from tests.family.family_fixtures import (
    OUTPUTS,
    SEQ,
    TINY,
    VOCAB,
    gradients_of,
    our_model,
    padded,
    pair,
    same,
    tokens,
)

MODEL, MASKED = "XLMRobertaXLModel", "XLMRobertaXLForMaskedLM"
SEQUENCE = "XLMRobertaXLForSequenceClassification"
CHOICE = "XLMRobertaXLForMultipleChoice"
TOKEN = "XLMRobertaXLForTokenClassification"
HIDDEN, LAYERS = TINY["hidden_size"], TINY["num_hidden_layers"]
DROPS: dict[str, Any] = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}


def test_initial_weights_have_their_distribution():
    model = our_model(SEQUENCE, init={"seed": 1}, vocab_size=1024, hidden_size=64)
    weights = dict(model.named_parameters())
    words = weights["roberta.embeddings.word_embeddings.weight"]
    positions = weights["roberta.embeddings.position_embeddings.weight"]
    for table in (words, positions):
        assert not table[1].any()
        assert table[2:].std().item() == pytest.approx(0.2, rel=0.05)
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name.lower():
            assert (weight == 1).all(), name
        elif weight.numel() > 1000:
            assert weight.std().item() == pytest.approx(0.2, rel=0.1), name
    drawn = [weight.flatten()[:50] for name, weight in weights.items() if weight.numel() > 2000]
    assert len({tuple(part.tolist()) for part in drawn}) == len(drawn) > 10


def test_initial_weights_follow_the_seed():
    def weights(**init) -> Tensor:
        return our_model(MASKED, init=init).lm_head.dense.weight.detach()

    assert torch.equal(weights(seed=1), weights(seed=1))
    assert not torch.equal(weights(seed=1), weights(seed=2))
    torch.manual_seed(5)
    first, second = weights(), weights()
    torch.manual_seed(5)
    assert torch.equal(weights(), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("cls_name", [MASKED, SEQUENCE, CHOICE])
def test_dropout_follows_the_seed_of_torch(cls_name):
    model = our_model(cls_name, **DROPS).train()
    ids = tokens(4).view(2, 2, SEQ) if cls_name == CHOICE else tokens(4)
    torch.manual_seed(1)
    first, second = model(ids).logits, model(ids).logits
    torch.manual_seed(1)
    again = model(ids).logits
    torch.manual_seed(2)
    other = model(ids).logits
    model.eval()
    still = model(ids).logits
    assert torch.equal(first, again)
    for different in (second, other, still):
        assert (first - different).abs().max() > 1e-3
    assert torch.equal(still, model(ids).logits)


def kept(dropped: Tensor, whole: Tensor, probability: float) -> Tensor:
    """Where `dropped` is not 0; there it is `whole` scaled, and it is so often enough."""
    there = dropped != 0
    assert there.float().mean().item() == pytest.approx(1 - probability, abs=0.05)
    same(dropped[there], (whole / (1 - probability))[there])
    return there


def test_dropout_applies_to_the_embeddings():
    model = our_model(MODEL, hidden_dropout_prob=0.25)
    ids = tokens(8)
    whole = model.eval()(ids, output_hidden_states=True).hidden_states[0]
    dropped = model.train()(ids, output_hidden_states=True).hidden_states[0]
    there = kept(dropped, whole, 0.25)
    assert not torch.equal(there[0], there[1])


def test_dropout_applies_to_attention_probabilities():
    model = our_model(MODEL, attention_probs_dropout_prob=0.5)
    ids = tokens(4)
    whole = model.eval()(ids, output_attentions=True).attentions
    dropped = model.train()(ids, output_attentions=True).attentions
    masks = [kept(dropped[0], whole[0], 0.5), *(probabilities != 0 for probabilities in dropped)]
    assert not torch.equal(masks[1], masks[2])
    assert not torch.equal(masks[1][:, 0], masks[1][:, 1])


@torch.no_grad()
def test_dropout_applies_after_attention_only():
    """With attention's weights at 0 a layer adds its bias, dropped, and its feed-forward block."""
    model = pair(MODEL, hidden_dropout_prob=0.5)[0].train()
    layer = model.encoder.layer[1]
    layer.attention.output.dense.weight.zero_()

    def states() -> tuple[Tensor, Tensor]:
        return model(tokens(8), output_hidden_states=True).hidden_states[1:3]

    layer.attention.output.dense.bias.zero_()
    before, after = states()
    inner = F.gelu(layer.intermediate.dense(layer.LayerNorm(before)))
    same(after, before + layer.output.dense(inner), 1e-4)
    layer.attention.output.dense.bias.fill_(3.0)
    layer.output.dense.weight.zero_()
    layer.output.dense.bias.zero_()
    before, after = states()
    added = (after - before).round()
    kept(added, torch.full_like(added, 3.0), 0.5)


def constant(model, value: float = 1.0):
    """Makes every last hidden state `value`: of the dropout, only the head's shows."""
    with torch.no_grad():
        model.roberta.encoder.LayerNorm.weight.zero_()
        model.roberta.encoder.LayerNorm.bias.fill_(value)
    return model.train()


@torch.no_grad()
def identity(linear) -> None:
    linear.weight.copy_(torch.eye(HIDDEN))
    linear.bias.zero_()


@pytest.mark.parametrize(
    ("drops", "probability"),
    [
        ({"classifier_dropout": 0.5}, 0.5),
        ({"hidden_dropout_prob": 0.5}, 0.5),
        ({"classifier_dropout": 0.25, "hidden_dropout_prob": 0.5}, 0.25),
        ({"classifier_dropout": 0.0, "hidden_dropout_prob": 0.5}, 0.0),
    ],
)
def test_dropout_applies_in_the_heads(drops, probability):
    """Once before the token classifier, before both layers of the sequence classifier."""
    drops = {"hidden_dropout_prob": 0.0, **drops}
    token = constant(our_model(TOKEN, num_labels=HIDDEN, **drops))
    identity(token.classifier)
    logits = token(tokens(16)).logits
    kept(logits, torch.ones_like(logits), probability)
    sequence = constant(our_model(SEQUENCE, num_labels=HIDDEN, **drops))
    identity(sequence.classifier.dense)
    identity(sequence.classifier.out_proj)
    logits = sequence(tokens(128, 2)).logits
    scale = 1 - probability
    there = logits != 0
    assert there.float().mean().item() == pytest.approx(scale**2, abs=0.05)
    same(logits[there], torch.full_like(logits, 1 / scale).tanh().div(scale)[there])


@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_dropout_of_multiple_choice_is_that_of_the_hidden_states(hidden):
    model = our_model(CHOICE, hidden_dropout_prob=hidden, classifier_dropout=0.3)
    model = constant(model, 0.5)
    with torch.no_grad():
        identity(model.roberta.pooler.dense)
        model.classifier.weight.zero_()
        model.classifier.weight[0, 0] = 1.0
    logits = model(tokens(800, 2).view(400, 2, 2)).logits
    kept(logits, torch.full_like(logits, 0.5).tanh(), hidden)


def test_dropout_is_absent_in_question_answering():
    drops: dict[str, Any] = {"hidden_dropout_prob": 0.5, "classifier_dropout": 0.5}
    out = constant(our_model("XLMRobertaXLForQuestionAnswering", **drops))(tokens(4))
    for logits in (out.start_logits, out.end_logits):
        same(logits, logits[:1, :1].expand_as(logits))


@pytest.mark.parametrize("drops", [{}, DROPS], ids=["plain", "with dropout"])
@pytest.mark.parametrize("cls_name", [MASKED, SEQUENCE])
def test_gradient_checkpointing_gives_the_same_gradients(cls_name, drops):
    calls = []

    def activation(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return torch.tanh(x)

    model = our_model(cls_name, hidden_act=activation, **drops).train()
    ids, mask = padded()
    labels = ids if cls_name == MASKED else torch.tensor([1, 0, 1])

    def loss() -> Tensor:
        torch.manual_seed(7)
        return model(ids, mask, labels=labels).loss

    expected, gradients = loss(), gradients_of(model, loss)
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    calls.clear()
    found = loss()
    assert len(calls) == LAYERS
    assert torch.equal(found, expected)
    calls.clear()
    recomputed = gradients_of(model, loss)
    assert len(calls) == 2 * LAYERS, "each layer runs once more in the backward pass"
    assert set(recomputed) == set(gradients)
    for name, gradient in gradients.items():
        same(recomputed[name], gradient, OUTPUTS, name)
    calls.clear()
    with torch.no_grad():
        maps = model(ids, mask, output_hidden_states=True, output_attentions=True)
    assert len(maps.hidden_states) == len(maps.attentions) + 1 == LAYERS + 1
    model.gradient_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    calls.clear()
    gradients_of(model, loss)
    assert len(calls) == LAYERS


def test_gradient_checkpointing_recomputes_cross_attention():
    calls = []

    def activation(x: Tensor) -> Tensor:
        calls.append(x.shape)
        return torch.tanh(x)

    config = {"is_decoder": True, "add_cross_attention": True, "hidden_act": activation}
    model = our_model(CAUSAL, **config).train()
    model.gradient_checkpointing_enable()
    gradients_of(model, lambda: model(tokens(), labels=tokens(), **cross()).loss)
    assert len(calls) == 2 * LAYERS


def test_training_step_lowers_the_loss():
    model = our_model(MASKED, **DROPS).train()
    ids, mask = padded()
    labels = ids.masked_fill(mask == 0, -100)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = model(ids, mask, labels=labels).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert model.lm_head.decoder.weight is model.roberta.embeddings.word_embeddings.weight
    assert model(ids).logits.shape == (*ids.shape, VOCAB)
