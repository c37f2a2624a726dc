"""What is printed is what was said, whatever names are in it."""

import io

from mlm.console import plain_console
from mlm.tracking.progress import progress

NAME = "data [v2] [/red] :smile: 2,000"


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_plain_console_prints_names_as_they_are():
    printed = io.StringIO()
    plain_console(printed).print(NAME)
    assert printed.getvalue() == NAME + "\n"


def test_progress_shows_names_as_they_are(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")
    for printed in (io.StringIO(), Terminal()):
        with progress(plain_console(printed), NAME) as show:
            show(1, 2)
        assert NAME in printed.getvalue()
