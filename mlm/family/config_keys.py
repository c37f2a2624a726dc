"""The keys of the family's config with transformers' defaults."""

from dataclasses import dataclass, field
from typing import Any


def numbered(count: int) -> dict[int, str]:
    """Names of labels that have none."""
    return {number: f"LABEL_{number}" for number in range(count)}


def ids_of(id2label: dict[int, str]) -> dict[str, int]:
    return {label: number for number, label in id2label.items()}


@dataclass(init=False)
class ConfigKeys:
    """A key is a field; `label_smoothing` (0: none) is ours; `extra` has unknown keys of a file."""

    vocab_size: int = 250880
    hidden_size: int = 2560
    num_hidden_layers: int = 36
    num_attention_heads: int = 32
    intermediate_size: int = 10240
    hidden_act: Any = "gelu"  # a name, or a function of a tensor
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 514
    type_vocab_size: int = 1
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    pad_token_id: int = 1
    bos_token_id: int | None = 0
    eos_token_id: int | list[int] | None = 2
    position_embedding_type: str = "absolute"
    use_cache: bool = True
    classifier_dropout: float | None = None
    is_decoder: bool = False
    add_cross_attention: bool = False
    problem_type: str | None = None
    label_smoothing: float = 0.0
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    gradient_checkpointing: bool = False
    pruned_heads: dict[int, list[int]] = field(default_factory=dict)
    architectures: list[str] | None = None
    id2label: dict[int, str] = field(default_factory=lambda: numbered(2))
    label2id: dict[str, int] = field(default_factory=lambda: ids_of(numbered(2)))
    extra: dict[str, Any] = field(default_factory=dict)
