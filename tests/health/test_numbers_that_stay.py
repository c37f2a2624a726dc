"""Numbers that stay wrong: batches that are skipped, runs that end, what ranks agree on."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest

from mlm import checkpoint
from mlm.data.audit.ledger import read_ledger
from mlm.errors import DATA, DONE, NUMBERS, REQUEUE
from mlm.health.guard import Guard
from mlm.health.incidents import Incidents
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.health.fault_fixtures import (
    NAN_GRADIENT,
    NAN_WEIGHTS,
    assert_same_run,
    clean_run,
    events,
    fault_at,
    faulty_run,
    incidents,
    layouts,
)
from tests.ranks import run_ranks
from tests.training_fixtures import config, metrics, newest, run

__all__ = ["clean_run", "faulty_run"]  # fixtures

pytestmark = pytest.mark.ranks


def test_rollback_ends_a_run_whose_checkpoints_are_gone(faulty_run, tmp_path):
    def spoil(engine, here):
        NAN_WEIGHTS(engine, here)
        shutil.rmtree(tmp_path / "checkpoints")

    outcome = faulty_run(tmp_path, config(checkpoint={"background": False}), fault_at(5, do=spoil))
    assert outcome["code"] == DATA
    assert "has lost its checkpoints while it ran" in outcome["sentence"]


@layouts("1-1-2-z3")
def test_guard_skips_a_batch_that_always_goes_wrong(parallel, train, faulty_run, tmp_path, capfd):
    settings, bad, again = (
        config(parallel=parallel, train=train),
        tmp_path / "bad",
        tmp_path / "again",
    )
    assert faulty_run(bad, settings, fault_at(3, times=10**6, do=NAN_GRADIENT))["code"] == DONE
    refused = [("refused", 3)] * 2
    assert events(bad) == [*refused, ("rolled back", 3), *refused, ("skipped", 3)]
    assert incidents(bad)[-1]["samples"] == [16, 23]
    assert "The batch of step 3 is skipped from now on" in capfd.readouterr().out
    row = metrics(bad)[2]
    assert (row["step"], row["loss"], row["grad_norm"]) == (3, None, None)
    # A run that skips it from the start, without the fault, is equal.
    again.mkdir()
    shutil.copy(bad / "incidents.jsonl", again)
    assert run(again, settings)["code"] == DONE
    assert_same_run(again, bad)
    assert events(again) == events(bad)
    # So is one that resumes after it: the counts of steps, Adam's included, are the same.
    for folder in checkpoint.all_checkpoints(again)[1:]:
        shutil.rmtree(folder)
    assert newest(again).name == "step-00000004"
    assert run(again, settings)["code"] == DONE
    assert_same_run(again, bad)


def test_checkpoint_right_after_a_skipped_step_resumes_as_if_uninterrupted(tmp_path, monkeypatch):
    """On request, off the schedule, and at the end; skipped steps count as samples and steps."""
    settings, skip_step = config(checkpoint={"every": 100}), DeepSpeedEngine.skip_step
    rows = [{"what": "skipped", "step": step, "samples": []} for step in (3, 6)]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
        (folder / "incidents.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def requesting_a_stop(self):
        (stopped / "stop").touch()
        skip_step(self)

    assert run(whole, settings)["code"] == DONE
    with monkeypatch.context() as patched:
        patched.setattr(DeepSpeedEngine, "skip_step", requesting_a_stop)
        assert run(stopped, settings)["code"] == REQUEUE
    manifest = checkpoint.read_manifest(newest(stopped))
    assert (manifest.step, manifest.samples) == (3, 24)
    assert (read_ledger(stopped) == 0).tolist() == [False, False, True]
    (stopped / "stop").unlink()
    assert run(stopped, settings)["code"] == DONE
    manifest = checkpoint.read_manifest(newest(stopped))
    assert (manifest.step, manifest.samples) == (6, 48)
    assert_same_run(stopped, whole)
    assert read_ledger(stopped).tolist() == read_ledger(whole).tolist()
    assert (read_ledger(whole) == 0).tolist() == [False, False, True, False, False, True]
    assert len(incidents(stopped)) == len(rows)


@pytest.mark.parametrize(
    "last", [pytest.param(13, id="some"), pytest.param(20, id="all", marks=pytest.mark.slow)]
)
def test_guard_skips_more_batches_and_then_ends_the_run(last, faulty_run, tmp_path):
    settings = config(train={"steps": 20}, checkpoint={"every": 2, "keep": 9})
    outcome = faulty_run(
        tmp_path, settings, fault_at(*range(11, last + 1), times=10**6, do=NAN_GRADIENT)
    )
    rows = incidents(tmp_path)
    rollbacks = [(row["step"], row["to"]) for row in rows if row["what"] == "rolled back"]
    if last == 13:
        assert outcome["code"] == DONE
        assert rollbacks == [(11, 10), (12, 8), (13, 6)]
        skipped = sorted(row["step"] for row in rows if row["what"] == "skipped")
        assert skipped == list(range(7, 14))
        kept = [
            checkpoint.read_manifest(path).step for path in checkpoint.all_checkpoints(tmp_path)
        ]
        assert kept == [2, 4, 6, 14, 16, 18, 20]
    else:
        assert (outcome["code"], outcome["step"]) == (NUMBERS, 14)
        assert rollbacks == [(11, 10), (12, 8), (13, 6), (14, 2)]
        assert re.match("step 15: .* is not finite, also after 4 returns", outcome["sentence"])


def test_guard_keeps_the_last_good_checkpoint_of_a_run_it_ends(faulty_run, tmp_path):
    settings = config(
        train={"steps": 20}, checkpoint={"every": 2, "keep": 9}, guard={"rollbacks": 2}
    )
    outcome = faulty_run(tmp_path, settings, fault_at(11, 12, 13, times=10**6, do=NAN_GRADIENT))
    assert (outcome["code"], outcome["step"]) == (NUMBERS, 12)
    assert "(guard.rollbacks=2); the checkpoint of step 8 is kept" in outcome["sentence"]
    assert newest(tmp_path).name == "step-00000008"


def test_guard_skips_no_step_that_a_checkpoint_holds(faulty_run, tmp_path):
    """The only checkpoint holds step 8."""
    settings = config(train={"steps": 12}, checkpoint={"every": 4, "keep": 1})
    assert (
        faulty_run(tmp_path, settings, fault_at(9, 10, times=10**6, do=NAN_GRADIENT))["code"]
        == DONE
    )
    skipped = [row["step"] for row in incidents(tmp_path) if row["what"] == "skipped"]
    assert skipped == [9, 10]


def test_guard_ends_a_run_with_too_high_a_learning_rate(tmp_path):
    settings = config(optim={"lr": 1e30, "clip": 0.0}, train={"steps": 50}, checkpoint={"every": 1})
    outcome = run(tmp_path, settings)
    assert outcome["code"] == NUMBERS
    sentence = outcome["sentence"]
    assert "is not finite, also after 4 returns to a checkpoint (guard.rollbacks=4); " in sentence
    assert "begin a new run with a lower optim.lr or more schedule.warmup_steps (weigh" in sentence


def test_guard_refuses_on_all_ranks_what_one_refuses(clean_run, tmp_path, monkeypatch):
    """One rank refuses a step for figures of its own, and all the others refuse it, too."""
    settings, fault, seen = config(parallel={"dp": 2}), Guard.fault, []

    def suspicious(self, loss, norm):
        seen.append(loss)
        if os.environ["RANK"] == "1" and len(seen) == 3:
            return "a figure of its own"
        return fault(self, loss, norm)

    with monkeypatch.context() as patched:
        patched.setattr(Guard, "fault", suspicious)
        assert run(tmp_path, settings)["code"] == DONE
    assert events(tmp_path) == [("refused", 3)]
    why = incidents(tmp_path)[0]["why"]
    assert why == "the gradient on rank 1 is wrong: it is not that of others"
    assert_same_run(tmp_path, clean_run(settings))


@layouts("2-2-1", "1-1-2")
def test_guard_judges_the_loss_that_the_metrics_report(parallel, train, tmp_path, monkeypatch):
    judge, judged = Guard.judge, tmp_path / "judged"

    def recording(self, loss, norm):
        if os.environ["RANK"] == "0":
            with judged.open("a") as file:
                file.write(json.dumps([loss, norm]) + "\n")
        return judge(self, loss, norm)

    monkeypatch.setattr(Guard, "judge", recording)
    run(tmp_path, config(parallel=parallel, train=train))
    lines = [json.loads(line) for line in judged.read_text().splitlines()]
    for (loss, norm), row in zip(lines, metrics(tmp_path), strict=True):
        assert loss == pytest.approx(row["loss"], rel=1e-6)
        assert norm == row["grad_norm"]


def half_written(folder: Path) -> tuple[list, str]:
    path = folder / "incidents.jsonl"
    path.write_text('{"what": "skipped", "step": 3, "samples": [16, 23]}\n{"what": "refu')
    recorded = Incidents(folder, 8)
    before = sorted(recorded.skipped)
    recorded.rolled_back(6, 4)
    return [before, recorded.counts, sorted(Incidents(folder, 8).skipped)], path.read_text()


def test_incidents_drops_only_the_row_cut_by_a_kill(tmp_path):
    ((before, counts, after), text) = run_ranks(1, half_written, tmp_path)[0]
    assert before == after == [2]
    assert counts == {"skipped": 1, "rolled_back": 1}
    first, second = map(json.loads, text.splitlines())
    assert (first["step"], second["to"]) == (3, 4)
