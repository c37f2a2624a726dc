"""A run whose replicas differ stops; started again, it equals a run without the fault."""

import os
from dataclasses import replace

import pytest

from mlm import checkpoint
from mlm.errors import DONE, FAILED
from mlm.health.drift import _ranks
from mlm.training.build import TrainingRun
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.checkpoint.test_resume import exact
from tests.parallel.test_replicas import NORM, WORDS, flip
from tests.training_fixtures import config, metrics, newest, run

pytestmark = pytest.mark.ranks


def train_batch_with_flip(name: str, rank: int, step: int):
    """A `train_batch` that flips a bit of a weight on one rank after its `step`-th call."""
    train_batch, calls = DeepSpeedEngine.train_batch, []

    def flipping(self, batches, lr):
        loss = train_batch(self, batches, lr)
        calls.append(loss)
        if len(calls) == step and self.grid.rank == rank:
            flip(dict(self.named_parameters())[name], 22)
        return loss

    return flipping


@pytest.mark.parametrize(
    ("parallel", "train", "name", "rank", "message"),
    [
        ({"dp": 2}, {}, NORM, 1, f"{NORM} differs between its data replicas on ranks 0 and 1 ("),
        pytest.param(
            {"pp": 2, "dp": 2},
            {"dtype": "bf16"},
            WORDS,
            2,
            "differs from its pipeline and data replicas on ranks 0, 1 and 3, as a fault of",
            marks=pytest.mark.slow,
        ),
    ],
    ids=["dp2", "pp2-dp2-bf16"],
)
def test_drift_stops_the_run_and_resume_equals_a_clean_run(
    parallel, train, name, rank, message, tmp_path, monkeypatch
):
    settings = config(parallel=parallel, train=train, checks={"replicas_every": 5})
    assert run(tmp_path / "whole", settings)["code"] == DONE
    drifted = tmp_path / "drifted"
    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "train_batch", train_batch_with_flip(name, rank, 5))
        outcome = run(drifted, settings)
    assert (outcome["code"], outcome["step"]) == (FAILED, 5)
    assert outcome["sentence"].startswith(f"step 5: {name} ")
    assert message in outcome["sentence"]
    assert outcome["sentence"].endswith("it resumes from step-00000004, whose replicas agreed")
    assert newest(drifted).name == "step-00000004"
    assert run(drifted, settings)["code"] == DONE
    assert exact(drifted) == exact(tmp_path / "whole")


def test_drift_prevents_a_checkpoint_of_differing_replicas(tmp_path, monkeypatch):
    """Replicas are compared before each checkpoint, too, not only every `replicas_every` steps."""
    settings = config(parallel={"tp": 2}, checks={"replicas_every": 100})
    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "train_batch", train_batch_with_flip(NORM, 1, 2))
        outcome = run(tmp_path, settings)
    assert outcome["code"] == FAILED
    assert f"step 2: {NORM} differs between its tensor replicas" in outcome["sentence"]
    assert outcome["sentence"].endswith("from its beginning, since nothing is saved yet")
    assert checkpoint.all_checkpoints(tmp_path) == []
    unchecked = config(parallel={"tp": 2}, train={"steps": 2}, checks={"replicas_every": 0})
    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "train_batch", train_batch_with_flip(NORM, 1, 2))
        assert run(tmp_path, unchecked)["code"] == DONE
        patched.setattr(DeepSpeedEngine, "train_batch", train_batch_with_flip(NORM, 1, 1))
        outcome = run(tmp_path, config(parallel={"tp": 2}, checks={"replicas_every": 1}))
    assert outcome["sentence"].endswith(
        "step-00000002, which was saved without checks.replicas_every"
    )


@pytest.mark.parametrize(
    ("parallel", "field"), [({"tp": 2}, "input_ids"), ({"pp": 2}, "dropout_key")]
)
def test_drift_stops_before_the_step_of_a_differing_batch(parallel, field, tmp_path, monkeypatch):
    scaled = TrainingRun.scaled

    def differing(self, batches, step, normaliser):
        batches = scaled(self, batches, step, normaliser)
        if os.environ["RANK"] == "1" and step == 2:
            value = getattr(batches[1], field)
            batches[1] = replace(batches[1], **{field: value ^ 1})
        return batches

    monkeypatch.setattr(TrainingRun, "scaled", differing)
    outcome = run(tmp_path, config(parallel=parallel, checks={"replicas_every": 3}))
    assert (outcome["code"], outcome["step"]) == (FAILED, 2)
    axis = "tensor" if "tp" in parallel else "pipeline"
    expected = (
        f"step 3: {field} of micro-batch 1 differs between its {axis} replicas on ranks 0 and 1"
    )
    assert outcome["sentence"].startswith(expected)
    assert [row["step"] for row in metrics(tmp_path)] == [1, 2]


@pytest.mark.parametrize(
    ("parallel", "train"),
    [
        ({"tp": 2, "pp": 2}, {"dtype": "bf16"}),
        pytest.param({"dp": 2, "zero": 2}, {"dtype": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "dp": 2, "zero": 3}, {"dtype": "bf16"}, marks=pytest.mark.slow),
        ({"pp": 2, "dp": 3}, {}),
        pytest.param({"pp": 2, "dp": 3}, {"dtype": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"dp": 2}, {}, marks=pytest.mark.slow),
        pytest.param({"tp": 2}, {}, marks=pytest.mark.slow),
        pytest.param({"pp": 2}, {}, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "dp": 3}, {"dtype": "bf16"}, marks=pytest.mark.slow),
        pytest.param({"dp": 3, "zero": 3}, {}, marks=pytest.mark.slow),
        pytest.param({"tp": 2, "pp": 2, "dp": 2}, {}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_drift_raises_no_alarm_in_a_clean_run(parallel, train, tmp_path):
    """Also where the order of the sum over three data ranks varies within a buffer."""
    settings = config(
        parallel=parallel,
        train=train | {"steps": 12, "global_batch_size": 12},
        # With 35 positions the partitions of three data ranks are not multiples of a CPU's vector
        # width, and those of the first stage end inside the tied embedding.
        model={"max_position_embeddings": 35, "attention_probs_dropout_prob": 0.1},
        eval={"every": 0},
        checkpoint={"every": 0},
        checks={"replicas_every": 1},
    )
    outcome = run(tmp_path, settings)
    assert (outcome["code"], outcome["step"]) == (DONE, 12), outcome["sentence"]


def test_drift_lists_at_most_eight_ranks():
    assert _ranks([5]) == "rank 5"
    assert _ranks([0, 1]) == "ranks 0 and 1"
    assert _ranks([0, 1, 7]) == "ranks 0, 1 and 7"
    assert _ranks(range(100)) == "ranks 0, 1, 2, 3, 4, 5, 6, 7 and 92 more"
