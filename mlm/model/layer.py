"""One encoder layer: pre-norm attention and feed-forward, each with its residual."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.batch.micro_batch import MicroBatch
from mlm.batch.visibility import Visibility
from mlm.model.attention import (
    DEFAULT_INPUTS,
    AttentionBlock,
    AttentionInputs,
    ResidualOutput,
)
from mlm.model.config import ModelConfig
from mlm.model.options import PRETRAINING, LayerOptions
from parallel.groups import Group
from parallel.keys import subkey
from parallel.tensor.layers import column_linear


def _gelu_new(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,  # exact, by erf
    "gelu_new": _gelu_new,
    "relu": torch.relu,
    "silu": F.silu,
}


class Activation(nn.Module):
    """A function as a module: a user may watch or replace what it gives."""

    def __init__(self, function: Callable[[Tensor], Tensor]):
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Intermediate(nn.Module):
    """`activation(W x + b)`: the first half of the feed-forward block."""

    def __init__(self, config: ModelConfig, group: Group, options: LayerOptions):
        super().__init__()
        hidden, inner = config.hidden_size, config.intermediate_size
        self.dense = column_linear(hidden, inner, group, region=options.region)
        given = options.activation or ACTIVATIONS[config.hidden_act]
        self.intermediate_act_fn = given if isinstance(given, nn.Module) else Activation(given)

    def forward(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> (..., intermediate_size / group)"""
        return self.intermediate_act_fn(self.dense(x))


class Pass(NamedTuple):
    """What a layer reads of a micro-batch, for models that are called without one."""

    visibility: Visibility
    dropout_key: int | None


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
        self.attention = AttentionBlock(config, group, options)
        if options.cross_attention:  # positions in another text have no distance
            without = replace(options, positions="absolute")
            self.crossattention = AttentionBlock(config, group, without)
        self.LayerNorm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = Intermediate(config, group, options)
        probability = config.hidden_dropout_prob if config.output_dropout else 0.0
        self.output = ResidualOutput(inner, hidden, probability, "output", group, options.region)

    def forward(
        self,
        x: Tensor,
        batch: MicroBatch | Pass,
        extras: AttentionInputs = DEFAULT_INPUTS,
        cross: tuple[Visibility, AttentionInputs] | None = None,
    ) -> Tensor:
        """extras: what else the attention is given and asked for; cross: the visibility of the
        cross attention and its extras, which have a `source`"""
        visibility = batch.visibility
        if visibility.causal != self.causal:
            raise ValueError(
                f"the model has is_decoder={self.causal} and the batch causal={visibility.causal}; "
                f"make batches with the causal of the model"
            )
        dropout_key = subkey(batch.dropout_key, "layer", self.index) if self.training else 0
        x, weights = self.attention(x, visibility, dropout_key, extras)
        if extras.record is not None:  # here, so that a hook on the attention may replace them
            extras.record.weights = weights
        if cross is not None:
            seen, given = cross
            cross_key = subkey(dropout_key, "cross") if self.training else 0
            x, weights = self.crossattention(x, seen, cross_key, given)
            if given.record is not None:
                given.record.weights = weights
        return self.output(self.intermediate(self.LayerNorm(x)), x, dropout_key)
