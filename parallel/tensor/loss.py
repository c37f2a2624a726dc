"""Cross entropy over a vocabulary that is split over a tensor-parallel group.

`linear_cross_entropy` is the one that training uses: it goes from hidden states to the loss in
chunks of tokens, so that logits of all tokens never exist, and computes the gradients on the
way, so that no logit is computed twice.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from parallel.groups import Group, group_rank, group_size
from parallel.tensor.collectives import copy_to_group

IGNORED = -100
CHUNK_BYTES = 1 << 28  # of logits that exist at a time, in the dtype of the weights
ROWS_BYTES = 1 << 22  # of fp32 logits at a time on a CPU: what its caches hold


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
    `hidden`; it may run once. With no valid target, the sum is 0 and so are the gradients.
    """
    hidden = copy_to_group(hidden, group)
    return _LinearCrossEntropy.apply(hidden, weight, bias, targets, group, scale)


def _softmax_(logits: Tensor, bias: Tensor | None, targets: Tensor, group: Group) -> Tensor:
    """Losses (tokens,) fp32 of logits (tokens, vocab / group), which it overwrites by the gradient
    of each token's loss: softmax minus one-hot, or 0 where the target is -100.

    The softmax of a block of rows is taken once, in fp32, over this rank's part; one all-gather
    gives the factor that makes it the softmax over the whole vocabulary. The gradient at the target
    is set from fp32 numbers, not rounded twice: it is what is left of 1 when a model is sure.
    """
    ids = targets - group_rank(group) * logits.shape[1]
    here = (ids >= 0) & (ids < logits.shape[1])
    ids = ids.masked_fill(~here, 0).unsqueeze(1)
    valid = targets != IGNORED
    target = torch.empty_like(logits[:, 0], dtype=torch.float32)
    local = torch.empty_like(target)
    all_valid = logits.device.type == "cpu" and bool(valid.all())  # asking a GPU would wait for it
    rows = _rows_at_a_time(logits)
    bias = None if bias is None else bias.float()
    blocks = torch.empty(2, min(rows, len(logits)), logits.shape[1], device=logits.device)
    for start in range(0, len(logits), rows):
        part = slice(start, start + rows)
        block, shares = blocks[:, : len(logits[part])]  # used again: fresh memory costs a CPU more
        block.copy_(logits[part])
        if bias is not None:
            block.add_(bias)
        target[part] = block.gather(1, ids[part]).squeeze(1)
        torch.softmax(block, dim=1, out=shares)
        # The largest share is exp(max - log-sum-exp), so no second pass over exponentials.
        local[part] = block.amax(dim=1) - shares.amax(dim=1).log()
        logits[part] = shares if all_valid else shares.mul_(valid[part].unsqueeze(1))
    target = target.masked_fill(~here, 0.0)
    whole, target = _over_group(local, target, group)
    if group is not None:
        logits.mul_((local - whole).exp().unsqueeze(1))
    at_target = ((target - whole).exp() - 1.0) * valid
    places, columns = torch.arange(len(logits), device=logits.device), ids.squeeze(1)
    at_target = torch.where(here, at_target.to(logits.dtype), logits[places, columns])
    logits[places, columns] = at_target
    return (whole - target) * valid


def _over_group(local: Tensor, target: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and target logit over the whole vocabulary from those of the parts."""
    if group is None:
        return local, target
    own = torch.stack([local, target])
    parts = [torch.empty_like(own) for _ in range(group_size(group))]
    dist.all_gather(parts, own, group=group)
    every = torch.stack(parts)
    return every[:, 0].logsumexp(dim=0), every[:, 1].sum(dim=0)


def _rows_at_a_time(logits: Tensor) -> int:
    """All of them on an accelerator; on a CPU as many as stay in its caches."""
    if logits.device.type != "cpu":
        return max(1, logits.shape[0])
    return max(1, ROWS_BYTES // (4 * logits.shape[1]))


class _CrossEntropy(Function):
    @staticmethod
    def forward(ctx, logits, targets, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        gradient = logits.clone()
        losses = _softmax_(gradient, None, targets, group)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype).unsqueeze(1), None, None


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, group, scale):  # pyright: ignore[reportIncompatibleMethodOverride]
        tokens = hidden.shape[0]
        chunk = max(1, CHUNK_BYTES // (weight.shape[0] * weight.element_size()))
        losses = torch.empty(tokens, dtype=torch.float32, device=hidden.device)
        wanted = any(ctx.needs_input_grad[:3])
        grads = _Gradients(hidden, weight, bias, scale, chunk >= tokens) if wanted else None
        for start in range(0, tokens, chunk):
            part = slice(start, min(start + chunk, tokens))
            logits = hidden[part] @ weight.t()
            losses[part] = _softmax_(logits, bias, targets[part], group)
            if grads is not None:
                grads.add(part, logits)
        ctx.grads = grads
        ctx.mark_non_differentiable(losses)
        return losses.sum() * scale, losses

    @staticmethod
    def backward(ctx, grad, _):  # pyright: ignore[reportIncompatibleMethodOverride]
        assert ctx.grads is not None, "the gradients of a chunked loss serve one backward pass"
        grads, ctx.grads = ctx.grads, None
        return *grads.times(grad), None, None, None


class _Gradients:
    """Gradients of hidden, weight and bias times `scale`, filled chunk by chunk.

    With several chunks the weight's is added up in fp32: in bf16 each further chunk would round
    what the earlier ones gave.
    """

    def __init__(
        self, hidden: Tensor, weight: Tensor, bias: Tensor, scale: float, single: bool
    ) -> None:
        self.sources, self.scale, self.single = (hidden, weight, bias), scale, single
        self.hidden = torch.empty_like(hidden)
        if not single:
            self.weight = torch.zeros_like(weight, dtype=torch.float32)
            self.bias = torch.zeros_like(bias, dtype=torch.float32)

    def add(self, part: slice, of_logits: Tensor) -> None:
        """Adds a chunk; of_logits: (tokens of the part, vocab / group)."""
        hidden, weight, _ = self.sources
        scaled = hidden[part] * self.scale  # the small factor of the product, not the large one
        self.hidden[part] = (of_logits @ weight).mul_(self.scale)
        of_weight = of_logits.t() @ scaled
        of_bias = of_logits.sum(dim=0).mul_(self.scale)
        if self.single:
            self.weight, self.bias = of_weight, of_bias
        else:
            self.weight += of_weight
            self.bias += of_bias

    def times(self, grad: Tensor) -> list[Tensor]:
        found = [self.hidden, self.weight, self.bias]
        if not (grad.device.type == "cpu" and grad.item() == 1.0):  # asking a GPU would wait for it
            found = [tensor.mul_(grad) for tensor in found]
        return [f.to(source.dtype) for f, source in zip(found, self.sources, strict=True)]
