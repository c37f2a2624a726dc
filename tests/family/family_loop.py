"""The family as a plain loop over rows and heads, from the published formulas, weights by name.

Pre-norm layers: Goyal et al. 2021. Relative positions: Shaw et al. 2018, section 3.2, without
clipping; Huang et al. 2020, method 4. Masks add the least number, as in the reference, so that a
query that sees nothing is spread evenly. No dropout.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: (
        0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "relu": lambda x: x.clamp(min=0),
    "silu": lambda x: x * torch.sigmoid(x),
}


@dataclass(frozen=True)
class Given:
    """What a pass is asked for beside its tokens.

    seen: (batch, queries, keys), 0 where a key is not attended; None: all are seen
    source: (batch, source keys, hidden_size) for cross attention, and `source_seen` of it
    head_mask: (layers, heads), a factor on the weights of each head
    """

    seen: Tensor | None = None
    source: Tensor | None = None
    source_seen: Tensor | None = None
    head_mask: Tensor | None = None


@dataclass
class Looped:
    """hidden_states: the embeddings and every layer's output, the last after the final norm;
    attentions: of each layer (batch, heads, queries, keys); pasts: its keys and values, and those
    of the cross attention, (batch, heads, length, head_size)."""

    hidden_states: list[Tensor] = field(default_factory=list)
    attentions: list[Tensor] = field(default_factory=list)
    cross_attentions: list[Tensor] = field(default_factory=list)
    pasts: list[tuple[Tensor, ...]] = field(default_factory=list)

    @property
    def last(self) -> Tensor:
        return self.hidden_states[-1]


class PlainLoop:
    """weights: by the names of XLMRobertaXLModel; config: any object with the published keys."""

    def __init__(self, weights: dict[str, Tensor], config: Any):
        self.weights, self.config = weights, config
        self.relative = config.position_embedding_type

    def __call__(self, x: Tensor, given: Given = Given()) -> Looped:
        """x: what `embeddings` gives, (batch, seq_len, hidden_size)"""
        out = Looped([x])
        for layer in range(self.config.num_hidden_layers):
            x = self.layer(x, layer, given, out)
            out.hidden_states.append(x)
        out.hidden_states[-1] = self.norm("encoder.LayerNorm", x)
        return out

    def embeddings(
        self, words: Tensor, types: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """words: (batch, seq_len) ids, or (batch, seq_len, hidden_size) vectors.

        Positions count what is not padding, from the pad id + 1; of vectors, every place.
        """
        table, pad = self.weights["embeddings.word_embeddings.weight"], self.config.pad_token_id
        real = torch.ones(words.shape[:2], dtype=torch.long) if words.dim() == 3 else words != pad
        if words.dim() == 2:
            # A padding row takes no gradient.
            words = torch.where((words == pad).unsqueeze(-1), table[pad].detach(), table[words])
        kinds = self.weights["embeddings.token_type_embeddings.weight"]
        x = words + kinds[torch.zeros_like(real).long() if types is None else types]
        if self.relative == "absolute":
            table = self.weights["embeddings.position_embeddings.weight"]
            places = real.cumsum(1) * real + pad if positions is None else positions
            places = places.expand(x.shape[:2])
            pads = (places == pad).unsqueeze(-1)
            x = x + torch.where(pads, table[pad].detach(), table[places])
        return x

    def layer(self, x: Tensor, number: int, given: Given, out: Looped) -> Tensor:
        name = f"encoder.layer.{number}"
        heads = None if given.head_mask is None else given.head_mask[number]
        y = self.norm(f"{name}.attention.self_attn_layer_norm", x)
        mixed, weights, past = self.attention(
            f"{name}.attention", y, replace(given, source=y, head_mask=heads), self.relative
        )
        x = x + mixed
        out.attentions.append(weights)
        if given.source is not None:
            y = self.norm(f"{name}.crossattention.self_attn_layer_norm", x)
            cross = replace(given, seen=given.source_seen, head_mask=heads)
            mixed, weights, crossed = self.attention(f"{name}.crossattention", y, cross, "absolute")
            x, past = x + mixed, past + crossed
            out.cross_attentions.append(weights)
        out.pasts.append(past)
        act = self.config.hidden_act
        y = self.linear(f"{name}.intermediate.dense", self.norm(f"{name}.LayerNorm", x))
        y = (ACTIVATIONS[act] if isinstance(act, str) else act)(y)
        return x + self.linear(f"{name}.output.dense", y)

    def attention(
        self, name: str, x: Tensor, given: Given, relative: str
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Keys and values are those of `given.source`; head_mask: (heads,)."""
        assert given.source is not None
        heads = self.config.num_attention_heads
        query, keys, values = (
            self.linear(f"{name}.self.{part}", of).unflatten(-1, (heads, -1)).transpose(1, 2)
            for part, of in (("query", x), ("key", given.source), ("value", given.source))
        )
        table = self.weights.get(f"{name}.self.distance_embedding.weight")
        rows = []
        for row in range(x.shape[0]):
            of_heads = []
            for head in range(heads):
                q, k = query[row, head], keys[row, head]
                scores = q @ k.T
                if relative != "absolute":
                    scores = scores + self.distances(q, k, table, relative)
                scores = scores / math.sqrt(q.shape[-1])
                if given.seen is not None:
                    scores = scores + (1.0 - given.seen[row].float()) * torch.finfo(x.dtype).min
                weights = scores.softmax(-1)
                if given.head_mask is not None:
                    weights = weights * given.head_mask[head]
                of_heads.append(weights)
            rows.append(torch.stack(of_heads))
        weights = torch.stack(rows)
        mixed = (weights @ values).transpose(1, 2).flatten(2)
        return self.linear(f"{name}.output.dense", mixed), weights, (keys, values)

    def distances(self, q: Tensor, k: Tensor, table: Tensor | None, relative: str) -> Tensor:
        """(queries, keys): q_i . a_ij, and with relative_key_query + k_j . a_ij, where a_ij is the
        vector of the distance i - j."""
        assert table is not None
        places = torch.arange(q.shape[0]).unsqueeze(1) - torch.arange(k.shape[0])
        vectors = table[places + self.config.max_position_embeddings - 1]
        scores = (q.unsqueeze(1) * vectors).sum(-1)
        if relative == "relative_key_query":
            scores = scores + (k.unsqueeze(0) * vectors).sum(-1)
        return scores

    def linear(self, name: str, x: Tensor) -> Tensor:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def norm(self, name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scale = (centred.pow(2).mean(-1, keepdim=True) + self.config.layer_norm_eps).rsqrt()
        return centred * scale * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]


def looped(model: nn.Module) -> tuple[PlainLoop, dict[str, Tensor]]:
    """The loop of a model's `roberta` (or of itself), and copies of its weights, with gradients,
    by the model's names."""
    copies = {name: one.detach().clone().requires_grad_() for name, one in model.named_parameters()}
    own = {name.removeprefix("roberta."): one for name, one in copies.items()}
    return PlainLoop(own, model.config), copies


def language_logits(loop: PlainLoop, x: Tensor) -> Tensor:
    """dense -> gelu -> norm -> the word embeddings and a bias: (..., vocab_size)"""
    x = ACTIVATIONS["gelu"](loop.linear("lm_head.dense", x))
    words = loop.weights["embeddings.word_embeddings.weight"]
    return loop.norm("lm_head.layer_norm", x) @ words.T + loop.weights["lm_head.bias"]


def next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean of -log p(label of the next place) over the labels that are not -100."""
    losses = [
        -F.log_softmax(row[place], -1)[wanted[place + 1]]
        for row, wanted in zip(logits, labels, strict=True)
        for place in range(len(wanted) - 1)
        if wanted[place + 1] != -100
    ]
    return torch.stack(losses).mean()


def causal(seen: Tensor) -> Tensor:
    """(batch, keys) mask of tokens -> (batch, queries, keys): those that are not later."""
    return seen.unsqueeze(1) * torch.ones(seen.shape[1], seen.shape[1]).tril()
