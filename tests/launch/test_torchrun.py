"""`torchrun -m launch train`: rank 0 composes for all, with real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import yaml

from launch.cli import main
from tests.launch.launch_fixtures import SMALL, small_config, with_shards, write_corpus
from tests.places import ROOT


@pytest.fixture(scope="module")
def corpus(tmp_path_factory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("text"))


def torchrun(tmp_path: Path, *arguments: str) -> subprocess.CompletedProcess:
    options = ["--standalone", "--nproc-per-node", "2", "-m", "launch", "train", *SMALL]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, *arguments],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["data.corpus=sample"], "mlm: data.corpus=sample is prepared by one process, and 2 were"),
        pytest.param(
            ["data.shards=x", "parallel.tp=4"],
            "mlm: 2 processes were started, but parallel.tp=4",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_torchrun_reports_an_error_once(arguments, sentence, tmp_path):
    done = torchrun(tmp_path, *arguments)
    assert done.returncode != 0
    assert done.stderr.count("mlm: ") == 1
    assert sentence in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_torchrun_refuses_a_sweep(tmp_path, monkeypatch, capsys):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert main(["train", *SMALL, "-m", "seed=1,2", "data.shards=x"]) == 2
    err = capsys.readouterr().err
    assert "run the sweep with `mlm train -m` outside of torchrun" in err
    assert err.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert main(["train", *SMALL, "-m", "seed=1,2", "data.shards=x"]) == 2
    assert capsys.readouterr().err == ""  # rank 0 has reported it
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ranks
def test_torchrun_trains_what_rank_0_composed(corpus, tmp_path):
    settings = with_shards(small_config(corpus), tmp_path / "made")
    steps = ["train.steps=2", "train.global_batch_size=8", "eval.every=0", "checkpoint.every=0"]
    done = torchrun(
        tmp_path, f"data.shards={settings.data.shards}", "run.name=a", "parallel.tp=2", *steps
    )
    assert done.returncode == 0, done.stderr[-2000:]
    left = json.loads((tmp_path / "runs" / "a" / "outcome.json").read_text())
    assert (left["code"], left["step"]) == (0, 2)
    assert done.stdout.count(left["sentence"]) == 1
    config = yaml.safe_load((tmp_path / "runs" / "a" / "config.yaml").read_text())
    assert (config["parallel"]["tp"], config["parallel"]["dp"]) == (2, 1)


class Torchrun:
    """A torchrun of one's own around a run that does not end by itself; a context."""

    def __init__(self, corpus: Path, where: Path, *options: str) -> None:
        shards = with_shards(small_config(corpus), where / "made").data.shards
        given = [text for text in SMALL if not text.startswith("data.vocab_size")]
        given += [f"data.shards={shards}", "run.name=a", "parallel.tp=2", "train.steps=100000"]
        given += ["train.log_every=1", "eval.every=0", "checkpoint.every=0"]
        command = ["--standalone", "--nproc-per-node", "2", *options, "-m", "launch", "train"]
        self.command = [sys.executable, "-m", "torch.distributed.run", *command, *given]
        self.where, self.folder = where, where / "runs" / "a"

    def __enter__(self) -> "Torchrun":
        env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        with (self.where / "output").open("wb") as output:
            self.process = subprocess.Popen(
                self.command, cwd=self.where, env=env, stdout=output, stderr=output
            )
        self.wait_for(lambda: len(self.rows()) > 2)
        self.ranks = psutil.Process(self.process.pid).children()
        return self

    def __exit__(self, *_: object) -> None:
        for process in [*self.ranks, self.process]:
            with suppress(psutil.NoSuchProcess, ProcessLookupError):
                process.kill()
        self.process.wait()

    def rows(self) -> list[bytes]:
        path = self.folder / "metrics.jsonl"
        return path.read_bytes().splitlines() if path.exists() else []

    def wait_for(self, holds: Callable[[], bool]) -> None:
        end = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < end, (self.where / "output").read_text()
            time.sleep(0.05)

    def check_saved(self) -> None:
        """Waits for the end of all processes: the last step is saved, and none trains on."""
        self.process.wait(60)
        self.wait_for(lambda: not any(rank.is_running() for rank in self.ranks))
        left = json.loads((self.folder / "outcome.json").read_text())
        assert left["code"] == 75, left
        assert left["step"] == len(self.rows())
        (saved,) = (self.folder / "checkpoints").iterdir()
        assert saved.name == f"step-{left['step']:08d}"


@pytest.mark.ranks
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGUSR1,  # which ends torchrun, whose ranks save when it dies
        *(
            pytest.param(number, marks=pytest.mark.slow)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)
        ),
    ],
)
def test_ranks_save_on_a_signal_to_torchrun(number, corpus, tmp_path):
    with Torchrun(corpus, tmp_path) as run:
        run.process.send_signal(number)
        run.check_saved()
        assert run.process.returncode != 0


@pytest.mark.slow
@pytest.mark.ranks
def test_torchrun_does_not_restart_a_run_that_was_stopped(corpus, tmp_path):
    with Torchrun(corpus, tmp_path, "--max-restarts", "2") as run:
        run.ranks[1].send_signal(signal.SIGTERM)  # any rank will do
        run.check_saved()
        assert len((run.folder / "starts.jsonl").read_bytes().splitlines()) == 1
        assert "not restarted: stopped as asked after step" in (tmp_path / "output").read_text()


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.skipif(
    bool(subprocess.run(["unshare", "--uts", "true"], check=False).returncode),
    reason="a host name of one's own needs root",
)
def test_train_needs_no_host_name_that_resolves(corpus, tmp_path):
    settings = with_shards(small_config(corpus), tmp_path / "made")
    given = [text for text in SMALL if not text.startswith("data.vocab_size")]
    given += [f"data.shards={settings.data.shards}", "parallel.tp=2", "train.steps=1"]
    train = [sys.executable, "-m", "launch", "train", *given, "run.name=a"]
    inner = ["sh", "-c", 'hostname no-such-host.invalid && exec "$@"', "-", *train]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["unshare", "--uts", *inner],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
