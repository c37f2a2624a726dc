"""Attention, its heads split over a tensor-parallel group."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlm.batch.visibility import Visibility
from mlm.model.config import ModelConfig
from mlm.model.dropout import Dropout
from mlm.model.kernels import Call, check_name, choose
from mlm.model.options import LayerOptions
from mlm.model.relative import RelativePositions
from parallel.groups import Group, group_rank, group_size
from parallel.random import sharded_key
from parallel.sharding import mark_sharded, shard_of
from parallel.tensor.collectives import copy_to_group
from parallel.tensor.layers import column_linear, row_linear
from parallel.tensor.region import Region


@dataclass
class AttentionRecord:
    """What an attention computes besides its output, (batch, heads / group, ...): keys and values
    as those of a `past`, and its weights (..., queries, keys) where they are asked for."""

    keys: Tensor | None = None
    values: Tensor | None = None
    weights: Tensor | None = None


@dataclass(frozen=True)
class AttentionInputs:
    """What an attention is given and asked for besides its input; in pretraining nothing.

    past: keys and values before those of `x`, each (batch, heads / group, length, head_size)
    source: (batch, keys, hidden_size), whose keys and values are taken in place of those of `x`;
        with `past`, which holds them already, it is not read
    head_mask: (heads of the whole layer,), what the weights of each are multiplied by
    weights: whether the attention weights are wanted, too
    record: where the keys, values and weights are put; None: nowhere
    """

    past: tuple[Tensor, Tensor] | None = None
    source: Tensor | None = None
    head_mask: Tensor | None = None
    weights: bool = False
    record: AttentionRecord | None = None


DEFAULT_INPUTS = AttentionInputs()


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
        self.dropout = Dropout(config.attention_probs_dropout_prob)  # a kernel applies it
        for name in ("query", "key", "value"):
            hidden = config.hidden_size
            self.add_module(name, column_linear(hidden, hidden, group, region=None))
        self.relative = options.positions != "absolute"
        if self.relative:
            self.distance_embedding = RelativePositions(
                config.max_position_embeddings, config.head_size, group, options.positions
            )

    def forward(
        self,
        x: Tensor,
        visibility: Visibility,
        dropout_key: int | None,
        extras: AttentionInputs = DEFAULT_INPUTS,
    ) -> tuple[Tensor, Tensor | None]:
        """x: (batch, queries, hidden_size) -> (batch, queries, hidden_size / group), and the
        weights where they are asked for"""
        x = self.region.enter(x, self.group)  # once for the three projections
        query = self._heads("query", x)
        keys, values = self._keys_and_values(x, extras)
        if extras.record is not None:
            extras.record.keys, extras.record.values = keys, values
        probability = self.dropout.p if self.training else 0.0
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
        return mixed, weights if extras.weights else None

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


class ResidualOutput(nn.Module):
    """`residual + dropout(W x + b)`: the end of both blocks of a layer.

    width: features of x on all ranks; site: of the dropout within the layer
    """

    def __init__(
        self,
        width: int,
        hidden_size: int,
        probability: float,
        site: str,
        group: Group,
        region: Region,
    ):
        super().__init__()
        self.site = site
        self.dense = row_linear(width, hidden_size, group, region=region)
        self.dropout = Dropout(probability)

    def forward(self, x: Tensor, residual: Tensor, dropout_key: int | None) -> Tensor:
        """x: (..., width / group), residual: (..., hidden_size)"""
        return residual + self.dropout(self.dense(x), dropout_key, self.site)


class AttentionBlock(nn.Module):
    """`x + dropout(W_o attention(norm(x)))`."""

    def __init__(self, config: ModelConfig, group: Group, options: LayerOptions):
        super().__init__()
        hidden, probability = config.hidden_size, config.hidden_dropout_prob
        self.self_attn_layer_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.self = Attention(config, group, options)
        self.output = ResidualOutput(
            hidden, hidden, probability, "attention output", group, options.region
        )
        self.pruned: set[int] = set()  # on all ranks

    def forward(
        self,
        x: Tensor,
        visibility: Visibility,
        dropout_key: int | None,
        extras: AttentionInputs = DEFAULT_INPUTS,
    ) -> tuple[Tensor, Tensor | None]:
        """x: (batch, queries, hidden_size) -> the same shape, and the weights where asked for"""
        y, weights = self.self(self.self_attn_layer_norm(x), visibility, dropout_key, extras)
        return self.output(y, x, dropout_key), weights

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
