"""The shape of a model, under the keys of the published `config.json` of xlm-roberta-xl."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class ModelConfig:
    """One file serves this project and transformers: `hidden_size`, `num_hidden_layers`, ...

    `vocab_size=None` means the tokenizer's size padded up to a multiple of 128; a built model
    always has a number here. `output_dropout` is the dropout after the feed-forward block: the
    original code has it, transformers does not; it applies `hidden_dropout_prob`.
    """

    vocab_size: int | None = None
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    hidden_act: Literal["gelu", "relu", "silu", "gelu_new"] = "gelu"
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    output_dropout: bool = True
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int = 0
    eos_token_id: int = 2

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


@dataclass(frozen=True)
class LayerOptions:
    """What a layer may have beside what pretraining's layers have.

    causal: whether a token attends to itself and earlier ones only, where a batch has no other mask
    activation: in place of the one that `hidden_act` names
    """

    positions: Literal["absolute", "relative_key", "relative_key_query"] = "absolute"
    cross_attention: bool = False
    causal: bool = False
    activation: Callable[[Any], Any] | None = None
