"""What the values of the family's config must be, each by itself and together."""

import math

from mlm.family.config_keys import ConfigKeys
from mlm.model.layer import ACTIVATIONS
from mlm.model.losses import PROBLEMS

POSITIONS = ("absolute", "relative_key", "relative_key_query")


def check(config: ConfigKeys) -> None:
    """Raises ValueError for the first value that is out of range or contradicts another."""
    for name in (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "type_vocab_size",
    ):
        value = getattr(config, name)
        if value < 1:
            raise ValueError(f"{name}={value!r} is not a whole number above 0; give one")
    if config.hidden_size % config.num_attention_heads:
        raise ValueError(
            f"hidden_size={config.hidden_size} is not a multiple of num_attention_heads="
            f"{config.num_attention_heads}; choose a number of heads that divides it"
        )
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        value = getattr(config, name)
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"{name}={value} is not a probability below 1; give one from 0 to 0.9")
    if not 0 <= config.label_smoothing < 1:
        raise ValueError(
            f"label_smoothing={config.label_smoothing} is not from 0 to below 1; 0.1 is usual"
        )
    for name in ("initializer_range", "layer_norm_eps"):
        value = getattr(config, name)
        if not 0 <= value < math.inf:
            raise ValueError(f"{name}={value} is not a number from 0 on; give one")
    _check_pruned(config)
    _one_of("position_embedding_type", config.position_embedding_type, POSITIONS)
    if not callable(config.hidden_act):
        _one_of("hidden_act", config.hidden_act, (*ACTIVATIONS, "a function of a tensor"))
    if config.problem_type is not None:
        _one_of("problem_type", config.problem_type, PROBLEMS)
    if config.problem_type == PROBLEMS[1] and len(config.id2label) < 2:
        raise ValueError(
            f"problem_type={config.problem_type} has nothing to choose from with num_labels="
            f"{len(config.id2label)}; give 2 or more labels"
        )
    if not 0 <= config.pad_token_id < config.vocab_size:
        raise ValueError(
            f"pad_token_id={config.pad_token_id} is not one of the {config.vocab_size} ids; the "
            f"published one is 1"
        )
    if config.max_position_embeddings < config.pad_token_id + 2:
        raise ValueError(
            f"max_position_embeddings={config.max_position_embeddings} leaves no place after "
            f"pad_token_id={config.pad_token_id}, from which positions count; give "
            f"{config.pad_token_id + 2} or more"
        )
    if config.add_cross_attention and not config.is_decoder:
        raise ValueError(
            "add_cross_attention=True needs is_decoder=True; set both, or leave it out"
        )


def _check_pruned(config: ConfigKeys) -> None:
    layers, heads = config.num_hidden_layers, config.num_attention_heads
    for layer, gone in config.pruned_heads.items():
        if not 0 <= layer < layers:
            raise ValueError(
                f"pruned_heads={config.pruned_heads} names layer {layer}, and there are {layers} "
                f"layers, which count from 0; choose from 0 to {layers - 1}"
            )
        for head in gone:
            if not 0 <= head < heads:
                raise ValueError(
                    f"pruned_heads={config.pruned_heads} names head {head} of layer {layer}, and "
                    f"there are {heads} heads, which count from 0; choose from 0 to {heads - 1}"
                )


def _one_of(name: str, value: object, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ValueError(f"{name}={value!r} is unsupported; choose from {', '.join(known)}")
