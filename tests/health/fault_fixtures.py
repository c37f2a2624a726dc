"""Faults injected into the numbers of a run, and what the run records of them."""

import json
from collections import Counter
from pathlib import Path

import pytest
import torch

import mlm.health.guard
from mlm.errors import DONE
from mlm.weights.stored import open_checkpoint
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


def fault_at(*steps: int, times: int = 1, do, rank: int | None = None):
    """A `train_batch` that calls `do(engine, here)` on all ranks before the first `times` tries of
    each of `steps`. `here` is true on the last rank, or on `rank` if it is given."""
    train_batch, tried = DeepSpeedEngine.train_batch, Counter()

    def train_batch_with_fault(self, batches, lr):
        dp_rank = self.grid.dp_rank
        step = next(
            (s for s in steps if batches[0].dropout_key == key(1, "dropout", s - 1, dp_rank)), 0
        )
        tried[step] += 1
        if step and tried[step] <= times:
            last = self.grid.layout.world_size - 1
            do(self, self.grid.rank == (last if rank is None else rank))
        return train_batch(self, batches, lr)

    return train_batch_with_fault


def set_gradient(value: float, name: str = ""):
    """Sets one number of a rank's next gradient, of its last parameter or of `name`, to `value`."""

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


def scale_weights(factor: float, everywhere: bool = False):
    """Multiplies weights of one rank or of all: the masters, and those the model computes with."""

    def spoil(engine: Engine, here: bool) -> None:
        pieces = engine.pieces()
        for piece in pieces if everywhere else pieces[-2:] * here:
            piece.tensors["weight"].mul_(factor)
        engine.pieces_changed(0)

    return spoil


NAN_GRADIENT = set_gradient(torch.nan)
NAN_WEIGHTS = scale_weights(torch.nan)


def incidents(folder: Path) -> list[dict]:
    path = folder / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def events(folder: Path) -> list[tuple]:
    return [(row["what"], row["step"]) for row in incidents(folder)]


def assert_same_run(ours: Path, theirs: Path) -> None:
    assert exact(ours) == exact(theirs)
    assert evaluations(ours) == evaluations(theirs)
    one, two = (open_checkpoint(newest(folder)) for folder in (ours, theirs))
    assert all(torch.equal(one.read(name), two.read(name)) for name in two.shapes)


@pytest.fixture(scope="module")
def clean_run(tmp_path_factory):
    """The folder of a run without faults, made once for each config."""
    folders: dict[str, Path] = {}

    def folder_of(settings) -> Path:
        if repr(settings) not in folders:
            folder = tmp_path_factory.mktemp("clean")
            assert run(folder, settings)["code"] == DONE
            assert events(folder) == []
            folders[repr(settings)] = folder
        return folders[repr(settings)]

    return folder_of


@pytest.fixture
def faulty_run(monkeypatch):
    """Runs a config with a fault; returns the outcome."""

    def run_with_fault(
        folder: Path, settings, fault, enough: int = mlm.health.guard.ENOUGH
    ) -> dict:
        with monkeypatch.context() as patched:
            patched.setattr(DeepSpeedEngine, "train_batch", fault)
            patched.setattr(mlm.health.guard, "ENOUGH", enough)  # steps before there is a median
            return run(folder, settings)

    return run_with_fault
