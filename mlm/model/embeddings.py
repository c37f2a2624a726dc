"""What is added to the word embeddings: learned positions and token types. No layer norm here."""

import torch
from torch import Tensor, nn

from mlm.batch import MicroBatch
from mlm.model.config import ModelConfig
from parallel.keys import key
from parallel.random import dropout


def position_ids(input_ids: Tensor, pad: int) -> Tensor:
    """Positions of tokens, counted from `pad + 1` over what is not padding; padding gets `pad`.

    input_ids: (..., seq_len) -> (..., seq_len) int64
    """
    real = (input_ids != pad).long()
    return real.cumsum(dim=-1) * real + pad


class PositionEmbeddings(nn.Module):
    """Adds position and token-type embeddings to word embeddings, then drops out."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.pad, self.dropout = config.pad_token_id, config.hidden_dropout_prob
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, words: Tensor, batch: MicroBatch) -> Tensor:
        """words: (micro_batch, seq_len, hidden_size) of `batch.input_ids`; the same shape out."""
        positions = self.position_embeddings(position_ids(batch.input_ids, self.pad))
        x = words + positions + self.token_type_embeddings.weight[0]
        if self.training and self.dropout:
            x = dropout(x, self.dropout, key(batch.dropout_key, "embeddings"))
        return x


def key_mask(lengths: Tensor, seq_len: int) -> Tensor:
    """(micro_batch, 1, 1, seq_len) bool, true where a token may be attended to."""
    places = torch.arange(seq_len, device=lengths.device)
    return (places < lengths.unsqueeze(1))[:, None, None, :]
