"""The documents: their links, the files that they name, and the commands that they show."""

import re
import shlex
import subprocess
from functools import cache
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from launch.cli import main
from tests.places import ROOT

TOP = ("launch", "mlm", "parallel", "conf", "tests")
FOREIGN = {"run_mlm.py"}  # a script of transformers


@cache
def documents() -> list[Path]:
    """Every Markdown file of the checkout, also those that git does not track."""
    found = [ROOT.glob("*.md"), *(ROOT.glob(f"{folder}/**/*.md") for folder in TOP)]
    return sorted(chain(*found))


@cache
def text(document: Path) -> str:
    return document.read_text("utf-8")


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text(document), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(document: Path) -> list[list[str]]:
    """The commands in code blocks, one list of words each, continuation lines joined."""
    joined = re.sub(r" *\\\n\s*", " ", text(document))
    lines = re.findall(
        r"^ {4,}(?:[A-Z_]+=\S+ )*((?:mlm|torchrun|make|python) .*)$", joined, re.MULTILINE
    )
    return [shlex.split(line) for line in lines]


SHOWN = {" ".join(words): words for document in documents() for words in commands(document)}


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_to_a_file_and_a_heading(document):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(document)):
        if target.startswith("http"):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.parametrize("document", documents(), ids=lambda path: str(path.relative_to(ROOT)))
def test_files_named_in_documents_exist(document):
    for name in re.findall(r"`([\w./*-]+)`", text(document)):
        if name in FOREIGN or not (name.endswith(".py") or name.split("/")[0] in TOP):
            continue
        assert any(ROOT.glob(name)) or any(document.parent.glob(name)), name


@pytest.mark.parametrize("words", SHOWN.values(), ids=SHOWN)
def test_commands_compose_or_name_a_file_or_target(words, capsys):
    program, *arguments = words
    if program == "make":
        subprocess.run(["make", "-n", *arguments], cwd=ROOT, check=True, capture_output=True)
    elif program == "python":
        assert (ROOT / arguments[0]).is_file()
    else:
        if program == "torchrun":
            arguments = arguments[arguments.index("launch") + 1 :]
        assert composes(arguments), capsys.readouterr().err


def composes(arguments: list[str]) -> bool:
    """Whether `mlm` knows a command and its settings; of a sweep, those of its first job."""
    if "--config-dir" in arguments:  # the reader's own, with one group
        place = arguments.index("--config-dir") + 1
        with TemporaryDirectory() as folder:
            (Path(folder) / "experiment").mkdir()
            (Path(folder) / "experiment" / "deu.yaml").write_text("# @package _global_\nseed: 3\n")
            return main([*arguments[:place], folder, *arguments[place + 1 :], "--cfg", "job"]) == 0
    if "-m" in arguments:
        arguments = [word.split(",")[0] for word in arguments if word != "-m"]
    printing = {"--help", "--cfg"} & set(arguments)
    try:
        return main(arguments if printing else [*arguments, "--cfg", "job"]) == 0
    except SystemExit as end:  # Hydra's own after `--help`
        return end.code == 0
