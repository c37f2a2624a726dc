"""`torchrun -m launch train`: rank 0 composes for all, with real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

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
