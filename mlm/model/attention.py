"""Attention, its heads split over a tensor-parallel group."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlm.batch.visibility import Visibility
from mlm.model.config import ModelConfig
from mlm.model.kernels import Call, check_name, choose
from mlm.model.options import LayerOptions
from mlm.model.relative import RelativePositions
from parallel.groups import Group, group_rank, group_size
from parallel.keys import key
from parallel.random import dropout, sharded_key
from parallel.sharding import mark_sharded, shard_of
from parallel.tensor.collectives import copy_to_group
from parallel.tensor.layers import ColumnParallelLinear, RowParallelLinear


@dataclass(frozen=True)
class AttentionInputs:
    """What an attention is given and asked for besides its input; in pretraining nothing.

    past: keys and values before those of `x`, each (batch, heads / group, length, head_size)
    source: (batch, keys, hidden_size), whose keys and values are taken in place of those of `x`;
        with `past`, which holds them already, it is not read
    head_mask: (heads of the whole layer,), what the weights of each are multiplied by
    weights: whether the attention weights are wanted, too
    """

    past: tuple[Tensor, Tensor] | None = None
    source: Tensor | None = None
    head_mask: Tensor | None = None
    weights: bool = False


DEFAULT_INPUTS = AttentionInputs()


@dataclass(frozen=True)
class AttentionResult:
    """x: (batch, queries, hidden_size / group), or whole after the output projection;
    weights: (batch, heads / group, queries, keys), where asked for; keys, values: as `past`."""

    x: Tensor
    weights: Tensor | None
    keys: Tensor
    values: Tensor


class Attention(nn.Module):
    """Query, key and value projections and the attention of this rank's heads."""

    def __init__(self, config: ModelConfig, group: Group, options: LayerOptions):
        super().__init__()
        check_name(options.attention)
        self.group, self.kernel, self.region = group, options.attention, options.region
        self.all_heads = config.num_attention_heads  # before any is pruned
        self.heads = self.all_heads // group_size(group)
        self.head_size = config.head_size
        first = group_rank(group) * self.heads
        self.kept = list(range(first, first + self.heads))  # this rank's, numbered in the layer
        self.dropout = config.attention_probs_dropout_prob
        for name in ("query", "key", "value"):
            projection = ColumnParallelLinear(
                config.hidden_size, config.hidden_size, group, region=None
            )
            self.add_module(name, projection)
        self.relative = options.positions != "absolute"
        if self.relative:
            self.distance_embedding = RelativePositions(
                config.max_position_embeddings, config.head_size, group, options.positions
            )

    def forward(
        self,
        x: Tensor,
        visibility: Visibility,
        dropout_key: int,
        extras: AttentionInputs = DEFAULT_INPUTS,
    ) -> AttentionResult:
        """x: (batch, queries, hidden_size)"""
        x = self.region.enter(x, self.group)  # once for the three projections
        query = self._heads("query", x)
        keys, values = self._keys_and_values(x, extras)
        probability = self.dropout if self.training else 0.0
        factors = None
        if extras.head_mask is not None:  # its gradient is the sum over the ranks' heads
            factors = copy_to_group(extras.head_mask, self.group)[self.kept]
        call = Call(
            query,
            keys,
            values,
            visibility,
            probability,
            sharded_key(dropout_key, "attention", self.group) if probability else 0,
            self.distance_embedding if self.relative else None,
            factors,
            extras.weights,
        )
        mixed, weights = choose(self.kernel, call).run(call)
        mixed = mixed.transpose(1, 2).reshape(*x.shape[:-1], self.heads * self.head_size)
        return AttentionResult(mixed, weights if extras.weights else None, keys, values)

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """(batch, length, hidden_size) -> (batch, heads / group, length, head_size)"""
        shape = (*x.shape[:-1], self.heads, self.head_size)
        return getattr(self, name)(x).view(shape).transpose(1, 2)

    def _keys_and_values(self, x: Tensor, extras: AttentionInputs) -> tuple[Tensor, Tensor]:
        if extras.source is not None:
            if extras.past is not None:
                return extras.past
            x = copy_to_group(extras.source, self.group)  # whole on every rank with any region
        keys, values = self._heads("key", x), self._heads("value", x)
        if extras.past is not None:
            keys = torch.cat([extras.past[0], keys], dim=2)
            values = torch.cat([extras.past[1], values], dim=2)
        return keys, values


class AttentionOutput(nn.Module):
    def __init__(self, config: ModelConfig, group: Group, options: LayerOptions):
        super().__init__()
        hidden = config.hidden_size
        self.dense = RowParallelLinear(hidden, hidden, group, region=options.region)


class AttentionBlock(nn.Module):
    """`x + dropout(W_o attention(norm(x)))`."""

    def __init__(self, config: ModelConfig, group: Group, options: LayerOptions):
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = Attention(config, group, options)
        self.output = AttentionOutput(config, group, options)
        self.pruned: set[int] = set()  # on all ranks

    def forward(
        self,
        x: Tensor,
        visibility: Visibility,
        dropout_key: int,
        extras: AttentionInputs = DEFAULT_INPUTS,
    ) -> AttentionResult:
        """x: (batch, queries, hidden_size) -> the same shape"""
        attended = self.self(self.self_attn_layer_norm(x), visibility, dropout_key, extras)
        y = self.output.dense(attended.x)
        if self.training and self.dropout:
            y = dropout(y, self.dropout, key(dropout_key, "attention output"))
        return AttentionResult(x + y, attended.weights, attended.keys, attended.values)

    def check_pruning(self, heads: Iterable[int]) -> None:
        """Raises ValueError, on every rank, where pruning `heads` would leave a rank of the group
        without a head, or with another number than the others."""
        inner, gone = self.self, self.pruned.union(heads)
        ranks = group_size(inner.group)
        each = inner.all_heads // ranks
        counts = [
            each - len(gone.intersection(range(r * each, (r + 1) * each))) for r in range(ranks)
        ]
        named = ", ".join(map(str, sorted(gone)))
        if min(counts) == 0:
            raise ValueError(
                f"pruning the heads {named} leaves an attention (or its part on a rank) without "
                f"heads; leave at least one of each {each}"
            )
        if len(set(counts)) > 1:
            raise ValueError(
                f"pruning the heads {named} leaves the ranks that split an attention with "
                f"{', '.join(map(str, counts))} heads; prune as many on each, or prune unsharded"
            )

    def prune_heads(self, heads: Iterable[int]) -> None:
        """Takes heads, by their numbers in the whole layer, out of the projections; those that are
        already gone are ignored. Raises as `check_pruning` does."""
        heads = set(heads)
        self.check_pruning(heads)
        self.pruned |= heads
        inner = self.self
        kept = [head for head in inner.kept if head not in heads]
        if kept == inner.kept:
            return
        places = torch.tensor([inner.kept.index(head) for head in kept])
        size = inner.head_size
        columns = (places.unsqueeze(1) * size + torch.arange(size)).flatten()
        for name in ("query", "key", "value"):
            _keep(inner.get_submodule(name), "weight", columns, 0)
            _keep(inner.get_submodule(name), "bias", columns, 0)
        _keep(self.output.dense, "weight", columns, 1)
        inner.kept, inner.heads = kept, len(kept)


def _keep(module: nn.Module, name: str, places: Tensor, dim: int) -> None:
    old = module.get_parameter(name)
    new = old.detach().index_select(dim, places.to(old.device)).clone()
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    if shard := shard_of(old):
        mark_sharded(parameter, shard.dim, shard.group)
    setattr(module, name, parameter)
