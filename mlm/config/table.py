"""The settings as a Markdown table: `python -m mlm.config` prints what README.md here holds."""

from collections.abc import Iterator
from itertools import groupby
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from mlm.config.commands import (
    AuditConfig,
    CheckpointsConfig,
    ExportConfig,
    FillConfig,
    ImportConfig,
    ShardsConfig,
    TokenizerConfig,
)
from mlm.config.train import TrainConfig
from mlm.setting import MISSING, Setting, range_of, settings

NAMES = {int: "integer", float: "number", str: "text", bool: "true|false", NoneType: "null"}
COMMANDS = {
    "tokenizer": TokenizerConfig,
    "shards": ShardsConfig,
    "train": TrainConfig,
    "checkpoints": CheckpointsConfig,
    "audit": AuditConfig,
    "fill": FillConfig,
    "import": ImportConfig,
    "export": ExportConfig,
}
INTRODUCTION = """\
# Settings

Written by `python -m mlm.config > mlm/config/README.md`; a test compares the two. Each setting is
declared once, in a dataclass of this folder or in [model/config.py](../model/config.py): type,
default, bounds, help, and whether a run can resume with another value.

A command takes `SETTING=VALUE`. A `null` is the absence of a value, a list is `[1,2]`, a mapping
`{en: 2}`. Names from a table ([schedules](../training/schedule.py),
[trackers](../tracking/trackers.py), [kernels](../model/kernels.py),
[launchers](../../launch/launchers/__init__.py)) are checked after `plugins` are imported.

The defaults of `model.*` are those of XLM-R XL. A command starts from the values in
[conf/](../../conf), `mlm train` from `model=base`; `mlm COMMAND --help` shows what it has."""


def markdown() -> str:
    """The whole page."""
    return "\n".join([INTRODUCTION, *_commands()]) + "\n"


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(item) for item in value)}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{name}: {shown(item)}' for name, item in value.items())}}}"
    return str(value)


def _commands() -> Iterator[str]:
    for command, schema in COMMANDS.items():
        yield f"\n## mlm {command}"
        resumes = schema is TrainConfig
        for section, rows in groupby(settings(schema), lambda row: row.name.rpartition(".")[0]):
            yield f"\n### {section}\n" if section else ""
            yield f"| setting | default | values |{' on resume |' if resumes else ''} what it is |"
            yield f"|---|---|---|{'---|' if resumes else ''}---|"
            for row in rows:
                yield _row(row, resumes)


def _row(row: Setting, resumes: bool) -> str:
    default = "required" if row.default == MISSING else f"`{shown(row.default)}`"
    members = values(row.type, row.bounds).split("|")
    cells = [f"`{row.name}`", default, ", ".join(members)]
    cells += ["free" if row.resume else "fixed"] if resumes else []
    return "| " + " | ".join([*cells, _cell(row.help)]) + " |"


def values(kind: Any, bounds: dict[str, float]) -> str:
    """The values of a type, in words, choices as `a|b`."""
    members = get_args(kind)
    if get_origin(kind) is Annotated:
        return values(members[0], bounds)
    if get_origin(kind) in (Union, UnionType):
        return ", ".join(values(member, bounds) for member in members)
    if get_origin(kind) is Literal:
        return "|".join(str(member) for member in members)
    if get_origin(kind) is tuple:
        return "list"
    if get_origin(kind) is dict:
        return "mapping"
    numbers = f" {range_of(bounds)}" if bounds and kind in (int, float) else ""
    return NAMES[kind] + numbers


def _cell(text: str) -> str:
    """Text whose `|` and `<` Markdown would take for its own."""
    return text.replace("|", "\\|").replace("<", "&lt;")
