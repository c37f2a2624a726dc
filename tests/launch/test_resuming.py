"""`mlm train run.name=NAME` of a run that is there: what is not given is what the run had."""

import shutil
from pathlib import Path

import yaml

from launch.cli import main
from launch.resuming import keys
from tests.launch.launch_fixtures import corpus, ranks, train

__all__ = ["corpus", "ranks"]  # fixtures


def config(run: str = "a") -> dict:
    return yaml.safe_load(Path("runs", run, "config.yaml").read_text())


def resume(*arguments: str) -> int:
    return main(["train", "run.name=a", *arguments])


def test_resume_takes_what_is_not_given_from_the_run(corpus, ranks, capfd):
    assert train(f"data.corpus={corpus}", "run.name=a", "optim.lr=1e-3", "schedule=wsd") == 0
    before = config()
    assert resume() == 0
    assert config() == before
    assert resume("parallel.pp=2", "eval.every=7", "schedule=wsd") == 0
    now = config()
    assert (now["parallel"]["pp"], now["eval"]["every"]) == (2, 7)
    now["parallel"]["pp"], now["eval"]["every"] = 1, 250
    assert now == before
    assert resume("parallel.pp=1", "eval.every=250") == 0
    assert config() == before
    overrides = Path("runs/a/overrides.txt").read_text().splitlines()
    assert [text for text in overrides if text.startswith(("optim", "schedule", "eval"))] == [
        "optim.lr=1e-3",
        "schedule=wsd",
        "eval.every=250",
    ]
    assert resume("run.fresh=true") == 2  # a new run needs its data
    assert "neither data.corpus nor data.shards is given" in capfd.readouterr().err


def test_resume_refuses_what_contradicts_the_run(corpus, ranks, capfd):
    assert train(f"data.corpus={corpus}", "run.name=a", "optim.lr=1e-3", "schedule=wsd") == 0
    for given, held in {
        "model=base": "model.hidden_size=64, not 768",
        "model=large": "model.hidden_size=64, not 1024",
        "optim.lr=2e-3": "optim.lr=0.001, not 0.002",  # the default of a new run
        "schedule=linear": "schedule.kind=wsd, not linear",
        "seed=2": "seed=1, not 2",
    }.items():
        capfd.readouterr()
        assert resume(given, "data.seq_len=32") == 2
        assert f"runs/a holds a run with {held}; give another" in capfd.readouterr().err


def test_resume_uses_the_shards_that_were_made_or_makes_them_again(corpus, ranks, tmp_path, capfd):
    text = shutil.copytree(corpus, tmp_path / "text")
    assert train(f"data.corpus={text}", "run.name=a") == 0
    before = config()
    text.rename(tmp_path / "moved")
    capfd.readouterr()
    assert resume() == 0
    assert "Reading the corpus" not in capfd.readouterr().out
    assert config() == before
    shutil.rmtree("runs/prepared")
    assert resume() == 76
    assert f"the corpus {text} is not a folder" in capfd.readouterr().err
    (tmp_path / "moved").rename(text)
    assert resume() == 0
    assert config() == before
    assert resume(f"data.corpus={text}") == 0
    assert config() == before
    shards = before["data"]["shards"]
    assert resume(f"data.shards={shards}") == 0
    assert (config()["data"]["corpus"], config()["data"]["shards"]) == (None, shards)
    assert resume(f"data.shards={shards}", f"data.corpus={text}") == 2
    assert "are both given; omit one" in capfd.readouterr().err


def test_resume_lets_the_machine_choose_what_it_chose_before(corpus, ranks, monkeypatch):
    """A run that began on other devices, with as many copies as fit there."""
    assert main(
        ["train", f"data.corpus={corpus}", "run.name=a", "model=tiny", "tracker=none",
         "data.vocab_size=200", "data.seq_len=32", "parallel.zero=1"]
    ) == 0  # fmt: skip
    saved = config()
    assert (saved["parallel"]["dp"], saved["train"]["device"]) == (1, "cpu")
    saved["parallel"]["dp"], saved["train"]["device"] = 4, "cuda"
    Path("runs/a/config.yaml").write_text(yaml.safe_dump(saved))
    assert resume() == 0
    assert (config()["parallel"]["dp"], config()["train"]["device"]) == (1, "cpu")
    assert resume("parallel.dp=2") == 0
    assert resume() == 0
    assert config()["parallel"]["dp"] == 2  # it was given


def test_resume_of_a_mistyped_name_says_that_there_is_no_such_run(ranks, capfd):
    assert main(["train", "run.name=frist"]) == 2
    error = capfd.readouterr().err
    assert "data.shards is given, and runs/frist is no run to resume, so there" in error
    assert error.endswith("or correct run.name\n")


def test_resume_knows_values_by_language(corpus, ranks, capfd):
    assert train(f"data.corpus={corpus}", "run.name=a", "data.weights={en: 2}") == 0
    assert resume("data.weights.en=2") == 0
    assert config()["data"]["weights"] == {"en": 2.0}
    capfd.readouterr()
    assert resume("data.weights.de=3") == 2
    assert "holds a run with data.weights={'en': 2.0}, not {" in capfd.readouterr().err


def test_resume_ignores_settings_of_other_versions(corpus, ranks):
    assert train(f"data.corpus={corpus}", "run.name=a") == 0
    saved = config()
    del saved["guard"], saved["data"]["heldout"]
    saved["train"]["gone"] = 3
    Path("runs/a/config.yaml").write_text(yaml.safe_dump(saved))
    Path("runs/a/overrides.txt").unlink()
    assert resume() == 0
    assert config()["data"]["heldout"] == 0.01


def test_keys_are_the_names_of_settings_and_groups():
    assert keys(["a.b=1", "+c=2", "~d", "schedule.kind=wsd", "model=tiny", "x='a=b'"]) == {
        "a.b", "c", "d", "schedule", "model", "x"
    }  # fmt: skip
