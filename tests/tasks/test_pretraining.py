"""Pretraining as a task: what its figures count."""

from mlm.tasks.pretraining.task import Pretraining
from tests.training_fixtures import config


def test_progress_leaves_out_the_samples_of_skipped_steps():
    task = Pretraining(config())
    counts = [
        sum(task.progress(4, skipped)["tokens_by_language"].values())
        for skipped in (set(), {1, 3}, {4})
    ]
    assert counts == [steps * 8 * 31 for steps in (4, 2, 4)]  # 8 sequences of <s> and 31 tokens
