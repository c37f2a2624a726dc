"""CONTRIBUTING.md: its tables of packages and the code of its recipes."""

import re
import tomllib

import pytest

from tests.places import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
CONTRACTS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
    "contracts"
]
LAYERS = {contract["containers"][0]: contract["layers"] for contract in CONTRACTS[1:4]}


@pytest.mark.parametrize("top", LAYERS)
def test_packages_stand_in_the_order_of_the_import_contracts(top):
    expected = [name.strip() for layer in LAYERS[top] for name in re.split("[|:]", layer)]
    assert re.findall(rf"^\| `{top}\.(\w+)` \|", TEXT, re.MULTILINE) == expected
