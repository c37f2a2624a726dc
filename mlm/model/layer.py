"""One encoder layer: pre-norm attention and feed-forward, each with its residual."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.batch import MicroBatch
from mlm.model.attention import AttentionBlock
from mlm.model.config import ModelConfig
from parallel.groups import Group
from parallel.keys import key
from parallel.layers import ColumnParallelLinear, RowParallelLinear
from parallel.random import dropout


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, by erf
    "gelu_new": _gelu_new,
    "relu": torch.relu,
    "silu": F.silu,
}


class Dense(nn.Module):
    """A module that holds nothing but `dense`: the published names ask for it."""

    def __init__(self, dense: nn.Module):
        super().__init__()
        self.dense = dense


class EncoderLayer(nn.Module):
    """Layer `index` of the encoder: `x -> x`, (micro_batch, seq_len, hidden_size)."""

    def __init__(self, config: ModelConfig, index: int, group: Group, path: str = "auto"):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.index, self.activation = index, ACTIVATIONS[config.hidden_act]
        self.dropout = config.hidden_dropout_prob if config.output_dropout else 0.0
        self.attention = AttentionBlock(config, group, path)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = Dense(ColumnParallelLinear(hidden, inner, group))
        self.output = Dense(RowParallelLinear(inner, hidden, group))

    def forward(self, x: Tensor, batch: MicroBatch) -> Tensor:
        dropout_key = key(batch.dropout_key, "layer", self.index) if self.training else 0
        x = self.attention(x, batch, dropout_key)
        y = self.activation(self.intermediate.dense(self.LayerNorm(x)))
        y = self.output.dense(y)
        if self.training and self.dropout:
            y = dropout(y, self.dropout, key(dropout_key, "output"))
        return x + y
