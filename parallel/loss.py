"""Cross entropy over a vocabulary that is split over a tensor-parallel group.

`linear_cross_entropy` is the one that training uses: it goes from hidden states to the loss in
chunks of tokens, so that logits of all tokens never exist, and leaves the gradients behind on
the way, so that no logit is computed twice.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from parallel.collectives import copy_to_group
from parallel.groups import Group, group_rank, group_size

IGNORED = -100
CHUNK_BYTES = 1 << 28  # of logits that exist at a time, in the dtype of the weights
ROWS_BYTES = 1 << 22  # of them that are in fp32 at a time on a CPU: what its caches hold


def vocab_parallel_cross_entropy(logits: Tensor, targets: Tensor, group: Group) -> Tensor:
    """Losses of tokens whose logits are split along the vocabulary.

    logits: (tokens, vocab / group), any float dtype; the arithmetic is fp32
    targets: (tokens,) ids of the whole vocabulary, -100 where there is none
    Returns (tokens,) fp32; 0 where the target is -100. Forward: one all-gather of two numbers
    per token. Backward: local, softmax minus one-hot.
    """
    return _CrossEntropy.apply(logits, targets, group)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor, group: Group, scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """`scale` times the sum of the cross entropies of `hidden @ weight^T + bias`.

    hidden: (tokens, hidden_size), the same on every rank of the group
    weight: (vocab / group, hidden_size); bias: (vocab / group,)
    targets: (tokens,) ids of the whole vocabulary, -100 where there is none
    Returns the scaled sum (a scalar with a gradient) and the unscaled losses (tokens,) without
    one, both fp32. Forward: one all-gather per chunk. Backward: all-reduce of the gradient of
    `hidden`. With no valid target, the sum is 0 and so are the gradients.
    """
    hidden = copy_to_group(hidden, group)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, group, scale)


def _target_positions(targets: Tensor, size: int, group: Group) -> tuple[Tensor, Tensor]:
    """Targets as local columns (0 where they are elsewhere), and whether they are here."""
    local = targets - group_rank(group) * size
    here = (local >= 0) & (local < size)
    return local.masked_fill(~here, 0), here


def _normalisers(local_lse: Tensor, local_target: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and target logit over the whole vocabulary from those of the parts."""
    if group is None:
        return local_lse, local_target
    own = torch.stack([local_lse, local_target])
    parts = [torch.empty_like(own) for _ in range(group_size(group))]
    dist.all_gather(parts, own, group=group)
    every = torch.stack(parts)
    return every[:, 0].logsumexp(dim=0), every[:, 1].sum(dim=0)


def _row_blocks(logits: Tensor) -> range:
    """Starts of blocks of rows: all at once on an accelerator, cache-sized on a CPU."""
    rows = logits.shape[0]
    if logits.device.type == "cpu":
        rows = max(1, min(rows, ROWS_BYTES // (4 * logits.shape[1])))
    return range(0, logits.shape[0], max(1, rows))


def _losses(logits: Tensor, targets: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Losses (tokens,) and log-sum-exps (tokens,), fp32, of logits (tokens, vocab / group)."""
    columns, here = _target_positions(targets, logits.shape[1], group)
    local_target = logits.gather(1, columns.unsqueeze(1)).squeeze(1).float()
    local_target = local_target.masked_fill(~here, 0.0)
    blocks = _row_blocks(logits)
    local_lse = torch.cat(
        [logits[row : row + blocks.step].float().logsumexp(dim=1) for row in blocks]
    )
    lse, target = _normalisers(local_lse, local_target, group)
    return (lse - target).masked_fill(targets == IGNORED, 0.0), lse


def _gradient_(logits: Tensor, lse: Tensor, targets: Tensor, factor: Tensor, group: Group) -> None:
    """Overwrites logits by the gradient of `sum(factor * losses)`; factor: (tokens,) fp32."""
    columns, here = _target_positions(targets, logits.shape[1], group)
    factor = factor.masked_fill(targets == IGNORED, 0.0)
    at_target = (-factor).masked_fill(~here, 0.0).unsqueeze(1)
    blocks = _row_blocks(logits)
    for row in blocks:
        rows = slice(row, row + blocks.step)
        block = (
            logits[rows].float().sub_(lse[rows].unsqueeze(1))
            if (logits.dtype != torch.float32)
            else logits[rows].sub_(lse[rows].unsqueeze(1))
        )
        block.exp_().mul_(factor[rows].unsqueeze(1))
        block.scatter_add_(1, columns[rows].unsqueeze(1), at_target[rows])
        if block.dtype != logits.dtype:
            logits[rows] = block


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, targets, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        losses, lse = _losses(logits, targets, group)
        ctx.save_for_backward(logits, lse, targets)
        ctx.group = group
        return losses

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        logits, lse, targets = ctx.saved_tensors
        gradient = logits.clone()
        _gradient_(gradient, lse, targets, grad, ctx.group)
        return gradient, None, None


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, group, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        wanted = ctx.needs_input_grad[1] or ctx.needs_input_grad[0]
        tokens = hidden.shape[0]
        chunk = max(1, CHUNK_BYTES // (weight.shape[0] * weight.element_size()))
        losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
        grads = _Gradients(hidden, weight, bias, single=chunk >= tokens) if wanted else None
        for start in range(0, tokens, chunk):
            part = slice(start, min(start + chunk, tokens))
            logits = F.linear(hidden[part], weight, bias)
            losses[part], lse = _losses(logits, targets[part], group)
            if grads is not None:
                factor = torch.full_like(lse, scale)
                _gradient_(logits, lse, targets[part], factor, group)
                grads.add(part, logits)
        ctx.grads = grads
        ctx.mark_non_differentiable(losses)
        return losses.sum() * scale, losses

    @staticmethod
    def backward(ctx, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        assert ctx.grads is not None, "the gradients of a chunked loss serve one backward pass"
        grads, ctx.grads = ctx.grads, None
        return *grads.scaled(grad), None, None, None


class _Gradients:
    """Gradients of hidden, weight and bias, filled chunk by chunk.

    With several chunks the weight's is added up in fp32: in bf16 each further chunk would round
    what the earlier ones gave.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor, single: bool):
        self.sources = hidden, weight, bias
        self.hidden = torch.empty_like(hidden)
        self.single = single
        if not single:
            self.weight = torch.zeros_like(weight, dtype=torch.float32)
            self.bias = torch.zeros_like(bias, dtype=torch.float32)

    def add(self, part: slice, logits: Tensor) -> None:
        """Adds a chunk: `logits` (tokens of the part, vocab / group) holds their gradient."""
        hidden, weight, _ = self.sources
        torch.mm(logits, weight, out=self.hidden[part])
        of_weight, of_bias = logits.t() @ hidden[part], logits.sum(dim=0)
        if self.single:
            self.weight, self.bias = of_weight, of_bias
        else:
            self.weight += of_weight
            self.bias += of_bias

    def scaled(self, grad: Tensor) -> list[Tensor]:
        found = [self.hidden, self.weight, self.bias]
        if not (grad.device.type == "cpu" and grad.item() == 1.0):  # asking a GPU would wait for it
            found = [tensor.mul_(grad) for tensor in found]
        return [f.to(source.dtype) for f, source in zip(found, self.sources, strict=True)]
