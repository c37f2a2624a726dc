"""Tab completion: what a shell, by the script that Hydra installs, can put for the last word."""

import os
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import mlm.config
from launch.help import GROUPS, files
from launch.verb import Verb
from launch.verbs import VERBS
from mlm.setting import Setting, settings

FLAGS = ("--help", "--cfg", "--config-dir")
FOLDER_FLAGS = ("--config-dir", "-cd")


def completed(line: str) -> list[str]:
    """The words that can stand for the last one of a command line, `mlm train model=ti`."""
    words = line.split(" ")
    if len(words) < 3 or words[1] not in VERBS:
        return [name for name in VERBS if name.startswith(words[-1])]
    verb, before, word = VERBS[words[1]], words[2:-1], words[-1]
    if before and before[-1] in FOLDER_FLAGS:
        return list(_paths(word))
    if word.startswith("-"):
        flags = FLAGS + (("--multirun",) if words[1] == "train" else ())
        return [flag for flag in flags if flag.startswith(word)]
    if "=" not in word:
        named = any("=" in given or given.startswith("-") for given in before)
        return [*(_paths(word) if verb.positional and not named else ()), *_names(verb, word)]
    name, _, start = word.partition("=")
    return [f"{name}={value}" for value in _values(verb, name, start, _config_folder(before))]


def _names(verb: Verb, word: str) -> list[str]:
    """Settings that begin with `word`; of longer ones the part up to the next dot."""
    given = [row.name for row in _settings(verb)] + [*_groups(verb), *verb.choices()]
    names = {f"{name}=" for name in given if name.startswith(word)}
    ends = {name: name.find(".", len(word)) + 1 for name in names}
    return sorted({name[: end or None] for name, end in ends.items()})


def _values(verb: Verb, name: str, start: str, config_folder: Path | None) -> Iterator[str]:
    if name in _groups(verb):
        found: Iterable[str] = files(name, config_folder)
    elif name.removesuffix(".kind") in verb.choices():
        found = verb.choices()[name.removesuffix(".kind")]
    else:
        row = next((row for row in _settings(verb) if row.name == name), None)
        kinds = list(_kinds(row.type)) if row else []
        found = [value for kind in kinds for value in _of(kind)]
        if str in kinds:
            yield from _paths(start)
    yield from (value for value in found if value.startswith(start))


def _settings(verb: Verb) -> tuple[Setting, ...]:
    return settings(getattr(mlm.config, verb.schema))


def _groups(verb: Verb) -> tuple[str, ...]:
    return GROUPS if verb is VERBS["train"] else ()


def _kinds(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _of(kind: Any) -> list[str]:
    """The values of a type that has few."""
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    return {bool: ["true", "false"], NoneType: ["null"]}.get(kind, [])


def _config_folder(words: list[str]) -> Path | None:
    """The folder of the user's own choices, where the line has `--config-dir`."""
    given = [word.split("=", 1)[1] for word in words if word.startswith("--config-dir=")]
    given += [after for word, after in pairwise(words) if word in FOLDER_FLAGS]
    return Path(os.path.expanduser(given[-1])) if given else None


def _paths(start: str) -> Iterator[str]:
    """Files and folders that begin with `start`, but those that a shell would take apart."""
    folder, _, name = start.rpartition("/")
    place = Path(os.path.expanduser(f"{folder}/" if "/" in start else "."))
    try:
        found = sorted(place.iterdir())
    except OSError:
        return
    for path in found:
        hidden = path.name.startswith(".") and not name
        if path.name.startswith(name) and not hidden and not set(path.name) & set(" \t\n'\"\\$`"):
            end = "/" if path.is_dir() else ""
            yield f"{start[: len(start) - len(name)]}{path.name}{end}"
