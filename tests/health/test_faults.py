"""Processes that are killed, stopped or asked to end at random, through the command line and
torchrun: started again, the run is bit for bit equal to one without faults."""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlm import checkpoint
from mlm.errors import DATA, DONE, FAILED, REQUEUE
from mlm.files.jsonl import read_rows
from mlm.health import heartbeat
from tests.checkpoint.test_resume import exact
from tests.launch.launch_fixtures import SMALL, small_config, with_shards, write_corpus
from tests.places import ROOT
from tests.training_fixtures import evaluations, metrics

pytestmark = pytest.mark.ranks

PATIENCE = 120  # seconds to wait for anything, on a busy machine
BETWEEN = 12  # most steps of a start before its fault
STALL = 8  # watchdog.seconds


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    settings = with_shards(small_config(write_corpus(folder / "text")), folder / "made")
    return Path(str(settings.data.shards))


class Run:
    """A run of two ranks over any number of starts; each start is a context."""

    process: subprocess.Popen

    def __init__(self, shards: Path, where: Path, name: str, steps: int) -> None:
        self.where, self.folder = where, where / "runs" / name
        given = [text for text in SMALL if not text.startswith("data.vocab_size")]
        given += [f"data.shards={shards}", f"run.name={name}", f"train.steps={steps}"]
        given += ["parallel.tp=2", "train.log_every=1", "eval.every=25", "checkpoint.every=4"]
        self.given = [*given, f"watchdog.seconds={STALL}"]

    def __enter__(self) -> "Run":
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch", "train", *self.given],
            cwd=self.where,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        for pid in self.family():
            os.kill(pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()

    def end(self) -> tuple[int, str, str]:
        """Its code, standard output and standard error, once it has ended by itself."""
        out, err = self.process.communicate(timeout=5 * PATIENCE)
        return self.process.returncode, out, err

    def wait_for(self, holds: Callable[[], bool], pause: float = 0.05) -> None:
        """Waits until it holds; looks again after `pause` seconds."""
        end = time.monotonic() + PATIENCE
        while not holds():
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(pause)

    def family(self) -> list[int]:
        """torchrun and, after it, the ranks."""
        try:
            children = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        return [child.pid for child in children]

    def rank(self, rank: int) -> int:
        """The process id of a rank that trains, else 0."""
        beat = heartbeat.read(heartbeat.path_of(self.folder, rank))
        return 0 if beat is None else beat.process

    def rows(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def wait_for_steps(self, steps: int) -> None:
        """Waits until this start has made `steps` steps."""
        processes = self.family
        self.wait_for(lambda: self.rows() > 0 and self.rank(0) in processes())
        before = self.rows()
        self.wait_for(lambda: self.rows() >= before + steps, 0.005)

    def is_saving(self) -> bool:
        return any((self.folder / checkpoint.FOLDER).glob("*.partial"))


def kill_a_rank(run: Run, dice: random.Random) -> set[int]:
    run.wait_for_steps(dice.randint(1, BETWEEN))
    time.sleep(dice.uniform(0, 0.05))
    os.kill(run.rank(dice.randrange(2)), signal.SIGKILL)
    return {FAILED}


def kill_a_rank_that_saves(run: Run, dice: random.Random) -> set[int]:
    run.wait_for_steps(1)
    run.wait_for(run.is_saving, 0.0005)  # to see the parts of a save
    time.sleep(dice.uniform(0, 0.02))
    os.kill(run.rank(dice.randrange(2)), signal.SIGKILL)
    return {FAILED}


def kill_a_rank_that_starts(run: Run, dice: random.Random) -> set[int]:
    run.wait_for(lambda: len(run.family()) > 2)
    time.sleep(dice.uniform(0, 4))
    os.kill(dice.choice(run.family()[1:3]), signal.SIGKILL)
    return {FAILED}


def kill_the_launcher(run: Run, dice: random.Random) -> set[int]:
    run.wait_for_steps(dice.randint(1, BETWEEN))
    ranks = [run.rank(rank) for rank in range(2)]
    run.process.kill()
    # The ranks hold the folder until the last of them has ended.
    end = time.monotonic() + PATIENCE
    while any(psutil.pid_exists(pid) for pid in ranks) and time.monotonic() < end:
        time.sleep(0.05)
    return {-signal.SIGKILL}


def signal_the_launcher(run: Run, dice: random.Random) -> set[int]:
    run.wait_for_steps(dice.randint(1, BETWEEN))
    run.process.send_signal(dice.choice([signal.SIGTERM, signal.SIGUSR1]))
    return {REQUEUE}


def stop_a_rank(run: Run, dice: random.Random) -> set[int]:
    """The watchdog ends the run."""
    run.wait_for_steps(dice.randint(1, BETWEEN))
    os.kill(run.rank(dice.randrange(2)), signal.SIGSTOP)
    return {FAILED}


KILLS = [kill_a_rank, kill_a_rank_that_saves, kill_a_rank, kill_a_rank_that_starts]
OTHERS = [signal_the_launcher, kill_the_launcher, stop_a_rank]


@pytest.mark.timeout(1800)  # for the many
@pytest.mark.parametrize(
    "faults",
    [
        pytest.param([kill_a_rank_that_saves], id="one"),
        pytest.param([*(5 * KILLS), *(2 * OTHERS)], id="many", marks=pytest.mark.slow),
    ],
)
def test_resume_equals_a_clean_run_after_random_faults(faults, shards, tmp_path):
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice, steps = random.Random(seed), (BETWEEN + 4) * (len(faults) + 1)
    with Run(shards, tmp_path, "whole", steps) as whole:
        assert whole.end()[0] == DONE
    broken, counts = Run(shards, tmp_path, "broken", steps), Counter()
    for number, fault in enumerate(faults):
        log = broken.folder / "logs" / "launcher.log"
        before = log.stat().st_size if log.exists() else 0
        with broken:
            codes = fault(broken, dice)
            code, _, err = broken.end()
        assert code in codes, (number, fault.__name__, code, err)
        if code == REQUEUE:  # a clean end leaves no trace of torchrun
            assert log.read_bytes()[before:] == b""
        saving = broken.is_saving()
        print(f"{number}: {fault.__name__}, code {code}, {broken.rows()} rows, in a save: {saving}")
        counts[fault.__name__, saving] += 1
    with broken:
        code, out, err = broken.end()
    assert code == DONE, err
    assert "Skipped" not in out
    assert exact(broken.folder) == exact(whole.folder)
    assert len(metrics(whole.folder)) == steps
    assert evaluations(broken.folder) == evaluations(whole.folder)
    outcomes = [json.loads((run.folder / "outcome.json").read_text()) for run in (broken, whole)]
    assert outcomes[0]["eval_loss"] == outcomes[1]["eval_loss"]
    assert counts[kill_a_rank_that_saves.__name__, True] > 0  # an unfinished save was ignored
    assert not broken.is_saving()
    starts = read_rows(broken.folder / "starts.jsonl")
    assert len(starts) == len(faults) + 1
    kept = checkpoint.newest(broken.folder)
    assert kept is not None
    made = dict(checkpoint.read_manifest(kept).environment)
    assert 1e8 < made.pop("memory_peak") < 1e11
    assert made == starts[-1]
    assert " train " in made["command"]
    assert {"torch", "deepspeed", "python"} <= made["versions"].keys()
    log = (broken.folder / "train.log").read_text()
    assert log.count("Resuming at step ") + log.count("Training: ") <= len(starts)
    assert log.count("Everything is in") == 1


@pytest.mark.slow
def test_run_ends_with_code_76_when_a_mapped_shard_is_truncated(shards, tmp_path):
    """The system kills a rank that reads there; the command still reports the cause."""
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    with Run(copy, tmp_path, "cut", 100_000) as run:
        run.wait_for_steps(2)
        for path in copy.glob("*.tar"):
            os.truncate(path, 0)
        code, _, error = run.end()
    assert code == DATA, error
    assert re.search(
        r"mlm: .*-000000\.tar .* it has 0 bytes in place of \d+; copy the shards", error
    )
