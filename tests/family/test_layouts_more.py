"""What ranks and stages must not lose: gradients of inputs, scales and masks of a batch."""

from dataclasses import replace
from functools import partial

import pytest
import torch

import mlm
from mlm.batch.micro_batch import IGNORED
from mlm.family.stages import stage_layers
from mlm.model.initial import initialise
from mlm.model.kernels import ALL, KERNELS, Kernel, unfused
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.pipeline.stages import WholeModel
from tests.family.family_fixtures import noise, our_model, tokens
from tests.family.test_layouts import (
    DECODER,
    MODELS,
    ROWS,
    SEED,
    SEQ_LEN,
    TINY,
    TRAINED,
    arguments,
    configs,
    draw,
    made,
    task_batches,
)
from tests.ranks import run_ranks

TOKEN = "XLMRobertaXLForTokenClassification"
STILL = {"hidden_dropout_prob": 0.0}


def gradients_of_inputs() -> None:
    """On two ranks beside the whole model."""
    group = make_grid(Layout(tp=2)).tp
    config = mlm.XLMRobertaXLConfig(**(DECODER | STILL))
    width = config.hidden_size
    inputs = {
        "inputs_embeds": noise(ROWS, SEQ_LEN, width),
        "encoder_hidden_states": noise(ROWS, 7, width, seed=3),
        "head_mask": noise(4, 4, seed=4).sigmoid(),
    }
    results = []
    for options in ({}, {"group": group}):
        given = {name: each.clone().requires_grad_() for name, each in inputs.items()}
        model = mlm.XLMRobertaXLForCausalLM(config, seed=SEED, **options)
        out = model(**given, labels=draw(3, 4, 128, ROWS, SEQ_LEN))
        out.loss.backward()
        found = {name: each.grad for name, each in given.items()}
        results.append(found | {"logits": out.logits.detach()})
    whole, part = results
    for name, expected in whole.items():
        torch.testing.assert_close(part[name], expected, rtol=0, atol=5e-5, msg=name)


@pytest.mark.ranks
def test_tensor_parallel_inputs_have_the_gradient_of_all_ranks():
    run_ranks(2, gradients_of_inputs)


def kept_probabilities() -> torch.Tensor:
    group = make_grid(Layout(tp=2)).tp
    torch.manual_seed(9)
    init = {"group": group, "seed": 1}
    model = our_model("XLMRobertaXLModel", init=init, attention_probs_dropout_prob=0.5).train()
    return model(tokens(), output_attentions=True).attentions[0].detach() != 0


@pytest.mark.ranks
def test_tensor_parallel_ranks_drop_different_probabilities():
    found = run_ranks(2, kept_probabilities)
    assert torch.equal(*found)
    heads = found[0].transpose(0, 1).flatten(1)
    assert len(heads) == len(heads.unique(dim=0)) == 4


@pytest.mark.parametrize("name", TRAINED)
def test_stages_scale_and_smooth_the_loss(name):
    smoothing = 0.0 if name.endswith("LM") else 0.3  # not served there
    config = mlm.XLMRobertaXLConfig(**(configs()[name] | STILL), label_smoothing=smoothing)
    batch = replace(task_batches(name, 0)[0], loss_scale=0.25)
    kind = getattr(mlm, name)
    expected = kind(config, seed=SEED)(**arguments(name, batch)).loss / 4
    staged = WholeModel(stage_layers(kind, config, seed=SEED))
    torch.testing.assert_close(staged(batch.input_ids, batch)[0], expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", [name for name in TRAINED if name.endswith("LM")])
def test_stages_have_no_loss_where_no_label_counts(name):
    """A mean of none would be NaN, and the whole step would be refused."""
    config, batch = mlm.XLMRobertaXLConfig(**configs()[name]), task_batches(name, 0)[0]
    staged = WholeModel(stage_layers(getattr(mlm, name), config, seed=SEED)).train()
    labels = torch.full_like(batch.labels, IGNORED)
    labels[:, 0] = 7 if "Causal" in name else IGNORED  # a first token is predicted by none
    loss, _ = staged(batch.input_ids, replace(batch, labels=labels))
    loss.backward()
    assert loss == 0
    assert all(not p.grad.any() for p in staged.parameters() if p.grad is not None)


def test_stages_take_a_3d_mask():
    """With queries that see nothing."""
    config = mlm.XLMRobertaXLConfig(**(TINY | STILL), num_labels=5)
    mask = (noise(ROWS, SEQ_LEN, SEQ_LEN) > 0).long()
    mask[1, 4:6] = 0
    batch = replace(task_batches(TOKEN, 0)[0], attention_mask=mask)
    whole = mlm.XLMRobertaXLForTokenClassification(config, seed=SEED).train()
    expected = whole(**arguments(TOKEN, batch)).loss
    expected.backward()
    staged = WholeModel(stage_layers(type(whole), config, seed=SEED)).train()
    found, _ = staged(batch.input_ids, batch)
    found.backward()
    torch.testing.assert_close(found, expected)
    norms = [
        sorted(p.grad.norm().item() for p in model.parameters() if p.grad is not None)
        for model in (staged, whole)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4, abs=1e-6)


def test_stages_compute_with_the_given_kernel(monkeypatch):
    calls = []

    def counted(call):
        calls.append(call)
        return unfused(call)

    monkeypatch.setitem(KERNELS, "mine", Kernel(counted, ALL))
    name = "XLMRobertaXLForSequenceClassification"
    config, batch = mlm.XLMRobertaXLConfig(**configs()[name]), task_batches(name, 0)[0]
    WholeModel(stage_layers(getattr(mlm, name), config, attention="mine"))(batch.input_ids, batch)
    assert len(calls) == config.num_hidden_layers


def test_stages_refuse_what_they_cannot_do():
    config = mlm.XLMRobertaXLConfig(**TINY)
    with pytest.raises(ValueError, match="XLMRobertaXLModel has no head"):
        stage_layers(mlm.XLMRobertaXLModel, config)
    crossed = mlm.XLMRobertaXLConfig(**DECODER)
    with pytest.raises(ValueError, match="add_cross_attention=True is unsupported"):
        stage_layers(mlm.XLMRobertaXLForCausalLM, crossed)
    smoothed = mlm.XLMRobertaXLConfig(**TINY, label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing=0.1 is unsupported"):
        stage_layers(mlm.XLMRobertaXLForMaskedLM, smoothed)
    pruned = mlm.XLMRobertaXLConfig(**TINY, pruned_heads={0: [1]})
    with pytest.raises(ValueError, match="pruned_heads is unsupported in pipeline stages"):
        stage_layers(mlm.XLMRobertaXLForMaskedLM, pruned)


def test_stages_start_with_the_weights_of_the_model():
    name = "XLMRobertaXLForSequenceClassification"
    config = mlm.XLMRobertaXLConfig(**MODELS[name])
    whole = dict(made(name).named_parameters())
    set_weights = partial(initialise, config=config.shape(), seed=SEED)
    for layer in stage_layers(getattr(mlm, name), config, set_weights=set_weights):
        for local, parameter in layer.build().named_parameters():
            assert torch.equal(parameter, whole[f"{layer.name}.{local}"]), local


def test_task_batch_makes_its_mask_once_and_moves_with_it():
    batch = task_batches(TOKEN, 0)[0]
    assert batch.visibility.has_masked_rows is False
    mask = batch.visibility.allowed
    assert mask is not None
    assert batch.visibility.allowed is mask
    moved = batch.to(torch.device("meta"))  # there is no GPU
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) >= 4
    assert moved.visibility.allowed is not None
    assert {tensor.device.type for tensor in (*tensors, moved.visibility.allowed)} == {"meta"}
    assert moved.visibility.allowed.shape == mask.shape
    assert replace(moved, attention_mask=None).visibility.allowed is None


def test_stages_refuse_batches_that_are_not_causal_as_the_model_is():
    config = mlm.XLMRobertaXLConfig(**(TINY | {"is_decoder": True}))
    staged = WholeModel(stage_layers(mlm.XLMRobertaXLForCausalLM, config))
    batch = task_batches("XLMRobertaXLForCausalLM", 0)[0]
    with pytest.raises(ValueError, match="is_decoder=True and the batch causal=False"):
        staged(batch.input_ids, replace(batch, causal=False))
