"""The four collectives of tensor parallelism, each with the one that its gradient needs."""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from parallel.groups import Group, group_rank, group_size


def copy_to_group(x: Tensor, group: Group) -> Tensor:
    """Forward: identity. Backward: all-reduce over the group.

    Stands before a layer whose weight is split by columns: every rank uses all of `x`, so the
    gradient of `x` is the sum over ranks.
    """
    return x if group is None else _Copy.apply(x, group)


def reduce_from_group(x: Tensor, group: Group) -> Tensor:
    """Forward: all-reduce over the group. Backward: identity.

    Stands after a layer whose weight is split by rows: each rank holds a part of the sum.
    """
    return x if group is None else _Reduce.apply(x, group)


def scatter_to_group(x: Tensor, group: Group) -> Tensor:
    """Forward: keeps this rank's slice of the last dim. Backward: all-gather of the slices."""
    return x if group is None else _Scatter.apply(x, group)


def gather_from_group(x: Tensor, group: Group) -> Tensor:
    """Forward: all-gather along the last dim. Backward: keeps this rank's slice."""
    return x if group is None else _Gather.apply(x, group)


def _slice(x: Tensor, group: Group) -> Tensor:
    return x.chunk(group_size(group), dim=-1)[group_rank(group)].contiguous()


def _all_gather(x: Tensor, group: Group) -> Tensor:
    parts = [torch.empty_like(x) for _ in range(group_size(group))]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim=-1)


class _Copy(Function):
    @staticmethod
    def forward(ctx, x, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        grad = grad.contiguous().clone()  # autograd may still hold the tensor that it passed
        dist.all_reduce(grad, group=ctx.group)
        return grad, None


class _Reduce(Function):
    @staticmethod
    def forward(ctx, x, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        x = x.contiguous().clone()
        dist.all_reduce(x, group=group)
        return x

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad, None


class _Scatter(Function):
    @staticmethod
    def forward(ctx, x, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        return _slice(x, group)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _all_gather(grad, ctx.group), None


class _Gather(Function):
    @staticmethod
    def forward(ctx, x, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        return _all_gather(x, group)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return _slice(grad, ctx.group), None
