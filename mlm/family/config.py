"""The family's config under the published keys, read from and written to `config.json`."""

import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ClassVar

from mlm.errors import DataError
from mlm.family.config_keys import ConfigKeys, ids_of, numbered
from mlm.family.config_kinds import check_kind, shown
from mlm.family.config_rules import check
from mlm.family.folder import FILE, stored_config
from mlm.model.config import ModelConfig
from mlm.model.options import LayerOptions

# Keys that would change what a model computes, and the values that change nothing.
UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "tie_word_embeddings": (True,),
    "tie_encoder_decoder": (False,),
    "chunk_size_feed_forward": (0,),
    "is_encoder_decoder": (False,),
    "cross_attention_hidden_size": (None,),
    "quantization_config": (None,),
}
LABELS = ("num_labels", "id2label", "label2id")


class XLMRobertaXLConfig(ConfigKeys):
    """transformers' keys and defaults; they may be changed until a model is made of them.

    A keyword that is not a key raises ValueError with the nearest one, and so does a value of
    another kind than its key's; keys of a file that are not known are kept in `extra` and written
    again. `num_labels` follows `id2label` and the other way round. `label_smoothing` (0: none) is
    ours.
    """

    model_type: ClassVar[str] = "xlm-roberta-xl"

    def __init__(self, *values: Any, **named: Any) -> None:
        keys = [key for key in fields(self) if key.name != "extra"]
        if len(values) > len(keys):
            raise ValueError(f"{len(values)} values are given for the {len(keys)} keys of a config")
        given = dict(zip((key.name for key in keys), values, strict=False)) | named
        for key in fields(self):
            default = key.default if key.default_factory is MISSING else key.default_factory()
            setattr(self, key.name, default)
        self.update(given)

    def update(self, changes: Mapping[str, Any]) -> None:
        """Sets several keys; raises ValueError at one that is not a key, not of its kind or
        unsupported."""
        for name, value in changes.items():
            if name not in LABELS:
                self._set(name, value)
        labels = {name: changes[name] for name in LABELS if changes.get(name) is not None}
        for name, value in labels.items():
            check_kind(name, value)
        named = labels.get("id2label")
        if named is None and "label2id" in labels:
            named = {number: label for label, number in labels["label2id"].items()}
        if named is not None:
            self.id2label = {int(number): str(label) for number, label in named.items()}
            self.label2id = dict(labels.get("label2id") or ids_of(self.id2label))
        count = labels.get("num_labels")
        if named is not None and count not in (None, len(self.id2label)):
            raise ValueError(
                f"num_labels={count} and the {len(self.id2label)} labels of id2label contradict "
                f"each other; give one of them"
            )
        if count is not None and count != self.num_labels:
            self.num_labels = count

    def _set(self, name: str, value: Any) -> None:
        if name in UNSUPPORTED:
            if value not in UNSUPPORTED[name]:
                raise ValueError(
                    f"{name}={shown(value)} is unsupported; leave it out, which means "
                    f"{UNSUPPORTED[name][0]}"
                )
        elif name == "extra" or name not in self._keys():
            raise ValueError(
                f"{name}={shown(value)} is not a key of the config; {self._near(name)}"
            )
        else:
            setattr(self, name, value)

    @classmethod
    def _keys(cls) -> list[str]:
        return [key.name for key in fields(cls)]

    @classmethod
    def _near(cls, name: str) -> str:
        near = get_close_matches(name, [*cls._keys(), "num_labels"], 1)
        return f"did you mean {near[0]}?" if near else "see XLMRobertaXLConfig for its keys"

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._keys() and not isinstance(getattr(type(self), name, None), property):
            raise AttributeError(f"{name} is not a key of the config; {self._near(name)}")
        check_kind(name, value)
        if name == "pruned_heads":
            value = {int(layer): sorted(heads) for layer, heads in (value or {}).items()}
        super().__setattr__(name, value)

    @property
    def num_labels(self) -> int:
        return len(self.id2label)

    @num_labels.setter
    def num_labels(self, count: int) -> None:
        if count < 1:
            raise ValueError(f"num_labels={count} is below 1; give 1 (regression) or more")
        if count == len(self.id2label):
            return  # names that fit stay
        self.id2label = numbered(count)
        self.label2id = ids_of(self.id2label)

    @property
    def use_return_dict(self) -> bool:
        return self.return_dict

    @property
    def head_dropout(self) -> float:
        """Of the classification heads: `classifier_dropout`, or that of the hidden states."""
        given = self.classifier_dropout
        return self.hidden_dropout_prob if given is None else given

    def shape(self) -> ModelConfig:
        """What the layers are made from, checked; raises ValueError at the first value that does
        not fit."""
        check(self)
        names = {key.name for key in fields(ModelConfig)} & set(self._keys())
        values = {name: getattr(self, name) for name in names - {"hidden_act"}}
        act = "gelu" if callable(self.hidden_act) else self.hidden_act
        return ModelConfig(**values, hidden_act=act, output_dropout=False)

    @classmethod
    def of(cls, shape: ModelConfig) -> "XLMRobertaXLConfig":
        """The config of a model that was pretrained here; it has no `output_dropout`, a switch of
        training."""
        return cls(**{name: value for name, value in asdict(shape).items() if name in cls._keys()})

    def layer_options(self, attention: str = "auto") -> LayerOptions:
        """attention: the name of a kernel, or `auto`"""
        activation = self.hidden_act if callable(self.hidden_act) else None
        positions: Any = self.position_embedding_type
        return LayerOptions(
            attention, positions, self.add_cross_attention, self.is_decoder, activation
        )

    def to_dict(self) -> dict[str, Any]:
        """All keys as JSON takes them, those of `extra` included; with string keys in maps."""
        if callable(self.hidden_act):
            raise ValueError(
                f"hidden_act is the function {getattr(self.hidden_act, '__name__', 'given')}, "
                f"which a file cannot hold; name one of gelu, relu, silu, gelu_new to save it"
            )
        values = {name: deepcopy(getattr(self, name)) for name in self._keys() if name != "extra"}
        for name in ("id2label", "pruned_heads"):
            values[name] = {str(number): value for number, value in values[name].items()}
        for name in ("architectures", "problem_type"):
            if values[name] is None:
                del values[name]
        return (
            deepcopy(self.extra)
            | values
            | {
                "model_type": self.model_type,
                "tie_word_embeddings": True,
            }
        )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **changes: Any) -> "XLMRobertaXLConfig":
        """The config of a file's values, then of `changes`; raises ValueError where the file is of
        another model or asks for what is unsupported."""
        given = dict(values)
        kind = given.pop("model_type", cls.model_type)
        if kind != cls.model_type:
            raise ValueError(
                f"model_type={kind!r} is another architecture than {cls.model_type!r}; give the "
                f"config of an XLM-RoBERTa-XL"
            )
        known = {*cls._keys(), *UNSUPPORTED, *LABELS} - {"extra"}
        config = cls(**{name: given.pop(name) for name in known & given.keys()})
        config.extra = given
        config.update(changes)
        return config

    @classmethod
    def from_pretrained(cls, path: str | Path, **changes: Any) -> "XLMRobertaXLConfig":
        """The config in a folder, or that of a run or checkpoint; raises ValueError."""
        path = Path(path)
        found = stored_config(path)
        try:
            config = cls.of(found) if isinstance(found, ModelConfig) else cls.from_dict(found)
        except ValueError as error:
            raise DataError(f"{path if path.name == FILE else path / FILE} has {error}") from None
        config.update(changes)
        return config

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes `config.json` into a folder, which is made where it is missing."""
        text = self.to_json_string()
        Path(folder).mkdir(parents=True, exist_ok=True)
        (Path(folder) / FILE).write_text(text, encoding="utf-8")

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"
