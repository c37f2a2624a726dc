"""`mlm train run.name=NAME`: a run that exists resumes with its own settings.

What the command gives changes them; what contradicts them is refused later, as for any command that
would resume.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from launch.run_folder import CONFIG, OVERRIDES, PREPARED
from launch.verb import Composed
from mlm.config import TrainConfig, value_of
from mlm.setting import settings

FOR_THE_MACHINE = ("parallel.dp", "train.device")  # it chooses them again unless they were given
SOURCES = ("corpus", "shards")
SHAPES = ("model", "experiment")  # groups that choose the model


def keys(overrides: Iterable[str]) -> set[str]:
    """The settings and groups that overrides name."""
    return {re.sub(r"\.kind$", "", text.lstrip("+~").partition("=")[0]) for text in overrides}


def own_settings(composed: Composed, defaults: dict[str, Any]) -> dict[str, Any] | None:
    """The settings of the run that a job resumes, to be changed by what it gives; None where it
    begins a new one, or where they cannot be read."""
    folder, given = _folder(composed), keys(composed.overrides)
    try:
        saved = None if folder is None else yaml.safe_load((folder / CONFIG).read_text("utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # the check of the folder reports what is wrong with it
    if folder is None or not isinstance(saved, dict):
        return None
    before = keys(_overrides(folder))
    own: dict[str, Any] = {}
    for setting in settings(TrainConfig):
        value = value_of(defaults, setting.name)
        machine = setting.name in FOR_THE_MACHINE and setting.name not in before
        if not machine and not setting.name.startswith("run."):
            value = value_of(saved, setting.name, value)
        *sections, key = setting.name.split(".")
        section = own
        for name in sections:
            section = section.setdefault(name, {})
        section[key] = value
    for name in ("data", "eval"):
        _choose_source(own[name], {source for source in SOURCES if f"{name}.{source}" in given})
    if _gone(own["data"]["tokenizer"]):  # the shards hold a copy
        own["data"]["tokenizer"] = None
    return own


def arguments(composed: Composed, given: list[str]) -> list[str]:
    """Hydra's arguments for a job whose defaults are a run's own settings."""
    return given if keys(composed.overrides).intersection(SHAPES) else ["~model", *given]


def all_overrides(composed: Composed) -> list[str]:
    """Those that the run began with, and those of this command in place of them."""
    folder = _folder(composed)
    assert folder is not None, "the job resumes a run"
    given = keys(composed.overrides)
    for name in ("data", "eval"):
        given |= {f"{name}.{one}" for one in SOURCES if f"{name}.{_other(one)}" in given}
    kept = [text for text in _overrides(folder) if not keys([text]) <= given]
    return kept + composed.overrides


def _folder(composed: Composed) -> Path | None:
    run = composed.settings["run"]
    if not isinstance(run, dict) or not isinstance(run["name"], str) or run["fresh"]:
        return None
    return Path(str(run["dir"])) / run["name"]


def _overrides(folder: Path) -> list[str]:
    try:
        return (folder / OVERRIDES).read_text("utf-8").splitlines()
    except OSError:
        return []


def _choose_source(section: dict[str, Any], given: set[str]) -> None:
    """Leaves a corpus or its shards where both are known: what was made of a corpus is made again,
    or found, where a corpus is given or the shards are gone."""
    shards, tokenizer = section["shards"], section.get("tokenizer")
    if given or (_gone(shards) and section["corpus"]):
        if tokenizer and (Path(tokenizer).parent == Path(shards or "") or _prepared(tokenizer)):
            section["tokenizer"] = None
        section["shards"] = None
    if "shards" in given:
        section["corpus"] = None


def _gone(folder: str | None) -> bool:
    return bool(folder) and "://" not in folder and not Path(folder).is_dir()


def _prepared(tokenizer: str) -> bool:
    """Whether it was trained on the corpus of a run, not given."""
    return Path(tokenizer).parent.parent.name == PREPARED


def _other(source: str) -> str:
    return SOURCES[1 - SOURCES.index(source)]
