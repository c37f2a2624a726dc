"""What a setting is: a field of a dataclass that carries its default, bounds and line of help.

pydantic reads the metadata that `setting` writes; so do the help of the commands, the table of
settings and the rules of resuming. Nothing here imports pydantic, which only checking needs.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_type_hints

BOUNDS = ("ge", "gt", "le", "lt")
STRICT: Any = {"extra": "forbid", "allow_inf_nan": False}  # pydantic's, for sections as well
MISSING = "???"  # the default of a setting that must be given, as Hydra has it

Section = TypeVar("Section")


@dataclass(frozen=True)
class Setting:
    """A setting as its dataclass declares it.

    name: `train.steps`; bounds: those of `BOUNDS` that it has; resume: whether a run can resume
    with another value
    """

    name: str
    type: Any
    default: Any
    help: str
    bounds: dict[str, float]
    resume: bool


def setting(
    default: Any,
    help: str,
    *,
    resume: bool = False,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    min_length: int | None = None,
) -> Any:
    """A dataclass field for one setting, with pydantic's names for its bounds.

    default: a value, or a type such as `dict` whose new instance it is; resume: see `Setting`
    """
    limits = {"ge": ge, "gt": gt, "le": le, "lt": lt, "min_length": min_length}
    metadata = {name: limit for name, limit in limits.items() if limit is not None}
    metadata |= {"description": help, "json_schema_extra": {"resume": resume}}
    if isinstance(default, type):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def section(schema: type[Section], *, resume: bool = False) -> Section:
    """A dataclass field for a group of settings. resume: for all that are in it"""
    return field(default_factory=schema, metadata={"json_schema_extra": {"resume": resume}})


@cache
def settings(schema: type) -> tuple[Setting, ...]:
    """All settings of a config dataclass and of its sections, in order."""
    return tuple(_settings(schema, "", False))


def range_of(bounds: dict[str, float]) -> str:
    """The numbers within `bounds`, in words: `1 or more`, `from 0 to below 1`."""
    if not {"ge", "gt"} & bounds.keys():
        return f"at most {bounds['le']:g}" if "le" in bounds else f"below {bounds['lt']:g}"
    low = f"from {bounds['ge']:g}" if "ge" in bounds else f"above {bounds['gt']:g}"
    if "le" in bounds:
        return f"{low} {'to' if 'ge' in bounds else 'and at most'} {bounds['le']:g}"
    if "lt" in bounds:
        return f"{low} {'to' if 'ge' in bounds else 'and'} below {bounds['lt']:g}"
    return f"{bounds['ge']:g} or more" if "ge" in bounds else low


def _settings(schema: type, prefix: str, resume: bool) -> Iterator[Setting]:
    types = get_type_hints(schema, include_extras=True)
    default = schema()
    for item in fields(schema):
        kind, name = types[item.name], prefix + item.name
        free = resume or item.metadata.get("json_schema_extra", {}).get("resume", False)
        if is_dataclass(kind) and isinstance(kind, type):
            yield from _settings(kind, f"{name}.", free)
            continue
        bounds = {bound: item.metadata[bound] for bound in BOUNDS if bound in item.metadata}
        help = item.metadata.get("description", "")
        yield Setting(name, kind, getattr(default, item.name), help, bounds, free)
