"""One encoder layer: pre-norm attention and feed-forward, each with its residual."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.model.attention import DEFAULT_INPUTS, AttentionBlock, AttentionInputs
from mlm.model.config import ModelConfig
from mlm.model.options import PRETRAINING, LayerOptions
from parallel.groups import Group
from parallel.keys import key
from parallel.random import dropout
from parallel.tensor.layers import ColumnParallelLinear, RowParallelLinear


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


@dataclass(frozen=True)
class LayerOutputs:
    """x: (batch, seq_len, hidden_size); weights and cross_weights: (batch, heads / group, queries,
    keys), where asked for; past: keys and values of the attention, and of the cross attention."""

    x: Tensor
    weights: Tensor | None
    cross_weights: Tensor | None
    past: tuple[Tensor, ...]


class EncoderLayer(nn.Module):
    """Layer `index` of the encoder: `x -> x`, (micro_batch, seq_len, hidden_size)."""

    def __init__(
        self,
        config: ModelConfig,
        index: int,
        group: Group,
        options: LayerOptions = PRETRAINING,
    ):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.index, self.causal = index, options.causal
        self.activation = options.activation or ACTIVATIONS[config.hidden_act]
        self.dropout = config.hidden_dropout_prob if config.output_dropout else 0.0
        self.attention = AttentionBlock(config, group, options)
        if options.cross_attention:  # positions in another text have no distance
            without = replace(options, positions="absolute")
            self.crossattention = AttentionBlock(config, group, without)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        region = options.region
        self.intermediate = Dense(ColumnParallelLinear(hidden, inner, group, region=region))
        self.output = Dense(RowParallelLinear(inner, hidden, group, region=region))

    def forward(self, x: Tensor, batch: MicroBatch) -> Tensor:
        visibility = batch.visibility
        if visibility.causal != self.causal:
            raise ValueError(
                f"the model has is_decoder={self.causal} and the batch causal={visibility.causal}; "
                f"make batches with the causal of the model"
            )
        return self.run(x, visibility, batch.dropout_key).x

    def run(
        self,
        x: Tensor,
        visibility: Visibility,
        dropout_key: int,
        extras: AttentionInputs = DEFAULT_INPUTS,
        cross: tuple[Visibility, AttentionInputs] | None = None,
    ) -> LayerOutputs:
        """The layer with all that its attention can be asked for.

        cross: the same two of the cross attention, whose extras have a `source`
        """
        dropout_key = key(dropout_key, "layer", self.index) if self.training else 0
        attended = self.attention(x, visibility, dropout_key, extras)
        x, past = attended.x, (attended.keys, attended.values)
        cross_weights = None
        if cross is not None:
            seen, given = cross
            crossed = self.crossattention(x, seen, key(dropout_key, "cross"), given)
            x, cross_weights = crossed.x, crossed.weights
            past = (*past, crossed.keys, crossed.values)
        y = self.activation(self.intermediate.dense(self.LayerNorm(x)))
        y = self.output.dense(y)
        if self.training and self.dropout:
            y = dropout(y, self.dropout, key(dropout_key, "output"))
        return LayerOutputs(x + y, attended.weights, cross_weights, past)
