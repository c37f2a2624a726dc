"""Randomness that does not depend on the layout: keyed initial weights and keyed dropout."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from parallel.groups import group_rank, group_size
from parallel.keys import key, subkey
from parallel.sharding import shard_of, slice_of


def normal_(parameter: Tensor, std: float, seed: int, name: str) -> None:
    """Fills a parameter from N(0, std^2), the same full tensor in every layout.

    The full tensor is drawn from a generator keyed by (seed, name) and then sliced, so a shard
    is a part of what one process would hold.
    """
    shard = shard_of(parameter)
    shape = list(parameter.shape)
    if shard is not None:
        shape[shard.dim] *= group_size(shard.group)
    generator = torch.Generator().manual_seed(key(seed, "initial weight", name))
    full = torch.empty(shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
    with torch.no_grad():
        parameter.copy_(slice_of(full, shard))


def dropout(x: Tensor, probability: float, dropout_key: int | None) -> Tensor:
    """Dropout whose mask is a function of `dropout_key` and the shape of `x` alone.

    Where `x` is split over tensor-parallel ranks, the caller puts the rank into the key. Without a
    key torch's generator draws the mask: in a compiled pass, which cannot make generators.
    """
    if probability == 0.0:
        return x
    if dropout_key is None:
        return F.dropout(x, probability)
    return _Dropout.apply(x, probability, dropout_key)


def sharded_key(dropout_key: int | None, site: str, group) -> int | None:
    """The key of a site whose activations are split over `group`: each rank has its own."""
    return subkey(dropout_key, site, group_rank(group))


class _Dropout(Function):
    @staticmethod
    def forward(ctx, x, probability, dropout_key):  # pyright: ignore[reportIncompatibleMethodOverride]
        generator = torch.Generator(x.device).manual_seed(dropout_key)
        kept = torch.empty(x.shape, dtype=torch.bool, device=x.device)
        kept.bernoulli_(1.0 - probability, generator=generator)
        ctx.save_for_backward(kept)
        ctx.scale = 1.0 / (1.0 - probability)
        # This kernel is x * kept * scale in one pass, which is the forward formula, too.
        return torch.ops.aten.native_dropout_backward(x, kept, ctx.scale)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        (kept,) = ctx.saved_tensors
        return torch.ops.aten.native_dropout_backward(grad, kept, ctx.scale), None, None
