"""The shape of a model, under the keys of the published `config.json` of xlm-roberta-xl."""

from dataclasses import dataclass
from typing import Literal

from mlm.setting import setting


@dataclass(frozen=True)
class ModelConfig:
    """One file serves this project and transformers: `hidden_size`, `num_hidden_layers`, ...

    `vocab_size=None` means the tokenizer's size padded up to a multiple of 128; a built model
    always has a number here. `output_dropout` is the dropout after the feed-forward block: the
    original code has it, transformers does not; it applies `hidden_dropout_prob`.
    """

    vocab_size: int | None = setting(
        None, "ids of the embedding; null: the tokenizer's, padded to a multiple of 128"
    )
    hidden_size: int = setting(2560, "features of a token between layers", ge=1)
    num_hidden_layers: int = setting(36, "encoder layers", ge=1)
    num_attention_heads: int = setting(32, "heads of a layer", ge=1)
    intermediate_size: int = setting(10240, "features within a feed-forward block", ge=1)
    hidden_act: Literal["gelu", "relu", "silu", "gelu_new"] = setting(
        "gelu", "activation of feed-forward blocks"
    )
    hidden_dropout_prob: float = setting(0.1, "dropout after embeddings and blocks", ge=0, lt=1)
    attention_probs_dropout_prob: float = setting(0.1, "dropout of attention", ge=0, lt=1)
    output_dropout: bool = setting(True, "dropout after feed-forward blocks, as in fairseq's code")
    max_position_embeddings: int = setting(514, "positions, two more than tokens", ge=10)
    type_vocab_size: int = setting(1, "token types", ge=1)
    initializer_range: float = setting(0.02, "standard deviation of initial weights", ge=0)
    layer_norm_eps: float = setting(1e-5, "added to a variance in layer norms", ge=0)
    pad_token_id: int = setting(1, "id of <pad>, the same in every tokenizer here")
    bos_token_id: int = setting(0, "id of <s>, the same in every tokenizer here")
    eos_token_id: int = setting(2, "id of </s>, the same in every tokenizer here")

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def max_tokens(self) -> int:
        """Tokens a sequence may have: positions count from `pad_token_id + 1`."""
        return self.max_position_embeddings - self.pad_token_id - 1

    def padded_vocab_size(self) -> int:
        """`vocab_size` of a model that is being built, where it must be known."""
        assert self.vocab_size is not None, "vocab_size is resolved before a model is built"
        return self.vocab_size

    def parameters(self) -> int:
        """Parameters of the masked language model, the tied weight counted once."""
        hidden, inner, vocab = self.hidden_size, self.intermediate_size, self.padded_vocab_size()
        layer = 4 * hidden * (hidden + 1) + 2 * hidden * inner + inner + hidden + 4 * hidden
        embeddings = (vocab + self.max_position_embeddings + self.type_vocab_size) * hidden
        head = hidden * (hidden + 1) + 2 * hidden + vocab
        return embeddings + self.num_hidden_layers * layer + 2 * hidden + head
