"""A run that was stopped and resumed is bit for bit equal to one that was not."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from mlm import checkpoint
from mlm.errors import DATA, DONE, REQUEUE
from mlm.weights.stored import open_checkpoint
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.state_reading import newest_checkpoint
from tests.training_fixtures import all_rows, config, evaluations, metrics, run

pytestmark = pytest.mark.ranks

EXACT = ("loss", "grad_norm", "lr", "tokens", "loss_by_language")


def exact(folder: Path) -> list[list]:
    return [[row[name] for name in EXACT] for row in metrics(folder)]


@pytest.mark.parametrize(
    ("parallel", "train"),
    [
        ({"tp": 2, "pp": 2}, {"recompute": True}),
        pytest.param({"dp": 2, "zero": 3}, {}, marks=pytest.mark.slow),
        ({}, {"dtype": "bf16"}),
        pytest.param({}, {}, marks=pytest.mark.slow),
        pytest.param({"dp": 2, "zero": 2}, {}, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "dp": 2}, {"dtype": "bf16"}, marks=pytest.mark.slow),
    ],
    ids=["2-2-1-z1", "1-1-2-z3", "1-1-1-z1-bf16", "1-1-1-z1", "1-1-2-z2", "2-1-2-z1-bf16"],
)
def test_resume_is_bit_equal(parallel, train, tmp_path):
    whole = config(parallel=parallel, train=train)
    assert run(tmp_path / "whole", whole)["code"] == DONE
    # The same run, whose job ended after step 4 of 6.
    shutil.copytree(tmp_path / "whole", tmp_path / "stopped")
    _as_if_killed_after(tmp_path / "stopped", 4)
    assert run(tmp_path / "stopped", whole)["code"] == DONE
    assert exact(tmp_path / "stopped") == exact(tmp_path / "whole")
    assert evaluations(tmp_path / "stopped") == evaluations(tmp_path / "whole")
    ours, theirs = (
        open_checkpoint(newest_checkpoint(tmp_path / name)) for name in ("stopped", "whole")
    )
    assert ours.shapes == theirs.shapes
    assert all(torch.equal(ours.read(name), theirs.read(name)) for name in ours.shapes)


def _as_if_killed_after(folder: Path, step: int) -> None:
    """Deletes the checkpoints that a job killed after `step` would not have written.

    The metrics of later steps stay, as after a kill; resuming must drop them.
    """
    for path in checkpoint.all_checkpoints(folder):
        if checkpoint.read_manifest(path).step > step:
            shutil.rmtree(path)
    assert checkpoint.read_manifest(newest_checkpoint(folder)).step == step
    assert metrics(folder)[-1]["step"] > step


def test_stop_request_saves_and_requests_a_restart(tmp_path, monkeypatch):
    """All ranks stop after the same step, although only rank 0 checks for the request."""
    whole = config(parallel={"dp": 2})
    run(tmp_path / "whole", whole)
    stopped = tmp_path / "asked"
    stopped.mkdir()
    train_batch, calls = DeepSpeedEngine.train_batch, []

    def requesting_a_stop(self, batches, lr):
        calls.append(lr)
        if len(calls) == 3 and self.grid.rank == 0:
            (stopped / "stop").touch()
        return train_batch(self, batches, lr)

    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "train_batch", requesting_a_stop)
        outcome = run(stopped, whole)
    assert outcome["code"] == REQUEUE
    assert "stopped as asked after step 3" in outcome["sentence"]
    assert checkpoint.read_manifest(newest_checkpoint(stopped)).step == 3  # saved off schedule
    outcome = run(stopped, whole)
    assert (outcome["code"], outcome["step"]) == (REQUEUE, 3)  # the launcher removes the request
    (stopped / "stop").unlink()
    assert run(stopped, whole)["code"] == DONE
    assert exact(stopped) == exact(tmp_path / "whole")


def test_resume_of_a_finished_run_only_evaluates(tmp_path, capfd):
    settings = config()
    first = run(tmp_path, settings)
    before = all_rows(tmp_path)
    again = run(tmp_path, settings)
    assert (again["code"], again["eval_loss"]) == (DONE, first["eval_loss"])
    assert all_rows(tmp_path) == before
    assert "All 6 steps are done" in capfd.readouterr().out
    fewer = run(tmp_path, config(train={"steps": 3}))
    assert (fewer["code"], fewer["step"]) == (DONE, 6)
    assert all_rows(tmp_path) == before


def test_keep_deletes_all_but_the_newest_checkpoints(tmp_path):
    run(tmp_path, config(checkpoint={"every": 1, "keep": 3}))
    steps = [checkpoint.read_manifest(p).step for p in checkpoint.all_checkpoints(tmp_path)]
    assert steps == [4, 5, 6]
    assert not list((tmp_path / "checkpoints").glob("*.partial"))


def test_interrupted_save_leaves_no_checkpoint(tmp_path):
    """Killed before its folder was renamed: the manifest is there, the name is not."""
    run(tmp_path, config(train={"steps": 2}))
    newest = newest_checkpoint(tmp_path)
    shutil.copytree(newest, newest.with_name("step-00000004.partial"))
    assert checkpoint.newest(tmp_path) == newest
    assert run(tmp_path, config(train={"steps": 4}))["code"] == DONE
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000004"]


def flip(victim: Path) -> None:
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content)


def cut(victim: Path) -> None:
    victim.write_bytes(victim.read_bytes()[:-7])


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(flip, id="bit"),
        pytest.param(cut, id="truncated", marks=pytest.mark.slow),
        pytest.param(Path.unlink, id="deleted", marks=pytest.mark.slow),
    ],
)
def test_resume_skips_a_damaged_checkpoint(damage, tmp_path, capfd):
    settings = config(parallel={"tp": 2})
    run(tmp_path, settings)
    before = exact(tmp_path)
    newest = newest_checkpoint(tmp_path)
    victim = max(newest.glob("*.distcp"), key=lambda path: path.stat().st_size)
    damage(victim)
    capfd.readouterr()
    assert run(tmp_path, settings)["code"] == DONE
    state = "missing, and" if damage is Path.unlink else "damaged: it differs from"
    out = capfd.readouterr().out
    assert f"Skipped: {victim} is {state}" in out
    assert "Resuming at step 4" in out
    assert exact(tmp_path) == before
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000004", "step-00000006", "step-00000006.damaged"]


def test_resume_reports_a_checkpoint_without_manifest(tmp_path, capfd):
    settings = config()
    run(tmp_path, settings)
    newest = newest_checkpoint(tmp_path)
    (newest / checkpoint.MANIFEST).unlink()
    capfd.readouterr()
    assert run(tmp_path, settings)["code"] == DONE
    out = capfd.readouterr().out
    assert f"Skipped: {newest / checkpoint.MANIFEST} is not the manifest" in out
    assert "Resuming at step 4" in out
    for folder in checkpoint.all_checkpoints(tmp_path):
        (folder / checkpoint.MANIFEST).unlink()
    assert run(tmp_path, settings)["code"] == DATA  # and not started over


def test_resume_refuses_a_run_without_a_whole_checkpoint(tmp_path):
    settings = config()
    run(tmp_path, settings)
    for folder in checkpoint.all_checkpoints(tmp_path):
        flip(next(folder.glob("*.distcp")))
    outcome = run(tmp_path, settings)
    assert outcome["code"] == DATA
    assert f"no checkpoint of {tmp_path} is whole: " in outcome["sentence"]
    assert "start over with run.fresh=true" in outcome["sentence"]
    assert len(checkpoint.all_checkpoints(tmp_path)) == 2


def test_keep_every_keeps_multiples(tmp_path):
    run(tmp_path, config(checkpoint={"every": 1, "keep": 1, "keep_every": 2}))
    steps = [checkpoint.read_manifest(p).step for p in checkpoint.all_checkpoints(tmp_path)]
    assert steps == [2, 4, 6]


def test_resume_refuses_other_shards(tmp_path):
    settings = config()
    run(tmp_path, settings)
    manifest = newest_checkpoint(tmp_path) / checkpoint.MANIFEST
    values = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(values | {"index": "0" * 64}))
    outcome = run(tmp_path, settings)
    assert outcome["code"] == DATA
    assert "was trained on shards of index 000000000000" in outcome["sentence"]
