"""What is changed in settings before and after Hydra reads them."""

import os
import re
from collections.abc import Sequence
from types import UnionType
from typing import Any, Union, get_args, get_origin

from launch import ROOT
from mlm.setting import settings

CONF = ROOT / "conf"
# What is not text to Hydra: numbers as YAML and Python write them, truth values, and a path from ~.
_NO_TEXT = re.compile(
    r"[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)(e[-+]?\d+)?|[-+]?inf|nan|true|false|~[^'\"\s=,]*",
    re.IGNORECASE,
)


def readable(arguments: Sequence[str], schema: type, defaults: dict[str, Any]) -> list[str]:
    """Overrides as Hydra understands them: `NAME.kind=VALUE` for `NAME=VALUE` where that is a
    setting, and texts that look like something else in quotes."""
    texts = texts_of(schema)
    return [_as_text(_expanded(one, defaults), texts) for one in arguments]


def _expanded(override: str, defaults: dict[str, Any]) -> str:
    """`schedule.kind=wsd` for `schedule=wsd`, unless that is a file of the group `schedule`."""
    name, _, value = override.partition("=")
    section = defaults.get(name)
    if not isinstance(section, dict) or "kind" not in section or value.startswith("{"):
        return override
    return override if (CONF / name / f"{value}.yaml").is_file() else f"{name}.kind={value}"


def texts_of(schema: type) -> frozenset[str]:
    """The settings that are text, by name."""
    return frozenset(row.name for row in settings(schema) if str in _kinds(row.type))


def _kinds(type: Any) -> tuple[Any, ...]:
    """What a setting can be: `(str, None)` of `str | None`."""
    return get_args(type) if get_origin(type) in (UnionType, Union) else (type,)


def _as_text(override: str, texts: frozenset[str]) -> str:
    """Puts the value of a text in quotes where Hydra would read a number, a truth value, or, at a
    `~`, nothing."""
    name, _, value = override.partition("=")
    if name.lstrip("+") in texts and _NO_TEXT.fullmatch(value):
        return f'{name}="{value}"'
    return override


def from_home(path: str) -> str:
    """A path that begins with `~/`, which shells leave as it is after `run.dir=`, as one in the
    user's own folder."""
    return os.path.expanduser(path) if re.match(r"~(/|$)", path) else path


def replace_home(plain: dict[str, Any], texts: frozenset[str]) -> None:
    """Replaces `~` in all texts of composed settings, wherever they come from."""
    for name in texts:
        section, key = _holder(plain, name)
        if isinstance(section, dict) and isinstance(value := section.get(key), str):
            section[key] = from_home(value)


def _holder(plain: dict[str, Any], name: str) -> tuple[Any, str]:
    """What stands for the section of a setting, which is checked later, and its name there."""
    *sections, key = name.split(".")
    found: Any = plain
    for section in sections:
        found = found.get(section) if isinstance(found, dict) else None
    return found, key
