"""Commands whose output nobody reads any more, or cannot be shown."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

# A command that says much, keeps what it has done in a file, and ends with 3.
TALKING = """
import os, sys
from mlm.output import lasting_output
with lasting_output():
    for number in range(20_000):
        print(number, "日本語")
        print(number, "日本語", file=sys.stderr)
    sys.stdout.flush()
    os.write(os.open(sys.argv[1], os.O_CREAT | os.O_WRONLY), b"done")
sys.exit(3)
"""


def started(tmp_path: Path, redirection: str, **more: str) -> tuple[int, str]:
    """The code of the command in a shell with a redirection, and what was shown."""
    line = f'"$@" {redirection}; echo "code ${{PIPESTATUS[0]}}"'
    command = [sys.executable, "-c", TALKING, str(tmp_path / "kept")]
    done = subprocess.run(
        ["bash", "-c", line, "-", *command],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | more,
        capture_output=True,
        check=True,
    )
    shown = done.stdout.decode("utf-8", "replace")
    return int(shown.rsplit("code ", 1)[1]), shown


@pytest.mark.parametrize(
    "redirection",
    ["2>&1 | head -n 1", "2>/dev/null >&-", ">/dev/null 2>&-", ">&- 2>&- <&-", ">/dev/full 2>&1"],
)
def test_output_that_nobody_reads_ends_nothing(redirection, tmp_path):
    assert started(tmp_path, redirection)[0] == 3
    assert (tmp_path / "kept").read_text() == "done"


def test_output_escapes_what_its_encoding_lacks(tmp_path):
    code, shown = started(tmp_path, "2>/dev/null", PYTHONIOENCODING="latin-1", PYTHONUTF8="0")
    assert code == 3
    assert shown.splitlines()[0] == r"0 \u65e5\u672c\u8a9e"
