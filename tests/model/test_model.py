"""The model against transformers' XLMRobertaXLForMaskedLM with the same weights."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.model import dropout, kernels
from mlm.model.config import ModelConfig
from mlm.model.flops import training_flops_per_token
from mlm.model.masked_lm import masked_lm_layers
from parallel.pipeline.stages import WholeModel, canonical_name

CONFIG = ModelConfig(
    vocab_size=128,
    hidden_size=32,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=22,
)


def pretrained(config: ModelConfig, **options) -> tuple[WholeModel, dict[str, torch.nn.Parameter]]:
    """The model as pretraining runs it, and its parameters by their published names."""
    layers = masked_lm_layers(config, **options)
    model = WholeModel(layers)
    named = model.named_parameters()
    return model, {canonical_name(layers, name): parameter for name, parameter in named}


def reference(config: ModelConfig, parameters: dict[str, torch.nn.Parameter]):
    """transformers' model with these weights."""
    import transformers

    shape = {k: v for k, v in vars(config).items() if k != "output_dropout"}
    made = transformers.XLMRobertaXLConfig(**shape)
    theirs = transformers.XLMRobertaXLForMaskedLM(made).eval()
    weights = {name: parameter.detach() for name, parameter in parameters.items()}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.decoder.weight", "lm_head.decoder.bias"}
    theirs.tie_weights()
    return theirs


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 128, (3, 20), generator=torch.Generator().manual_seed(2))
    lengths = torch.tensor([20, 13, 1])
    ids[torch.arange(20) >= lengths.unsqueeze(1)] = CONFIG.pad_token_id
    return ids, lengths


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("activation", ["gelu", "relu", "silu", "gelu_new"])
def test_loss_on_held_out_rows_equals_transformers(activation, attention):
    """Rows that end in padding, as only held-out ones do."""
    config = replace(CONFIG, hidden_act=activation)
    model, parameters = pretrained(config, seed=4, attention=attention)
    ids, lengths = padded_batch()
    positions = torch.tensor([[0, 3, 19], [7, 8, 12], [0, 0, 0]])
    targets = torch.tensor([[9, 4, 127], [50, 51, 60], [61, -100, -100]])
    logits = reference(config, parameters)(ids, attention_mask=(ids != 1).long()).logits
    chosen = logits[torch.arange(3).unsqueeze(1), positions]
    expected = F.cross_entropy(chosen.flatten(0, 1), targets.flatten(), reduction="none")
    seen = Visibility((3, 20, 20), lengths)
    batch = MicroBatch(ids, seen, positions, targets, torch.arange(3))
    with torch.no_grad():
        _, outputs = model.eval()(ids, batch)
    torch.testing.assert_close(outputs["losses"], expected.view(3, 3))


def test_loss_and_gradients_of_masked_positions_equal_transformers():
    config = replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model, parameters = pretrained(config, seed=4)
    theirs = reference(config, parameters)
    ids, _ = padded_batch()
    ids = ids.clamp(min=4)
    positions = torch.tensor([[0, 3, 19], [7, 8, 0], [5, 0, 0]])
    targets = torch.tensor([[9, 4, 127], [50, 51, -100], [60, -100, -100]])
    labels = torch.full_like(ids, -100)
    labels[[0, 0, 0, 1, 1, 2], [0, 3, 19, 7, 8, 5]] = torch.tensor([9, 4, 127, 50, 51, 60])
    expected = theirs(ids, labels=labels).loss
    expected.backward()
    batch = MicroBatch(
        ids, Visibility((3, 20, 20)), positions, targets, torch.tensor([0, 1, 1]), 1 / 6
    )
    found, outputs = model.train()(ids, batch)
    found.backward()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    grads = dict(theirs.named_parameters())
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, grads[name].grad, rtol=1e-4, atol=1e-6, msg=name)
    per_token = F.cross_entropy(
        theirs(ids).logits.flatten(0, 1), labels.flatten(), ignore_index=-100, reduction="none"
    )
    by_row = per_token.view(3, 20).sum(dim=1).double()
    torch.testing.assert_close(outputs["losses"].double().sum(1), by_row)


def test_parameters_of_the_published_sizes():
    shapes = {3_482_741_760: (2560, 36, 10240), 10_712_994_816: (4096, 48, 16384)}
    for expected, (hidden, layers, inner) in shapes.items():
        config = ModelConfig(
            vocab_size=250880,
            hidden_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=32,
            intermediate_size=inner,
        )
        assert config.parameters() == expected
        with torch.device("meta"):
            assert sum(p.numel() for p in pretrained(config)[1].values()) == expected
        # The list that stages are balanced by counts the tied weight on both ends.
        listed = sum(layer.parameters for layer in masked_lm_layers(config))
        assert listed == expected + 250880 * hidden


def test_initial_weights_have_their_distribution():
    _, weights = pretrained(replace(CONFIG, vocab_size=1024), seed=1)
    words = weights["roberta.embeddings.word_embeddings.weight"]
    assert not words[1].any()
    assert words[2:].std().item() == pytest.approx(0.02, rel=0.05)
    assert not weights["roberta.embeddings.position_embeddings.weight"][1].any()
    for name, weight in weights.items():
        if name.endswith("bias"):
            assert not weight.any(), name
        elif "norm" in name.lower():
            assert (weight == 1).all(), name


def test_dropout_has_a_key_for_every_site(monkeypatch):
    """One of the embeddings and three of each layer, and others in another micro-batch."""
    keys: list[int] = []

    def kept(x, probability, dropout_key):
        keys.append(dropout_key)
        return x

    for module in (dropout, kernels):
        monkeypatch.setattr(module, "dropout", kept)
    model = pretrained(CONFIG, attention="unfused")[0].train()
    ids, lengths = padded_batch()
    places = torch.zeros(3, 1, dtype=torch.long)
    for number in (1, 2):
        seen = Visibility((3, 20, 20), lengths)
        batch = MicroBatch(ids, seen, places, places + 5, lengths * 0, dropout_key=number)
        model(ids, batch)
    assert len(keys) == len(set(keys)) == 2 * (1 + 3 * CONFIG.num_hidden_layers)


@pytest.mark.parametrize(
    ("shape", "gigaflops"),
    [((768, 12, 3072), 0.74), ((2560, 36, 10240), 18.14), ((4096, 48, 16384), 60.13)],
)
def test_training_flops_per_token_of_the_published_sizes(shape, gigaflops):
    """Published arithmetic for base, XL and XXL at 512 tokens, 15 % masked."""
    hidden, layers, inner = shape
    config = ModelConfig(250880, hidden, layers, 32, inner)
    found = training_flops_per_token(config, 512, 77) / 1e9
    assert found == pytest.approx(gigaflops, rel=0.01)
