"""Faults of numbers that are put into a run, and what it leaves of them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import mlm.health.guard
from mlm.errors import DONE
from mlm.weights.stored import open_weights
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from parallel.engine.interface import Engine
from parallel.keys import key
from tests.checkpoint.test_resume import exact
from tests.training_fixtures import evaluations, newest, run

LAYOUTS = {
    "2-2-1": ({"tp": 2, "pp": 2}, {"recompute": True}),
    "1-1-2-z3": ({"dp": 2, "zero": 3}, {}),
    "1-1-1-bf16": ({}, {"dtype": "bf16"}),
    "1-2-2-bf16": ({"pp": 2, "dp": 2}, {"dtype": "bf16"}),
    "2-1-2-z2": ({"tp": 2, "dp": 2, "zero": 2}, {}),
    "1-1-2": ({"dp": 2}, {}),
    "1-1-2-z3-bf16": ({"dp": 2, "zero": 3}, {"dtype": "bf16"}),
    "2-1-1-bf16": ({"tp": 2}, {"dtype": "bf16"}),
}


def layouts(*fast: str):
    return pytest.mark.parametrize(
        ("parallel", "train"),
        [
            pytest.param(*each, id=name, marks=() if name in fast else pytest.mark.slow)
            for name, each in LAYOUTS.items()
        ],
    )


def at(*steps: int, times: int = 1, do, rank: int | None = None):
    """A `train_batch` that calls `do(engine, here)` on all ranks before the first `times` tries of
    each of `steps`; `here` is true on the last rank, or on `rank`."""
    train_batch, tried = DeepSpeedEngine.train_batch, Counter()

    def faulty(self, batches, lr):
        own = self.grid.dp_rank
        step = next(
            (s for s in steps if batches[0].dropout_key == key(1, "dropout", s - 1, own)), 0
        )
        tried[step] += 1
        if step and tried[step] <= times:
            last = self.grid.layout.world_size - 1
            do(self, self.grid.rank == (last if rank is None else rank))
        return train_batch(self, batches, lr)

    return faulty


def gradient_of(value: float, name: str = ""):
    """Makes one number of a rank's next gradient `value`: of its last parameter, or of another."""

    def spoil(engine: Engine, here: bool) -> None:
        named = engine.named_parameters()
        parameter = dict(named)[name] if name else named[-1][1]

        def change(gradient):
            handle.remove()
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
            return gradient

        if here:
            handle = parameter.register_hook(change)

    return spoil


def weights_times(factor: float, everywhere: bool = False):
    """Multiplies weights of one rank, or of all, as the model computes with them and as masters."""

    def spoil(engine: Engine, here: bool) -> None:
        found = engine.pieces()
        for piece in found if everywhere else found[-2:] * here:
            piece.tensors["weight"].mul_(factor)
        engine.pieces_changed(0)

    return spoil


NAN = gradient_of(torch.nan)
SPOILT = weights_times(torch.nan)


def incidents(folder: Path) -> list[dict]:
    path = folder / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def what(folder: Path) -> list[tuple]:
    return [(row["what"], row["step"]) for row in incidents(folder)]


def same(ours: Path, theirs: Path) -> None:
    assert exact(ours) == exact(theirs)
    assert evaluations(ours) == evaluations(theirs)
    one, two = (open_weights(newest(folder)) for folder in (ours, theirs))
    assert all(torch.equal(one.read(name), two.read(name)) for name in two.shapes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without faults, which is made once."""
    found: dict[str, Path] = {}

    def made(settings) -> Path:
        if repr(settings) not in found:
            folder = tmp_path_factory.mktemp("whole")
            assert run(folder, settings)["code"] == DONE
            assert what(folder) == []
            found[repr(settings)] = folder
        return found[repr(settings)]

    return made


@pytest.fixture
def faulty(monkeypatch):
    """Runs a config with a fault; the outcome."""

    def made(folder: Path, settings, fault, enough: int = mlm.health.guard.ENOUGH) -> dict:
        with monkeypatch.context() as patched:
            patched.setattr(DeepSpeedEngine, "train_batch", fault)
            patched.setattr(mlm.health.guard, "ENOUGH", enough)  # steps before there is a median
            return run(folder, settings)

    return made
