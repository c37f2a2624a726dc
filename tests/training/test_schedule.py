"""Learning-rate schedules: those of the table, and one from a plugin."""

import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mlm.config import ScheduleConfig
from mlm.errors import UserError
from mlm.plugins import import_plugins
from mlm.training.schedule import SCHEDULES, learning_rate, warmup_steps

KINDS = ("polynomial", "linear", "cosine", "wsd")

PLUGIN = '''
"""A schedule of the user's own: the inverse square root (Vaswani et al. 2017, section 5.3)."""

from mlm.training.schedule import SCHEDULES


def inverse_square_root(step, steps, warmup, peak, settings):
    return peak * (max(warmup, 1) / (step + 1)) ** 0.5


SCHEDULES["inverse_square_root"] = inverse_square_root
'''


@given(
    kind=st.sampled_from(KINDS),
    steps=st.integers(1, 400),
    warmup=st.none() | st.integers(0, 500),
    end=st.floats(0, 1e-4),
)
def test_schedule_rises_to_the_peak_and_falls_to_the_end(kind, steps, warmup, end):
    schedule = ScheduleConfig(kind=kind, warmup_steps=warmup, end_lr=end)
    rates = [learning_rate(step, steps, 1e-3, schedule) for step in range(steps)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1e-3 * (1 + 1e-12) for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert all(a >= b - 1e-15 for a, b in zip(rates[top:], rates[top + 1 :], strict=False))


def test_schedule_warms_up_like_torchs_linear_lr():
    """LinearLR over the warm-up, counted from 1."""
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=1e-3)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    schedule = ScheduleConfig(kind="linear", warmup_steps=10)
    for step in range(10):
        assert learning_rate(step, 100, 1e-3, schedule) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("kind", "middle"), [("polynomial", 0.25), ("linear", 0.5), ("cosine", 0.5), ("wsd", 1.0)]
)
def test_schedule_has_the_expected_rate_half_way_down(kind, middle):
    schedule = ScheduleConfig(kind=kind, warmup_steps=1, power=2.0)
    assert learning_rate(50, 100, 1.0, schedule) == pytest.approx(middle, rel=1e-12)


def test_schedule_derives_missing_lengths_from_the_run():
    assert warmup_steps(1000, ScheduleConfig()) == 60
    rates = [learning_rate(step, 1000, 1.0, ScheduleConfig(kind="wsd")) for step in range(1000)]
    assert rates.index(1.0) == 59
    assert rates[59:800] == [1.0] * 741
    assert rates[800] < 1.0


@pytest.mark.parametrize("kind", KINDS)
def test_schedule_of_more_steps_than_the_run_keeps_its_slopes(kind):
    """A smoke test of a long recipe is its beginning."""
    whole = ScheduleConfig(kind=kind)
    part = replace(whole, steps=1000)
    for step in range(300):
        assert learning_rate(step, 300, 1e-3, part) == learning_rate(step, 1000, 1e-3, whole)
    assert warmup_steps(300, part) == 60


def test_wsd_stays_at_the_peak_until_its_last_phase():
    schedule = ScheduleConfig(kind="wsd", warmup_steps=10, decay_steps=20)
    rates = [learning_rate(step, 100, 1.0, schedule) for step in range(100)]
    assert rates[9:80] == [1.0] * 71
    assert rates[81] < 1.0
    assert rates[99] == pytest.approx(1 / 21)


def test_schedule_from_a_plugin_is_chosen_by_name(tmp_path, monkeypatch):
    (tmp_path / "my_schedule.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setitem(sys.modules, "my_schedule", None)
    monkeypatch.delitem(sys.modules, "my_schedule")
    name = "inverse_square_root"
    monkeypatch.setitem(SCHEDULES, name, SCHEDULES["wsd"])  # removes the entry afterwards
    import_plugins(["my_schedule"])
    schedule = ScheduleConfig(kind=name, warmup_steps=100)
    assert learning_rate(49, 1000, 1e-3, schedule) == pytest.approx(5e-4)
    assert learning_rate(399, 1000, 1e-3, schedule) == pytest.approx(5e-4)


def test_schedule_refuses_an_unknown_name_in_one_sentence():
    with pytest.raises(UserError) as raised:
        learning_rate(9, 10, 1.0, ScheduleConfig(kind="step"))
    assert str(raised.value) == (
        "schedule.kind=step is not known; choose from cosine, linear, polynomial, wsd, or add the "
        "module that defines it to plugins"
    )


def test_schedule_falls_in_equal_parts_from_below_the_peak_to_above_the_end():
    schedule = ScheduleConfig(kind="linear", warmup_steps=4, end_lr=0.1)
    rates = [learning_rate(step, 13, 1.1, schedule) for step in range(13)]
    assert rates[4:] == pytest.approx([0.1 + part / 10 for part in range(9, 0, -1)])
