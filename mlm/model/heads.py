"""The masked language model's head: it runs on masked positions only."""

import torch
from torch import Tensor, nn

from mlm.batch import IGNORED, MicroBatch
from mlm.model.config import ModelConfig
from mlm.model.layer import ACTIVATIONS
from parallel.groups import Group
from parallel.layers import VocabParallelEmbedding
from parallel.loss import linear_cross_entropy
from parallel.sharding import mark_sharded, split


class FinalNorm(nn.LayerNorm):
    """The layer norm behind the last layer."""

    def forward(self, x: Tensor, batch: MicroBatch) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return super().forward(x)


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

    def forward(self, x: Tensor, batch: MicroBatch) -> tuple[Tensor, Tensor]:
        """x: (micro_batch, seq_len, hidden_size) -> features of the masked positions
        (micro_batch * masked, hidden_size), and the bias."""
        rows, seq_len, hidden = x.shape
        starts = torch.arange(rows, device=x.device).unsqueeze(1) * seq_len
        masked = x.reshape(-1, hidden).index_select(0, (starts + batch.positions).flatten())
        return self.features(masked), self.bias


def masked_lm_loss(
    embeddings: VocabParallelEmbedding, head: tuple[Tensor, Tensor], batch: MicroBatch
) -> Tensor:
    """The scaled sum of the losses of the masked tokens, a scalar; kept by language, too."""
    features, bias = head
    targets = batch.targets.flatten()
    total, losses = linear_cross_entropy(
        features, embeddings.weight, bias, targets, embeddings.group, batch.loss_scale
    )
    if batch.losses is not None:
        languages = batch.languages.repeat_interleave(batch.targets.shape[1])
        rows = torch.stack([losses.double(), (targets != IGNORED).double()], dim=1)
        batch.losses.index_add_(0, languages, rows)
    return total
