"""Numbers that stay wrong: batches that are left out, runs that end; and what ranks agree on."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mlm import checkpoint
from mlm.errors import DATA, DONE, NUMBERS
from mlm.health.guard import Guard
from mlm.health.incidents import Incidents
from tests.health.fault_fixtures import (
    NAN,
    SPOILT,
    at,
    faulty,
    incidents,
    layouts,
    same,
    what,
    whole,
)
from tests.ranks import run_ranks
from tests.training_fixtures import config, metrics, newest, run

__all__ = ["faulty", "whole"]  # fixtures

pytestmark = pytest.mark.ranks


def test_checkpoints_that_are_gone_are_not_begun_anew(faulty, tmp_path):
    def spoil(engine, here):
        SPOILT(engine, here)
        shutil.rmtree(tmp_path / "checkpoints")

    outcome = faulty(tmp_path, config(checkpoint={"background": False}), at(5, do=spoil))
    assert outcome["code"] == DATA
    assert "has lost its checkpoints while it ran" in outcome["sentence"]


@layouts("1-1-2-z3")
def test_a_batch_that_always_goes_wrong_is_left_out(parallel, train, faulty, tmp_path, capfd):
    made, bad, again = config(parallel=parallel, train=train), tmp_path / "bad", tmp_path / "again"
    assert faulty(bad, made, at(3, times=10**6, do=NAN))["code"] == DONE
    refused = [("refused", 3)] * 2
    assert what(bad) == [*refused, ("rolled back", 3), *refused, ("skipped", 3)]
    assert incidents(bad)[-1]["samples"] == [16, 23]
    assert "The batch of step 3 is skipped from now on" in capfd.readouterr().out
    row = metrics(bad)[2]
    assert (row["step"], row["loss"], row["grad_norm"]) == (3, None, None)
    # A run that knows of it from the beginning, without the fault, is the same.
    again.mkdir()
    shutil.copy(bad / "incidents.jsonl", again)
    assert run(again, made)["code"] == DONE
    same(again, bad)
    assert what(again) == what(bad)
    # And one that goes on behind it: counts of steps, in Adam's, too, are what they were.
    for folder in checkpoint.all_checkpoints(again)[1:]:
        shutil.rmtree(folder)
    assert newest(again).name == "step-00000004"
    assert run(again, made)["code"] == DONE
    same(again, bad)


@pytest.mark.parametrize(
    "last", [pytest.param(13, id="some"), pytest.param(20, id="all", marks=pytest.mark.slow)]
)
def test_trouble_that_goes_on_takes_more_batches_and_then_ends_the_run(last, faulty, tmp_path):
    made = config(train={"steps": 20}, checkpoint={"every": 2, "keep": 9})
    outcome = faulty(tmp_path, made, at(*range(11, last + 1), times=10**6, do=NAN))
    rows = incidents(tmp_path)
    back = [(row["step"], row["to"]) for row in rows if row["what"] == "rolled back"]
    if last == 13:
        assert outcome["code"] == DONE
        assert back == [(11, 10), (12, 8), (13, 6)]
        out = sorted(row["step"] for row in rows if row["what"] == "skipped")
        assert out == list(range(7, 14))
        kept = [
            checkpoint.read_manifest(path).step for path in checkpoint.all_checkpoints(tmp_path)
        ]
        assert kept == [2, 4, 6, 14, 16, 18, 20]
    else:
        assert (outcome["code"], outcome["step"]) == (NUMBERS, 14)
        assert back == [(11, 10), (12, 8), (13, 6), (14, 2)]
        assert re.match("step 15: .* is not finite, also after 4 returns", outcome["sentence"])


def test_what_a_run_ends_with_is_its_last_good_checkpoint(faulty, tmp_path):
    made = config(train={"steps": 20}, checkpoint={"every": 2, "keep": 9}, guard={"rollbacks": 2})
    outcome = faulty(tmp_path, made, at(11, 12, 13, times=10**6, do=NAN))
    assert (outcome["code"], outcome["step"]) == (NUMBERS, 12)
    assert "(guard.rollbacks=2); the checkpoint of step 8 is kept" in outcome["sentence"]
    assert newest(tmp_path).name == "step-00000008"


def test_only_what_is_still_to_come_is_left_out(faulty, tmp_path):
    """Step 8 is in the one checkpoint that there is."""
    made = config(train={"steps": 12}, checkpoint={"every": 4, "keep": 1})
    assert faulty(tmp_path, made, at(9, 10, times=10**6, do=NAN))["code"] == DONE
    out = [row["step"] for row in incidents(tmp_path) if row["what"] == "skipped"]
    assert out == [9, 10]


def test_a_learning_rate_that_is_too_high_ends_the_run(tmp_path):
    made = config(optim={"lr": 1e30, "clip": 0.0}, train={"steps": 50}, checkpoint={"every": 1})
    outcome = run(tmp_path, made)
    assert outcome["code"] == NUMBERS
    sentence = outcome["sentence"]
    assert "is not finite, also after 4 returns to a checkpoint (guard.rollbacks=4); " in sentence
    assert "begin a new run with a lower optim.lr or more schedule.warmup_steps (weigh" in sentence


def test_no_rank_decides_alone(whole, tmp_path, monkeypatch):
    """One whose own figures are wrong refuses a step, and all the others refuse it, too."""
    made, fault, seen = config(parallel={"dp": 2}), Guard.fault, []

    def suspicious(self, loss, norm):
        seen.append(loss)
        if os.environ["RANK"] == "1" and len(seen) == 3:
            return "a figure of its own"
        return fault(self, loss, norm)

    with monkeypatch.context() as patched:
        patched.setattr(Guard, "fault", suspicious)
        assert run(tmp_path, made)["code"] == DONE
    assert what(tmp_path) == [("refused", 3)]
    why = incidents(tmp_path)[0]["why"]
    assert why == "the gradient on rank 1 is wrong: it is not that of others"
    same(tmp_path, whole(made))


@layouts("2-2-1")
def test_the_loss_that_is_judged_is_the_one_that_is_told(parallel, train, tmp_path, monkeypatch):
    judge, judged = Guard.judge, tmp_path / "judged"

    def kept(self, loss, norm):
        if os.environ["RANK"] == "0":
            with judged.open("a") as file:
                file.write(json.dumps([loss, norm]) + "\n")
        return judge(self, loss, norm)

    monkeypatch.setattr(Guard, "judge", kept)
    run(tmp_path, config(parallel=parallel, train=train))
    lines = [json.loads(line) for line in judged.read_text().splitlines()]
    for (loss, norm), row in zip(lines, metrics(tmp_path), strict=True):
        assert loss == pytest.approx(row["loss"], rel=1e-6)
        assert norm == row["grad_norm"]


def half_written(folder: Path) -> tuple[list, str]:
    path = folder / "incidents.jsonl"
    path.write_text('{"what": "skipped", "step": 3, "samples": [16, 23]}\n{"what": "refu')
    found = Incidents(folder, 8)
    before = sorted(found.skipped)
    found.rolled_back(6, 4)
    return [before, found.counts, sorted(Incidents(folder, 8).skipped)], path.read_text()


def test_a_row_that_a_kill_has_cut_costs_no_other(tmp_path):
    ((before, counts, after), text) = run_ranks(1, half_written, tmp_path)[0]
    assert before == after == [2]
    assert counts == {"skipped": 1, "rolled_back": 1}
    first, second = map(json.loads, text.splitlines())
    assert (first["step"], second["to"]) == (3, 4)
