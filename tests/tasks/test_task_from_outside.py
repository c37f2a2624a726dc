"""A task that the package does not have: a module of the user's adds it to the table."""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from mlm.config import TrainConfig
from tests.training_fixtures import config, metrics, run

PLUGIN = '''\
from dataclasses import dataclass, replace
import torch
from mlm.tasks.table import TASKS
from mlm.tasks.task import Task, evaluated
from mlm.tracking.scores import Scores
from parallel.pipeline.stages import StageLayer


@dataclass(frozen=True)
class Numbers:
    inputs: torch.Tensor
    loss_scale: float = 1.0
    dropout_key: int = 0
    digest: int = 0

    def to(self, device):
        return replace(self, inputs=self.inputs.to(device))


class Halving(Task):
    """Learns to give half of each number."""

    def __init__(self, config):
        train, self.data_hash = config.train, "numbers"
        self.size, self.offset = train.micro_batch_size, config.task.options["offset"]
        self.micro_batches = train.global_batch_size // self.size
        self.tokens_per_step, self.flops_per_token = train.global_batch_size, 2.0

    def layers(self, group, set_weights):
        def error(module, x, batch):
            squares = (module(x) - batch.inputs / 2).square().sum()
            return squares * batch.loss_scale, {"squares": squares.detach()}

        linear = lambda: torch.nn.Linear(1, 1)
        return [
            StageLayer("first", linear, 2, 2.0, lambda module, x, batch: module(x)),
            StageLayer("last", linear, 2, 2.0, error),
        ]

    def numbers(self, first):
        places = torch.arange(self.size, dtype=torch.float32) + first * self.size + self.offset
        return Numbers(torch.sin(places).unsqueeze(1), digest=int(first))

    def batches(self, step, numbers):
        return [self.numbers(step * self.micro_batches + number) for number in numbers]

    def normaliser(self, batches):
        return sum(len(batch.inputs) for batch in batches)

    def evaluate(self, engine, on_progress):
        found = list(evaluated(engine, 4, self.numbers, on_progress))
        loss = sum(float(outputs["squares"]) for _, outputs in found)
        return Scores(loss, {"eval_loss": loss}, f"{loss} off")

    def summary(self):
        return "numbers"


TASKS["halving"] = Halving
'''


@pytest.fixture
def halving(tmp_path, monkeypatch) -> Iterator[Callable[..., TrainConfig]]:
    """The settings of a run of the task, whatever torch's own generator gives before it."""
    (tmp_path / "halving.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)

    def made(**changes: Any) -> TrainConfig:
        torch.seed()
        optim, task = {"lr": 0.1, "clip": 0.0}, {"kind": "halving", "options": {"offset": 1}}
        given = {"plugins": ["halving"], "task": task, "optim": optim, "eval": {"every": 0}}
        return config(**given, **changes)

    yield made
    sys.modules.pop("halving", None)


@pytest.mark.ranks
@pytest.mark.parametrize("parallel", [{"pp": 2}, {"zero": 2}], ids=str)
def test_a_task_from_outside_trains_and_scores(parallel, halving, tmp_path):
    outcome = run(tmp_path / "run", halving(parallel=parallel, train={"steps": 120}))
    assert outcome["code"] == 0, outcome["sentence"]
    assert len(PLUGIN.splitlines()) < 60
    rows = metrics(tmp_path / "run")
    assert rows[-1]["loss"] < 0.1 * rows[0]["loss"]
    assert outcome["eval_loss"] < 0.1
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["eval_loss"] < 0.1


@pytest.mark.ranks
def test_a_task_from_outside_begins_with_the_weights_of_the_seed(halving, tmp_path):
    losses = []
    for number, given in enumerate(({}, {"parallel": {"pp": 2}}, {"parallel": {"dp": 2}})):
        run(tmp_path / str(number), halving(train={"steps": 1}, **given))
        losses.append(metrics(tmp_path / str(number))[0]["loss"])
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-6)
    run(tmp_path / "other", halving(train={"steps": 1}, seed=2))
    assert metrics(tmp_path / "other")[0]["loss"] != pytest.approx(losses[0], rel=1e-2)


@pytest.mark.ranks
def test_a_task_that_is_not_in_the_table_is_refused(tmp_path):
    outcome = run(tmp_path, config(task={"kind": "halved"}))
    assert (outcome["code"], outcome["sentence"]) == (
        2,
        "task.kind=halved is not known; choose from pretraining, or add the module that defines it "
        "to plugins",
    )
