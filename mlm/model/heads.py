"""The heads: of pretraining, which runs on masked positions only, and of the tasks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlm.batch.micro_batch import MicroBatch
from mlm.model.config import ModelConfig
from mlm.model.dropout import Dropout
from mlm.model.layer import ACTIVATIONS
from parallel.groups import Group
from parallel.sharding import group_of, mark_sharded, split
from parallel.tensor.collectives import copy_to_group, gather_from_group
from parallel.tensor.loss import linear_cross_entropy


class MaskedLMHead(nn.Module):
    """dense -> gelu -> layer norm, and the bias of the decoder, whose weight is the embeddings'.

    The bias is split over the group like the vocabulary.
    """

    def __init__(self, config: ModelConfig, group: Group):
        super().__init__()
        hidden, vocab = config.hidden_size, config.padded_vocab_size()
        self.dense = nn.Linear(hidden, hidden)
        self.layer_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.empty(split(vocab, group, "vocab_size")))
        mark_sharded(self.bias, 0, group)

    def features(self, x: Tensor) -> Tensor:
        """(..., hidden_size) -> the same: what the decoder is applied to."""
        return self.layer_norm(ACTIVATIONS["gelu"](self.dense(x)))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(..., hidden_size) -> features of the same shape, and the bias"""
        return self.features(x), self.bias


def at_masked(head: MaskedLMHead, x: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """x: (micro_batch, seq_len, hidden_size) -> what the head gives at the masked positions,
    features (micro_batch * masked, hidden_size) and the bias."""
    rows, seq_len, hidden = x.shape
    starts = torch.arange(rows, device=x.device).unsqueeze(1) * seq_len
    return head(x.reshape(-1, hidden).index_select(0, (starts + batch.positions).flatten()))


def masked_lm_loss(
    embeddings: nn.Embedding, head: tuple[Tensor, Tensor], batch: MicroBatch
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scaled sum of the losses of the masked tokens, a scalar, and as `losses` those of each
    token, (micro_batch, masked) fp32, 0 where there is no target."""
    features, bias = head
    weight, targets = embeddings.weight, batch.targets.flatten()
    total, losses = linear_cross_entropy(
        features, weight, bias, targets, group_of(weight), batch.loss_scale
    )
    return total, {"losses": losses.view_as(batch.targets)}


class LMHead(MaskedLMHead):
    """The same head with its decoder, for all positions.

    The decoder's weight is that of the word embeddings, its bias this head's; both stand in the
    state dict under their published names, too, as in transformers.
    """

    def __init__(self, config: ModelConfig, group: Group, words: nn.Parameter):
        super().__init__(config, group)
        if group is None:
            vocab = config.padded_vocab_size()
            self.decoder = nn.Linear(config.hidden_size, vocab, device="meta")
        else:
            self.decoder = Decoder(group)
        self.tie(words)

    def tie(self, words: nn.Parameter) -> None:
        """Makes the decoder's parameters the embeddings' `words` and this head's."""
        self.decoder.weight, self.decoder.bias = words, self.bias

    def forward(self, x: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(batch, seq_len, hidden_size) -> (batch, seq_len, vocab_size), whole on every rank."""
        return self.decoder(self.features(x))


class Decoder(nn.Module):
    """A linear layer over the vocabulary, split over the group; its parameters are others'.

    Forward: x whole -> logits all-gathered. Backward: the gradient of x is all-reduced.
    """

    weight: nn.Parameter
    bias: nn.Parameter

    def __init__(self, group: Group):
        super().__init__()
        self.group = group

    def forward(self, x: Tensor) -> Tensor:
        local = F.linear(copy_to_group(x, self.group), self.weight, self.bias)
        return gather_from_group(local, self.group)


class Pooler(nn.Module):
    """`tanh(W x + b)` of each row's first token."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """(batch, seq_len, hidden_size) -> (batch, hidden_size)"""
        return self.activation(self.dense(x[:, 0]))


class ClassificationHead(nn.Module):
    """First token -> dropout -> dense -> tanh -> dropout -> labels."""

    def __init__(self, config: ModelConfig, labels: int, probability: float):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.dropout = Dropout(probability)
        self.out_proj = nn.Linear(config.hidden_size, labels)

    def forward(self, x: Tensor, dropout_key: int | None) -> Tensor:
        """(batch, seq_len, hidden_size) -> (batch, labels)"""
        x = self.dropout(x[:, 0], dropout_key, "head input")
        x = torch.tanh(self.dense(x))
        return self.out_proj(self.dropout(x, dropout_key, "head hidden"))


class LinearHead(nn.Linear):
    """Dropout, and a linear layer on what it is given: every token, or one pooled vector."""

    def __init__(self, config: ModelConfig, labels: int, probability: float):
        super().__init__(config.hidden_size, labels)
        self.dropout = Dropout(probability)

    def forward(self, x: Tensor, dropout_key: int | None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(..., hidden_size) -> (..., labels)"""
        return super().forward(self.dropout(x, dropout_key, "head input"))
