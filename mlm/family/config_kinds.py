"""The type of each value of the family's config, given in Python or read from a file."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

MAX_SHOWN = 60  # characters of a value


class Kind(NamedTuple):
    """A type check. what: completes "is not ..."; remedy: the fix; holds: tests a value"""

    what: str
    remedy: str
    holds: Callable[[Any], bool]

    def check(self, name: str, value: Any) -> None:
        """Raises ValueError where a value is of another kind."""
        if not self.holds(value):
            raise ValueError(f"{name}={shown(value)} is not {self.what}; {self.remedy}")


def shown(value: Any) -> str:
    """A value as it stands in a sentence; of a long one its type."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN and "\n" not in text else f"<{type(value).__name__}>"


def whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _listed(holds: Callable[[Any], bool], *types: type) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, types or (list, tuple)) and all(map(holds, value))


def _counted(value: Any) -> bool:
    """A whole number, or the text that JSON makes of one where it is a key."""
    return whole(value) or (_text(value) and value.isascii() and value.isdigit())


def _map(of: Callable[[Any], bool], to: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: (
        isinstance(value, Mapping) and all(map(of, value)) and all(map(to, value.values()))
    )


def _label(value: Any) -> bool:
    return _text(value) or number(value)


def _named(value: Any) -> bool:
    return bool(value) and _map(_counted, _label)(value)


def or_none(kind: Kind) -> Kind:
    return Kind(f"{kind.what} or None", kind.remedy, lambda v: v is None or kind.holds(v))


WHOLE = Kind("a whole number", "give one, without quotes or a point", whole)
NUMBER = Kind("a number", "give one, without quotes", number)
SWITCH = Kind("True or False", "give one of them", lambda value: isinstance(value, bool))
TEXT = Kind("a text", "give one of those that the key knows", _text)
IDS = Kind(
    "a whole number, a list of them",
    "give the id of an end, or several",
    lambda value: whole(value) or _listed(whole)(value),
)
KINDS = {
    **dict.fromkeys(
        (
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "intermediate_size",
            "max_position_embeddings",
            "type_vocab_size",
            "pad_token_id",
            "num_labels",
        ),
        WHOLE,
    ),
    **dict.fromkeys(
        (
            "hidden_dropout_prob",
            "attention_probs_dropout_prob",
            "initializer_range",
            "layer_norm_eps",
            "label_smoothing",
        ),
        NUMBER,
    ),
    **dict.fromkeys(
        (
            "use_cache",
            "is_decoder",
            "add_cross_attention",
            "output_attentions",
            "output_hidden_states",
            "return_dict",
            "gradient_checkpointing",
        ),
        SWITCH,
    ),
    "hidden_act": Kind(
        "the name of a function, or a function of a tensor",
        "give 'gelu', or leave it out",
        lambda value: _text(value) or callable(value),
    ),
    "position_embedding_type": TEXT,
    "problem_type": or_none(TEXT),
    "classifier_dropout": or_none(NUMBER),
    "bos_token_id": or_none(WHOLE),  # no model is made of it
    "eos_token_id": or_none(IDS),  # as in transformers: a text that never ends, or in several ways
    "architectures": or_none(
        Kind("a list of classes", "give one such as ['XLMRobertaXLForMaskedLM']", _listed(_text))
    ),
    "pruned_heads": or_none(
        Kind(
            "a map from layers to lists of heads",
            "give one such as {0: [1, 2]}",
            _map(_counted, _listed(whole, list, tuple, set, frozenset)),
        )
    ),
    "id2label": Kind("a map from ids to labels", "give one such as {0: 'no', 1: 'yes'}", _named),
    "label2id": Kind(
        "a map from labels to ids", "give one such as {'no': 0, 'yes': 1}", _map(_label, whole)
    ),
}


def check_kind(name: str, value: Any) -> None:
    """Raises ValueError where a key of the config has a value of another kind."""
    if name in KINDS:
        KINDS[name].check(name, value)
