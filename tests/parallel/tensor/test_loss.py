"""The vocabulary-parallel losses against torch's own cross entropy on whole logits."""

import pytest
import torch
import torch.nn.functional as F

import parallel.tensor.loss
from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.tensor.loss import linear_cross_entropy, vocab_parallel_cross_entropy
from tests.ranks import run_ranks

TOKENS, HIDDEN, VOCAB = 13, 8, 24


def inputs(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(TOKENS, HIDDEN, generator=generator)
    weight = torch.randn(VOCAB, HIDDEN, generator=generator)
    bias = torch.randn(VOCAB, generator=generator)
    targets = torch.randint(0, VOCAB, (TOKENS,), generator=generator)
    targets[[2, 7]] = -100
    return hidden.to(dtype), weight.to(dtype), bias.to(dtype), targets


def reference(scale: float, targets: torch.Tensor | None = None) -> list[torch.Tensor]:
    """Losses and the gradients of hidden, weight and bias, in float64, from whole logits."""
    hidden, weight, bias, default_targets = inputs()
    leaves = [t.double().requires_grad_() for t in (hidden, weight, bias)]
    logits = F.linear(*leaves)
    targets = default_targets if targets is None else targets
    losses = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    grads = torch.autograd.grad(losses.sum() * scale, leaves)
    return [losses.detach(), *grads]


def found(
    scale: float, dtype: torch.dtype = torch.float32, factor: float = 1.0, tp: int = 1
) -> list[torch.Tensor]:
    grid = make_grid(Layout(tp=tp)) if tp > 1 else None
    group, rank = (None, 0) if grid is None else (grid.tp, grid.tp_rank)
    hidden, weight, bias, targets = inputs(dtype)
    leaves = [hidden, weight.chunk(tp)[rank].clone(), bias.chunk(tp)[rank].clone()]
    leaves = [leaf.requires_grad_() for leaf in leaves]
    hidden, weight, bias = leaves
    total, losses = linear_cross_entropy(hidden, weight, bias, targets, group, scale)
    grads = torch.autograd.grad(total * factor, leaves)
    assert total.item() == pytest.approx(losses.sum().item() * scale, rel=1e-6)
    return [losses, *grads]


@pytest.mark.parametrize("chunk_tokens", [1, 5, TOKENS])
@pytest.mark.parametrize("factor", [1.0, 0.25])
def test_linear_cross_entropy_equals_torch_in_chunks(chunk_tokens, factor, monkeypatch):
    monkeypatch.setattr(parallel.tensor.loss, "CHUNK_BYTES", chunk_tokens * VOCAB * 4)
    monkeypatch.setattr(parallel.tensor.loss, "ROWS_BYTES", 2 * VOCAB * 4)
    for ours, theirs in zip(found(0.3, factor=factor), reference(0.3 * factor), strict=True):
        if ours.dim() == 1 and len(ours) == TOKENS:  # the losses are not scaled
            theirs = reference(1.0)[0]
        torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("chunk_tokens", [5, TOKENS])
def test_linear_cross_entropy_in_bf16_is_close_to_float64(chunk_tokens, monkeypatch):
    monkeypatch.setattr(parallel.tensor.loss, "CHUNK_BYTES", chunk_tokens * VOCAB * 2)
    for ours, theirs in zip(found(0.3, torch.bfloat16), reference(0.3), strict=True):
        error = (ours.double() - theirs).norm() / theirs.norm()
        assert error < 8e-3, error


@pytest.mark.ranks
@pytest.mark.parametrize("tp", [2, 4])
def test_linear_cross_entropy_equals_torch_over_tensor_parallel_ranks(tp):
    results = run_ranks(tp, found, 0.3, torch.float32, 0.5, tp)
    losses, of_hidden, of_weight, of_bias = reference(0.15)
    losses = reference(1.0)[0]
    for result in results:
        torch.testing.assert_close(result[0].double(), losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(result[1].double(), of_hidden, rtol=1e-5, atol=1e-6)
    weight = torch.cat([result[2] for result in results])
    bias = torch.cat([result[3] for result in results])
    torch.testing.assert_close(weight.double(), of_weight, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(bias.double(), of_bias, rtol=1e-5, atol=1e-6)


def gradient(leaf: torch.Tensor) -> torch.Tensor:
    assert leaf.grad is not None
    return leaf.grad


def split_logits(tp: int) -> tuple[torch.Tensor, torch.Tensor]:
    grid = make_grid(Layout(tp=tp))
    hidden, weight, bias, targets = inputs()
    logits = F.linear(hidden, weight, bias).chunk(tp, dim=1)[grid.tp_rank].clone()
    logits.requires_grad_()
    losses = vocab_parallel_cross_entropy(logits, targets, grid.tp)
    losses.square().sum().backward()  # a gradient that differs from token to token
    assert logits.grad is not None
    return losses.detach(), logits.grad


@pytest.mark.ranks
def test_vocab_parallel_cross_entropy_equals_torch():
    hidden, weight, bias, targets = (t.double() if t.is_floating_point() else t for t in inputs())
    logits = F.linear(hidden, weight, bias).requires_grad_()
    losses = F.cross_entropy(logits, targets, ignore_index=-100, reduction="none")
    losses.square().sum().backward()
    results = run_ranks(2, split_logits, 2)
    gradient = torch.cat([result[1] for result in results], dim=1)
    torch.testing.assert_close(results[0][0].double(), losses.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), logits.grad, rtol=1e-5, atol=1e-6)


def test_linear_cross_entropy_without_targets_is_zero():
    hidden, weight, bias, targets = inputs()
    leaves = [leaf.requires_grad_() for leaf in (hidden, weight, bias)]
    hidden, weight, bias = leaves
    none = torch.full_like(targets, -100)
    total, losses = linear_cross_entropy(hidden, weight, bias, none, None)
    total.backward()
    assert total.item() == 0.0
    assert not losses.any()
    assert not any(gradient(leaf).any() for leaf in leaves)


def test_linear_cross_entropy_of_extreme_logits_is_finite():
    hidden, weight, bias, targets = inputs()
    leaves = [leaf.requires_grad_() for leaf in (hidden * 1e4, weight, bias)]
    hidden, weight, bias = leaves
    total, losses = linear_cross_entropy(hidden, weight, bias, targets, None)
    total.backward()
    assert torch.isfinite(losses).all()
    assert all(torch.isfinite(gradient(leaf)).all() for leaf in leaves[1:])


def test_linear_cross_entropy_keeps_small_gradients_in_bf16():
    """At the target the gradient is softmax - 1, which would vanish if bf16 rounded the softmax."""
    weight = torch.eye(4, dtype=torch.bfloat16)
    hidden = (torch.eye(4)[:1] * 9.0).bfloat16().requires_grad_()
    total, _ = linear_cross_entropy(
        hidden, weight, torch.zeros(4, dtype=torch.bfloat16), torch.tensor([0]), None
    )
    (gradient,) = torch.autograd.grad(total, hidden)
    expected = torch.softmax(torch.tensor([9.0, 0, 0, 0]), 0)[0] - 1.0
    assert gradient[0, 0].item() == pytest.approx(expected.item(), rel=1e-2)


def test_linear_cross_entropy_allows_one_backward_pass():
    hidden, weight, bias, targets = inputs()
    total, _ = linear_cross_entropy(hidden.requires_grad_(), weight, bias, targets, None)
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="one backward pass"):
        total.backward()
