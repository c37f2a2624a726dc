"""What a verb of the command line is, and what it is called with."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Composed:
    """The settings of one job as plain dicts, and where they came from.

    model: the choice in the group `model`, None for verbs without it
    sweep: `<name>/<NNN>`, the name of its run, where the job is a point of a sweep
    resumes: the settings are those of the run that it resumes, changed by the overrides
    """

    settings: dict[str, Any]
    overrides: list[str]
    model: str | None = None
    sweep: str | None = None
    resumes: bool = False


@dataclass(frozen=True)
class Verb:
    """A command. What costs time is imported within `run`, so that the list of verbs is quick.

    summary: its line in the list; schema: a class of `mlm.config`, by name
    run: does it; a sweep gets what it returns
    choices: by the name of a setting, the names that it can have, for help and completion
    positional: settings that are given without their names; many: the last one takes all that
        are left, as a list
    """

    summary: str
    schema: str
    run: Callable[[Composed], float | None]
    positional: tuple[str, ...] = ()
    many: bool = False
    choices: Callable[[], Mapping[str, Iterable[str]]] = dict
