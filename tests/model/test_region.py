"""Sequence parallelism as another pair of `enter` and `leave`, without an edit of a layer."""

from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.model.initial import initialise
from mlm.model.layer import EncoderLayer
from mlm.model.options import LayerOptions
from parallel.groups import Group, group_rank, group_size, make_grid
from parallel.layout import Layout
from parallel.sharding import shard_of, slice_of
from parallel.tensor.region import Region
from tests.model.test_model import CONFIG
from tests.ranks import run_ranks

STILL = replace(CONFIG, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
IDS = torch.zeros(3, 20, dtype=torch.long)
SEEN = Visibility((3, 20, 20), lengths=torch.tensor([20, 13, 4]))
BATCH = MicroBatch(IDS, SEEN, IDS, IDS, IDS[:, 0])


def piece(x: Tensor, group: Group) -> Tensor:
    """This rank's tokens, of (rows, seq_len, hidden_size)."""
    return x.chunk(group_size(group), dim=1)[group_rank(group)].contiguous()


def gathered(x: Tensor, group: Group) -> Tensor:
    pieces = [torch.empty_like(x) for _ in range(group_size(group))]
    dist.all_gather(pieces, x.contiguous(), group=group)
    return torch.cat(pieces, dim=1)


def reduce_scattered(x: Tensor, group: Group) -> Tensor:
    x = x.contiguous().clone()  # gloo has no reduce-scatter
    dist.all_reduce(x, group=group)
    return piece(x, group)


class Enter(Function):
    """Forward: all-gather of the tokens. Backward: reduce-scatter."""

    @staticmethod
    def forward(ctx, x, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        return gathered(x, group)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return reduce_scattered(grad, ctx.group), None


class Leave(Function):
    """Forward: reduce-scatter. Backward: all-gather of the tokens."""

    @staticmethod
    def forward(ctx, x, group):  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.group = group
        return reduce_scattered(x, group)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        return gathered(grad, ctx.group), None


SEQUENCE_REGION = Region(Enter.apply, Leave.apply)


def stack(group: Group, options: LayerOptions) -> torch.nn.ModuleList:
    layers = (EncoderLayer(STILL, index, group, options) for index in range(3))
    made = enumerate(layers)
    return torch.nn.ModuleList(initialise(one, f"layer.{i}", STILL, 4) for i, one in made)


def through(layers: torch.nn.ModuleList, x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x, BATCH)
    return x


def sequence_parallel() -> None:
    group = make_grid(Layout(tp=2)).tp
    generator = torch.Generator().manual_seed(1)
    x, weights = torch.randn(2, 3, 20, 32, generator=generator)
    whole, part = stack(None, LayerOptions()), stack(group, LayerOptions(region=SEQUENCE_REGION))
    given, tokens = x.clone().requires_grad_(), piece(x, group).requires_grad_()
    expected, found = through(whole, given), through(part, tokens)
    (expected * weights).sum().backward()
    (found * piece(weights, group)).sum().backward()
    assert found.shape == (3, 10, 32)
    torch.testing.assert_close(found, piece(expected, group))
    assert given.grad is not None
    torch.testing.assert_close(tokens.grad, piece(given.grad, group))
    gradients = dict(whole.named_parameters())
    for name, parameter in part.named_parameters():
        gradient, shard = parameter.grad, shard_of(parameter)
        if shard is None:  # norms, and biases after `leave`: of the tokens of this rank
            dist.all_reduce(gradient, group=group)
        # `key.bias` has no true gradient.
        atol = 1e-4 if name.endswith("key.bias") else 1e-5
        whole_gradient = gradients[name].grad
        assert whole_gradient is not None
        wanted = slice_of(whole_gradient, shard)
        torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=atol, msg=name)


@pytest.mark.ranks
def test_sequence_parallel_pair_gives_the_stack_of_one_process():
    """What more a whole model needs: embeddings and head that scatter and gather tokens, keys of
    dropout by rank, and the sum over the group of the gradients of norms and biases."""
    run_ranks(2, sequence_parallel)
