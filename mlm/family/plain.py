"""A plain implementation of the family's published description, for comparisons.

Plain products in fp32, with one weight in memory at a time. It shares no code with the model or
with the reading and writing of its files.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}
DEFAULTS = {
    "pad_token_id": 1,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}

Read = Callable[[str], Tensor]


@dataclass(frozen=True)
class Sample:
    """The input of a model.

    input_ids, token_types: (batch, seq_len), padded at the end to `lengths` (batch,)
    source: (batch, n, hidden_size), for the cross-attention of models that have it
    """

    input_ids: Tensor
    lengths: Tensor
    token_types: Tensor
    source: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """(batch, seq_len) bool, true before the padding."""
        return torch.arange(self.input_ids.shape[1]) < self.lengths[:, None]


@dataclass(frozen=True)
class PlainModel:
    """What a head is written out from: its config's values, its weights by name, the sample.

    pooler: whether the bare model has one; prefix: of the names of the encoder's weights
    """

    config: dict[str, Any]
    read: Read
    sample: Sample
    pooler: bool = False
    prefix: str = "roberta."

    @cached_property
    def x(self) -> Tensor:
        """The last hidden state, (batch, seq_len, hidden_size)."""
        return _encoded(self.config, lambda name: self.read(self.prefix + name), self.sample)

    @property
    def pooled(self) -> Tensor:
        """(batch, 1, hidden_size) of the first token."""
        return torch.tanh(self.linear(self.x[:, :1], f"{self.prefix}pooler.dense"))

    def linear(self, x: Tensor, name: str) -> Tensor:
        return _linear(x, self.read, name)

    def norm(self, x: Tensor, name: str) -> Tensor:
        return _norm(x, self.read, name, self.config)


PlainHead = Callable[[PlainModel], Tensor]


@torch.no_grad()
def plain_outputs(
    head: PlainHead, config: dict[str, Any], read: Read, sample: Sample, pooler: bool = False
) -> Tensor:
    """The outputs of a head with the values of a config.json and these weights.

    The logits: (batch, seq_len, vocab_size) of language models, (batch, labels) of sequences,
    (batch, 1) of a choice, (batch, seq_len, labels) of tokens, (batch, seq_len, 2) of starts and
    ends. Of the bare model the last hidden state, and after it the output of a pooler, if any.
    """
    return head(PlainModel(DEFAULTS | config, read, sample, pooler))


def bare(model: PlainModel) -> Tensor:
    model = replace(model, prefix="")
    return torch.cat([model.x, model.pooled], 1) if model.pooler else model.x


def language(model: PlainModel) -> Tensor:
    y = model.norm(F.gelu(model.linear(model.x, "lm_head.dense")), "lm_head.layer_norm")
    words = model.read("roberta.embeddings.word_embeddings.weight")
    return y @ words.T + model.read("lm_head.bias")


def sequence_classification(model: PlainModel) -> Tensor:
    y = torch.tanh(model.linear(model.x[:, 0], "classifier.dense"))
    return model.linear(y, "classifier.out_proj")


def multiple_choice(model: PlainModel) -> Tensor:
    return model.linear(model.pooled[:, 0], "classifier")


def token_classification(model: PlainModel) -> Tensor:
    return model.linear(model.x, "classifier")


def question_answering(model: PlainModel) -> Tensor:
    return model.linear(model.x, "qa_outputs")


def _encoded(config: dict[str, Any], read: Read, sample: Sample) -> Tensor:
    """The last hidden state, (batch, seq_len, hidden_size)."""
    ids, pad = sample.input_ids, config["pad_token_id"]
    x = read("embeddings.word_embeddings.weight")[ids]
    x = x + read("embeddings.token_type_embeddings.weight")[sample.token_types]
    if config["position_embedding_type"] == "absolute":
        positions = pad + (ids != pad).cumsum(1) * (ids != pad)
        x = x + read("embeddings.position_embeddings.weight")[positions]
    hidden = torch.where(sample.real, 0.0, -math.inf)[:, None, None, :]
    if config["is_decoder"]:
        hidden = hidden + torch.full((ids.shape[1],) * 2, -math.inf).triu(1)
    act = ACTIVATIONS[config["hidden_act"]]
    for number in range(config["num_hidden_layers"]):

        def layer_read(name: str, number=number) -> Tensor:
            return read(f"encoder.layer.{number}.{name}")

        x = x + _attention(x, x, hidden, "attention", layer_read, config)
        if config["add_cross_attention"] and sample.source is not None:
            x = x + _attention(x, sample.source, 0.0, "crossattention", layer_read, config)
        y = act(
            _linear(_norm(x, layer_read, "LayerNorm", config), layer_read, "intermediate.dense")
        )
        x = x + _linear(y, layer_read, "output.dense")
    return _norm(x, read, "encoder.LayerNorm", config)


def _attention(
    x: Tensor, source: Tensor, hidden: Tensor | float, name: str, read: Read, config: dict[str, Any]
) -> Tensor:
    """The addition of an attention block to x; in cross-attention only queries are normalised."""
    size = config["hidden_size"] // config["num_attention_heads"]

    def heads(y: Tensor, part: str) -> Tensor:  # pruned models have fewer than the config
        return _linear(y, read, f"{name}.self.{part}").unflatten(-1, (-1, size)).transpose(1, 2)

    y = _norm(x, read, f"{name}.self_attn_layer_norm", config)
    of = y if source is x else source
    query, key, value = heads(y, "query"), heads(of, "key"), heads(of, "value")
    scores = query @ key.mT
    kind = config["position_embedding_type"]
    if kind != "absolute" and source is x:
        places = torch.arange(x.shape[1])
        distance = places[:, None] - places + config["max_position_embeddings"] - 1
        relative = read(f"{name}.self.distance_embedding.weight")[distance]
        scores = scores + torch.einsum("bhqd,qkd->bhqk", query, relative)
        if kind == "relative_key_query":
            scores = scores + torch.einsum("bhkd,qkd->bhqk", key, relative)
    weights = (scores / math.sqrt(size) + hidden).softmax(-1)
    return _linear((weights @ value).transpose(1, 2).flatten(2), read, f"{name}.output.dense")


def _linear(x: Tensor, read: Read, name: str) -> Tensor:
    return x @ read(f"{name}.weight").T + read(f"{name}.bias")


def _norm(x: Tensor, read: Read, name: str, config: dict[str, Any]) -> Tensor:
    weight, bias = read(f"{name}.weight"), read(f"{name}.bias")
    return F.layer_norm(x, x.shape[-1:], weight, bias, config["layer_norm_eps"])
