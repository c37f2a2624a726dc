"""Attention, its heads split over a tensor-parallel group."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.model.config import ModelConfig
from mlm.model.relative import RelativePositions
from parallel.groups import Group, group_rank, group_size
from parallel.keys import key
from parallel.random import dropout, sharded_key
from parallel.sharding import mark_sharded, shard_of
from parallel.tensor.collectives import copy_to_group
from parallel.tensor.layers import ColumnParallelLinear, RowParallelLinear


@dataclass(frozen=True)
class Attend:
    """What an attention is asked for beside mixing `x` with itself; pretraining asks for no more
    than a mask, and that on held-out blocks only.

    mask: (batch, 1, queries or 1, keys); bool, true to attend, or a number to add to the scores
    blind: whether some query may attend to nothing by a `mask` of numbers: it attends to all alike,
        which the fused kernel's backward pass gets wrong
    past: keys and values before those of `x`, each (batch, heads / group, length, head_size)
    source: (batch, keys, hidden_size), whose keys and values are taken in place of those of `x`;
        with `past`, that holds them already and `source` is not looked at
    head_mask: (heads of the whole layer,), what the weights of each are multiplied by
    weights: whether the attention weights are wanted, too
    """

    mask: Tensor | None = None
    blind: bool = False
    past: tuple[Tensor, Tensor] | None = None
    source: Tensor | None = None
    head_mask: Tensor | None = None
    weights: bool = False


@dataclass(frozen=True)
class Attended:
    """x: (batch, queries, hidden_size / group), or whole behind the output projection;
    weights: (batch, heads / group, queries, keys), where asked for; keys, values: as `past`."""

    x: Tensor
    weights: Tensor | None
    keys: Tensor
    values: Tensor


def use_fused(requested: str, device: torch.device, dtype: torch.dtype, drops: bool) -> bool:
    """Whether attention runs as one kernel.

    On CUDA the fused kernel is faster and keeps no score matrix. On a CPU it is faster in fp32
    without dropout only: its backward pass in bf16, and its dropout, lose to plain products.
    Fused dropout takes no key, so with it runs are equal to others of the same layout alone.
    """
    if requested != "auto":
        return requested == "fused"
    return device.type == "cuda" or (dtype == torch.float32 and not drops)


def attention_weights(
    query: Tensor, keys: Tensor, mask: Tensor | None, positions: RelativePositions | None = None
) -> Tensor:
    """`softmax((Q K^T + relative positions) / sqrt(d))`; softmax in fp32.

    query, keys: (batch, heads, length, head_size); mask: as in `Attend`
    """
    scale = 1.0 / math.sqrt(query.shape[-1])
    query = query * scale
    scores = query @ keys.transpose(-1, -2)
    if positions is not None:
        scores = scores + positions(query, keys, scale)
    if mask is not None and mask.dtype == torch.bool:
        scores = scores.masked_fill(~mask, float("-inf"))
    elif mask is not None:
        scores = scores + mask
    return scores.softmax(dim=-1)  # a bf16 softmax is fp32 inside


class Attention(nn.Module):
    """Query, key and value projections and the attention of this rank's heads."""

    def __init__(self, config: ModelConfig, group: Group, path: str, positions: str = "absolute"):
        super().__init__()
        self.group, self.path = group, path
        self.all_heads = config.num_attention_heads  # before any is pruned
        self.heads = self.all_heads // group_size(group)
        self.head_size = config.head_size
        first = group_rank(group) * self.heads
        self.kept = list(range(first, first + self.heads))  # this rank's, numbered in the layer
        self.dropout = config.attention_probs_dropout_prob
        for name in ("query", "key", "value"):
            projection = ColumnParallelLinear(
                config.hidden_size, config.hidden_size, group, input_is_copied=True
            )
            self.add_module(name, projection)
        self.relative = positions != "absolute"
        if self.relative:
            self.distance_embedding = RelativePositions(
                config.max_position_embeddings, config.head_size, group, positions
            )

    def forward(self, x: Tensor, attend: Attend, dropout_key: int) -> Attended:
        """x: (batch, queries, hidden_size)"""
        x = copy_to_group(x, self.group)  # once for the three projections
        query = self._heads("query", x)
        keys, values = self._keys_and_values(x, attend)
        probability = self.dropout if self.training else 0.0
        heads = attend.weights or attend.head_mask is not None
        plain = not (self.relative or attend.blind or heads)
        weights = None
        if plain and use_fused(self.path, x.device, x.dtype, probability > 0):
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=attend.mask, dropout_p=probability
            )
        else:
            positions = self.distance_embedding if self.relative else None
            weights = attention_weights(query, keys, attend.mask, positions)
            drop = sharded_key(dropout_key, "attention", self.group) if probability else 0
            weights = dropout(weights, probability, drop)
            if attend.head_mask is not None:
                factors = copy_to_group(attend.head_mask, self.group)  # its gradient is of all
                weights = weights * factors[self.kept][:, None, None]
            mixed = weights @ values
        mixed = mixed.transpose(1, 2).reshape(*x.shape[:-1], self.heads * self.head_size)
        return Attended(mixed, weights if attend.weights else None, keys, values)

    def _heads(self, name: str, x: Tensor) -> Tensor:
        """(batch, length, hidden_size) -> (batch, heads / group, length, head_size)"""
        shape = (*x.shape[:-1], self.heads, self.head_size)
        return getattr(self, name)(x).view(shape).transpose(1, 2)

    def _keys_and_values(self, x: Tensor, attend: Attend) -> tuple[Tensor, Tensor]:
        if attend.source is not None:
            if attend.past is not None:
                return attend.past
            x = copy_to_group(attend.source, self.group)
        keys, values = self._heads("key", x), self._heads("value", x)
        if attend.past is not None:
            keys = torch.cat([attend.past[0], keys], dim=2)
            values = torch.cat([attend.past[1], values], dim=2)
        return keys, values


class AttentionOutput(nn.Module):
    def __init__(self, config: ModelConfig, group: Group):
        super().__init__()
        self.dense = RowParallelLinear(config.hidden_size, config.hidden_size, group)


class AttentionBlock(nn.Module):
    """`x + dropout(W_o attention(norm(x)))`."""

    def __init__(self, config: ModelConfig, group: Group, path: str, positions: str = "absolute"):
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = Attention(config, group, path, positions)
        self.output = AttentionOutput(config, group)
        self.pruned: set[int] = set()  # on all ranks

    def forward(self, x: Tensor, attend: Attend, dropout_key: int) -> Attended:
        """x: (batch, queries, hidden_size) -> the same shape"""
        attended = self.self(self.self_attn_layer_norm(x), attend, dropout_key)
        y = self.output.dense(attended.x)
        if self.training and self.dropout:
            y = dropout(y, self.dropout, key(dropout_key, "attention output"))
        return Attended(x + y, attended.weights, attended.keys, attended.values)

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
        gone already are passed over. Raises as `check_pruning` does."""
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
        for projection in (inner.query, inner.key, inner.value):
            _keep(projection, "weight", columns, 0)
            _keep(projection, "bias", columns, 0)
        _keep(self.output.dense, "weight", columns, 1)
        inner.kept, inner.heads = kept, len(kept)


def _keep(module: nn.Module, name: str, places: Tensor, dim: int) -> None:
    old = module.get_parameter(name)
    new = old.detach().index_select(dim, places.to(old.device)).clone()
    parameter = nn.Parameter(new, requires_grad=old.requires_grad)
    if shard := shard_of(old):
        mark_sharded(parameter, shard.dim, shard.group)
    setattr(module, name, parameter)
