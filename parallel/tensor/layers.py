"""Linear and embedding layers whose weights are split over a tensor-parallel group.

Weights are left uninitialised: the model fills them by name (`parallel.random.normal_`). Models
make them by `column_linear`, `row_linear` and `vocab_embedding`, which give PyTorch's own layers
where there is no group, as tools that look for `nn.Linear` or `nn.Embedding` expect.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from parallel.groups import Group, group_rank
from parallel.sharding import mark_sharded, split
from parallel.tensor.collectives import gather_from_group, scatter_to_group
from parallel.tensor.region import TENSOR_REGION, Region


def column_linear(
    in_features: int, out_features: int, group: Group, *, region: Region | None = TENSOR_REGION
) -> "nn.Linear | ColumnParallelLinear":
    """A linear layer that is split by output features, or whole without a group."""
    if group is None:
        return _whole_linear(in_features, out_features)
    return ColumnParallelLinear(in_features, out_features, group, region=region)


def row_linear(
    in_features: int, out_features: int, group: Group, *, region: Region = TENSOR_REGION
) -> "nn.Linear | RowParallelLinear":
    """A linear layer that is split by input features, or whole without a group."""
    if group is None:
        return _whole_linear(in_features, out_features)
    return RowParallelLinear(in_features, out_features, group, region=region)


def vocab_embedding(
    num_embeddings: int, embedding_dim: int, group: Group, *, padding_idx: int | None = None
) -> "nn.Embedding | VocabParallelEmbedding":
    """An embedding table that is split by ids, or whole without a group."""
    if group is not None:
        return VocabParallelEmbedding(num_embeddings, embedding_dim, group, padding_idx=padding_idx)
    table = torch.empty(num_embeddings, embedding_dim)
    return nn.Embedding(num_embeddings, embedding_dim, padding_idx, _weight=table)


def _whole_linear(in_features: int, out_features: int) -> nn.Linear:
    layer = nn.Linear(in_features, out_features, device="meta")  # draws nothing there
    layer.weight = nn.Parameter(torch.empty(out_features, in_features))
    layer.bias = nn.Parameter(torch.empty(out_features))
    return layer


class ColumnParallelLinear(nn.Module):
    """`y = x W^T + b`, the rows of W (output features) split over the group.

    Forward: x (..., in) enters the region -> y (..., out / group), or (..., out) with
    `gather_output`. Backward: as `region.enter` has it (all-reduce of the gradient of x); W and b
    stay local.

    region: None where x is in the region already, such as an input that several layers share
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: Group,
        *,
        region: Region | None = TENSOR_REGION,
        gather_output: bool = False,
    ):
        super().__init__()
        local = split(out_features, group, "out_features")
        self.group, self.region, self.gather_output = group, region, gather_output
        self.weight = nn.Parameter(torch.empty(local, in_features))
        self.bias = nn.Parameter(torch.empty(local))
        mark_sharded(self.weight, 0, group)
        mark_sharded(self.bias, 0, group)

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.region is None else self.region.enter(x, self.group)
        y = F.linear(x, self.weight, self.bias)
        return gather_from_group(y, self.group) if self.gather_output else y


class RowParallelLinear(nn.Module):
    """`y = x W^T + b`, the columns of W (input features) split over the group.

    Forward: x (..., in / group), or (..., in) with `input_is_whole` -> y (..., out), which leaves
    the region (all-reduced). Backward: as `region.leave` has it (identity); b is whole and the same
    on every rank.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        group: Group,
        *,
        region: Region = TENSOR_REGION,
        input_is_whole: bool = False,
    ):
        super().__init__()
        local = split(in_features, group, "in_features")
        self.group, self.region, self.input_is_whole = group, region, input_is_whole
        self.weight = nn.Parameter(torch.empty(out_features, local))
        self.bias = nn.Parameter(torch.empty(out_features))
        mark_sharded(self.weight, 1, group)

    def forward(self, x: Tensor) -> Tensor:
        x = scatter_to_group(x, self.group) if self.input_is_whole else x
        if self.group is None:
            return F.linear(x, self.weight, self.bias)
        y = self.region.leave(F.linear(x, self.weight), self.group)
        return y + self.bias  # after the reduction: before it, it would count once per rank


class VocabParallelEmbedding(nn.Module):
    """An embedding table, its rows (ids) split over the group.

    Forward: ids (...) -> (..., embedding_dim), all-reduced: a rank gives zeros for ids that it
    does not hold. Backward: local; the row of `padding_idx` gets no gradient from here.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        group: Group,
        *,
        padding_idx: int | None = None,
    ):
        super().__init__()
        local = split(num_embeddings, group, "num_embeddings")
        self.group = group
        self.first = group_rank(group) * local
        # A global id: as a local id it would block the gradient of an ordinary row on other ranks.
        self.padding_idx = padding_idx
        self.weight = nn.Parameter(torch.empty(local, embedding_dim))
        mark_sharded(self.weight, 0, group)

    def forward(self, ids: Tensor) -> Tensor:
        if self.group is None:
            return F.embedding(ids, self.weight, self.padding_idx)
        local = ids - self.first
        elsewhere = (local < 0) | (local >= self.weight.shape[0])
        found = F.embedding(local.masked_fill(elsewhere, 0), self.weight, self._local_padding())
        return TENSOR_REGION.leave(found.masked_fill(elsewhere.unsqueeze(-1), 0.0), self.group)

    def _local_padding(self) -> int | None:
        local = -1 if self.padding_idx is None else self.padding_idx - self.first
        return local if 0 <= local < self.weight.shape[0] else None
