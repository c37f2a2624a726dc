"""Numbers that go wrong on one rank of a run: what is transient leaves no trace."""

import json
import os
import re
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

import mlm.guard
from mlm import checkpoint
from mlm.errors import DATA, DONE, NUMBERS
from mlm.guard import Guard
from mlm.incidents import Incidents
from mlm.weights.stored import open_weights
from parallel.engine import Engine
from parallel.keys import key
from parallel.state import loaded, pieces
from tests.ranks import run_ranks
from tests.test_resume import exact
from tests.training_fixtures import config, evaluations, metrics, run

pytestmark = pytest.mark.ranks

LAYOUTS = {
    "2-2-1": ({"tp": 2, "pp": 2}, {"recompute": True}),
    "1-1-2-z3": ({"dp": 2, "zero": 3}, {}),
    "1-1-1-bf16": ({}, {"dtype": "bf16"}),
    "1-2-2-bf16": ({"pp": 2, "dp": 2}, {"dtype": "bf16"}),
    "2-1-2-z2": ({"tp": 2, "dp": 2, "zero": 2}, {}),
    "1-1-2": ({"dp": 2}, {}),
    "1-1-2-z3-bf16": ({"dp": 2, "zero": 3}, {"dtype": "bf16"}),
    "2-1-1-bf16": ({"tp": 2}, {"dtype": "bf16"}),
}
FAST = ((2, "1-1-2-z3"), (2, "1-1-1-bf16"), (5, "2-2-1"))


def layouts(*fast: str):
    return pytest.mark.parametrize(
        ("parallel", "train"),
        [
            pytest.param(*each, id=name, marks=() if name in fast else pytest.mark.slow)
            for name, each in LAYOUTS.items()
        ],
    )


def at(*steps: int, times: int = 1, do, rank: int | None = None):
    """A `train_batch` that calls `do(engine, here)` on all ranks before the first `times` tries of
    each of `steps`; `here` is true on the last rank, or on `rank`."""
    train_batch, tried = Engine.train_batch, Counter()

    def faulty(self, batches, lr):
        own = self.grid.dp_rank
        step = next(
            (s for s in steps if batches[0].dropout_key == key(1, "dropout", s - 1, own)), 0
        )
        tried[step] += 1
        if step and tried[step] <= times:
            last = self.grid.layout.world_size - 1
            do(self, self.grid.rank == (last if rank is None else rank))
        return train_batch(self, batches, lr)

    return faulty


def gradient_of(value: float, name: str = ""):
    """Makes one number of a rank's next gradient `value`: of its last parameter, or of another."""

    def spoil(engine: Engine, here: bool) -> None:
        parameter = engine.parameters()[-1][1] if not name else dict(engine.parameters())[name]

        def change(gradient):
            handle.remove()
            gradient = gradient.clone()
            gradient.view(-1)[0] = value
            return gradient

        if here:
            handle = parameter.register_hook(change)

    return spoil


def weights_times(factor: float, everywhere: bool = False):
    """Multiplies weights of one rank, or of all, as the model computes with them and as masters."""

    def spoil(engine: Engine, here: bool) -> None:
        found = pieces(engine)
        for piece in found if everywhere else found[-2:] * here:
            piece.tensors["weight"].mul_(factor)
        loaded(engine, 0)

    return spoil


NAN = gradient_of(torch.nan)
SPOILT = weights_times(torch.nan)


def incidents(folder: Path) -> list[dict]:
    path = folder / "incidents.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def what(folder: Path) -> list[tuple]:
    return [(row["what"], row["step"]) for row in incidents(folder)]


def same(ours: Path, theirs: Path) -> None:
    assert exact(ours) == exact(theirs)
    assert evaluations(ours) == evaluations(theirs)
    one, two = (open_weights(checkpoint.newest(folder)) for folder in (ours, theirs))
    assert all(torch.equal(one.read(name), two.read(name)) for name in two.shapes)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a run without faults, which is made once."""
    found: dict[str, Path] = {}

    def made(settings) -> Path:
        if repr(settings) not in found:
            folder = tmp_path_factory.mktemp("whole")
            assert run(folder, settings)["code"] == DONE
            assert what(folder) == []
            found[repr(settings)] = folder
        return found[repr(settings)]

    return made


@pytest.fixture
def faulty(monkeypatch):
    """Runs a config with a fault; the outcome."""

    def made(folder: Path, settings, fault, enough: int = mlm.guard.ENOUGH) -> dict:
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "train_batch", fault)
            patched.setattr(mlm.guard, "ENOUGH", enough)  # steps before there is a median
            return run(folder, settings)

    return made


@layouts("2-2-1")
def test_a_gradient_that_is_nan_once_on_one_rank_leaves_no_trace(
    parallel, train, whole, faulty, tmp_path, capfd
):
    """In the first step, in which the optimizer has no state, and in one behind a checkpoint."""
    made = config(parallel=parallel, train=train)
    for step in (1, 4):
        folder = tmp_path / str(step)
        assert faulty(folder, made, at(step, do=NAN))["code"] == DONE
        assert f"Step {step} is not applied: " in capfd.readouterr().out
        same(folder, whole(made))
        assert what(folder) == [("refused", step)]
        assert re.search("not finite|on rank [13] is wrong", incidents(folder)[0]["why"])
    assert metrics(folder)[-1]["incidents"] == {"refused": 1}


@layouts("1-1-2-z3")
def test_a_gradient_that_is_huge_once_leaves_no_trace(parallel, train, whole, faulty, tmp_path):
    """As a bit makes it that flips on the way: finite, and clipping would hide it."""
    made = config(parallel=parallel, train=train | {"steps": 8})
    assert faulty(tmp_path, made, at(6, do=gradient_of(1e20)), enough=4)["code"] == DONE
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", 6)]
    assert re.match("gradient norm|the gradient on rank [13]", incidents(tmp_path)[0]["why"])


@pytest.mark.parametrize("value", [torch.nan, pytest.param(1e20, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("zero", "dtype"),
    [
        (1, "fp32"),
        pytest.param(1, "bf16", marks=pytest.mark.slow),
        pytest.param(2, "fp32", marks=pytest.mark.slow),
        pytest.param(3, "fp32", marks=pytest.mark.slow),
    ],
)
def test_what_is_not_sharded_is_looked_at_on_every_tensor_parallel_rank(
    zero, dtype, value, whole, faulty, tmp_path
):
    """The norm that DeepSpeed clips by has it from the first one alone."""
    dp = 1 if zero == 1 else 2
    made = config(parallel={"tp": 2, "dp": dp, "zero": zero}, train={"dtype": dtype})
    fault = at(3, do=gradient_of(value, "lm_head.layer_norm.weight"))
    assert faulty(tmp_path, made, fault)["code"] == DONE
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", 3)]
    assert re.search("rank [13] is wrong|not finite", incidents(tmp_path)[0]["why"])


@pytest.mark.parametrize(
    ("step", "layout"),
    [
        pytest.param(step, name, marks=() if (step, name) in FAST else pytest.mark.slow)
        for step in (2, 5)
        for name in LAYOUTS
    ],
)
def test_weights_that_go_wrong_are_those_of_the_last_checkpoint_again(
    step, layout, whole, faulty, tmp_path, capfd
):
    """Step 2 has no checkpoint before it: the run begins again."""
    parallel, train = LAYOUTS[layout]
    made = config(parallel=parallel, train=train)
    assert faulty(tmp_path, made, at(step, do=SPOILT))["code"] == DONE
    to = {2: 0, 5: 4}[step]
    assert f"Going back from step {step} to step {to}" in capfd.readouterr().out
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", step)] * 2 + [("rolled back", step)]
    assert incidents(tmp_path)[-1]["to"] == to


def test_a_loss_that_leaps_takes_the_run_back(whole, faulty, tmp_path):
    """Weights of all ranks that are finite, and wrong."""
    made = config(parallel={"tp": 2}, train={"steps": 8}, optim={"lr": 1e-4})
    fault = at(7, do=weights_times(30.0, everywhere=True))
    assert faulty(tmp_path, made, fault, enough=4)["code"] == DONE
    same(tmp_path, whole(made))
    assert what(tmp_path) == [("refused", 7)] * 2 + [("rolled back", 7)]
    assert incidents(tmp_path)[0]["why"].startswith("loss ")


@pytest.mark.parametrize(
    ("parallel", "dtype", "value"),
    [
        ({"dp": 2}, "bf16", torch.nan),
        ({"pp": 2}, "bf16", 1e20),
        *(
            pytest.param(parallel, dtype, value, marks=pytest.mark.slow)
            for parallel in ({"dp": 2}, {"tp": 2}, {"pp": 2}, {"dp": 2, "zero": 3})
            for dtype in ("bf16", "fp32")
            for value in (torch.nan, 1e20)
        ),
    ],
)
def test_a_gradient_that_goes_wrong_once_it_is_reduced_leaves_no_trace(
    parallel, dtype, value, whole, tmp_path, monkeypatch
):
    """One rank alone has it, and the others wait for it with the next collective."""
    made, look, looks = config(parallel=parallel, train={"dtype": dtype}), Engine._look_and_step, []

    def spoil(self):
        looks.append(1)
        if len(looks) == 3 and self.grid.rank == 1:
            self._gradients()[0].view(-1)[0] = value
        look(self)

    with monkeypatch.context() as patched:
        patched.setattr(Engine, "_look_and_step", spoil)
        assert run(tmp_path, made)["code"] == DONE
    assert what(tmp_path) == [("refused", 3)]
    same(tmp_path, whole(made))


def test_what_is_told_of_languages_and_of_numbers_knows_nothing_of_what_was_refused(
    whole, faulty, tmp_path
):
    """In the middle of what one row tells, and of what one checkpoint holds."""
    made = config(train={"log_every": 6}, checkpoint={"every": 6})
    for name, fault in (("once", NAN), ("state", SPOILT)):
        assert faulty(tmp_path / name, made, at(4, do=fault))["code"] == DONE
        same(tmp_path / name, whole(made))
        text = (tmp_path / name / "incidents.jsonl").read_text()
        assert "NaN" not in text
        assert "Infinity" not in text


def test_the_way_back_waits_for_a_save_that_goes_on(faulty, tmp_path, monkeypatch):
    write = checkpoint.Saver._write

    def slow(self, *arguments):
        time.sleep(2)
        write(self, *arguments)

    monkeypatch.setattr(checkpoint.Saver, "_write", slow)
    assert faulty(tmp_path, config(), at(3, do=SPOILT))["code"] == DONE
    assert incidents(tmp_path)[-1]["to"] == 2


def test_a_run_goes_back_once_for_each_trouble_where_checkpoints_lie_between(faulty, tmp_path):
    made = config(train={"steps": 8}, guard={"rollbacks": 1})
    assert faulty(tmp_path, made, at(3, 7, do=SPOILT))["code"] == DONE
    each = [[("refused", s), ("refused", s), ("rolled back", s)] for s in (3, 7)]
    assert what(tmp_path) == each[0] + each[1]


def test_a_damaged_checkpoint_is_passed_over_on_the_way_back(whole, faulty, tmp_path, capfd):
    made = config(train={"steps": 8}, checkpoint={"background": False})

    def spoil(engine, here):
        SPOILT(engine, here)
        next(checkpoint.newest(tmp_path).glob("*.distcp")).unlink()

    assert faulty(tmp_path, made, at(7, do=spoil))["code"] == DONE
    assert "Passed over: " in capfd.readouterr().out
    same(tmp_path, whole(made))
    assert incidents(tmp_path)[-1]["to"] == 4
    kept = [path.name for path in checkpoint.all_checkpoints(tmp_path)]
    assert kept == ["step-00000006", "step-00000008"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "dtype"),
    [
        ({}, "bf16"),
        ({"dp": 2, "zero": 2}, "bf16"),
        ({"tp": 2}, "fp32"),
        ({"dp": 2, "zero": 3}, "bf16"),
    ],
)
def test_a_run_that_began_with_weights_begins_again_with_them(
    parallel, dtype, whole, faulty, tmp_path
):
    from tests.test_train_from_weights import source_of, starting

    source = source_of(tmp_path / "source")
    made = starting(source, train={"dtype": dtype}, parallel=parallel)
    assert faulty(tmp_path / "run", made, at(2, do=SPOILT))["code"] == DONE
    same(tmp_path / "run", whole(made))


def test_checkpoints_that_are_gone_are_not_begun_anew(faulty, tmp_path):
    def spoil(engine, here):
        SPOILT(engine, here)
        shutil.rmtree(tmp_path / "checkpoints")

    outcome = faulty(tmp_path, config(checkpoint={"background": False}), at(5, do=spoil))
    assert outcome["code"] == DATA
    assert "has lost its checkpoints while it ran" in outcome["sentence"]


@layouts("1-1-2-z3")
def test_a_batch_that_always_goes_wrong_is_left_out(parallel, train, faulty, tmp_path, capfd):
    made, bad, again = config(parallel=parallel, train=train), tmp_path / "bad", tmp_path / "again"
    assert faulty(bad, made, at(3, times=10**6, do=NAN))["code"] == DONE
    refused = [("refused", 3)] * 2
    assert what(bad) == [*refused, ("rolled back", 3), *refused, ("left out", 3)]
    assert incidents(bad)[-1]["samples"] == [16, 23]
    assert "The batch of step 3 is left out from now on" in capfd.readouterr().out
    row = metrics(bad)[2]
    assert (row["step"], row["loss"], row["grad_norm"]) == (3, None, None)
    # A run that knows of it from the beginning, without the fault, is the same.
    again.mkdir()
    shutil.copy(bad / "incidents.jsonl", again)
    assert run(again, made)["code"] == DONE
    same(again, bad)
    assert what(again) == what(bad)
    # And one that goes on behind it: counts of steps, in Adam's, too, are what they were.
    for folder in checkpoint.all_checkpoints(again)[1:]:
        shutil.rmtree(folder)
    assert checkpoint.newest(again).name == "step-00000004"
    assert run(again, made)["code"] == DONE
    same(again, bad)


@pytest.mark.parametrize(
    "last", [pytest.param(13, id="some"), pytest.param(20, id="all", marks=pytest.mark.slow)]
)
def test_trouble_that_goes_on_takes_more_batches_and_then_ends_the_run(last, faulty, tmp_path):
    made = config(train={"steps": 20}, checkpoint={"every": 2, "keep": 9})
    outcome = faulty(tmp_path, made, at(*range(11, last + 1), times=10**6, do=NAN))
    rows = incidents(tmp_path)
    back = [(row["step"], row["to"]) for row in rows if row["what"] == "rolled back"]
    if last == 13:
        assert outcome["code"] == DONE
        assert back == [(11, 10), (12, 8), (13, 6)]
        out = sorted(row["step"] for row in rows if row["what"] == "left out")
        assert out == list(range(7, 14))
        kept = [
            checkpoint.read_manifest(path).step for path in checkpoint.all_checkpoints(tmp_path)
        ]
        assert kept == [2, 4, 6, 14, 16, 18, 20]
    else:
        assert (outcome["code"], outcome["step"]) == (NUMBERS, 14)
        assert back == [(11, 10), (12, 8), (13, 6), (14, 2)]
        assert re.match("step 15: .* is not finite, also after 4 returns", outcome["sentence"])


def test_what_a_run_ends_with_is_its_last_good_checkpoint(faulty, tmp_path):
    made = config(train={"steps": 20}, checkpoint={"every": 2, "keep": 9}, guard={"rollbacks": 2})
    outcome = faulty(tmp_path, made, at(11, 12, 13, times=10**6, do=NAN))
    assert (outcome["code"], outcome["step"]) == (NUMBERS, 12)
    assert "(guard.rollbacks=2); the checkpoint of step 8 stands" in outcome["sentence"]
    assert checkpoint.newest(tmp_path).name == "step-00000008"


def test_only_what_is_still_to_come_is_left_out(faulty, tmp_path):
    """Step 8 is in the one checkpoint that there is."""
    made = config(train={"steps": 12}, checkpoint={"every": 4, "keep": 1})
    assert faulty(tmp_path, made, at(9, 10, times=10**6, do=NAN))["code"] == DONE
    out = [row["step"] for row in incidents(tmp_path) if row["what"] == "left out"]
    assert out == [9, 10]


def test_a_learning_rate_that_is_too_high_ends_the_run(tmp_path):
    made = config(optim={"lr": 1e30, "clip": 0.0}, train={"steps": 50}, checkpoint={"every": 1})
    outcome = run(tmp_path, made)
    assert outcome["code"] == NUMBERS
    sentence = outcome["sentence"]
    assert "is not finite, also after 4 returns to a checkpoint (guard.rollbacks=4); " in sentence
    assert "begin a new run with a lower optim.lr or more schedule.warmup_steps (weigh" in sentence


def test_no_rank_decides_alone(whole, tmp_path, monkeypatch):
    """One whose own figures are wrong refuses a step, and all the others refuse it, too."""
    made, fault, seen = config(parallel={"dp": 2}), Guard.fault, []

    def suspicious(self, loss, norm):
        seen.append(loss)
        if os.environ["RANK"] == "1" and len(seen) == 3:
            return "a figure of its own"
        return fault(self, loss, norm)

    with monkeypatch.context() as patched:
        patched.setattr(Guard, "fault", suspicious)
        assert run(tmp_path, made)["code"] == DONE
    assert what(tmp_path) == [("refused", 3)]
    why = incidents(tmp_path)[0]["why"]
    assert why == "the gradient on rank 1 is wrong: it is not that of others"
    same(tmp_path, whole(made))


@layouts("2-2-1")
def test_the_loss_that_is_judged_is_the_one_that_is_told(parallel, train, tmp_path, monkeypatch):
    judge, judged = Guard.judge, tmp_path / "judged"

    def kept(self, loss, norm):
        if os.environ["RANK"] == "0":
            with judged.open("a") as file:
                file.write(json.dumps([loss, norm]) + "\n")
        return judge(self, loss, norm)

    monkeypatch.setattr(Guard, "judge", kept)
    run(tmp_path, config(parallel=parallel, train=train))
    lines = [json.loads(line) for line in judged.read_text().splitlines()]
    for (loss, norm), row in zip(lines, metrics(tmp_path), strict=True):
        assert loss == pytest.approx(row["loss"], rel=1e-6)
        assert norm == row["grad_norm"]


def half_written(folder: Path) -> tuple[list, str]:
    path = folder / "incidents.jsonl"
    path.write_text('{"what": "left out", "step": 3, "samples": [16, 23]}\n{"what": "refu')
    found = Incidents(folder, 8)
    before = sorted(found.left_out)
    found.rolled_back(6, 4)
    return [before, found.counts, sorted(Incidents(folder, 8).left_out)], path.read_text()


def test_a_row_that_a_kill_has_cut_costs_no_other(tmp_path):
    ((before, counts, after), text) = run_ranks(1, half_written, tmp_path)[0]
    assert before == after == [2]
    assert counts == {"left_out": 1, "rolled_back": 1}
    lines = text.splitlines()
    assert lines[1] == '{"what": "refu'
    assert json.loads(lines[2])["to"] == 4
