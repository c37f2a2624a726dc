"""Declarations of settings: each has a line of help, and messages come from its bounds."""

from dataclasses import dataclass

import pytest

from mlm.config import TrainConfig, load
from mlm.config.table import COMMANDS
from mlm.errors import UserError
from mlm.setting import STRICT, range_of, section, setting, settings


@dataclass(frozen=True)
class Inner:
    rate: float = setting(0.5, "a rate", gt=0, le=1)
    names: tuple[str, ...] = setting((), "names", resume=True)


@dataclass(frozen=True)
class Outer:
    __pydantic_config__ = STRICT

    count: int | None = setting(None, "a count", ge=1)
    inner: Inner = section(Inner)
    free: Inner = section(Inner, resume=True)


def test_settings_are_listed_in_order_with_their_declarations():
    rows = {row.name: row for row in settings(Outer)}
    names = ["count", "inner.rate", "inner.names", "free.rate", "free.names"]
    assert list(rows) == names
    assert [row.resume for row in rows.values()] == [False, False, True, True, True]
    rate = rows["inner.rate"]
    assert (rate.default, rate.help, rate.bounds) == (0.5, "a rate", {"gt": 0, "le": 1})


@pytest.mark.parametrize("schema", COMMANDS.values(), ids=COMMANDS)
def test_settings_have_one_line_of_help(schema):
    for row in settings(schema):
        assert row.help, row.name
        assert "\n" not in row.help
        assert len(row.help) <= 90, row.name


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({"ge": 1}, "1 or more"),
        ({"gt": 0}, "above 0"),
        ({"ge": 0, "le": 1}, "from 0 to 1"),
        ({"ge": 0, "lt": 1}, "from 0 to below 1"),
        ({"gt": 0, "le": 1}, "above 0 and at most 1"),
        ({"gt": 0, "lt": 1}, "above 0 and below 1"),
        ({"le": 1}, "at most 1"),
        ({"lt": 1}, "below 1"),
    ],
)
def test_range_of_gives_bounds_in_words(bounds, words):
    assert range_of(bounds) == words


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"count": 0}, "count=0 is below 1; give 1 or more"),
        ({"inner": {"rate": 2}}, "inner.rate=2 is not above 0 and at most 1; the default is 0.5"),
        (
            {"inner": {"rate": float("nan")}},
            "inner.rate=nan is not a finite number; give a number above 0 and at most 1",
        ),
        ({"inner": {"more": 1}}, "inner.more is not a setting of this command; `--help` lists th"),
        ({"count": "x"}, "count='x' is not possible: it should be a valid integer; give count suc"),
    ],
)
def test_load_reports_a_violated_bound_in_one_sentence(values, sentence):
    with pytest.raises(UserError) as raised:
        load(Outer, values)
    assert str(raised.value).startswith(sentence)


def test_resume_fixes_settings_that_change_the_weights():
    rows = {row.name: row.resume for row in settings(TrainConfig)}
    fixed = ("seed", "weights", "model.hidden_size", "data.seq_len", "optim.lr", "schedule.kind")
    assert not any(rows[name] for name in (*fixed, "train.global_batch_size", "data.weights"))
    free = ("train.steps", "parallel.tp", "tracker.kind", "launch.kind", "data.shards", "plugins")
    assert all(rows[name] for name in free)
