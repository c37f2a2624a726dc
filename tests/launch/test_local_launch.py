"""The launcher: run folders, and the outcome of the ranks."""

import tempfile
import time
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from launch import run_folder
from launch.compose import compose
from launch.launchers import local
from launch.verbs import train as train_verb
from mlm.config import TrainConfig, load
from mlm.errors import UserError
from tests.launch.launch_fixtures import SMALL, corpus, ranks, train

__all__ = ["corpus", "ranks"]  # fixtures


def test_run_folder_holds_what_the_ranks_start_from(corpus, ranks, capfd):
    assert train(f"data.corpus={corpus}", "run.name=a", "parallel.tp=2") == 0
    out, err = capfd.readouterr()
    assert "out of a rank" in out
    assert out.endswith("all is well\n")
    assert err == ""
    folder = ranks / "runs" / "a"
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.yaml",
        "data.json",
        "logs",
        "outcome.json",
        "overrides.txt",
        "starts.jsonl",
        "tracker_id",
        "train.log",
    ]
    assert (folder / "logs" / "launcher.log").read_text() == "error of a rank\n"
    overrides = [*SMALL, f"data.corpus={corpus}", "run.name=a", "parallel.tp=2"]
    assert (folder / "overrides.txt").read_text().splitlines() == overrides
    config = load(TrainConfig, yaml.safe_load((folder / "config.yaml").read_text()))
    assert (config.run.name, config.parallel.dp, config.train.device) == ("a", 1, "cpu")
    assert config.model.vocab_size == 256
    assert Path(str(config.data.shards), "index.json").is_file()
    assert Path(str(config.data.tokenizer)).is_absolute()
    assert [path.name for path in ranks.iterdir()] == ["runs"]


def test_local_launcher_leaves_no_temporary_files_of_ranks(corpus, ranks, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)  # read from the environment again
    assert train(f"data.corpus={corpus}") == 0
    assert list((tmp_path / "temporary").iterdir()) == []


def test_run_name_is_the_model_and_the_time_by_default(corpus, ranks):
    assert train(f"data.corpus={corpus}") == 0
    names = {path.name for path in (ranks / "runs").iterdir()} - {"prepared"}
    (name,) = names
    assert time.strptime(name, "tiny-%Y%m%d-%H%M%S")


def test_run_name_is_unique_by_default(tmp_path, monkeypatch):
    """Also if several runs start in the same second."""
    monkeypatch.setattr(run_folder, "datetime", SimpleNamespace(now=lambda: datetime(2026, 1, 2)))
    names = []
    for _ in range(3):
        names.append(run_folder.run_name(None, "tiny", tmp_path))
        (tmp_path / names[-1]).mkdir()
    assert names == ["tiny-20260102-000000", "tiny-20260102-000000-2", "tiny-20260102-000000-3"]
    assert run_folder.run_name(names[0], "tiny", tmp_path) == names[0]


def test_run_name_is_no_folder_inside_that_of_prepared_data(tmp_path):
    with pytest.raises(UserError, match=r"run\.name=prepared/a is where prepared data is kept"):
        run_folder.run_name("prepared/a", "tiny", tmp_path)
    assert run_folder.run_name("a/prepared", "tiny", tmp_path) == "a/prepared"


@pytest.mark.parametrize("code", [1, 2, 75, 76, 77])
def test_local_launcher_exits_with_the_code_of_the_outcome(code, corpus, ranks, monkeypatch, capfd):
    monkeypatch.setenv("CODE", str(code))
    monkeypatch.setenv("EXIT", "1")  # torchrun has no other
    monkeypatch.setenv("SENTENCE", "it ended")
    assert train(f"data.corpus={corpus}", "run.name=a") == code
    logs = "" if code == 75 else " (logs: runs/a/logs)"  # a requested stop needs no logs
    assert capfd.readouterr().err == f"mlm: it ended{logs}\n"


def test_local_launcher_fails_without_an_outcome(corpus, ranks, monkeypatch, capfd):
    monkeypatch.delenv("CODE")
    monkeypatch.setenv("EXIT", "1")
    assert train(f"data.corpus={corpus}", "run.name=a") == 1
    assert capfd.readouterr().err == "mlm: a rank died (see runs/a/logs):\nerror of a rank\n"
    monkeypatch.setenv("EXIT", "0")
    assert train(f"data.corpus={corpus}", "run.name=a") == 1
    assert "ended without an outcome" in capfd.readouterr().err


def test_local_launcher_ignores_the_outcome_of_an_earlier_start(corpus, ranks, monkeypatch, capfd):
    """Neither its outcome nor its lines in the log."""
    assert train(f"data.corpus={corpus}", "run.name=a") == 0
    monkeypatch.delenv("CODE")
    capfd.readouterr()
    assert train(f"data.corpus={corpus}", "run.name=a") == 1
    assert "ended without an outcome" in capfd.readouterr().err
    monkeypatch.setenv("EXIT", "1")
    assert train(f"data.corpus={corpus}", "run.name=a") == 1
    assert capfd.readouterr().err.count("error of a rank") == 1


@pytest.mark.parametrize(("on_bad_shard", "skip"), [("stop", False), ("skip", True)])
def test_local_launcher_asks_why_ranks_died_with_the_setting_of_bad_shards(
    on_bad_shard, skip, corpus, ranks, monkeypatch
):
    asked = []

    def recorded(outcome, folder, shards, skip):
        asked.append((folder, Path(shards, "index.json").is_file(), skip))
        return outcome

    monkeypatch.setattr(local, "explained", recorded)
    given = [f"data.corpus={corpus}", "run.name=a", f"data.on_bad_shard={on_bad_shard}"]
    assert train(*given) == 0
    assert asked == [(Path("runs/a"), True, skip)]


def test_train_refuses_a_padded_vocabulary_that_tp_does_not_divide(corpus, ranks, capfd):
    three = ["parallel.tp=3", "model.num_attention_heads=6", "model.hidden_size=48"]
    assert train(f"data.corpus={corpus}", "model.intermediate_size=96", *three) == 2
    err = capfd.readouterr().err
    assert "model.vocab_size=256 is not a multiple of parallel.tp=3; choose tp from 1, 2, or" in err
    assert err.endswith("or model.vocab_size=384\n")
    assert [path.name for path in (ranks / "runs").iterdir()] == ["prepared"]
    given = [f"data.corpus={corpus}", "model.intermediate_size=96", "model.vocab_size=258"]
    assert train(*given, *three) == 0


def test_local_launcher_reports_a_dead_rank_despite_a_good_outcome(
    corpus, ranks, monkeypatch, capfd
):
    monkeypatch.setenv("EXIT", "1")
    assert train(f"data.corpus={corpus}", "run.name=a") == 1
    assert "a rank died" in capfd.readouterr().err


def test_train_returns_the_evaluation_loss_to_a_sweeper(corpus, ranks):
    losses = []
    arguments = [*SMALL, f"data.corpus={corpus}", "run.name=a"]
    compose(
        "train",
        "TrainConfig",
        arguments,
        {},
        lambda job: losses.append(train_verb.run(job) or 0.0),
    )
    assert losses == [2.5]


def test_resume_accepts_the_same_run_and_refuses_another(corpus, ranks, capfd):
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given) == 0
    (ranks / "runs" / "a" / "stop").touch()
    (ranks / "runs" / "a" / "metrics.jsonl").write_text("kept\n")
    free = ["train.steps=7", "train.log_every=3", "eval.every=1", "checkpoint.keep=5"]
    free += ["parallel.pp=2", "train.recompute=true", "tracker.project=x", "data.workers=2"]
    assert train(*given, *free) == 0
    assert not (ranks / "runs" / "a" / "stop").exists()
    written = yaml.safe_load((ranks / "runs" / "a" / "config.yaml").read_text())
    assert (written["train"]["steps"], written["parallel"]["pp"]) == (7, 2)
    capfd.readouterr()
    for setting, held in {
        "seed=2": "seed=1, not 2",
        "optim.lr=9": "optim.lr=0.002, not 9.0",
        "optim.betas=[0.5,0.6]": "optim.betas=[0.9, 0.98], not [0.5, 0.6]",
        "schedule=wsd": "schedule.kind=polynomial, not wsd",
        "model.hidden_size=32": "model.hidden_size=64, not 32",
        "data.seq_len=16": "data.seq_len=32, not 16",
        "train.global_batch_size=64": "train.global_batch_size=16, not 64",
        "data.weights={en: 2}": "data.weights={}, not {'en': 2.0}",
        "data.max_epochs=50": "data.max_epochs=None, not 50.0",
    }.items():
        assert train(*given, setting) == 2
        assert f"runs/a holds a run with {held}; give another run.name, or run.fresh=true" in (
            capfd.readouterr().err
        )
    assert (ranks / "runs" / "a" / "metrics.jsonl").read_text() == "kept\n"


def test_resume_assumes_the_default_of_a_setting_that_is_not_recorded(corpus, ranks, capfd):
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given) == 0
    path = ranks / "runs" / "a" / "config.yaml"
    written = yaml.safe_load(path.read_text())
    for name in ("weights", "alpha_schedule", "max_epochs", "max_epochs_of"):
        del written["data"][name]
    del written["guard"]
    path.write_text(yaml.safe_dump(written))
    capfd.readouterr()
    assert train(*given, "data.weights.en=2") == 2
    assert "holds a run with data.weights={}, not {'en': 2.0}" in capfd.readouterr().err
    assert train(*given) == 0


def test_resume_refuses_another_vocabulary_size(corpus, ranks, capfd):
    """By default it would be 256."""
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given, "model.vocab_size=384") == 0
    capfd.readouterr()
    assert train(*given, "model.vocab_size=256") == 2
    assert "runs/a holds a run with model.vocab_size=384, not 256" in capfd.readouterr().err
    assert train(*given) == 0
    assert train(*given, "model.vocab_size=384") == 0


def test_fresh_start_deletes_the_previous_run(corpus, ranks):
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given) == 0
    (ranks / "runs" / "a" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (ranks / "runs" / "a" / "metrics.jsonl").touch()
    (ranks / "runs" / "a" / "logs" / "rank-00000.log").touch()
    assert train(*given, "seed=2", "run.fresh=true") == 0
    names = {path.name for path in (ranks / "runs" / "a").rglob("*")}
    assert names.isdisjoint({"checkpoints", "metrics.jsonl", "rank-00000.log"})
    config = yaml.safe_load((ranks / "runs" / "a" / "config.yaml").read_text())
    assert (config["seed"], config["run"]["fresh"]) == (2, False)


def test_resume_refuses_changed_data(corpus, ranks, tmp_path, capfd):
    given = ["run.name=a", f"data.corpus={tmp_path / 'text'}"]
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "en.txt").write_text((corpus / "en.txt").read_text())
    assert train(*given) == 0
    (tmp_path / "text" / "en.txt").write_text((corpus / "en.txt").read_text() + "\nOne more.\n")
    assert train(*given) == 76
    assert "the index has changed since runs/a began" in capfd.readouterr().err


def test_train_leaves_a_folder_alone_that_is_not_a_run(corpus, ranks, capfd):
    (ranks / "runs" / "a").mkdir(parents=True)
    (ranks / "runs" / "a" / "thesis.tex").touch()
    for fresh in ("run.fresh=false", "run.fresh=true"):
        assert train(f"data.corpus={corpus}", "run.name=a", fresh) == 2
        assert "runs/a is not empty and holds no run" in capfd.readouterr().err
    assert [path.name for path in (ranks / "runs" / "a").iterdir()] == ["thesis.tex"]
    assert [path.name for path in (ranks / "runs").iterdir()] == ["a"]


def test_train_refuses_a_folder_in_use(corpus, ranks, capfd):
    given = [f"data.corpus={corpus}", "run.name=a"]
    assert train(*given) == 0
    with run_folder.claim(Path("runs/a"), fresh=False):
        assert train(*given, "run.fresh=true") == 2
        assert "runs/a is in use by a run that has not ended" in capfd.readouterr().err
        assert Path("runs/a/config.yaml").is_file()
    assert train(*given) == 0


def test_sweep_makes_a_run_of_each_point(corpus, ranks, capfd):
    assert train("-m", f"data.corpus={corpus}", "run.name=s", "seed=1,2") == 0
    configs = sorted(path.relative_to(ranks) for path in ranks.rglob("config.yaml"))
    assert configs == [Path("runs/s/000/config.yaml"), Path("runs/s/001/config.yaml")]
    seeds = [yaml.safe_load((ranks / path).read_text())["seed"] for path in configs]
    assert seeds == [1, 2]
    assert sorted(path.name for path in (ranks / "runs" / "s").iterdir()) == ["000", "001"]
    made = [path.name for path in (ranks / "runs" / "prepared").glob("*/*") if path.is_dir()]
    assert sorted(made) == ["shards", "tokenizer"]


def test_sweep_ends_at_a_stopped_point(corpus, ranks, monkeypatch, capfd):
    monkeypatch.setenv("CODE", "75")
    assert train("-m", f"data.corpus={corpus}", "run.name=s", "seed=1,2") == 75
    assert [path.name for path in (ranks / "runs" / "s").iterdir()] == ["000"]
