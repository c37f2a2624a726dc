"""What the models return: named fields, read by name or by place."""

from collections.abc import Iterator
from typing import Any


class ModelOutput:
    """Fields in transformers' order; those that are None are there by name only.

    `out.logits`, `out["logits"]` and, over the fields that are not None, `out[0]`, `out[:2]`,
    `tuple(out)`, `len(out)` and `out.keys()`.
    """

    def __init__(self, **fields: Any) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Any:  # of a field that there is not
        raise AttributeError(f"{type(self).__name__} has no field {name}")

    def keys(self) -> list[str]:
        return [name for name, value in self.__dict__.items() if value is not None]

    def values(self) -> list[Any]:
        return [self.__dict__[name] for name in self.keys()]

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self.__dict__[name]) for name in self.keys()]

    def get(self, name: str, default: Any = None) -> Any:
        value = self.__dict__.get(name)
        return default if value is None else value

    def to_tuple(self) -> tuple[Any, ...]:
        return tuple(self.values())

    def __getitem__(self, item: str | int | slice) -> Any:
        if isinstance(item, str):
            if item not in self.keys():
                raise KeyError(item)
            return self.__dict__[item]
        return self.to_tuple()[item]

    def __setitem__(self, name: str, value: Any) -> None:
        """Puts another value in a field's place; raises KeyError where there is no such field."""
        if name not in self.__dict__:
            raise KeyError(name)
        self.__dict__[name] = value

    def __contains__(self, name: object) -> bool:
        return name in self.keys()

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __len__(self) -> int:
        return len(self.keys())

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.items())
        return f"{type(self).__name__}({shown})"


def returned(as_object: bool, **fields: Any) -> "ModelOutput | tuple[Any, ...]":
    """The fields as an object, or those that are not None as a tuple."""
    made = ModelOutput(**fields)
    return made if as_object else made.to_tuple()
