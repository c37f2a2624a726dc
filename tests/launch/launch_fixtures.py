"""A small corpus of two languages, settings for short runs, and ranks that do not train."""

import io
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from launch.cli import main
from launch.launchers import local
from mlm.config import TrainConfig, as_dict, load
from mlm.data.prepare import prepare

SMALL = ["model=tiny", "data.vocab_size=200", "data.seq_len=32", "tracker=none", "train.device=cpu"]


def write_corpus(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [
        f"The river number {n} runs past {n * 7} old mills and a bridge.\n" for n in range(300)
    ]
    (folder / "en.txt").write_text("\n".join(lines))
    lines = [f"Der Fluss {n} fließt an {n * 3} alten Mühlen vorbei.\n" for n in range(200)]
    (folder / "de.txt").write_text("\n".join(lines))
    return folder


def small_config(corpus: Path, **data) -> TrainConfig:
    """The settings of `SMALL` as a config."""
    settings = as_dict(TrainConfig())
    settings["data"] |= {"corpus": str(corpus), "vocab_size": 200, "seq_len": 32, **data}
    return load(TrainConfig, settings)


def quiet() -> Console:
    return Console(file=io.StringIO())


def with_shards(config: TrainConfig, folder: Path) -> TrainConfig:
    """The settings with the tokenizer and shards of their corpus, which are made in a folder."""
    return replace(config, data=prepare(config.data, folder, quiet()))


# Ranks that only write an outcome, whose `CODE` and `SENTENCE` come from the environment.
RANKS = """
import json, os, pathlib, sys, tempfile
folder = pathlib.Path(sys.argv[1]).parent
tempfile.mkdtemp()
print("out of a rank", flush=True)
print("error of a rank", file=sys.stderr, flush=True)
if "CODE" in os.environ:
    code = int(os.environ["CODE"])
    values = {"code": code, "sentence": os.environ["SENTENCE"], "step": 3, "eval_loss": 2.5}
    (folder / "outcome.json").write_text(json.dumps(values))
sys.exit(int(os.environ.get("EXIT", "0")))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture
def ranks(tmp_path, monkeypatch) -> Path:
    """Real processes in place of torchrun; the working folder is empty."""
    script = tmp_path / "ranks.py"
    script.write_text(RANKS)
    monkeypatch.setattr(
        local, "torchrun", lambda config, processes: [sys.executable, str(script), str(config)]
    )
    monkeypatch.setenv("CODE", "0")
    monkeypatch.setenv("SENTENCE", "all is well")
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def train(*arguments: str) -> int:
    return main(["train", *SMALL, *arguments])
