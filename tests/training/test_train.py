"""The training loop: what it writes, and how it ends when something goes wrong."""

import errno
import json
import os
import subprocess
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

import mlm.training.loop
from mlm import checkpoint
from mlm.data.index import Index
from mlm.data.reading.reader import TokenReader
from mlm.errors import CONFIG, DATA, DONE, FAILED, NUMBERS, REQUEUE
from mlm.health.outcome import make_room, write_outcome
from mlm.model.flops import training_flops_per_token
from mlm.tasks.pretraining.losses import LossTally
from mlm.tasks.pretraining.task import Pretraining
from mlm.tracking.report import Report
from mlm.tracking.tracker import Tracker
from mlm.tracking.trackers import TRACKERS
from parallel.engine.deepspeed_adapter.engine import DeepSpeedEngine
from tests.checkpoint.test_resume import exact
from tests.training_fixtures import config, evaluations, metrics, newest, run

pytestmark = pytest.mark.ranks


def test_run_writes_metrics_evaluations_checkpoints_and_logs(tmp_path):
    settings = config(parallel={"tp": 2, "pp": 2}, train={"log_every": 2})
    outcome = run(tmp_path, settings)
    assert outcome["code"] == DONE
    assert outcome["step"] == 6
    assert str(tmp_path) in outcome["sentence"]
    rows = metrics(tmp_path)
    assert [row["step"] for row in rows] == [1, 2, 4, 6]
    keys = "step loss lr grad_norm tokens tokens_per_second mfu seconds_data seconds_step"
    assert set(keys.split()) <= set(rows[0])
    assert [row["tokens"] for row in rows] == [256, 512, 1024, 1536]
    assert [row["lr"] for row in rows[:2]] == pytest.approx([1.5e-3, 3e-3])  # two steps of warm-up
    assert set(rows[-1]["loss_by_language"]) <= {"el", "en", "ja", "sw"}
    tokens, epochs = rows[-1]["tokens_by_language"], rows[-1]["epochs_by_language"]
    assert sum(tokens.values()) == 6 * 8 * 31
    blocks = {name: epochs[name] and tokens[name] / 31 / epochs[name] for name in tokens}
    index = Index.open(Path(str(settings.data.shards)))
    for name, text in zip(index.languages, index.train_tokens, strict=True):
        assert blocks[name] == pytest.approx(text // 31 * (tokens[name] > 0))
    scored = evaluations(tmp_path)
    assert [row["step"] for row in scored] == [3, 6]
    assert scored[-1]["eval_loss"] == outcome["eval_loss"]
    last = json.loads((tmp_path / "evaluation.json").read_text())
    by_language, tokens = last["eval_loss_by_language"], last["eval_tokens_by_language"]
    mean = sum(by_language[n] * tokens[n] for n in by_language) / sum(tokens.values())
    assert mean == pytest.approx(last["eval_loss"], rel=1e-9)
    assert last["eval_unigram_entropy"] > 0
    manifest = checkpoint.read_manifest(newest(tmp_path))
    assert (manifest.step, manifest.samples) == (6, 6 * 8)
    assert manifest.config["optim"]["clip"] == 0.5
    logs = sorted(path.name for path in (tmp_path / "logs").iterdir())
    assert logs == [f"rank-{rank:05d}.log" for rank in range(4)]


def test_evaluation_is_equal_in_every_layout(tmp_path):
    """The same weights (the learning rate is 0) score the same in one process, tp 2 x pp 2 and
    dp 3, where two of the last three micro-batches are past the end."""
    settings = {"train": {"steps": 1, "global_batch_size": 12}, "optim": {"lr": 0.0}}
    losses = []
    counts = []
    for number, parallel in enumerate(({}, {"tp": 2, "pp": 2}, {"dp": 3, "zero": 3})):
        folder = tmp_path / str(number)
        losses.append(run(folder, config(parallel=parallel, **settings))["eval_loss"])
        last = json.loads((folder / "evaluation.json").read_text())
        counts.append(last["eval_tokens_by_language"])
    assert counts[0] == counts[1] == counts[2]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert losses[2] == pytest.approx(losses[0], rel=1e-6)


@pytest.mark.parametrize("log_every", [1, 2])
def test_metrics_loss_is_the_mean_over_the_masked_tokens_of_its_steps(
    tmp_path, monkeypatch, log_every
):
    """The sums of the figures by language, which count every token once, give the loss."""
    losses = LossTally.losses

    def recording(self, engine):
        found = losses(self, engine)
        if os.environ["RANK"] == "0":
            with (tmp_path / "sums.jsonl").open("a") as file:
                file.write(json.dumps([sum(found.sums), sum(found.counts)]) + "\n")
        return found

    monkeypatch.setattr(LossTally, "losses", recording)
    monkeypatch.setattr(mlm.training.loop, "peak_flops", lambda device: 1e9)
    steps = 1 + 2 * log_every
    settings = config(
        parallel={"tp": 2, "dp": 2},
        train={"steps": steps, "log_every": log_every},
        eval={"every": 0},
    )
    run(tmp_path, settings)
    lines = (tmp_path / "sums.jsonl").read_text().splitlines()
    sums = [json.loads(line) for line in lines[:-1]]  # the last is of the evaluation
    # Rows of steps 1, 2, 3 or of 1, 2, 4, 5; a step masks 15 % of 32 tokens of 8 sequences.
    windows = [1, 1, 1] if log_every == 1 else [1, 1, 2, 1]
    assert [count for _, count in sums] == [8 * 5 * window for window in windows]
    means = [total / count for total, count in sums]
    assert [row["loss"] for row in metrics(tmp_path)] == pytest.approx(means, rel=1e-6)
    for row in metrics(tmp_path):
        done = training_flops_per_token(settings.model, 32, 5) * row["tokens_per_second"]
        assert row["mfu"] == pytest.approx(done / (4 * 1e9))  # of the peak of four devices


def test_run_with_dropout_is_equal_in_every_layout(tmp_path):
    """What the loop does: slices of the batch, scales, keys. Attention has no dropout, since its
    masks differ between tensor-parallel ranks."""
    settings = {"train": {"steps": 3}, "model": {"attention_probs_dropout_prob": 0.0}}
    found = []
    for number, parallel in enumerate(({}, {"dp": 2}, {"tp": 2, "pp": 2})):
        run(tmp_path / str(number), config(parallel=parallel, **settings))
        rows = metrics(tmp_path / str(number))
        found.append([[row["loss"], row["grad_norm"]] for row in rows])
        by_language = [row["loss_by_language"] for row in rows]
        assert all(len(values) > 1 for values in by_language)
        found[-1] += [[values[name] for name in sorted(values)] for values in by_language]
    for other in found[1:]:
        for ours, theirs in zip(other, found[0], strict=True):
            assert ours == pytest.approx(theirs, rel=1e-5)


def test_run_reports_unwritable_metrics_in_one_sentence(tmp_path, monkeypatch):
    def full(self, row):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Report, "_write", full)
    outcome = run(tmp_path, config())
    assert (outcome["code"], outcome["step"]) == (CONFIG, 1)
    assert outcome["sentence"] == (
        f"{tmp_path} cannot be written any more (No space left on device); free space, then start "
        "the run again"
    )


def test_run_stops_on_all_ranks_when_one_cannot_read(tmp_path, monkeypatch):
    """One data rank cannot read; the other, which could continue, ends with the same code."""
    real = TokenReader.gather

    def failing(self, split, *arguments, **named):
        if os.environ["RANK"] == "1" and split == "train":
            raise OSError("Stale file handle")
        return real(self, split, *arguments, **named)

    monkeypatch.setattr(TokenReader, "gather", failing)
    outcome = run(tmp_path, config(parallel={"dp": 2}))
    assert outcome["code"] == DATA
    assert "Stale file handle" in outcome["sentence"]


def test_run_names_the_rank_that_fails(tmp_path, monkeypatch):
    """An internal error: the outcome names the first rank to fail, its log has the traceback."""
    settings = config()

    def broken(self, batches, lr):
        raise RuntimeError("out of order")

    monkeypatch.setattr(DeepSpeedEngine, "train_batch", broken)
    outcome = run(tmp_path, settings)
    assert outcome["code"] == FAILED
    assert outcome["sentence"].startswith("rank 0 failed: RuntimeError: out of order")
    assert "Traceback" in (tmp_path / "logs" / "rank-00000.log").read_text()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MB, mounted as long as the test runs."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.parametrize("background", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_full_disk_ends_the_run_and_keeps_the_previous_checkpoint(
    background, small_disk: Path, tmp_path
):
    """The first checkpoint fits and the second does not."""
    settings = config(
        parallel={"tp": 2},
        model={"hidden_size": 64},
        checkpoint={"every": 2, "keep": 9, "background": background},
    )
    assert run(tmp_path / "whole", settings)["code"] == DONE
    folder = small_disk / "run"
    folder.mkdir()
    filler = small_disk / "filler"
    filler.write_bytes(b"")
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_bsize
    state = 12 * settings.model.parameters()  # weights and two moments in fp32
    filler.write_bytes(bytes(free - int(1.6 * state)))
    outcome = run(folder, settings)
    assert outcome["code"] == CONFIG
    assert "could not be written" in outcome["sentence"]
    assert "No space left on device" in outcome["sentence"]
    kept = checkpoint.all_checkpoints(folder)
    assert [checkpoint.read_manifest(path).step for path in kept] == [2]
    checkpoint.verify(kept[0])
    assert not list((folder / "checkpoints").glob("*.partial"))
    filler.write_bytes(b"")
    assert run(folder, settings)["code"] == DONE
    assert exact(folder) == exact(tmp_path / "whole")


@pytest.mark.parametrize("code", [DONE, FAILED, REQUEUE])
def test_trackers_finish_with_the_code_of_the_run(code, tmp_path, monkeypatch):
    class Ended(Tracker):
        def start(self, run, config, run_id):
            pass

        def log(self, values):
            pass

        def finish(self, code):
            (tmp_path / "ended").write_text(str(code))

    def broken(self, batches, lr):
        raise RuntimeError("out of order")

    monkeypatch.setitem(TRACKERS, "ended", Ended)
    if code == FAILED:
        monkeypatch.setattr(DeepSpeedEngine, "train_batch", broken)
    if code == REQUEUE:
        (tmp_path / "stop").touch()
    tracked = config(train={"steps": 1}, tracker={"kind": "ended"})
    assert run(tmp_path, tracked)["code"] == code
    assert (tmp_path / "ended").read_text() == str(code)


def test_trackers_start_on_rank_0_alone(tmp_path, monkeypatch):
    class Started(Tracker):
        def start(self, run, config, run_id):
            (tmp_path / f"started-{os.environ['RANK']}").touch()

        def log(self, values):
            pass

        def finish(self, code):
            pass

    monkeypatch.setitem(TRACKERS, "started", Started)
    settings = config(parallel={"tp": 2}, train={"steps": 1}, tracker={"kind": "started"})
    assert run(tmp_path / "run", settings)["code"] == DONE
    assert [path.name for path in tmp_path.glob("started-*")] == ["started-0"]


def test_outcome_is_written_on_a_full_disk(small_disk: Path):
    make_room(small_disk)
    with suppress(OSError), (small_disk / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "more").write_text("x")
    write_outcome(small_disk, CONFIG, "the disk is full", 3)
    assert json.loads((small_disk / "outcome.json").read_text())["sentence"] == "the disk is full"
    names = sorted(path.name for path in small_disk.iterdir())
    assert names == ["filler", "more", "outcome.json"]


def test_train_fails_where_the_held_out_loss_is_not_finite(tmp_path, monkeypatch):
    """As where the last step has ruined the weights, so that no step's loss shows it."""
    real = Pretraining.evaluate

    def evaluate(self, engine, on_progress):
        return replace(real(self, engine, on_progress), loss=float("nan"))

    monkeypatch.setattr(Pretraining, "evaluate", evaluate)
    ended = run(tmp_path, config(train={"steps": 2}, checkpoint={"every": 0}))
    assert ended["code"] == NUMBERS
    assert "the held-out loss after the last step is nan, so the weights" in ended["sentence"]
    assert not list(tmp_path.glob("checkpoints/step-*"))


def test_wandb_keeps_its_id_across_a_resume(tmp_path, monkeypatch):
    """Offline without a key: the run folder holds both parts under one id."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    settings = config(tracker={"kind": "wandb"}, train={"steps": 2})
    folder = tmp_path / "run"
    assert run(folder, settings)["code"] == DONE
    first = checkpoint.read_manifest(newest(folder)).tracker_id
    assert first
    longer = config(tracker={"kind": "wandb"}, train={"steps": 4})
    assert run(folder, longer)["code"] == DONE
    assert checkpoint.read_manifest(newest(folder)).tracker_id == first
    offline = list((folder / "wandb").glob(f"offline-run-*-{first}"))
    assert len(offline) == 2
    assert all((path / f"run-{first}.wandb").stat().st_size for path in offline)


def test_main_leaves_the_logs_of_a_clean_run_empty(tmp_path):
    """What a rank prints goes into its log, and a clean run prints nothing."""
    run(tmp_path, config(parallel={"tp": 2}, train={"steps": 2}))
    for log in (tmp_path / "logs").iterdir():
        assert log.read_text() == "", log.read_text()


def test_run_refuses_an_unknown_kernel_in_one_sentence(tmp_path):
    outcome = run(tmp_path, config(train={"attention": "windowed"}))
    assert outcome["code"] == 2
    assert outcome["sentence"] == (
        "train.attention=windowed is not known; choose from fused, unfused, or add the module that "
        "defines it to plugins"
    )
