"""A number that goes wrong once on one rank leaves no trace in the run."""

import re
import time

import pytest
import torch

from mlm import checkpoint
from mlm.data.audit.ledger import read_ledger
from mlm.errors import DONE
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.health.fault_fixtures import (
    LAYOUTS,
    NAN_GRADIENT,
    NAN_WEIGHTS,
    assert_same_run,
    clean_run,
    events,
    fault_at,
    faulty_run,
    incidents,
    layouts,
    scale_weights,
    set_gradient,
)
from tests.training_fixtures import config, metrics, newest, run

__all__ = ["clean_run", "faulty_run"]  # fixtures

pytestmark = pytest.mark.ranks

FAST = ((2, "1-1-1-bf16"), (5, "2-2-1"))


@layouts("2-2-1")
def test_guard_refuses_a_step_with_a_nan_gradient(
    parallel, train, clean_run, faulty_run, tmp_path, capfd
):
    """In the first step, where the optimizer has no state, and in one after a checkpoint."""
    settings = config(parallel=parallel, train=train)
    for step in (1, 4):
        folder = tmp_path / str(step)
        assert faulty_run(folder, settings, fault_at(step, do=NAN_GRADIENT))["code"] == DONE
        assert f"Step {step} is not applied: " in capfd.readouterr().out
        assert_same_run(folder, clean_run(settings))
        assert events(folder) == [("refused", step)]
        assert re.search("not finite|on rank [13] is wrong", incidents(folder)[0]["why"])
    assert metrics(folder)[-1]["incidents"] == {"refused": 1}


@layouts("1-1-2-z3")
def test_guard_refuses_a_step_with_a_huge_gradient(
    parallel, train, clean_run, faulty_run, tmp_path
):
    """As after a bit flip: the value is finite, and clipping would hide it."""
    settings = config(parallel=parallel, train=train | {"steps": 8})
    assert (
        faulty_run(tmp_path, settings, fault_at(6, do=set_gradient(1e20)), enough=4)["code"] == DONE
    )
    assert_same_run(tmp_path, clean_run(settings))
    assert events(tmp_path) == [("refused", 6)]
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
def test_guard_checks_unsharded_gradients_on_every_tensor_parallel_rank(
    zero, dtype, value, clean_run, faulty_run, tmp_path
):
    """DeepSpeed's norm for clipping includes these gradients from the first of them only."""
    dp = 1 if zero == 1 else 2
    settings = config(parallel={"tp": 2, "dp": dp, "zero": zero}, train={"dtype": dtype})
    fault = fault_at(3, do=set_gradient(value, "lm_head.layer_norm.weight"))
    assert faulty_run(tmp_path, settings, fault)["code"] == DONE
    assert_same_run(tmp_path, clean_run(settings))
    assert events(tmp_path) == [("refused", 3)]
    assert re.search("rank [13] is wrong|not finite", incidents(tmp_path)[0]["why"])


@pytest.mark.parametrize(
    ("step", "layout"),
    [
        pytest.param(step, name, marks=() if (step, name) in FAST else pytest.mark.slow)
        for step in (2, 5)
        for name in LAYOUTS
    ],
)
def test_guard_rolls_back_weights_that_go_wrong(
    step, layout, clean_run, faulty_run, tmp_path, capfd
):
    """Step 2 has no checkpoint before it: the run starts over."""
    parallel, train = LAYOUTS[layout]
    settings = config(parallel=parallel, train=train)
    assert faulty_run(tmp_path, settings, fault_at(step, do=NAN_WEIGHTS))["code"] == DONE
    expected = {2: 0, 5: 4}[step]
    assert f"Going back from step {step} to step {expected}" in capfd.readouterr().out
    assert_same_run(tmp_path, clean_run(settings))
    assert events(tmp_path) == [("refused", step)] * 2 + [("rolled back", step)]
    assert incidents(tmp_path)[-1]["to"] == expected


def test_guard_rolls_back_on_a_loss_spike(clean_run, faulty_run, tmp_path):
    """The weights of all ranks are finite, but wrong."""
    settings = config(parallel={"tp": 2}, train={"steps": 8}, optim={"lr": 1e-4})
    fault = fault_at(7, do=scale_weights(30.0, everywhere=True))
    assert faulty_run(tmp_path, settings, fault, enough=4)["code"] == DONE
    assert_same_run(tmp_path, clean_run(settings))
    assert events(tmp_path) == [("refused", 7)] * 2 + [("rolled back", 7)]
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
def test_guard_refuses_a_reduced_gradient_wrong_on_one_rank(
    parallel, dtype, value, clean_run, tmp_path, monkeypatch
):
    """Only one rank sees it; the others already wait for that rank in the next collective."""
    settings, calls = config(parallel=parallel, train={"dtype": dtype}), []
    complete = DeepSpeedEngine._gradients_complete

    def spoil(self):
        calls.append(1)
        if len(calls) == 3 and self.grid.rank == 1:
            self.zero.gradients()[0].view(-1)[0] = value
        complete(self)

    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "_gradients_complete", spoil)
        assert run(tmp_path, settings)["code"] == DONE
    assert events(tmp_path) == [("refused", 3)]
    assert_same_run(tmp_path, clean_run(settings))


def test_guard_keeps_refused_steps_out_of_the_metrics_and_the_ledger(
    clean_run, faulty_run, tmp_path
):
    """The fault is in the middle of the steps of one row and of one checkpoint."""
    settings = config(train={"log_every": 6}, checkpoint={"every": 6})
    for name, fault in (("once", NAN_GRADIENT), ("state", NAN_WEIGHTS)):
        assert faulty_run(tmp_path / name, settings, fault_at(4, do=fault))["code"] == DONE
        assert_same_run(tmp_path / name, clean_run(settings))
        ledgers = [read_ledger(each).tolist() for each in (tmp_path / name, clean_run(settings))]
        assert ledgers[0] == ledgers[1]
        text = (tmp_path / name / "incidents.jsonl").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_rollback_waits_for_a_background_save(faulty_run, tmp_path, monkeypatch):
    write = checkpoint.Saver._write

    def slow(self, *arguments):
        time.sleep(2)
        write(self, *arguments)

    monkeypatch.setattr(checkpoint.Saver, "_write", slow)
    assert faulty_run(tmp_path, config(), fault_at(3, do=NAN_WEIGHTS))["code"] == DONE
    assert incidents(tmp_path)[-1]["to"] == 2


def test_rollback_limit_counts_from_the_last_checkpoint(faulty_run, tmp_path):
    settings = config(train={"steps": 8}, guard={"rollbacks": 1})
    assert faulty_run(tmp_path, settings, fault_at(3, 7, do=NAN_WEIGHTS))["code"] == DONE
    each = [[("refused", s), ("refused", s), ("rolled back", s)] for s in (3, 7)]
    assert events(tmp_path) == each[0] + each[1]


def test_rollback_skips_a_damaged_checkpoint(clean_run, faulty_run, tmp_path, capfd):
    settings = config(train={"steps": 8}, checkpoint={"background": False})

    def spoil(engine, here):
        NAN_WEIGHTS(engine, here)
        next(newest(tmp_path).glob("*.distcp")).unlink()

    assert faulty_run(tmp_path, settings, fault_at(7, do=spoil))["code"] == DONE
    assert "Skipped: " in capfd.readouterr().out
    assert_same_run(tmp_path, clean_run(settings))
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
def test_rollback_restores_the_weights_given_at_the_start(
    parallel, dtype, clean_run, faulty_run, tmp_path
):
    from tests.trained.test_train_from_weights import source_of, starting

    source = source_of(tmp_path / "source")
    settings = starting(source, train={"dtype": dtype}, parallel=parallel)
    assert faulty_run(tmp_path / "run", settings, fault_at(2, do=NAN_WEIGHTS))["code"] == DONE
    assert_same_run(tmp_path / "run", clean_run(settings))
