"""From a composed dict to checked, frozen settings, and back."""

import re
from dataclasses import asdict
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from mlm.config.rules import check_train
from mlm.config.train import TrainConfig
from mlm.errors import UserError
from mlm.setting import BOUNDS, MISSING, range_of, settings

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

Schema = TypeVar("Schema")

IN_YAML = {"a valid dictionary": "a mapping like {en: 2}", "a valid tuple": "a list like [1, 2]"}
OUT_OF_BOUNDS = (
    "greater_than",
    "greater_than_equal",
    "less_than",
    "less_than_equal",
    "finite_number",
)


def defaults(schema: type) -> dict[str, Any]:
    """The defaults of a config dataclass as plain nested dicts and lists, for Hydra's store."""
    return as_dict(schema())


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain nested dicts and lists, which `load` and YAML take."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return plain(asdict(config))


def load(schema: type[Schema], composed: dict[str, Any]) -> Schema:
    """Checks a composed dict and makes the frozen config of it; raises `UserError`."""
    from pydantic import ValidationError

    for item in settings(schema):
        if value_of(composed, item.name) == MISSING:
            raise UserError(f"{item.name} is required, and has no default; add {item.name}=...")
    try:
        config: Any = _adapter(schema).validate_python(composed)
    except ValidationError as error:
        raise UserError(_sentence(schema, error)) from None
    if isinstance(config, TrainConfig):
        check_train(config)
    return cast(Schema, config)


def value_of(composed: dict[str, Any], name: str, default: Any = None) -> Any:
    """The value of the setting `name` in nested dicts; `default` where it is absent."""
    value: Any = composed
    for part in name.split("."):
        if not isinstance(value, dict) or part not in value:
            return default
        value = value[part]
    return value


@cache
def _adapter(schema: type) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(schema)


def _sentence(schema: type, error: "ValidationError") -> str:
    """The first error that pydantic found, as value, rule and remedy."""
    first = error.errors(include_url=False)[0]
    # A union's members (`int`, `literal['auto']`) end the location; they are not part of the key.
    path = [part for part in first["loc"] if isinstance(part, int) or part.isidentifier()]
    name = ".".join(str(part) for part in path if part not in ("int", "float", "str", "bool"))
    value, kind = first["input"], first["type"]
    if kind == "unexpected_keyword_argument":
        return f"{name} is not a setting of this command; `--help` lists them"
    if kind == "missing" and isinstance(path[-1], int):  # of a list of fixed length
        name = name.rpartition(".")[0]
        return f"{name}={value!r} has too few values; give it {path[-1] + 1} or more"
    if kind == "missing":
        return f"{name} is required, and has no default; add {name}=..."
    if kind == "string_too_short":
        return f"{name} is empty; give it a value, or omit it"
    if kind in OUT_OF_BOUNDS:
        return _out_of_bounds(schema, name, value, kind, first.get("ctx", {}))
    rule = re.sub(r"^\w+ (?=should)", "", first["msg"]).split(", unable")[0]
    for python, ours in IN_YAML.items():
        rule = rule.replace(python, ours)
    return f"{name}={value!r} is not possible: it {rule}; give {name} such a value"


def _out_of_bounds(schema: type, name: str, value: Any, kind: str, limits: dict[str, Any]) -> str:
    found = next((item for item in settings(schema) if item.name == name), None)
    # Without a setting of its own, it is an item of a list or a value of a mapping.
    bounds = found.bounds if found else {key: limits[key] for key in BOUNDS if key in limits}
    allowed = range_of(bounds) if bounds else ""
    number = allowed if list(bounds) == ["ge"] else f"a number {allowed}".rstrip()
    if kind == "finite_number":
        return f"{name}={value} is not a finite number; give {number}"
    if list(bounds) == ["ge"]:
        return f"{name}={value} is below {bounds['ge']:g}; give {number}"
    default = found.default if found else None
    remedy = f"give {number}" if default is None else f"the default is {default}"
    return f"{name}={value} is not {allowed}; {remedy}"
