"""CONTRIBUTING.md: its tables of packages, and its recipes, run as they stand."""

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from launch.launchers import LAUNCHERS
from mlm.family.config import XLMRobertaXLConfig
from mlm.family.heads import HEADS
from mlm.model.kernels import KERNELS
from mlm.plugins import import_plugins
from mlm.tasks.table import TASKS
from mlm.tracking.trackers import TRACKERS
from mlm.training.schedule import SCHEDULES
from tests.family.family_fixtures import TINY, tokens
from tests.launch.launch_fixtures import train, write_corpus
from tests.places import ROOT
from tests.training_fixtures import config, metrics, run

TEXT = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LAYERS = {
    contract["containers"][0]: contract["layers"]
    for contract in PROJECT["tool"]["importlinter"]["contracts"]
    if "containers" in contract
}
RECIPES = {
    name: block for block, name in re.findall(r"```python\n(# (\w+)\.py.*?)```", TEXT, re.DOTALL)
}
TABLES = {
    "my_task": TASKS,
    "my_schedule": SCHEDULES,
    "my_launcher": LAUNCHERS,
    "my_tracker": TRACKERS,
    "my_head": HEADS,
    "my_kernel": KERNELS,
}


@pytest.fixture(autouse=True)
def _tables_as_they_were():
    """Entries of recipes are removed after each test."""
    before = {name: dict(table) for name, table in TABLES.items()}
    yield
    for name, table in TABLES.items():
        table.clear()
        table.update(before[name])


def written(name: str, folder: Path, monkeypatch) -> str:
    """The module of a recipe, written and importable; returns its name."""
    (folder / f"{name}.py").write_text(RECIPES[name])
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


def overrides(name: str) -> dict[str, str]:
    """The settings of the command that belongs to a recipe."""
    after = re.sub(r" *\\\n\s*", " ", TEXT[TEXT.index(RECIPES[name]) :])
    found = re.search(r"^    PYTHONPATH=\. mlm train (.*)$", after, re.MULTILINE)
    assert found is not None
    return dict(word.split("=", 1) for word in shlex.split(found[1]))


@pytest.mark.parametrize("top", LAYERS)
def test_packages_are_listed_in_the_order_of_the_import_contracts(top):
    expected = [name.strip(" ()") for layer in LAYERS[top] for name in re.split("[|:]", layer)]
    assert re.findall(rf"^\| `{top}\.(\w+)` \|", TEXT, re.MULTILINE) == expected


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_short_and_add_an_entry(name, tmp_path, monkeypatch):
    assert len(list(filter(str.strip, RECIPES[name].splitlines()))) < 60
    import_plugins([written(name, tmp_path, monkeypatch)])
    if name in TABLES and name != "my_head":
        assert overrides(name)["plugins"] == f"[{name}]"


@pytest.mark.ranks
def test_recipes_of_schedule_tracker_and_kernel_train(tmp_path, monkeypatch):
    """Schedule, tracker and kernel together in one run."""
    recipes = ("my_schedule", "my_tracker", "my_kernel")
    names = [written(name, tmp_path, monkeypatch) for name in recipes]
    settings = config(
        plugins=names,
        schedule={"kind": overrides("my_schedule")["schedule"], "warmup_steps": 1},
        tracker={"kind": ["csv"]},
        train={"attention": overrides("my_kernel")["train.attention"], "steps": 3},
    )
    import_plugins(names)
    folder = tmp_path / "run"
    assert run(folder, settings)["code"] == 0
    rows = metrics(folder)
    assert rows[2]["lr"] == pytest.approx(rows[0]["lr"] / 3**0.5)
    lines = (folder / "loss.csv").read_text().splitlines()
    assert lines == [f"{row['step']},{row['loss']}" for row in rows]


@pytest.mark.ranks
def test_recipe_of_a_task_learns(tmp_path, monkeypatch):
    name = written("my_task", tmp_path, monkeypatch)
    options = yaml.safe_load(overrides(name)["task.options"])
    settings = config(
        plugins=[name],
        task={"kind": overrides(name)["task"], "options": options},
        parallel={"pp": 2},
        train={"steps": 30, "log_every": 1},
        optim={"lr": 0.1, "clip": 0.0},
        eval={"every": 0},
    )
    assert run(tmp_path / "run", settings)["eval_loss"] < 1
    first, *_, last = metrics(tmp_path / "run")
    assert last["loss"] < 0.1 * first["loss"]


@pytest.mark.ranks
def test_recipe_of_a_launcher_starts_ranks(tmp_path, monkeypatch):
    name = written("my_launcher", tmp_path, monkeypatch)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}")
    monkeypatch.chdir(tmp_path)
    corpus = write_corpus(tmp_path / "text")
    settings = [f"plugins=[{name}]", f"launch={overrides(name)['launch']}"]
    assert train(f"data.corpus={corpus}", *settings, "run.name=x", "train.steps=1") == 0
    assert json.loads((tmp_path / "runs/x/outcome.json").read_text())["step"] == 1


def test_recipe_of_a_head_has_a_loss_and_is_saved_and_loaded(tmp_path, monkeypatch):
    import_plugins([written("my_head", tmp_path, monkeypatch)])
    made: Any = HEADS["XLMRobertaXLForScoring"].model
    model = made(XLMRobertaXLConfig(**TINY), seed=1)
    model(tokens(), labels=torch.zeros(3)).loss.backward()
    model.eval().save_pretrained(tmp_path / "saved")
    again = made.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(tokens()).logits, model(tokens()).logits)
