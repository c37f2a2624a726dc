"""What is added to the word embeddings: learned positions and token types. No layer norm here."""

from torch import Tensor, nn

from mlm.batch.micro_batch import MicroBatch
from mlm.model.config import ModelConfig
from parallel.keys import key
from parallel.random import dropout


class PositionEmbeddings(nn.Module):
    """Adds position and token-type embeddings to word embeddings, then drops out.

    absolute: without it positions are for the attention to add, and the table lies idle
    """

    def __init__(self, config: ModelConfig, absolute: bool = True):
        super().__init__()
        self.pad, self.dropout = config.pad_token_id, config.hidden_dropout_prob
        self.absolute = absolute
        self.position_embeddings = nn.Embedding(
            config.max_position_embeddings, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)

    def forward(self, words: Tensor, batch: MicroBatch) -> Tensor:
        """words: (micro_batch, seq_len, hidden_size) of `batch.inputs`; the same shape out."""
        positions = batch.visibility.positions(batch.inputs, self.pad)
        return self.add(words, positions, batch.token_type_ids, batch.dropout_key)

    def add(
        self, words: Tensor, positions: Tensor, token_types: Tensor | None, dropout_key: int
    ) -> Tensor:
        """positions, token_types: (micro_batch or 1, seq_len); no types: all of the first."""
        x = words + self.position_embeddings(positions) if self.absolute else words
        if token_types is None:
            x = x + self.token_type_embeddings.weight[0]
        else:
            x = x + self.token_type_embeddings(token_types)
        if self.training and self.dropout:
            x = dropout(x, self.dropout, key(dropout_key, "embeddings"))
        return x
