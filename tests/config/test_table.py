"""The page of settings follows from the schema."""

from launch.cli import VERBS
from mlm.config.table import COMMANDS, markdown, shown
from tests.places import ROOT


def test_settings_page_matches_the_schema():
    written = (ROOT / "mlm" / "config" / "README.md").read_text("utf-8")
    assert written == markdown(), "run: python -m mlm.config > mlm/config/README.md"


def test_table_has_every_command():
    assert list(COMMANDS) == list(VERBS)


def test_shown_writes_values_as_the_command_line_takes_them():
    assert shown([1, (2.5, None)]) == "[1,[2.5,null]]"
    assert shown({"en": 2, "sw": True}) == "{en: 2, sw: true}"
