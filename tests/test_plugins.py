"""Code from outside: what is said of a module or a name that is not there."""

import pytest

from mlm.errors import UserError
from mlm.plugins import entry, import_plugins


def test_import_plugins_says_how_a_module_becomes_importable():
    with pytest.raises(UserError) as raised:
        import_plugins(["json", "no_such_plugin"])
    assert str(raised.value) == (
        "plugins=no_such_plugin cannot be imported (ModuleNotFoundError: No module named "
        "'no_such_plugin'); install it, or add the folder that holds it to PYTHONPATH"
    )


def test_entry_lists_the_names_of_the_table():
    table = {"b": 2, "a": 1}
    assert entry(table, "x.kind", "b") == 2
    with pytest.raises(UserError) as raised:
        entry(table, "x.kind", "c")
    assert str(raised.value) == (
        "x.kind=c is not known; choose from a, b, or add the module that defines it to plugins"
    )
