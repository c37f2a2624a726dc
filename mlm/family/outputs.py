"""What the models return: named fields, read by name or by place, as dicts and as pytrees."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass
from inspect import get_annotations
from typing import Any, ClassVar

import torch.utils._pytree as pytree
from torch import Tensor

from mlm.family.cache import KeyValues
from mlm.family.joining import JoiningOutput

Tensors = tuple[Tensor, ...]


class ModelOutput(JoiningOutput):
    """Fields in transformers' order; a dict of those that are not None, the others are there by
    name only.

    `out.logits`, `out["logits"]` and, over the fields that are not None, `out[0]`, `out[:2]`,
    `out.to_tuple()`, `len(out)`, `dict(out)`. Subclasses are dataclasses, made of their fields or,
    as a dict is, of a mapping or of pairs; a caller may add items of its own. They are pytrees,
    since what adds up gradients over ranks looks for the tensors in what a model returns.
    """

    names: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        cls.names = (*cls.names, *get_annotations(cls))
        pytree.register_pytree_node(
            cls,
            lambda out: (list(out.values()), list(out)),
            lambda values, names: _made(cls, dict(zip(names, values, strict=True))),
            serialized_type_name=f"{cls.__module__}.{cls.__name__}",
            flatten_with_keys_fn=_with_keys,
        )

    def __post_init__(self) -> None:
        """Takes a mapping or pairs in place of the first field."""
        first = self.__dict__[self.names[0]]
        if isinstance(first, Iterator):
            first = list(first)
        if isinstance(first, Mapping):
            first = list(first.items())
        if isinstance(first, list) and len(self) == 1:
            setattr(self, self.names[0], None)
            for name, value in first:
                self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    # By the names of the plain classes: `super()` is transformers' where it is a base, too.

    def __getitem__(self, item: Any) -> Any:
        by_name = isinstance(item, str)
        return OrderedDict.__getitem__(self, item) if by_name else self.to_tuple()[item]

    def __setitem__(self, name: str, value: Any) -> None:
        if name in self.names:
            setattr(self, name, value)
        else:
            OrderedDict.__setitem__(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.names:
            if value is not None:
                OrderedDict.__setitem__(self, name, value)
            elif name in self:
                OrderedDict.__delitem__(self, name)
        object.__setattr__(self, name, value)

    def __delitem__(self, name: str) -> None:
        OrderedDict.__delitem__(self, name)
        if name in self.names:
            object.__setattr__(self, name, None)

    def _kept(self, *_: Any, **__: Any) -> Any:
        raise TypeError(f"a {type(self).__name__} keeps its fields; make a dict of it first")

    pop = popitem = setdefault = clear = move_to_end = _kept  # pyright: ignore
    update = MutableMapping.update

    def __reduce__(self) -> Any:
        return _made, (type(self), dict(self))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({shown})"


def _with_keys(out: ModelOutput) -> tuple[list[tuple[Any, Any]], Any]:
    return [(pytree.MappingKey(name), value) for name, value in out.items()], list(out)


def _made(cls: type[ModelOutput], values: Mapping[str, Any]) -> Any:
    """With these keys, also where a map over a pytree has put None in a tensor's place."""
    made = cls()
    for name, value in values.items():
        made[name] = value
        OrderedDict.__setitem__(made, name, value)
    return made


@dataclass(eq=False, repr=False)
class EncoderOutput(ModelOutput):
    """Of the bare model and, without `pooler_output`, of its encoder."""

    last_hidden_state: Tensor | None = None
    pooler_output: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False, repr=False)
class HeadOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None


@dataclass(eq=False, repr=False)
class CausalOutput(ModelOutput):
    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValues | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


@dataclass(eq=False, repr=False)
class SpanOutput(ModelOutput):
    loss: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
