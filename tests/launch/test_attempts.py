"""Starts of one run: restarts after a failure, attempts by name, refusals, requests to stop."""

import json
import os
import time
from pathlib import Path

import pytest
import yaml

from launch import run_folder
from launch.environment import attempt
from launch.launchers import local
from launch.launchers.slurm.ended import judge
from launch.run_folder import CONFIG, REFUSALS
from mlm.errors import CONFIG as MISTAKE
from mlm.errors import DATA, DONE, FAILED, NUMBERS, REQUEUE
from mlm.files.jsonl import append_row, read_rows
from mlm.health.outcome import write_outcome
from tests.launch.launch_fixtures import corpus, ranks, train

__all__ = ["corpus", "ranks"]  # fixtures

# Ranks of which each start ends as the next row of a file has it: code, sentence, repeats.
RANKS = """
import json, pathlib, sys
folder = pathlib.Path(sys.argv[1]).parent
ends = json.loads(pathlib.Path(sys.argv[2]).read_text())
code, sentence, repeats = ends.pop(0)
pathlib.Path(sys.argv[2]).write_text(json.dumps(ends))
values = {"code": code, "sentence": sentence, "step": 3, "repeats": repeats}
(folder / "outcome.json").write_text(json.dumps(values))
sys.exit(1 if code else 0)
"""


def outcome(folder: str = "runs/a") -> dict:
    return json.loads(Path(folder, "outcome.json").read_text())


@pytest.mark.parametrize(
    ("limit", "ends", "code", "starts"),
    [
        (0, [(1, "a", False)], FAILED, 1),
        (2, [(1, "a", False), (0, "done", False)], DONE, 2),
        (2, [(1, "a", False), (1, "b", False), (1, "c", False)], FAILED, 3),
        (9, [(1, "a", False), (1, "a", False)], FAILED, 2),  # the same at the same step
        (9, [(1, "a", True)], FAILED, 1),
        *((9, [(code, "a", False)], code, 1) for code in (MISTAKE, REQUEUE, DATA, NUMBERS)),
    ],
)
def test_local_launcher_restarts_what_may_go_well_now(
    limit, ends, code, starts, corpus, ranks, monkeypatch, capfd
):
    script, left = ranks.parent / "ranks.py", ranks.parent / "ends.json"
    script.write_text(RANKS)
    left.write_text(json.dumps(ends))
    before = local.torchrun
    monkeypatch.setattr(local, "torchrun", lambda *given: [*before(*given), str(left)])
    given = [f"data.corpus={corpus}", "run.name=a", f"launch.max_restarts={limit}"]
    assert train(*given) == code
    rows = read_rows(Path("runs/a/starts.jsonl"))
    assert [row.get("restart") for row in rows] == [None, *range(1, starts)]
    assert json.loads(left.read_text()) == []
    assert capfd.readouterr().err.count("; restart ") == starts - 1


def test_refusal_of_a_run_is_its_outcome_and_keeps_the_one_before(corpus, ranks, monkeypatch):
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given) == DONE
    done = outcome()
    attempt.cache_clear()
    monkeypatch.setenv("POLYMLM_ATTEMPT", "7.1")
    assert train(*given, "seed=9") == MISTAKE
    refused = outcome()
    assert (refused["code"], refused["attempt"]) == (MISTAKE, "7.1")
    assert "holds a run with seed=1, not 9" in refused["sentence"]
    assert refused["before"] == done
    assert train(*given) == DONE
    assert read_rows(Path("runs/a/starts.jsonl"))[-1]["attempt"] == "7.1"
    attempt.cache_clear()


def test_refusal_of_a_second_start_leaves_the_first_alone(corpus, ranks):
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given) == DONE
    with run_folder.held(Path("runs/a")):
        assert train(*given) == MISTAKE
    assert outcome()["code"] == DONE
    assert "is in use by a run" in read_rows(Path("runs/a") / REFUSALS)[-1]["sentence"]


def test_refusal_writes_nothing_where_there_is_no_run(corpus, ranks):
    assert train(f"data.corpus={corpus}", "run.name=a", "parallel.tp=5") == MISTAKE
    assert not Path("runs/a").exists()


def test_request_to_stop_counts_from_the_start_of_the_command(tmp_path):
    (tmp_path / "a").mkdir()
    stop = tmp_path / "a" / "stop"
    stop.touch()
    with run_folder.claim(tmp_path / "a", fresh=False):
        assert stop.exists()  # it came while this process prepared the data
    before = time.time() - 10**6
    os.utime(stop, (before, before))
    with run_folder.claim(tmp_path / "a", fresh=False):
        assert not stop.exists()


def test_config_of_a_run_does_not_say_what_started_it(corpus, ranks):
    assert train(f"data.corpus={corpus}", "run.name=a", "launch.max_restarts=3") == DONE
    assert "launch" not in yaml.safe_load(Path("runs/a", CONFIG).read_text())


class Attempts:
    """The ends of the attempts of a job, as its script judges them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.number = folder, 0
        (folder / "logs").mkdir()

    def save(self, step: int) -> None:
        saved = self.folder / "checkpoints" / f"step-{step:08d}"
        saved.mkdir(parents=True)
        (saved / "checkpoint.json").touch()

    def end(
        self, code: int | None, sentence: str = "so", *, repeats: bool = False, **given
    ) -> bool:
        """Whether the job is requeued after an attempt with this outcome; None: without one."""
        name, self.number = f"7.{self.number}", self.number + 1
        append_row(self.folder / "starts.jsonl", {"attempt": name})
        if code is not None:
            (self.folder / "outcome.json").unlink(missing_ok=True)
            write_outcome(self.folder, code, sentence, 3, repeats=repeats)
        found = judge(self.folder, name, **{"max_requeues": 3, **given})
        assert found.code == (FAILED if code is None else code)
        row = {"sentence": sentence if code is not None else "", "requeued": found.requeue}
        append_row(
            self.folder / "requeues.jsonl", row | {"step": run_folder.saved_step(self.folder)}
        )
        return found.requeue


def test_job_comes_back_only_where_that_may_help(tmp_path):
    job = Attempts(tmp_path)
    assert job.end(REQUEUE)  # torchrun was killed
    (tmp_path / "stop").touch()
    assert not job.end(REQUEUE)  # a user's own stop
    assert job.end(REQUEUE, warned=True)
    assert not job.end(REQUEUE, warned=True, ended=True)  # cancelled, or requeued by Slurm
    for code in (DONE, MISTAKE, DATA, NUMBERS):
        assert not job.end(code, warned=True)
    assert not job.end(FAILED, "KeyError", repeats=True)
    assert job.end(FAILED, "the network")
    assert not job.end(FAILED, "the network")
    job.save(4)
    assert job.end(FAILED, "the network")


def test_job_without_progress_comes_back_a_few_times(tmp_path):
    job = Attempts(tmp_path)
    assert [job.end(None) for _ in range(4)] == [True, True, True, False]
    job.save(4)
    assert [job.end(None) for _ in range(4)] == [True, True, True, False]


def test_job_does_not_take_the_outcome_of_an_attempt_before(tmp_path):
    job = Attempts(tmp_path)
    job.end(DONE)
    assert job.end(None)  # not 0
    row = {"attempt": "7.2", "code": MISTAKE, "sentence": "in use"}
    append_row(tmp_path / REFUSALS, row)
    assert judge(tmp_path, "7.2", max_requeues=3).code == MISTAKE
