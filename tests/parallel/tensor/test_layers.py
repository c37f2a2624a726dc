"""Collectives and sharded layers against torch's whole layers, forward and backward."""

import pytest
import torch
import torch.nn.functional as F

from parallel.groups import make_grid
from parallel.layout import Layout
from parallel.random import normal_
from parallel.sharding import shard_of, slice_of
from parallel.tensor.collectives import (
    copy_to_group,
    gather_from_group,
    reduce_from_group,
    scatter_to_group,
)
from parallel.tensor.layers import ColumnParallelLinear, RowParallelLinear, VocabParallelEmbedding
from tests.ranks import run_ranks

pytestmark = pytest.mark.ranks

IN, OUT, TP = 12, 8, 4


def whole_linear() -> torch.nn.Linear:
    """A plain layer with the weights that the sharded ones are initialised with."""
    layer = torch.nn.Linear(IN, OUT)
    normal_(layer.weight, 0.5, 1, "weight")
    normal_(layer.bias, 0.5, 1, "bias")
    return layer


def rows() -> torch.Tensor:
    return torch.randn(3, IN, generator=torch.Generator().manual_seed(5))


def output_grad() -> torch.Tensor:
    return torch.randn(3, OUT, generator=torch.Generator().manual_seed(6))


def initialise(layer: torch.nn.Module) -> None:
    for name, parameter in layer.named_parameters():
        normal_(parameter, 0.5, 1, name)


def column(gather: bool) -> dict:
    grid = make_grid(Layout(tp=TP))
    layer = ColumnParallelLinear(IN, OUT, grid.tp, gather_output=gather)
    initialise(layer)
    x = rows().requires_grad_()
    y = layer(x)
    grad = output_grad() if gather else output_grad().chunk(TP, dim=1)[grid.tp_rank]
    y.backward(grad)
    return {"y": y.detach(), "x": x.grad, "w": layer.weight.grad, "b": layer.bias.grad}


def row(input_is_whole: bool) -> dict:
    grid = make_grid(Layout(tp=TP))
    layer = RowParallelLinear(IN, OUT, grid.tp, input_is_whole=input_is_whole)
    initialise(layer)
    x = rows() if input_is_whole else rows().chunk(TP, dim=1)[grid.tp_rank]
    x = x.clone().requires_grad_()
    y = layer(x)
    y.backward(output_grad())
    return {"y": y.detach(), "x": x.grad, "w": layer.weight.grad, "b": layer.bias.grad}


def whole() -> dict:
    layer, x = whole_linear(), rows().requires_grad_()
    y = layer(x)
    y.backward(output_grad())
    return {"y": y.detach(), "x": x.grad, "w": layer.weight.grad, "b": layer.bias.grad}


@pytest.mark.parametrize("gather", [False, True])
def test_column_parallel_linear_equals_the_whole_layer(gather):
    results, expected = run_ranks(TP, column, gather), whole()
    y = results[0]["y"] if gather else torch.cat([r["y"] for r in results], dim=1)
    torch.testing.assert_close(y, expected["y"])
    for result in results:
        torch.testing.assert_close(result["x"], expected["x"])
    torch.testing.assert_close(torch.cat([r["w"] for r in results]), expected["w"])
    torch.testing.assert_close(torch.cat([r["b"] for r in results]), expected["b"])


@pytest.mark.parametrize("input_is_whole", [False, True])
def test_row_parallel_linear_equals_the_whole_layer(input_is_whole):
    results, expected = run_ranks(TP, row, input_is_whole), whole()
    for result in results:
        torch.testing.assert_close(result["y"], expected["y"])
        torch.testing.assert_close(result["b"], expected["b"])
    if input_is_whole:
        torch.testing.assert_close(results[0]["x"], expected["x"])
    else:
        torch.testing.assert_close(torch.cat([r["x"] for r in results], dim=1), expected["x"])
    torch.testing.assert_close(torch.cat([r["w"] for r in results], dim=1), expected["w"])


def embedding(ids: torch.Tensor, padding: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    grid = make_grid(Layout(tp=TP))
    layer = VocabParallelEmbedding(16, 6, grid.tp, padding_idx=padding)
    initialise(layer)
    y = layer(ids)
    y.square().sum().backward()
    assert layer.weight.grad is not None
    return y.detach(), layer.weight.grad


@pytest.mark.parametrize("padding", [None, 1])
def test_vocab_parallel_embedding_trains_every_row_but_the_padding(padding):
    """Ids 1, 5, 9 and 13 are local row 1 of each rank; as padding it would get no gradient."""
    ids = torch.tensor([[0, 1, 5, 9], [13, 15, 1, 4]])
    results = run_ranks(TP, embedding, ids, padding)
    table = torch.empty(16, 6)
    normal_(table, 0.5, 1, "weight")
    table.requires_grad_()
    expected = F.embedding(ids, table, padding_idx=padding)
    expected.square().sum().backward()
    for found, _ in results:
        torch.testing.assert_close(found, expected.detach())
    gradient = torch.cat([grad for _, grad in results])
    torch.testing.assert_close(gradient, table.grad)
    assert gradient[[5, 9, 13]].abs().sum(dim=1).min() > 0
    assert gradient[1].any() == (padding is None)


def collectives() -> dict:
    """Each collective on x (rank + 1 in all places), with an output gradient of rank + 10."""
    grid = make_grid(Layout(tp=TP))
    found = {}
    for name, function in {
        "copy": copy_to_group,
        "reduce": reduce_from_group,
        "scatter": scatter_to_group,
        "gather": gather_from_group,
    }.items():
        x = torch.full((2, TP), grid.tp_rank + 1.0, requires_grad=True)
        y = function(x, grid.tp)
        y.backward(torch.full_like(y, grid.tp_rank + 10.0))
        found[name] = (y.detach(), x.grad)
    return found


def test_collectives_are_correct_forward_and_backward():
    results = run_ranks(TP, collectives)
    ones = torch.ones(2, TP)
    ranks = torch.arange(TP, dtype=torch.float32)
    for rank, found in enumerate(results):
        x, grad = (rank + 1.0) * ones, (rank + 10.0) * ones
        assert_pair(found["copy"], x, (ranks + 10).sum() * ones)
        assert_pair(found["reduce"], (ranks + 1).sum() * ones, grad)
        assert_pair(found["scatter"], x[:, :1], (ranks + 10).expand(2, TP))
        assert_pair(found["gather"], (ranks + 1).repeat_interleave(TP).expand(2, TP * TP), grad)


def assert_pair(found, output, gradient) -> None:
    torch.testing.assert_close(found[0], output)
    torch.testing.assert_close(found[1], gradient)


def test_collectives_of_one_rank_are_the_identity():
    x = torch.ones(2, 3)
    for function in (copy_to_group, reduce_from_group, scatter_to_group, gather_from_group):
        assert function(x, None) is x


def initial_slices() -> list[torch.Tensor]:
    grid = make_grid(Layout(tp=TP))
    layer = RowParallelLinear(IN, OUT, grid.tp)
    initialise(layer)
    full = torch.empty(OUT, IN)
    normal_(full, 0.5, 1, "weight")
    assert torch.equal(slice_of(full, shard_of(layer.weight)), layer.weight)
    return [layer.weight.detach(), full]


def test_initial_weights_are_slices_of_the_same_tensor():
    results = run_ranks(TP, initial_slices)
    joined = torch.cat([part for part, _ in results], dim=1)
    assert torch.equal(joined, results[0][1])
    assert joined.std() == pytest.approx(0.5, rel=0.2)


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda group: ColumnParallelLinear(4, 6, group), "out_features=6"),
        (lambda group: RowParallelLinear(6, 4, group), "in_features=6"),
        (lambda group: VocabParallelEmbedding(6, 4, group), "num_embeddings=6"),
    ],
)
def test_layers_refuse_sizes_that_do_not_divide(make, what):
    def refused() -> str:
        grid = make_grid(Layout(tp=TP))
        with pytest.raises(ValueError, match="is not a multiple of the 4 ranks") as caught:
            make(grid.tp)
        return str(caught.value)

    assert what in run_ranks(TP, refused)[0]
