"""Hydra composes the settings of a verb; what it finds wrong becomes one sentence."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn, cast

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import mlm.config
from launch import resuming
from launch.help import GROUPS
from launch.overrides import from_home, readable, replace_home, texts_of
from launch.verb import Composed
from mlm.errors import UserError

log = logging.getLogger(__name__)

EXCLUSIVE = ("run", "multirun", "cfg", "info", "shell_completion")  # Hydra does one of these


def compose(
    verb: str,
    schema: str,
    arguments: Sequence[str],
    given: dict[str, Any],
    task: Callable[[Composed], float | None],
    choices: Callable[[], Mapping[str, Iterable[str]]] = dict,
) -> None:
    """Composes the settings of `verb` and calls `task` with them, once for each point of a sweep.

    `arguments` are Hydra's: overrides and flags; `--help`, `--cfg job` and the like print and call
    nothing. `NAME=VALUE` is short for `NAME.kind=VALUE` where that is a setting. Raises
    `UserError`.

    given: settings from positional arguments; choices: what the help lists, see `Verb`
    """
    settings_class = getattr(mlm.config, schema)
    defaults = mlm.config.defaults(settings_class)
    texts = texts_of(settings_class)
    arguments = readable(arguments, settings_class, defaults)
    parsed = _parse(verb, arguments)
    if parsed.multirun and verb != "train":
        raise UserError(f"-m is given to mlm {verb}, but only mlm train runs sweeps; omit it")
    ConfigStore.instance().store(f"{verb}_schema", node=_node(defaults, defaults))
    kept: list[tuple[DictConfig, Any]] = []

    def collect(settings: DictConfig) -> float | None:
        job = HydraConfig.get()
        if job.mode == RunMode.MULTIRUN:
            return _point(settings, job, task, texts)
        kept.append((settings, job))
        return None

    def help_text(*, _root_: DictConfig) -> str:
        from launch.help import help_text

        return help_text(settings_class, choices(), _root_)

    OmegaConf.register_new_resolver("help_text", help_text, replace=True)

    def composed(arguments: Sequence[str]) -> Composed | None:
        kept.clear()
        with _one_sentence(verb, defaults):
            with _arguments(arguments), _sweep_folder(parsed.overrides):
                hydra.main(version_base="1.3", config_path="pkg://conf", config_name=verb)(
                    collect
                )()
            jobs = [_composed(settings, job, given, texts) for settings, job in kept]
        return jobs[0] if jobs else None

    job = composed(arguments)
    if job is not None and verb == "train":
        own = resuming.own_settings(job, defaults)
        if own is not None:
            ConfigStore.instance().store(f"{verb}_schema", node=_node(own, defaults))
            overrides = resuming.all_overrides(job)
            job = composed(resuming.arguments(job, arguments))
            job = job and replace(job, overrides=overrides, resumes=True)
    if job is not None:  # outside of Hydra, which would write about its errors
        task(job)


def _node(values: dict[str, Any], defaults: dict[str, Any]) -> DictConfig:
    """Values for Hydra, which refuses keys that they lack, but where a value is by language."""
    node = OmegaConf.create(values)
    for key in _keys(defaults):
        if mlm.config.value_of(defaults, key) == {}:
            OmegaConf.set_struct(OmegaConf.select(node, key), False)
    return node


def _parse(verb: str, arguments: Sequence[str]) -> Any:
    def refuse(message: str) -> NoReturn:
        wrong = message.removeprefix("unrecognized arguments: ")
        what = f"{wrong} is not an option of mlm {verb}" if wrong != message else wrong
        raise UserError(f"{what}; `mlm {verb} --help` shows what it takes")

    parser = get_args_parser()
    parser.error = refuse
    parsed = parser.parse_args(list(arguments))
    given = [f"--{name.replace('_', '-')}" for name in EXCLUSIVE if getattr(parsed, name)]
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} exclude each other; give one of them")
    return parsed


def _composed(
    settings: DictConfig, job: Any, given: dict[str, Any], texts: frozenset[str]
) -> Composed:
    plain = OmegaConf.to_container(settings, resolve=True, throw_on_missing=False)
    plain = cast(dict[str, Any], plain)
    replace_home(plain, texts)
    for name, value in given.items():
        if any(text.startswith(f"{name}=") for text in job.overrides.task):
            raise UserError(f"{name} is given twice, as {value!r} and by {name}=...; omit one")
        plain[name] = value
    overrides = [re.sub(r"^(\w+)\.kind=", r"\1=", text) for text in job.overrides.task]
    return Composed(plain, overrides, job.runtime.choices.get("model"))


class PointFailed(UserError):
    """A point of a sweep that has reported already why it failed."""

    def __init__(self, code: int) -> None:
        super().__init__("")
        self.code = code


def _point(
    settings: DictConfig,
    job: Any,
    task: Callable[[Composed], float | None],
    texts: frozenset[str],
) -> float | None:
    """A job of a sweep: its error is reported at once, as Hydra continues with the next point."""
    composed = _composed(settings, job, {}, texts)
    run = composed.settings["run"]
    folder = run["name"] or os.path.relpath(job.sweep.dir, run["dir"])
    composed = replace(composed, sweep=f"{folder}/{job.job.num:03d}")
    try:
        return task(composed)
    except UserError as error:
        log.error(f"{composed.sweep}: {error}")
        raise PointFailed(error.code) from error


@contextmanager
def _arguments(arguments: Sequence[str]) -> Iterator[None]:
    """Gives Hydra its arguments, and leaves its error messages to us."""
    before = sys.argv
    sys.argv = [before[0], *arguments]
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before


@contextmanager
def _sweep_folder(overrides: list[str]) -> Iterator[None]:
    """Names a sweep's folder, `<run.dir>/<name>`, and takes Hydra's own file out of it."""
    folders: list[Path] = []
    swept = any(re.match(r"model=.*,", text) for text in overrides)

    def folder(run_dir: str, name: str | None, model: str | None) -> str:
        start = "sweep" if swept else model
        folders.append(
            Path(from_home(run_dir)) / (name or f"{start}-{datetime.now():%Y%m%d-%H%M%S}")
        )
        return str(folders[-1])

    OmegaConf.register_new_resolver("sweep_folder", folder, use_cache=True, replace=True)
    try:
        yield
    finally:
        for path in folders:
            (path / "multirun.yaml").unlink(missing_ok=True)
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()


def _unreadable(override: str) -> str:
    key, equals, value = override.partition("=")
    quoted = '["...","..."]' if value.startswith("[") else '"..."'
    if not equals:
        return (
            f"{override!r} is not SETTING=VALUE; folders and texts come before the first setting, "
            f"a setting has an ="
        )
    return (
        f"{override!r} cannot be read as SETTING=VALUE; put a value with spaces or special "
        f"characters in quotes of its own, '{key}={quoted}'"
    )


@contextmanager
def _one_sentence(verb: str, defaults: dict[str, Any]) -> Iterator[None]:
    try:
        yield
    except MissingConfigException as error:
        raise UserError(_no_such_choice(error)) from None
    except OverrideParseException as error:
        raise UserError(_unreadable(error.override)) from None
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(_explained(str(error), verb, defaults)) from None


def _explained(message: str, verb: str, defaults: dict[str, Any]) -> str:
    help_text = f"`mlm {verb} --help` lists them"
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found[1]
        groups = GROUPS if verb == "train" else ()
        if key in groups:
            return f"{key} takes the name of a choice; write {key}.SETTING=VALUE for one setting"
        near = get_close_matches(key, [*_keys(defaults), *groups], 1, 0.6)
        return f"{key} is not a setting; " + (f"did you mean {near[0]}?" if near else help_text)
    if found := re.search(r"Ambiguous value for argument '([^']+)'", message):
        key, _, value = found[1].partition("=")
        return (
            f"{found[1]} is several values for one setting; add -m to run a job for each, or write "
            f"{key}=[{value}] for a list"
        )
    return f"{_first_line(message).rstrip('.')}; {help_text.replace('them', 'the settings')}"


def _no_such_choice(error: MissingConfigException) -> str:
    group, _, choice = str(error.missing_cfg_file).rpartition("/")
    options = list(error.options or [])
    if not group or not options:
        return f"{_first_line(str(error))}; choose a file that is there"
    near = get_close_matches(choice, options, 1, 0.6)
    hint = f"did you mean {near[0]}? There are" if near else "choose from"
    return f"{group}={choice} is not a choice of {group}; {hint} {', '.join(sorted(options))}"


def _keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    rows = []
    for name, value in tree.items():
        rows.append(prefix + name)
        if isinstance(value, dict):
            rows += _keys(value, f"{prefix}{name}.")
    return rows


def _first_line(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "no reason given")
