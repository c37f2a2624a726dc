"""Code from outside the package: modules imported by name, and the tables that they add to.

A table is a plain dict from a name to a function or class. A module of the user's adds an entry,
`SCHEDULES["mine"] = mine`, the setting `plugins` has it imported, and another setting chooses it.
"""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TypeVar

from mlm.errors import UserError

Entry = TypeVar("Entry")


def import_plugins(names: Sequence[str]) -> None:
    """Imports the modules of the setting `plugins`, in order; raises `UserError`."""
    for name in names:
        try:
            import_module(name)
        except Exception as error:
            raise UserError(
                f"plugins={name} cannot be imported ({type(error).__name__}: {error}); install "
                f"it, or add the folder that holds it to PYTHONPATH"
            ) from error


def entry(table: Mapping[str, Entry], setting: str, name: str) -> Entry:
    """The entry that `setting` chooses; raises `UserError` with the names that there are."""
    if name not in table:
        raise UserError(
            f"{setting}={name} is not known; choose from {', '.join(sorted(table))}, or add the "
            f"module that defines it to plugins"
        )
    return table[name]
