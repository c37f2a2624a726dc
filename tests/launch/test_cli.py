"""The command line: verbs, help, completion, and folders that would shadow our packages."""

import os
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import mlm.config
from launch.cli import VERBS, main, split
from mlm.setting import settings
from tests.places import ROOT

CONSOLE = "import sys; from launch.cli import main; sys.exit(main())"  # what pip's script does
TEXT = "The river runs past the {n}th old mill, and below it lies village number {n}.\n\n"


def start(arguments: list[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess:
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def corpus(tmp_path) -> Path:
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "en.txt").write_text("".join(TEXT.format(n=n) for n in range(80)))
    (folder / "de.txt").write_text("".join(f"Haus {n} am alten Fluss.\n\n" for n in range(60)))
    return folder


@pytest.mark.parametrize("arguments", [[], ["--help"], ["help"]])
def test_cli_overview_names_every_verb(arguments, capsys):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert all(f"  {name} " in printed for name in VERBS)


def test_cli_refuses_an_unknown_verb_in_one_sentence(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "mlm: 'trian' is not a command of mlm; did you mean train?\n"
    assert main(["0"]) == 2
    assert "choose from tokenizer, shards, train" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "positional", "rest"),
    [
        (["a", "b"], ["a", "b"], []),
        (["a", "k=1", "-m", "l.m=2"], ["a"], ["k=1", "l.m=2", "-m"]),
        (["--cfg", "job", "k=1"], [], ["k=1", "--cfg", "job"]),
        (["runs/lr=1", "2 + 2 = <mask>"], ["runs/lr=1", "2 + 2 = <mask>"], []),
        (["+a.b=1", "~c", "hydra/launcher=x"], [], ["+a.b=1", "~c", "hydra/launcher=x"]),
    ],
)
def test_split_ends_positional_arguments_at_the_first_setting_or_flag(arguments, positional, rest):
    assert split(arguments) == (positional, rest)


def test_cli_refuses_an_extra_argument_in_one_sentence(capsys):
    assert main(["train", "tiny"]) == 2
    assert "'tiny' is not an argument of mlm train, which takes settings only" in (
        capsys.readouterr().err
    )
    assert main(["export", "a", "b", "c"]) == 2
    assert "'c' is not an argument of mlm export, which takes path and out" in (
        capsys.readouterr().err
    )


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_each_setting_with_its_help_and_two_examples(verb, capsys):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code in (0, None)
    printed = capsys.readouterr().out
    shown, examples = printed.split("Examples:")
    assert examples.count(f"mlm {verb}") == 2
    for row in settings(getattr(mlm.config, VERBS[verb].schema)):
        line = rf"^  {re.escape(row.name)}=.*  {re.escape(row.help)}  \[(.+)\]$"
        assert re.search(line, shown, re.M), row
    assert ("data.seq_len=512 " if verb == "train" else "=??? ") in printed


def test_help_shows_the_values_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["train", "model=tiny", "seed=7", "--help"])
    printed = capsys.readouterr().out
    assert "  seed=7 " in printed
    assert re.search(r"data.masking=token .*  \[token\|word\|span\]$", printed, re.M)
    assert re.search(r"train.log_every=10 .*  \[integer 1 or more\]$", printed, re.M)
    assert re.search(r"data.max_epochs=null .*  \[number above 0, null\]$", printed, re.M)
    assert re.search(r"run.fresh=false .*  \[true\|false\]$", printed, re.M)
    assert "  model.hidden_size=64 " in printed


def test_cli_help_and_errors_import_no_torch_and_write_nothing(tmp_path):
    code = (
        "import sys; from launch.cli import main\n"
        "try: main(['train', '--help'])\n"
        "except SystemExit: pass\n"
        "assert main(['train', 'data.corpus=x', 'parallel.tp=5']) == 2\n"
        "assert main(['train', 'train.stpes=5']) == 2\n"
        "assert 'torch' not in sys.modules, 'torch takes seconds'\n"
    )
    done = start(["-W", "error", "-c", code], tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "choices"),
    [
        ("mlm t", "tokenizer train"),
        ("mlm train model=", "model=base model=large model=mini model=tiny model=xl model=xxl"),
        ("mlm train train.st", "train.steps="),
        ("mlm train schedule=", "schedule=polynomial schedule=linear schedule=cosine schedule=wsd"),
        ("mlm train tracker=n", "tracker=none"),
        ("mlm fill to", "top="),
        ("mlm fill runs/first to", "top="),
        ("mlm fill runs/first mod", ""),
        ("mlm fill runs/first model=", ""),
        ("mlm train da", "data."),
        ("mlm train data.masking=", "data.masking=token data.masking=word data.masking=span"),
        ("mlm train train.dtype=", "train.dtype=fp32 train.dtype=bf16"),
        ("mlm train data.dedup=t", "data.dedup=true"),
        ("mlm train --c", "--cfg --config-dir"),
        ("mlm train data.corpus=te", "data.corpus=text/"),
        ("mlm train data.corpus=text/", "data.corpus=text/en.txt data.corpus=text/sw/"),
        ("mlm audit te", "text/"),
        ("mlm train --config-dir te", "text/"),
        ("mlm train --config-dir own model=m", "model=mine model=mini"),
        ("mlm export runs/first exported dt", "dtype="),
    ],
)
def test_completion_offers_verbs_settings_and_values(line, choices, tmp_path, monkeypatch, capsys):
    for name in ("text/sw/", "text/en.txt", "own/model/mine.yaml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir() if name.endswith("/") else (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COMP_LINE", line)
    monkeypatch.setattr(sys, "argv", ["mlm"])
    with suppress(SystemExit):
        assert main(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == choices.split()


def test_completion_is_installed_for_the_command(monkeypatch, capsys):
    monkeypatch.delenv("COMP_LINE", raising=False)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/mlm"])
    assert main(["-sc", "install=bash"]) == 0
    assert capsys.readouterr().out.rstrip().endswith("-F hydra_bash_completion mlm")


@pytest.mark.parametrize("command", [["-m", "launch"], ["-c", CONSOLE]])
def test_cli_ignores_packages_of_our_names_in_the_working_folder(command, tmp_path):
    for name in ("conf", "parallel", "mlm"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('not ours')\n")
    (tmp_path / "conf" / "train.yaml").write_text("seed: 7\n")
    safe = {"PYTHONSAFEPATH": "1"} if command[0] == "-c" else {}  # a script's folder is not the cwd
    done = start([*command, "train", "--cfg", "job", "model=tiny"], tmp_path, **safe)
    assert done.returncode == 0, done.stderr
    assert "hidden_size: 64" in done.stdout
    assert done.stdout.startswith("seed: 1\n")


def test_cli_names_a_package_that_shadows_ours(tmp_path):
    (tmp_path / "parallel").mkdir()
    (tmp_path / "parallel" / "__init__.py").write_text("")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    done = start(["-P", "-m", "launch", "train"], ROOT.parent, PYTHONPATH=path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"the package parallel is found at {tmp_path / 'parallel'}, not at" in done.stderr


def test_cli_passes_arguments_on_to_fill_export_and_import(monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("mlm.hf.importing.import_model", lambda *given: calls.append(given))
    monkeypatch.setattr("mlm.trained.fill.fill", lambda *given: calls.append(given))
    monkeypatch.setattr("mlm.hf.export.export", lambda *given: calls.append(given))
    assert main(["fill", "runs/a", "x, <mask>", "${y} <mask>", "top=3"]) == 0
    assert main(["export", "runs/a", "out"]) == 0
    assert calls == [("runs/a", ("x, <mask>", "${y} <mask>"), 3), ("runs/a", "out", None)]
    assert main(["import", "a", "b", "tokenizer=none"]) == 0
    assert main(["export", "runs/a", "out", "dtype=bf16"]) == 0
    assert calls[2:] == [("a", "b", "none", None), ("runs/a", "out", "bf16")]
    assert main(["export", "runs/a", "out", "dtype=int8"]) == 2
    assert "dtype='int8' is not possible: it should be 'fp32', 'bf16' or" in capsys.readouterr().err
    assert main(["fill", "runs/a"]) == 2
    assert main(["fill", "runs/a", "<mask>", "top=0"]) == 2
    assert main(["export", "runs/a"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert ["no text is given" in errors[0], "top=0 is below 1" in errors[1]] == [True, True]
    assert "out is required, and has no default; add out=..." in errors[2]


def test_cli_shows_the_traceback_of_an_internal_error(monkeypatch, tmp_path):
    code = (
        "import sys; from dataclasses import replace; from launch.cli import VERBS, main\n"
        "def broken(composed): raise RuntimeError('a defect')\n"
        "VERBS['fill'] = replace(VERBS['fill'], run=broken)\n"
        "sys.exit(main(['fill', 'a', 'b']))\n"
    )
    done = start(["-c", code], tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert done.stderr.endswith("RuntimeError: a defect\n")


def test_cli_shows_no_traceback_of_an_interrupt(monkeypatch, capsys):
    def interrupted(composed):
        raise KeyboardInterrupt

    monkeypatch.setitem(VERBS, "fill", replace(VERBS["fill"], run=interrupted))
    assert main(["fill", "a", "b"]) == 130
    assert capsys.readouterr().err == "mlm: interrupted\n"


def test_cli_writes_tokenizer_and_shards_and_overwrites_nothing(
    corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(["tokenizer", f"corpus={corpus}", "out=tok", "vocab_size=100"]) == 0
    shards = ["shards", f"corpus={corpus}", "tokenizer=tok", "out=shards", "workers=1"]
    assert main(shards) == 0
    printed = capsys.readouterr().out
    assert "A tokenizer of 100 ids is in tok" in printed
    assert "Shards of 2 languages are in shards" in printed
    names = {path.name for path in (tmp_path / "shards").iterdir()}
    assert {"index.json", "en-000000.tar", "de.heldout-000000.tar", "tokenizer"} <= names
    written_at = (tmp_path / "shards" / "index.json").stat().st_mtime_ns
    assert main(shards) == 2
    assert "shards exists" in capsys.readouterr().err
    assert (tmp_path / "shards" / "index.json").stat().st_mtime_ns == written_at
    assert sorted(path.name for path in tmp_path.iterdir()) == ["shards", "text", "tok"]


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["tokenizer", "corpus=nowhere", "out=o"], 76, "the corpus nowhere is not a folder"),
        (["tokenizer", "corpus=text"], 2, "out is required"),
        (["tokenizer", "corpus=text", "out=o", "vocab_size=9999"], 76, "vocab_size=9999"),
        (["shards", "corpus=text", "tokenizer=nowhere", "out=o"], 76, "nowhere"),
        (["tokenizer", "corpus=text", "out=/proc/o", "vocab_size=100"], 2, "/proc/o cannot be"),
    ],
)
def test_cli_refuses_bad_input_in_one_sentence_and_leaves_nothing(
    arguments, code, sentence, corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    err = capsys.readouterr().err
    assert sentence in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text"]


def test_cli_help_shows_no_traceback_on_a_closed_pipe():
    """`mlm train --help | head -1`: no traceback about a broken pipe."""
    command = f"{sys.executable} -m launch train --help | head -1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("mlm train")
