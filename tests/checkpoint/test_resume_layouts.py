"""A checkpoint of any layout resumes in any other: the same state, the same losses."""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import pytest
import torch
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load

from mlm import checkpoint
from mlm.config import TrainConfig, as_dict
from mlm.errors import DONE
from mlm.training.build import TrainingRun, build
from mlm.training.schedule import learning_rate
from mlm.training.world import agree
from tests.ranks import run_ranks
from tests.state_reading import newest_checkpoint
from tests.training_fixtures import config, metrics, run

pytestmark = pytest.mark.ranks

LAYOUTS = {
    "2-2-1": {"tp": 2, "pp": 2},
    "1-1-2-z3": {"dp": 2, "zero": 3},
    "2-1-2-z2": {"tp": 2, "dp": 2, "zero": 2},
    "1-4-1": {"pp": 4},
    "1-1-1": {},
}
SAVED, MORE = 2, 4  # steps
# Attention dropout is not the same in every layout.
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_kept = TemporaryDirectory(prefix="polymlm-")


def config_of(name: str, dtype: str = "fp32") -> TrainConfig:
    return config(parallel=LAYOUTS[name], model=NO_DROPOUT, train={"dtype": dtype})


def ranks_of(settings: TrainConfig) -> int:
    return settings.parallel.tp * settings.parallel.pp * int(settings.parallel.dp)


def trained(built: TrainingRun, settings: TrainConfig, steps: range) -> list[float]:
    """Trains `steps`; their losses."""
    engine, losses = built.engine, []
    for step in steps:
        batches = built.micro_batches(step)
        masked = built.task.normaliser(batches)
        total = agree(built.grid, engine.device, batches, masked, False, None).normaliser
        lr = learning_rate(step, settings.train.steps, settings.optim.lr, settings.schedule)
        losses.append(engine.train_batch(built.scaled(batches, step, total), lr).loss)
    return losses


def save(built: TrainingRun, settings: TrainConfig, folder: Path) -> None:
    manifest = checkpoint.Manifest(SAVED, 0, built.task.data_hash, as_dict(settings))
    checkpoint.Saver(built.engine, folder, checkpoint.Keep(1)).save(manifest)


def train_and_save(settings: TrainConfig, folder: Path) -> list[float]:
    """Trains, saves and trains on; the losses after the checkpoint."""
    built = build(settings)
    trained(built, settings, range(SAVED))
    save(built, settings, folder)
    return trained(built, settings, range(SAVED, SAVED + MORE))


@cache
def source(name: str, dtype: str = "fp32") -> tuple[Path, list[float]]:
    folder = Path(_kept.name) / f"{name}-{dtype}"
    settings = config_of(name, dtype)
    losses = run_ranks(ranks_of(settings), train_and_save, settings, folder)
    assert all(rank == losses[0] for rank in losses)
    return folder, losses[0]


def resume(settings: TrainConfig, sources: list[Path], out: Path) -> list[list[float]]:
    """In one engine, restores, saves and trains on each checkpoint; the losses after each."""
    built, losses = build(settings, resuming=True), []
    for folder in sources:
        found = newest_checkpoint(folder)
        assert found is not None
        checkpoint.restore(built.engine, found, SAVED)
        save(built, settings, out / folder.name)
        losses.append(trained(built, settings, range(SAVED, SAVED + MORE)))
    return losses


def tensors(run: Path) -> dict[str, torch.Tensor]:
    """All tensors of a run's newest checkpoint, as torch itself loads them."""
    folder = newest_checkpoint(run)
    listed = FileSystemReader(folder).read_metadata().state_dict_metadata
    sizes = {label: cast(TensorStorageMetadata, item).size for label, item in listed.items()}
    state = {label: torch.empty(size) for label, size in sizes.items()}
    load(state, checkpoint_id=folder, no_dist=True)
    return state


def assert_same_state(one: Path, other: Path) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    assert any("exp_avg_sq/" in label for label in ours)
    for label, tensor in theirs.items():
        assert torch.equal(ours[label], tensor), label


# Targets of the fast tests, each from every source.
QUICK = ("2-2-1", "1-1-2-z3")


@pytest.mark.parametrize(
    "target",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in LAYOUTS],
)
def test_resume_continues_every_checkpoint_in_every_layout(target, tmp_path):
    sources = {name: source(name) for name in LAYOUTS}
    settings = config_of(target)
    folders = [folder for folder, _ in sources.values()]
    found = run_ranks(ranks_of(settings), resume, settings, folders, tmp_path)[0]
    for (name, (folder, expected)), losses in zip(sources.items(), found, strict=True):
        assert_same_state(tmp_path / folder.name, folder)
        assert len(losses) == MORE
        if name == target:
            assert losses == expected
        for one, other in zip(losses, expected, strict=True):
            assert abs(one - other) <= 1e-5 * abs(other), (name, target)


@pytest.mark.parametrize(
    ("target", "dtype"),
    [("2-2-1", "bf16"), pytest.param("1-1-2-z3", "bf16", marks=pytest.mark.slow)],
)
def test_resume_continues_in_another_dtype(target, dtype, tmp_path):
    """The masters and moments are the same, and so is what bf16 rounds them to."""
    folder, expected = source("1-1-1")
    rounded, _ = source(target, dtype)
    settings = config_of(target, dtype)
    losses = run_ranks(ranks_of(settings), resume, settings, [folder, rounded], tmp_path)[0]
    assert_same_state(tmp_path / folder.name, folder)
    assert_same_state(tmp_path / rounded.name, rounded)
    assert all(abs(a - b) <= 0.02 * b for a, b in zip(losses[0], expected, strict=True))
    in_fp32 = config_of("1-1-1")
    back = run_ranks(1, resume, in_fp32, [rounded], tmp_path / "back")[0]
    assert_same_state(tmp_path / "back" / rounded.name, rounded)
    assert all(abs(a - b) <= 0.02 * b for a, b in zip(back[0], losses[1], strict=True))


def test_resume_continues_a_run_in_another_layout(tmp_path):
    """Through the training program: the data, the schedule and the evaluations continue, too."""
    four_steps = config(model=NO_DROPOUT, train={"steps": 4})
    assert run(tmp_path / "run", four_steps)["code"] == DONE
    six_steps = config(model=NO_DROPOUT, train={"steps": 6})
    split = config(
        parallel={"tp": 2, "pp": 2}, model=NO_DROPOUT, train={"steps": 6, "dtype": "fp32"}
    )
    unbroken = run(tmp_path / "whole", six_steps)
    resumed = run(tmp_path / "run", split)
    assert unbroken["code"] == resumed["code"] == DONE
    rows, expected = metrics(tmp_path / "run")[4:], metrics(tmp_path / "whole")[4:]
    assert [row["step"] for row in rows] == [5, 6]
    assert [row["tokens"] for row in rows] == [row["tokens"] for row in expected]
