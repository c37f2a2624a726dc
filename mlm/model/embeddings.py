"""What is added to the word embeddings: learned positions and token types. No layer norm here."""

import torch
from torch import Tensor, nn

from mlm.batch.micro_batch import MicroBatch
from mlm.model.config import ModelConfig
from mlm.model.dropout import Dropout


class PositionEmbeddings(nn.Module):
    """Adds position and token-type embeddings to word embeddings, then drops out.

    absolute: without it positions are for the attention to add, and the table lies idle
    """

    def __init__(self, config: ModelConfig, absolute: bool = True):
        super().__init__()
        self.pad, self.absolute = config.pad_token_id, absolute
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, words: Tensor, batch: MicroBatch) -> Tensor:
        """words: (micro_batch, seq_len, hidden_size) of `batch.inputs`; the same shape out."""
        positions = batch.visibility.positions(batch.inputs, self.pad)
        types = batch.token_type_ids
        if types is None:  # one row for all tokens: its gradient is then one sum
            types = torch.zeros(1, 1, dtype=torch.long, device=words.device)
        return self.add(words, positions, types, batch.dropout_key)

    def add(
        self, words: Tensor, positions: Tensor, token_types: Tensor, dropout_key: int | None
    ) -> Tensor:
        """positions, token_types: (micro_batch or 1, seq_len or 1)"""
        x = words + self.position_embeddings(positions) if self.absolute else words
        x = x + self.token_type_embeddings(token_types)
        return self.dropout(x, dropout_key, "embeddings")
