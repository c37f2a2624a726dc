"""The watchdog: runs of real processes in which a rank stops, hangs or is only slow."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from mlm.config import as_dict
from mlm.data.reading.reader import TokenReader
from mlm.errors import DONE, FAILED
from mlm.health import heartbeat
from mlm.health.watchdog import Watchdog
from mlm.training.rank import main
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from parallel.groups import ProcessGrid
from parallel.layout import Layout
from parallel.recorder import Recorder
from tests.launch.launch_fixtures import SMALL, small_config, with_shards, write_corpus
from tests.launch.test_stopping import dead, wait_for
from tests.places import ROOT
from tests.ranks import run_ranks
from tests.training_fixtures import config, metrics, run

PATIENCE = 100  # seconds that a busy machine may take to start or end a run


def beat_of(folder: Path, rank: int) -> heartbeat.Beat:
    beat = heartbeat.read(heartbeat.path_of(folder, rank))
    assert beat is not None
    return beat


def watchdog_of(folder: Path, rank: int = 0, world: int = 1, seconds: float = 100.0) -> Watchdog:
    grid = ProcessGrid(Layout(dp=world), rank, 0, 0, rank, None, None, None)
    return Watchdog(folder, seconds, grid, Recorder(), lambda sentence: None)


class Exited(BaseException):
    pass


@pytest.fixture
def exits(monkeypatch):
    """The end of a process is an exception, and sleeping takes no time."""

    def raised(code):
        raise Exited(code)

    monkeypatch.setattr(os, "_exit", raised)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)


def test_watchdog_counts_phases_and_collectives_as_progress(tmp_path, exits):
    (tmp_path / heartbeat.FOLDER).mkdir()
    watchdog = watchdog_of(tmp_path)
    call = watchdog.recorder.wrapped("barrier", lambda: None)
    for _ in range(5):
        watchdog.enter("data")
        watchdog._tick(90.0)
        watchdog._tick(90.0)  # 90 seconds since its last progress
        call()
        watchdog._tick(90.0)
        watchdog._tick(90.0)
    with pytest.raises(Exited, match=f"{FAILED}"):
        watchdog._tick(20.0)


def test_watchdog_reads_no_other_heartbeats_while_its_rank_progresses(tmp_path, monkeypatch):
    (tmp_path / heartbeat.FOLDER).mkdir()
    watchdog = watchdog_of(tmp_path, world=2)
    monkeypatch.setattr(heartbeat, "read", lambda path: pytest.fail("it was read"))
    for _ in range(50):
        watchdog.enter("step")
        watchdog._tick(10.0)
        watchdog._tick(10.0)


def test_watchdog_dumps_stacks_early_when_another_rank_has_stalled(tmp_path, exits):
    """The time of the other rank is up, and it waits for this rank's stacks."""
    (tmp_path / heartbeat.FOLDER).mkdir()
    first, second = watchdog_of(tmp_path, 0, 2), watchdog_of(tmp_path, 1, 2)
    for _ in range(6):
        first._tick(10.0)
        second._tick(10.0)
    first._dumped = True
    first._beat()
    with pytest.raises(Exited):
        second._tick(5.0)
    assert second._dumped


def test_watchdog_waits_while_another_rank_progresses(tmp_path, exits):
    """The other rank may spend long in phases of its own; the run stalls once it stalls, too."""
    (tmp_path / heartbeat.FOLDER).mkdir()
    first, second = watchdog_of(tmp_path, 0, 2), watchdog_of(tmp_path, 1, 2)
    for _ in range(10):
        second.enter("evaluate")
        second._tick(0.0)
        first._tick(30.0)
    for _ in range(2):
        second._tick(24.0)
        first._tick(24.0)
    second._tick(24.0)
    with pytest.raises(Exited):
        first._tick(24.0)


def test_watchdog_rarely_reads_other_heartbeats(tmp_path, monkeypatch):
    (tmp_path / heartbeat.FOLDER).mkdir()
    watchdog = watchdog_of(tmp_path, world=2)
    reads = []
    monkeypatch.setattr(heartbeat, "read", lambda path: reads.append(path))
    for _ in range(99):
        watchdog._tick(1.0)
    assert 10 < len(reads) < 20  # others that stop beating must show


def test_watchdog_writes_nothing_when_off(tmp_path):
    with watchdog_of(tmp_path, seconds=0.0) as watchdog:
        watchdog.enter("step")
    assert list(tmp_path.iterdir()) == []


def train_to_stall(folder: Path, **sections: dict) -> None:
    """Trains until the watchdog ends the run, which is a failure of all ranks."""
    settings = config(**sections)
    (folder / "config.yaml").write_text(yaml.safe_dump(as_dict(settings)))
    degrees = settings.parallel
    world = degrees.tp * degrees.pp * int(degrees.dp)
    with pytest.raises(AssertionError, match="exit codes of the ranks"):
        run_ranks(world, main, str(folder / "config.yaml"))


def outcome(folder: Path) -> dict:
    return json.loads((folder / "outcome.json").read_text())


def log(folder: Path, rank: int) -> str:
    return (folder / "logs" / f"rank-{rank:05d}.log").read_text()


@pytest.mark.ranks
def test_watchdog_names_a_rank_that_hangs_in_its_data(tmp_path, monkeypatch):
    real = TokenReader.gather

    def hanging(self, split, *arguments, **named):
        rank_1 = os.environ["RANK"] == "1"
        while rank_1 and split == "train" and (tmp_path / "metrics.jsonl").exists():
            time.sleep(0.01)
        return real(self, split, *arguments, **named)

    monkeypatch.setattr(TokenReader, "gather", hanging)
    train_to_stall(tmp_path, parallel={"dp": 2}, train={"steps": 50}, watchdog={"seconds": 6.0})
    ended = outcome(tmp_path)
    assert ended["code"] == FAILED
    assert ended["step"] >= 1
    assert ended["sentence"].startswith("rank 1 stalled (process ")
    assert "in no collective, in phase data): nothing has moved for" in ended["sentence"]
    assert "watchdog.seconds=6; stacks" in ended["sentence"]
    assert f"{tmp_path / 'logs'}; start the run again" in ended["sentence"]
    for rank in range(2):
        assert f"Stacks of rank {rank}, in phase " in log(tmp_path, rank)
        assert "mlm/training/loop.py" in log(tmp_path, rank)
    assert "in hanging" in log(tmp_path, 1)  # the thread that makes batches
    # (calls of a save in the background may follow)
    assert "all_reduce, 32 bytes, all ranks: has not returned\n" in log(tmp_path, 0)
    assert "has not returned" not in log(tmp_path, 1)


@pytest.mark.ranks
def test_watchdog_names_a_stage_that_hangs_in_a_step(tmp_path, monkeypatch):
    """The other stage waits for what it should send."""
    real = DeepSpeedEngine.train_batch

    def hanging(self, batches, lr):
        if os.environ["RANK"] == "0" and (tmp_path / "metrics.jsonl").exists():
            time.sleep(1000)
        return real(self, batches, lr)

    monkeypatch.setattr(DeepSpeedEngine, "train_batch", hanging)
    train_to_stall(tmp_path, parallel={"pp": 2}, train={"steps": 50}, watchdog={"seconds": 6.0})
    assert outcome(tmp_path)["sentence"].startswith("rank 0 stalled (process ")
    assert "in no collective, in phase step)" in outcome(tmp_path)["sentence"]
    assert "in hanging" in log(tmp_path, 0)
    assert "recv from rank 0" in log(tmp_path, 1).splitlines()[-1]


@pytest.mark.ranks
def test_watchdog_does_not_disturb_a_healthy_run(tmp_path):
    layout = {"parallel": {"tp": 2}}
    results = []
    for number, seconds in enumerate((0.0, 30.0)):
        folder = tmp_path / str(number)
        ended = run(folder, config(**layout, watchdog={"seconds": seconds}))
        assert ended["code"] == DONE
        rows = [(row["loss"], row["grad_norm"]) for row in metrics(folder)]
        results.append((ended["eval_loss"], rows))
        assert all(path.read_text() == "" for path in (folder / "logs").iterdir())
    assert results[0] == results[1]
    assert not (tmp_path / "0" / heartbeat.FOLDER).exists()
    beats = [beat_of(tmp_path / "1", rank) for rank in range(2)]
    assert {beat.phase for beat in beats} == {heartbeat.ENDED}


@pytest.mark.ranks
def test_watchdog_lets_a_suspended_job_resume(tmp_path):
    """All ranks, as by a scheduler, for longer than the watchdog waits."""
    settings = config(parallel={"dp": 2}, train={"steps": 4000}, watchdog={"seconds": 6.0})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(as_dict(settings)))
    process = multiprocessing.get_context("fork").Process(
        target=run_ranks, args=(2, main, str(tmp_path / "config.yaml"))
    )
    process.start()
    wait_for((tmp_path / "metrics.jsonl").exists, PATIENCE)
    ranks = [beat_of(tmp_path, rank).process for rank in range(2)]
    for pid in ranks:
        os.kill(pid, signal.SIGSTOP)
    size = (tmp_path / "metrics.jsonl").stat().st_size
    time.sleep(8)
    assert (tmp_path / "metrics.jsonl").stat().st_size == size
    for pid in ranks:
        os.kill(pid, signal.SIGCONT)
    wait_for(lambda: (tmp_path / "metrics.jsonl").stat().st_size > size, PATIENCE)
    (tmp_path / "stop").touch()
    process.join(PATIENCE)
    assert outcome(tmp_path)["code"] == 75


@pytest.mark.ranks
def test_watchdog_ends_the_job_of_a_stopped_rank(tmp_path):
    """Through the command line and torchrun: the job ends by itself and leaves no process."""
    settings = with_shards(small_config(write_corpus(tmp_path / "text")), tmp_path / "made")
    given = [text for text in SMALL if not text.startswith("data.vocab_size")]
    given += [f"data.shards={settings.data.shards}", "run.name=a", "parallel.dp=2"]
    given += ["train.steps=100000", "train.log_every=1", "eval.every=0", "watchdog.seconds=8"]
    process = subprocess.Popen(
        [sys.executable, "-m", "launch", "train", *given],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    folder = tmp_path / "runs" / "a"
    try:
        trains = (folder / "metrics.jsonl").exists
        wait_for(lambda: trains() or process.poll() is not None, PATIENCE)
        assert process.poll() is None, process.communicate()
        beats = [beat_of(folder, rank) for rank in range(2)]
        os.kill(beats[0].process, signal.SIGSTOP)  # the rank that writes the outcome
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.terminate()  # twice: the launcher kills what does not end
        process.terminate()
    assert process.returncode == FAILED
    sentence = outcome(folder)["sentence"]
    assert err == f"mlm: {sentence}\n"
    where = f"process {beats[0].process} on {beats[0].host}, "
    assert sentence.startswith(f"rank 0 stalled ({where}stopped, dead or without its file system")
    assert log(folder, 0) == ""
    text = log(folder, 1)
    assert text.startswith(f"watchdog: {sentence}\n\nStacks of rank 1, in phase ")
    assert "train.py" in text
    assert "has not returned" in text.partition("Its last collectives:")[2]
    for beat in beats:
        wait_for(lambda beat=beat: dead(beat.process), PATIENCE)
