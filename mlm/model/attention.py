"""Self-attention, its heads split over a tensor-parallel group."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.batch import MicroBatch
from mlm.model.config import ModelConfig
from mlm.model.embeddings import key_mask
from parallel.collectives import copy_to_group
from parallel.groups import Group, group_size
from parallel.keys import key
from parallel.layers import ColumnParallelLinear, RowParallelLinear
from parallel.random import dropout, sharded_key


def use_fused(requested: str, device: torch.device, dtype: torch.dtype, drops: bool) -> bool:
    """Whether attention runs as one kernel.

    On CUDA the fused kernel is faster and keeps no score matrix. On a CPU it is faster in fp32
    without dropout only: its backward pass in bf16, and its dropout, lose to plain products.
    Fused dropout takes no key, so with it runs are equal to others of the same layout alone.
    """
    if requested != "auto":
        return requested == "fused"
    return device.type == "cuda" or (dtype == torch.float32 and not drops)


def unfused_attention(
    query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, probability: float, drop: int
) -> Tensor:
    """`dropout(softmax(Q K^T / sqrt(d))) V` as two batched products; softmax in fp32.

    query, keys, values: (micro_batch, heads, seq_len, head_size); mask: bool, true to attend
    drop: the key of the dropout mask. Returns the shape of `query`.
    """
    scores = (query * (1.0 / math.sqrt(query.shape[-1]))) @ keys.transpose(-1, -2)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    weights = scores.softmax(dim=-1)  # a bf16 softmax is fp32 inside
    return dropout(weights, probability, drop) @ values


class SelfAttention(nn.Module):
    """Query, key and value projections and the attention of this rank's heads."""

    def __init__(self, config: ModelConfig, group: Group, path: str):
        super().__init__()
        self.group, self.path = group, path
        self.heads = config.num_attention_heads // group_size(group)
        self.head_size = config.head_size
        self.dropout = config.attention_probs_dropout_prob
        for name in ("query", "key", "value"):
            projection = ColumnParallelLinear(
                config.hidden_size, config.hidden_size, group, input_is_copied=True
            )
            self.add_module(name, projection)

    def forward(self, x: Tensor, lengths: Tensor | None, dropout_key: int) -> Tensor:
        """x: (micro_batch, seq_len, hidden_size) -> (..., hidden_size / group)."""
        x = copy_to_group(x, self.group)  # once for the three projections
        shape = (*x.shape[:-1], self.heads, self.head_size)
        query, keys, values = (
            getattr(self, name)(x).view(shape).transpose(1, 2) for name in ("query", "key", "value")
        )
        mask = None if lengths is None else key_mask(lengths, x.shape[1])
        probability = self.dropout if self.training else 0.0
        if use_fused(self.path, x.device, x.dtype, probability > 0):
            mixed = F.scaled_dot_product_attention(
                query, keys, values, attn_mask=mask, dropout_p=probability
            )
        else:
            drop = sharded_key(dropout_key, "attention", self.group) if probability else 0
            mixed = unfused_attention(query, keys, values, mask, probability, drop)
        return mixed.transpose(1, 2).reshape(*x.shape[:-1], self.heads * self.head_size)


class AttentionOutput(nn.Module):
    def __init__(self, config: ModelConfig, group: Group):
        super().__init__()
        self.dense = RowParallelLinear(config.hidden_size, config.hidden_size, group)


class AttentionBlock(nn.Module):
    """`x + dropout(W_o attention(norm(x)))`."""

    def __init__(self, config: ModelConfig, group: Group, path: str):
        super().__init__()
        self.dropout = config.hidden_dropout_prob
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.self = SelfAttention(config, group, path)
        self.output = AttentionOutput(config, group)

    def forward(self, x: Tensor, batch: MicroBatch, dropout_key: int) -> Tensor:
        # Training blocks are full; only held-out ones end in padding.
        lengths = None if self.training else batch.lengths
        y = self.output.dense(self.self(self.self_attn_layer_norm(x), lengths, dropout_key))
        if self.training and self.dropout:
            y = dropout(y, self.dropout, key(dropout_key, "attention output"))
        return x + y
