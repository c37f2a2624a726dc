"""Passes that are recorded for other inputs, traced, exported or compiled; none reads a value."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mlm.batch.checks import VARIABLE
from tests.family.family_fixtures import (
    GRADIENTS,
    gradients_of,
    our_model,
    padded,
    pair,
    randomise,
    same,
    scalar,
    tokens,
)
from tests.family.family_wrapped import CLASSES, MASKED, inputs_of

READS = ("_local_scalar_dense", "is_nonzero", "item", "equal.default", "nonzero")


def made(cls_name: str, **config: Any) -> Any:
    model = our_model(cls_name, **(CLASSES[cls_name] | config))
    randomise(model)
    return model.eval()


def tensors(output: Any) -> dict[str, Tensor]:
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}


def same_tensors(found: Any, expected: Any) -> None:
    mine, others = tensors(found), tensors(expected)
    assert mine.keys() == others.keys()
    for name, value in others.items():
        same(mine[name], value, what=name)


def unpadded(cls_name: str) -> dict[str, Tensor]:
    """Ids and a mask of ones, of another length and number of rows than `padded`."""
    ids = tokens(5, 9)
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if cls_name == "XLMRobertaXLForMultipleChoice":
        return {name: tensor.unsqueeze(0) for name, tensor in given.items()}
    return given


def read(cls_name: str) -> dict[str, Tensor]:
    return {name: inputs_of(cls_name)[name] for name in ("input_ids", "attention_mask")}


# A language model, a cache, rows of choices; the others with the slow tests.
FAST = (MASKED, "XLMRobertaXLForCausalLM", "XLMRobertaXLForMultipleChoice")
SOME_CLASSES = [
    name if name in FAST else pytest.param(name, marks=pytest.mark.slow) for name in CLASSES
]


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cls_name", SOME_CLASSES)
def test_trace_of_unpadded_inputs_serves_padded_ones(cls_name):
    model = made(cls_name, use_cache=False)
    ones = {name: torch.full_like(tensor, 1) for name, tensor in read(cls_name).items()}
    example = {"input_ids": ones["input_ids"] * 5, "attention_mask": ones["attention_mask"]}
    traced: Any = torch.jit.trace(model, example_kwarg_inputs=example, strict=False)
    with torch.no_grad():
        same_tensors(traced(**read(cls_name)), model(**read(cls_name)))
        as_tuple = model(**read(cls_name), return_dict=False)
    model.config.return_dict = False
    traced = torch.jit.trace(model, example_kwarg_inputs=example)
    with torch.no_grad():
        same(traced(**read(cls_name))[0], as_tuple[0])


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("cls_name", SOME_CLASSES)
def test_export_serves_any_batch_and_length(cls_name, strict):
    model = made(cls_name, use_cache=False)
    rows, length = torch.export.Dim("rows"), torch.export.Dim("length")
    dims: Any = {0: rows, 1: length}
    if cls_name == "XLMRobertaXLForMultipleChoice":
        dims = {1: rows, 2: length}
    shapes = {"input_ids": dims, "attention_mask": dims}
    program = torch.export.export(
        model, (), unpadded(cls_name), dynamic_shapes=shapes, strict=strict
    )
    with torch.no_grad():
        found = program.module()(**read(cls_name))
        same_tensors(found, model(**read(cls_name)))
    assert type(found) is type(model(**read(cls_name)))


def compiled_equals_eager(cls_name: str, backend: str) -> None:
    """In evaluation on two shapes; loss and gradients in training."""
    torch._dynamo.reset()
    model = made(cls_name)
    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    with torch.no_grad():
        for given in (unpadded(cls_name), read(cls_name)):
            same_tensors(compiled(**given), model(**given))
    model.train()
    given = inputs_of(cls_name)
    expected = gradients_of(model, lambda: scalar(model(**given)))
    found = gradients_of(model, lambda: scalar(compiled(**given)))
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        same(found[name], gradient, GRADIENTS, name)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("cls_name", CLASSES)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_whole_graph_compiles(cls_name, backend):
    compiled_equals_eager(cls_name, backend)


def test_compiled_training_drops_and_repeats_by_the_seed():
    torch._dynamo.reset()
    model = made(MASKED, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.5).train()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    losses = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(float(compiled(**inputs_of(MASKED)).loss.detach()))
    assert losses[0] == losses[1] != losses[2]


class Reads(TorchDispatchMode):
    """Fails at an operation by which a pass would wait for a device to read a value."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert not any(name in str(func) for name in READS), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("cls_name", CLASSES)
def test_pass_reads_no_value(cls_name):
    model = made(cls_name)
    for mode in (model.train(), model.eval()):
        with Reads():
            scalar(mode(**inputs_of(cls_name))).backward()


@pytest.mark.parametrize("cls_name", CLASSES)
def test_pass_on_another_device_reads_no_value(cls_name, monkeypatch):
    """On tensors without values, in place of a GPU."""
    monkeypatch.delenv(VARIABLE, raising=False)
    model = made(cls_name).to("meta")
    given = {name: tensor.to("meta") for name, tensor in inputs_of(cls_name).items()}
    out = model(**given)
    assert {tensor.device.type for tensor in tensors(out).values()} == {"meta"}


def blind(dtype: torch.dtype, value: float) -> tuple[Any, dict[str, Tensor]]:
    """A model whose scores are about `value`, and rows of which one is padding alone."""
    model = made(MASKED)
    with torch.no_grad():
        for layer in model.roberta.encoder.layer:
            inner = layer.attention.self
            for part, sign in ((inner.query, 1.0), (inner.key, -1.0)):
                part.weight.zero_()
                part.bias.fill_(sign * (value / part.bias.numel() * 4 * 8**0.5) ** 0.5)
    ids, mask = padded()
    mask[1] = 0
    return model.to(dtype), {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("attention", ["fused", "unfused"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_wholly_masked_row_is_finite_in_half_precision(dtype, attention):
    model, given = blind(dtype, 64.0)
    for layer in model.roberta.encoder.layer:
        layer.attention.self.kernel = attention
    out = model(**given, labels=given["input_ids"])
    assert out.logits.isfinite().all()
    out.loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name
    whole = model.float()(**given).logits
    assert (out.logits.float() - whole).abs().max() < 0.05 * whole.abs().max()


def test_mask_of_ones_equals_no_mask():
    ours, theirs = pair(MASKED)
    ids = tokens()
    with torch.no_grad():
        expected = theirs(ids).logits
        same(ours(ids).logits, expected)
        same(ours(ids, attention_mask=torch.ones_like(ids)).logits, expected)
