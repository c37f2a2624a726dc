"""The defaults of the small sizes train without leaps of the loss."""

import pytest

from launch.cli import main
from tests.training_fixtures import all_rows


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.parametrize("steps", [60, 200])
def test_tiny_model_never_exceeds_its_first_loss(tmp_path, steps):
    """At a rate of 4e-3 and 25 steps of warm-up, a run on real text rose by 1.7 nats."""
    given = ["data.corpus=sample", "model=tiny", "tracker=none", f"run.dir={tmp_path}"]
    given += [f"train.steps={steps}", "train.log_every=1", "eval.every=0", "run.name=a"]
    assert main(["train", *given]) == 0
    losses = [row["loss"] for row in all_rows(tmp_path / "a") if "loss" in row]
    assert len(losses) == steps
    assert max(losses) < losses[0] + 0.1
    assert losses[-1] < losses[0] - 0.5
