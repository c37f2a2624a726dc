"""Attention kernels: what they compute, which one is chosen, and one more from outside."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility, masked_by
from mlm.model import kernels
from mlm.model.kernels import KERNELS, Call, Kernel, attention_weights, choose
from mlm.model.relative import RelativePositions
from tests.model.test_model import CONFIG, pretrained

STILL = replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
PLAIN = Visibility((2, 6, 6))


def heads(dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Queries, keys and values, (3, batch, heads, length, head_size)."""
    return torch.randn(3, 2, 4, 6, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def call(dtype: torch.dtype = torch.float32, visibility: Visibility = PLAIN, **needs) -> Call:
    query, keys, values = heads(dtype)
    return Call(query, keys, values, visibility, **needs)


def test_unfused_attention_is_the_formula():
    query, keys, values = heads()
    seen = Visibility((2, 6, 6), lengths=torch.tensor([6, 4]))
    expected = F.scaled_dot_product_attention(query, keys, values, attn_mask=seen.allowed)
    torch.testing.assert_close(attention_weights(query, keys, seen) @ values, expected)


def on_gpu(dtype: torch.dtype, **needs) -> Call:
    """A call whose query says that it is on a GPU; no kernel is run."""
    query: Any = SimpleNamespace(dtype=dtype, device=torch.device("cuda"))
    return replace(call(**needs), query=query)


def test_choose_auto_goes_by_device_dtype_and_dropout():
    there = on_gpu(torch.bfloat16, probability=0.1)
    assert choose("auto", there) is KERNELS["fused"]
    assert choose("unfused", there) is KERNELS["unfused"]
    assert choose("auto", call()) is KERNELS["fused"]
    assert choose("auto", call(probability=0.1)) is KERNELS["unfused"]
    assert choose("auto", call(torch.bfloat16)) is KERNELS["unfused"]
    assert choose("fused", call(torch.bfloat16, probability=0.1)) is KERNELS["fused"]


BLIND = masked_by("mask", torch.zeros(2, 6), (2, 6, 6))
NEEDS = {
    "weights": {"weights": True},
    "head masks": {"head_factors": torch.ones(4)},
    "relative": {"positions": RelativePositions(8, 8, None, "relative_key")},
    "blind": {"visibility": BLIND},
}


@pytest.mark.parametrize("name", NEEDS)
def test_choose_gives_what_fused_cannot_do_to_unfused(name):
    assert choose("fused", call(**NEEDS[name])) is KERNELS["unfused"]


def test_choose_keeps_fused_where_it_is_unknown_whether_queries_are_blind():
    """Such a mask is on a GPU, and `unfused` keeps a matrix of weights there."""
    unknown = replace(BLIND, has_masked_rows=None)
    assert choose("fused", call(visibility=unknown)) is KERNELS["fused"]


def test_choose_gives_a_call_from_kernel_to_kernel_until_one_can(monkeypatch):
    monkeypatch.setitem(KERNELS, "mine", Kernel(kernels.fused, otherwise="fused"))
    assert choose("mine", call()) is KERNELS["mine"]
    assert choose("mine", call(weights=True)) is KERNELS["unfused"]


def test_choose_refuses_what_a_named_kernel_cannot_do(monkeypatch):
    monkeypatch.setitem(KERNELS, "mine", Kernel(kernels.unfused, devices=("cpu",)))
    assert choose("mine", call()) is KERNELS["mine"]
    with pytest.raises(ValueError, match="attention=mine does not support attention weights; "):
        choose("mine", call(weights=True))
    with pytest.raises(ValueError, match="attention=mine runs on cpu, not on cuda"):
        choose("mine", on_gpu(torch.float32))
    with pytest.raises(ValueError, match="'theirs' is not a kernel; choose from auto, unfused, "):
        pretrained(STILL, attention="theirs")


def test_fused_treats_blind_queries_alike_where_it_is_unknown_whether_there_are_any():
    """As on a GPU, where the values of a mask are not read."""
    mask = torch.ones(2, 6, 6, dtype=torch.bool)
    mask[1, 2] = mask[0, 3, 4:] = False
    unknown = replace(masked_by("mask", mask, (2, 6, 6)), has_masked_rows=None)
    tensors = [tensor.requires_grad_() for tensor in heads()]
    found, expected = (
        kernel(Call(tensors[0], tensors[1], tensors[2], seen))[0]
        for kernel, seen in (
            (kernels.fused, unknown),
            (kernels.unfused, masked_by("mask", mask, (2, 6, 6))),
        )
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(found[1, :, 2], tensors[2][1].mean(dim=1))
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(2))
    ours, theirs = (
        torch.autograd.grad((one * weights).sum(), tensors, retain_graph=True)
        for one in (found, expected)
    )
    torch.testing.assert_close(ours[2], theirs[2])
    assert not ours[0][1, :, 2].any(), "an even mean does not depend on the query"
    others = torch.arange(6) != 2
    torch.testing.assert_close(ours[0][:, :, others], theirs[0][:, :, others])


def test_fused_drops_attention_weights():
    query, keys, _ = heads()
    ones = torch.ones_like(keys)
    kept, dropped = (
        kernels.fused(Call(query, keys, ones, PLAIN, probability=p))[0] for p in (0.0, 0.5)
    )
    torch.testing.assert_close(kept, ones)
    assert (dropped - ones).abs().max() > 0.1


def by_rows(given: Call) -> tuple[torch.Tensor, None]:
    """A kernel from outside: one row of the batch after the other."""
    seen = given.visibility
    mixed = [
        attention_weights(
            given.query[row : row + 1],
            given.keys[row : row + 1],
            seen.of_rows(slice(row, row + 1)),
        )
        @ given.values[row : row + 1]
        for row in range(len(given.query))
    ]
    return torch.cat(mixed), None


def test_kernel_from_outside_gives_equal_losses_and_gradients(monkeypatch):
    monkeypatch.setitem(KERNELS, "mine", Kernel(by_rows))
    ids = torch.randint(4, 128, (3, 20), generator=torch.Generator().manual_seed(2))
    places = torch.tensor([[0, 3], [7, 8], [1, 5]])
    seen = Visibility((3, 20, 20), lengths=torch.tensor([20, 13, 9]))
    batch = MicroBatch(ids, seen, places, places + 9, torch.arange(3), 1 / 6)
    results = []
    for attention in ("unfused", "mine"):
        model, parameters = pretrained(STILL, seed=4, attention=attention)
        loss, _ = model.train()(ids, batch)
        loss.backward()
        results.append((loss, {name: p.grad for name, p in parameters.items()}))
    (expected, gradients), (found, ours) = results
    torch.testing.assert_close(found, expected)
    for name, gradient in gradients.items():
        torch.testing.assert_close(ours[name], gradient, msg=name)
