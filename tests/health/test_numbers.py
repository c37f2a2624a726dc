"""Numbers that go wrong once on one rank of a run leave no trace."""

import re
import time

import pytest
import torch

from mlm import checkpoint
from mlm.errors import DONE
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.health.fault_fixtures import (
    LAYOUTS,
    NAN,
    SPOILT,
    at,
    faulty,
    gradient_of,
    incidents,
    layouts,
    same,
    weights_times,
    what,
    whole,
)
from tests.training_fixtures import config, metrics, newest, run

__all__ = ["faulty", "whole"]  # fixtures

pytestmark = pytest.mark.ranks

FAST = ((2, "1-1-2-z3"), (2, "1-1-1-bf16"), (5, "2-2-1"))


@layouts("2-2-1")
def test_a_gradient_that_is_nan_once_on_one_rank_leaves_no_trace(
    parallel, train, whole, faulty, tmp_path, capfd
):
    """In the first step, in which the optimizer has no state, and in one behind a checkpoint."""
    made = config(parallel=parallel, train=train)
    for step in (1, 4):
        folder = tmp_path / str(step)
        assert faulty(folder, made, at(step, do=NAN))["code"] == DONE
        assert f"Step {step} is not applied: " in capfd.readouterr().out
        same(folder, whole(made))
        assert what(folder) == [("refused", step)]
        assert re.search("not finite|on rank [13] is wrong", incidents(folder)[0]["why"])
    assert metrics(folder)[-1]["incidents"] == {"refused": 1}


@layouts("1-1-2-z3")
def test_a_gradient_that_is_huge_once_leaves_no_trace(parallel, train, whole, faulty, tmp_path):
    """As a bit makes it that flips on the way: finite, and clipping would hide it."""
    made = config(parallel=parallel, train=train | {"steps": 8})
    assert faulty(tmp_path, made, at(6, do=gradient_of(1e20)), enough=4)["code"] == DONE
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", 6)]
    assert re.match("gradient norm|the gradient on rank [13]", incidents(tmp_path)[0]["why"])


@pytest.mark.parametrize("value", [torch.nan, pytest.param(1e20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("zero", "dtype"),
    [
        (1, "fp32"),
        pytest.param(1, "bf16", marks=pytest.mark.slow),
        pytest.param(2, "fp32", marks=pytest.mark.slow),
        pytest.param(3, "fp32", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_sharded_is_looked_at_on_every_tensor_parallel_rank(
    zero, dtype, value, whole, faulty, tmp_path
):
    """The norm that DeepSpeed clips by has it from the first one alone."""
    dp = 1 if zero == 1 else 2
    made = config(parallel={"tp": 2, "dp": dp, "zero": zero}, train={"dtype": dtype})
    fault = at(3, do=gradient_of(value, "lm_head.layer_norm.weight"))
    assert faulty(tmp_path, made, fault)["code"] == DONE
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", 3)]
    assert re.search("rank [13] is wrong|not finite", incidents(tmp_path)[0]["why"])


@pytest.mark.parametrize(
    ("step", "layout"),
    [
        pytest.param(step, name, marks=() if (step, name) in FAST else pytest.mark.slow)
        for step in (2, 5)
        for name in LAYOUTS
    ],
)
def test_weights_that_go_wrong_are_those_of_the_last_checkpoint_again(
    step, layout, whole, faulty, tmp_path, capfd
):
    """Step 2 has no checkpoint before it: the run begins again."""
    parallel, train = LAYOUTS[layout]
    made = config(parallel=parallel, train=train)
    assert faulty(tmp_path, made, at(step, do=SPOILT))["code"] == DONE
    to = {2: 0, 5: 4}[step]
    assert f"Going back from step {step} to step {to}" in capfd.readouterr().out
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", step)] * 2 + [("rolled back", step)]
    assert incidents(tmp_path)[-1]["to"] == to


def test_a_loss_that_leaps_takes_the_run_back(whole, faulty, tmp_path):
    """Weights of all ranks that are finite, and wrong."""
    made = config(parallel={"tp": 2}, train={"steps": 8}, optim={"lr": 1e-4})
    fault = at(7, do=weights_times(30.0, everywhere=True))
    assert faulty(tmp_path, made, fault, enough=4)["code"] == DONE
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", 7)] * 2 + [("rolled back", 7)]
    assert incidents(tmp_path)[0]["why"].startswith("loss ")


@pytest.mark.parametrize(
    ("parallel", "dtype", "value"),
    [
        ({"dp": 2}, "bf16", torch.nan),
        ({"pp": 2}, "bf16", 1e20),
        *(
            pytest.param(parallel, dtype, value, marks=pytest.mark.slow)
            for parallel in ({"dp": 2}, {"tp": 2}, {"pp": 2}, {"dp": 2, "zero": 3})
            for dtype in ("bf16", "fp32")
            for value in (torch.nan, 1e20)
        ),
    ],
)
def test_a_gradient_that_goes_wrong_once_it_is_reduced_leaves_no_trace(
    parallel, dtype, value, whole, tmp_path, monkeypatch
):
    """One rank alone has it, and the others wait for it with the next collective."""
    made, calls = config(parallel=parallel, train={"dtype": dtype}), []
    complete = DeepSpeedEngine._gradients_complete

    def spoil(self):
        calls.append(1)
        if len(calls) == 3 and self.grid.rank == 1:
            self.zero.gradients()[0].view(-1)[0] = value
        complete(self)

    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "_gradients_complete", spoil)
        assert run(tmp_path, made)["code"] == DONE
    assert what(tmp_path) == [("refused", 3)]
    same(tmp_path, whole(made))


def test_what_is_told_of_languages_and_of_numbers_knows_nothing_of_what_was_refused(
    whole, faulty, tmp_path
):
    """In the middle of what one row tells, and of what one checkpoint holds."""
    made = config(train={"log_every": 6}, checkpoint={"every": 6})
    for name, fault in (("once", NAN), ("state", SPOILT)):
        assert faulty(tmp_path / name, made, at(4, do=fault))["code"] == DONE
        same(tmp_path / name, whole(made))
        text = (tmp_path / name / "incidents.jsonl").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_the_way_back_waits_for_a_save_that_goes_on(faulty, tmp_path, monkeypatch):
    write = checkpoint.Saver._write

    def slow(self, *arguments):
        time.sleep(2)
        write(self, *arguments)

    monkeypatch.setattr(checkpoint.Saver, "_write", slow)
    assert faulty(tmp_path, config(), at(3, do=SPOILT))["code"] == DONE
    assert incidents(tmp_path)[-1]["to"] == 2


def test_a_run_goes_back_once_for_each_trouble_where_checkpoints_lie_between(faulty, tmp_path):
    made = config(train={"steps": 8}, guard={"rollbacks": 1})
    assert faulty(tmp_path, made, at(3, 7, do=SPOILT))["code"] == DONE
    each = [[("refused", s), ("refused", s), ("rolled back", s)] for s in (3, 7)]
    assert what(tmp_path) == each[0] + each[1]


def test_a_damaged_checkpoint_is_passed_over_on_the_way_back(whole, faulty, tmp_path, capfd):
    made = config(train={"steps": 8}, checkpoint={"background": False})

    def spoil(engine, here):
        SPOILT(engine, here)
        next(newest(tmp_path).glob("*.distcp")).unlink()

    assert faulty(tmp_path, made, at(7, do=spoil))["code"] == DONE
    assert "Skipped: " in capfd.readouterr().out
    same(tmp_path, whole(made))
    assert incidents(tmp_path)[-1]["to"] == 4
    kept = [path.name for path in checkpoint.all_checkpoints(tmp_path)]
    assert kept == ["step-00000006", "step-00000008"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "dtype"),
    [
        ({}, "bf16"),
        ({"dp": 2, "zero": 2}, "bf16"),
        ({"tp": 2}, "fp32"),
        ({"dp": 2, "zero": 3}, "bf16"),
    ],
)
def test_a_run_that_began_with_weights_begins_again_with_them(
    parallel, dtype, whole, faulty, tmp_path
):
    from tests.trained.test_train_from_weights import source_of, starting

    source = source_of(tmp_path / "source")
    made = starting(source, train={"dtype": dtype}, parallel=parallel)
    assert faulty(tmp_path / "run", made, at(2, do=SPOILT))["code"] == DONE
    same(tmp_path / "run", whole(made))
