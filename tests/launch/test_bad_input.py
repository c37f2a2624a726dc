"""What is refused before a process starts: one sentence, the exit code, no files left."""

import errno
import json
import os
import re
from pathlib import Path

import pytest
import torch
import yaml

import mlm.data.prepare
from launch import run_folder
from mlm.errors import UserError
from tests.launch.launch_fixtures import corpus, ranks, train

__all__ = ["corpus", "ranks"]  # fixtures


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["run.dir=/proc/runs"], 2, "/proc/runs"),
        (["run.dir=/dev/null"], 2, "/dev/null is not a folder"),
        (["run.name=" + 300 * "x"], 2, "(File name too long); choose a shorter run.name"),
        (["run.name=../a"], 2, "run.name=../a is not a folder inside run.dir"),
        (["run.name=prepared"], 2, "run.name=prepared is where prepared data is kept"),
        (["train.steps=many"], 2, "train.steps='many' is not possible: it should be a valid"),
        (["train.stpes=3"], 2, "train.stpes is not a setting; did you mean train.steps?"),
        (["parallel.tp=3"], 2, "choose tp from 1, 2, 4"),
        (["model.intermediate_size=258", "parallel.tp=4"], 2, "intermediate_size=258 is not a"),
        (["parallel.pp=5"], 2, "choose pp from 1 to 4"),
        (["parallel.pp=2", "parallel.zero=2"], 2, "choose parallel.zero=1, or parallel.pp=1"),
        (["parallel.pp=2", "parallel.zero=3"], 2, "choose parallel.zero=1, or parallel.pp=1"),
        (["train.global_batch_size=20"], 2, "choose 16 or 24"),
        (["optim.eps=0"], 2, "optim.eps=0 is below 1e-37; give 1e-37 or more"),
        (["optim.eps=1e-46"], 2, "optim.eps=1e-46 is below 1e-37"),
        (["schedule.warmup_steps=100", "train.steps=8"], 2, "warmup_steps=100 is more than train."),
        (["schedule.steps=9", "train.steps=10"], 2, "train.steps=10 is more than schedule.steps=9"),
        (["schedule.end_lr=1"], 2, "schedule.end_lr=1 is above the peak, optim.lr=0.0"),
        (
            ["schedule=wsd", "schedule.decay_steps=9", "schedule.warmup_steps=2", "train.steps=9"],
            2,
            "schedule.decay_steps=9 and the 2 steps of warm-up are more than train.steps=9; choose",
        ),
        (["data.seq_len=600"], 2, "choose a seq_len up to 512"),
        (["model.vocab_size=100"], 2, "model.vocab_size=100 is below the 200 ids"),
        (["model.vocab_size=201", "parallel.tp=2"], 2, "model.vocab_size=201 is not a multiple"),
        (["data.shards=x"], 2, "are both given; omit one"),
        (["data.vocab_size=9999"], 76, "vocab_size=9999"),
        (["data.vocab_size=40"], 76, "or a smaller data.character_coverage, from 0.98 on"),
        (["data.character_coverage=0.9"], 2, "character_coverage=0.9 is not from 0.98 to 1"),
        (["schedule=step"], 2, "schedule.kind=step is not known; choose from cosine, lin"),
        (
            ["tracker=[none,x]"],
            2,
            "tracker.kind=x is not known; choose from tensorboard, wandb, or add",
        ),
        (["launch=cloud"], 2, "launch.kind=cloud is not known; choose from local, slurm, or add"),
        (["train.attention=x"], 2, "train.attention=x is not known; choose from auto, fused"),
        (["plugins=[no_such]"], 2, "plugins=no_such cannot be imported (ModuleNotFoundError"),
        (["plugins=no_such"], 2, "plugins='no_such' is not possible: it should be a list"),
    ],
)
def test_train_refuses_bad_settings_before_a_process_starts(
    arguments, code, sentence, corpus, ranks, capfd
):
    assert train(f"data.corpus={corpus}", *arguments) == code
    out, err = capfd.readouterr()
    assert sentence in err
    assert err.count("\n") == 1
    assert "out of a rank" not in out
    assert not [path for path in ranks.glob("runs/*") if path.name != "prepared"]


def test_train_refuses_an_unreadable_corpus(ranks, tmp_path, capfd):
    assert train("data.corpus=nowhere") == 76
    assert "nowhere" in capfd.readouterr().err
    (tmp_path / "empty").mkdir()
    assert train(f"data.corpus={tmp_path / 'empty'}") == 76
    assert str(tmp_path / "empty") in capfd.readouterr().err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "en.txt").write_bytes(b"good\n\nbad \xff\n")
    assert train(f"data.corpus={tmp_path / 'bad'}") == 76
    err = capfd.readouterr().err
    assert "en.txt" in err
    assert "line 3" in err
    assert err.count("\n") == 1
    assert list(ranks.iterdir()) == []


def test_check_folder_refuses_a_folder_without_permission(tmp_path):
    """Checked as a user other than root, who may read every folder."""
    (tmp_path / "closed").mkdir(mode=0)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65534)
            run_folder.check_folder(tmp_path / "closed" / "runs" / "a", fresh=False)
        except UserError as error:
            code = 0 if "is read-only, so the run" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_train_leaves_nothing_on_a_full_disk_while_preparing(corpus, ranks, monkeypatch, capfd):
    def full(*arguments, **settings):
        raise UserError("no room for the tokenizer; free space")

    monkeypatch.setattr(mlm.data.prepare.training, "train", full)
    assert train(f"data.corpus={corpus}") == 2
    assert capfd.readouterr().err == "mlm: no room for the tokenizer; free space\n"
    assert list(ranks.iterdir()) == []


def test_train_leaves_no_run_on_a_full_disk_while_starting(corpus, ranks, monkeypatch, capfd):
    def full(path, *arguments, **settings):
        if path.name.startswith("config.yaml"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write_text(path, *arguments, **settings)

    write_text = Path.write_text
    monkeypatch.setattr(Path, "write_text", full)
    assert train(f"data.corpus={corpus}", "run.name=a") == 2
    err = capfd.readouterr().err
    assert (
        "runs/a cannot be written (No space left on device); free space, or choose another" in err
    )
    assert err.count("\n") == 1
    assert [path.name for path in (ranks / "runs").iterdir()] == ["prepared"]


def test_train_refuses_a_folder_without_shards(ranks, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    assert train(f"data.shards={tmp_path / 'empty'}") == 76
    err = capfd.readouterr().err
    assert "empty has no index.json that can be read" in err
    assert err.count("\n") == 1
    assert list(ranks.iterdir()) == []


def test_train_refuses_cuda_without_a_gpu(corpus, ranks, monkeypatch, capfd):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert train(f"data.corpus={corpus}", "train.device=cuda") == 2
    err = capfd.readouterr().err
    assert err.startswith("mlm: train.device=cuda is asked for, and no GPU is visible here; use ")
    assert err.count("\n") == 1
    assert list(ranks.iterdir()) == []


def test_train_refuses_a_tokenizer_other_than_that_of_the_shards(corpus, ranks, capfd):
    for number in (200, 150):
        assert train(f"data.corpus={corpus}", f"data.vocab_size={number}", "run.name=a") == 0
        Path("runs/a").rename(f"{number}")
    first, other = (
        yaml.safe_load(Path(name, "config.yaml").read_text())["data"] for name in ("200", "150")
    )
    capfd.readouterr()
    given = [f"data.shards={first['shards']}", f"data.tokenizer={other['tokenizer']}"]
    assert train(*given, "run.name=b") == 76
    err = capfd.readouterr().err
    assert other["tokenizer"] in err
    assert err.count("\n") == 1
    assert not Path("runs/b").exists()
    assert train(given[0], "run.name=b") == 0


def test_train_refuses_truncated_shards_at_the_next_start(corpus, ranks, capfd):
    assert train(f"data.corpus={corpus}", "run.name=a") == 0
    shards = yaml.safe_load(Path("runs/a/config.yaml").read_text())["data"]["shards"]
    tar = Path(shards, "en-000000.tar")
    tar.write_bytes(tar.read_bytes()[:-512])
    before, outcome = changes(Path("runs/a")), json.loads(Path("runs/a/outcome.json").read_text())
    capfd.readouterr()
    assert train(f"data.shards={shards}", "run.name=a") == 76
    err = capfd.readouterr().err
    assert "en-000000.tar" in err
    assert err.count("\n") == 1
    assert changes(Path("runs/a")) == before
    assert json.loads(Path("runs/a/outcome.json").read_text())["before"] == outcome


def changes(run: Path) -> dict[str, int]:
    """When each file of a run was changed, but those in which a refusal is kept."""
    kept = ("outcome.json", "refusals.jsonl")
    files = (path for path in run.rglob("*") if path.is_file() and path.name not in kept)
    return {str(path): path.stat().st_mtime_ns for path in files}


def test_train_names_a_language_smaller_than_a_block(corpus, ranks, tmp_path, capfd):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "en.txt").write_text((corpus / "en.txt").read_text())
    (tmp_path / "text" / "eo.txt").write_text("Bona tago.\n\nBona nokto.\n")
    assert train(f"data.corpus={tmp_path / 'text'}", "data.seq_len=128") == 76
    err = capfd.readouterr().err
    assert "mlm: the language eo has " in err
    assert err.count("\n") == 1
    assert [path.name for path in (ranks / "runs").iterdir()] == ["prepared"]
    (most,) = re.findall(r"choose data.seq_len=(\d+) or less", err)
    assert train(f"data.corpus={tmp_path / 'text'}", f"data.seq_len={most}") == 0
