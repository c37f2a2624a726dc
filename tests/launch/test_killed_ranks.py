"""A rank that the system killed is explained."""

import sys
from pathlib import Path

import pytest

from launch.launcher import Outcome
from launch.launchers import killed_ranks, local
from mlm.errors import DONE, FAILED, NUMBERS

RANK = """
import json, os, pathlib, signal, sys, time
folder, kind, victims = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3].split(",")
if kind == "reported":  # what a rank says that only saw the other go
    values = {"code": 1, "sentence": "rank 0 failed: Connection closed by peer"}
    (folder / "outcome.json").write_text(json.dumps(values))
if os.environ["RANK"] in victims:
    time.sleep(0.5)
    if kind == "failed":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def run(folder: Path, kind: str, victims: str) -> Outcome:
    """Two real ranks under torchrun; `victims` end by SIGKILL, or as `kind` says."""
    (folder / "logs").mkdir()
    script = folder / "rank.py"
    script.write_text(RANK)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", str(script), str(folder), kind, victims]
    with (folder / "logs" / "launcher.log").open("ab") as log:
        log.write(b"rank : 7 (local_rank: 7)\n  exitcode : -9 (of an earlier start)\n")
        log.flush()
        return local.run_ranks(command, folder, local.environment(2), log)


@pytest.mark.ranks
@pytest.mark.parametrize("kind", ["silent", pytest.param("reported", marks=pytest.mark.slow)])
def test_outcome_names_a_rank_that_was_killed(kind, tmp_path):
    outcome = run(tmp_path, kind, "1")
    assert outcome.code == FAILED
    assert outcome.sentence.startswith("rank 1 was killed by SIGKILL: unless somebody did that, ")
    assert " GB here); lower train.micro_batch_size, " in outcome.sentence
    assert "\n" not in outcome.sentence


@pytest.mark.ranks
def test_outcome_is_sure_where_the_system_counted_a_kill(tmp_path, monkeypatch):
    counts = iter([4, 5])
    monkeypatch.setattr(local, "kills", lambda: next(counts))
    monkeypatch.setattr(killed_ranks, "kills", lambda: next(counts))
    monkeypatch.setattr(killed_ranks, "memory_limit", lambda: 25 * 10**9)
    sentence = run(tmp_path, "silent", "0").sentence
    assert sentence.startswith(
        "rank 0 was killed by SIGKILL: the system ran out of memory (25.0 GB here); lower train."
    )


@pytest.mark.ranks
def test_outcome_of_a_rank_that_failed_by_itself_stays(tmp_path):
    outcome = run(tmp_path, "failed", "1")
    assert outcome.code == FAILED
    assert outcome.sentence.startswith("a rank died (see ")


PAGE = """\
{warning}
Failures:
[1]:
  rank      : 0 (local_rank: 0)
  exitcode  : -9 (pid: 32296)  (SIGKILL)
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  rank      : 1 (local_rank: 1)
  exitcode  : {code} (pid: 32297)
"""


@pytest.mark.parametrize(
    ("warning", "code", "named"),
    [
        ("", 1, "rank 0 was killed"),  # both were gone when torchrun looked
        ("", -9, "ranks 0, 1 were killed"),
        ("Unable to shutdown process 5 via 15, forcefully exiting via 9", 1, None),
        ("Unable to shutdown process 5 via 15, forcefully exiting via 9", -9, "rank 1 was killed"),
    ],
)
def test_ranks_that_torchrun_killed_do_not_count(warning, code, named, tmp_path):
    log = tmp_path / "launcher.log"
    log.write_text(PAGE.format(warning=warning, code=code))
    failed = Outcome(FAILED, "it failed", 3)
    found = killed_ranks.explained(failed, log, 0, 0)
    assert found.step == 3
    assert found.sentence.startswith(named) if named else found == failed
    for other in (DONE, NUMBERS):  # what the ranks agreed on
        assert killed_ranks.explained(Outcome(other, "so"), log, 0, 0).sentence == "so"
