"""Which steps are refused, and what is done about them; without a model."""

import math
import random

import pytest

from mlm.health.guard import ENOUGH, NEAR, WINDOW, Guard, Median, Remedy


def settled(spike: float = 10.0, rollbacks: int = 4, steps: int = WINDOW) -> Guard:
    """One that has seen steps of loss about 6 and gradient norm about 1."""
    guard, noise = Guard(spike, rollbacks), random.Random(1)
    for step in range(steps):
        guard.applied(step, 6.0 + noise.gauss(0, 0.05), math.exp(noise.gauss(0, 0.2)))
    return guard


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("spike", [0.0, 10.0])
def test_what_is_not_finite_is_refused_from_the_first_step_on(wrong, spike):
    for guard in (Guard(spike, 4), settled(spike)):
        assert guard.fault(wrong, 1.0) == f"loss {wrong} is not finite"
        assert guard.fault(6.0, wrong) == f"gradient norm {wrong} is not finite"
        assert not guard.judge(wrong, 1.0)
        assert guard.judge(6.0, 1.0)


def test_a_spike_is_refused_with_its_median_and_its_limit():
    guard = settled()
    assert guard.judge(11.0, 900.0)
    why = guard.fault(13.0, 1.0)
    assert why is not None
    assert why.startswith("loss 13 is far above 6.0")
    assert "the median of the last 64 steps (guard.spike=10 allows 12.1" in why
    assert "gradient norm 3000 is far above" in str(guard.fault(6.0, 3000.0))
    assert guard.judge(0.01, 0.0001)  # what is low is no spike
    assert guard.judge(0.0, 0.0)


def test_a_spike_of_a_noisy_run_is_farther_away():
    quiet, noisy, noise = Median("loss", 0.07), Median("loss", 0.07), random.Random(2)
    for _ in range(WINDOW):
        quiet.add(2.0)
        noisy.add(math.exp(noise.gauss(math.log(2.0), 0.3)))
    assert quiet.fault(5.0, 10.0) is not None
    assert noisy.fault(5.0, 10.0) is None
    assert noisy.fault(400.0, 10.0) is not None


def test_there_are_no_spikes_before_there_is_a_median_and_none_that_are_not_looked_for():
    assert settled(steps=ENOUGH - 1).judge(60.0, 1e9)
    assert not settled(steps=ENOUGH).judge(60.0, 1.0)
    assert settled(spike=0.0).judge(60.0, 1e9)


def test_a_falling_loss_and_a_slow_rise_are_no_spikes():
    guard = Guard(10.0, 4)
    for step in range(2000):
        loss, norm = 2 + 10 * math.exp(-step / 100), 5.0 if step < 300 else 0.5
        assert guard.judge(loss, norm), step
        guard.applied(step, loss, norm)
    for step in range(500):
        loss = 2 + step / 100
        assert guard.judge(loss, 0.5), step
        guard.applied(2000 + step, loss, 0.5)


def test_steps_that_are_made_again_do_not_change_the_measure():
    """Else the same step could be refused the first time and applied the second."""
    guard = settled()
    before = guard.fault(13.0, 1.0)
    for step in range(40, WINDOW):
        guard.applied(step, 1.0, 1.0)
    assert guard.fault(13.0, 1.0) == before
    guard.applied(WINDOW, 1.0, 1.0)
    assert guard.fault(13.0, 1.0) != before


def test_a_step_that_is_refused_again_takes_the_run_back_and_then_goes():
    guard = settled()
    assert guard.remedy(100) == Remedy(back=True)
    assert guard.remedy(100) == Remedy(skip=range(100, 101))


def test_another_step_takes_the_run_back_once_more():
    guard = settled()
    assert guard.remedy(100) == Remedy(back=True)
    assert guard.remedy(140) == Remedy(back=True)
    assert guard.remedy(140) == Remedy(skip=range(140, 141))


def test_trouble_behind_what_is_left_out_takes_ever_more_of_what_came_before():
    guard, found = settled(), []
    for step in (100, 100, 101, 102, 103):
        remedy = guard.remedy(step)
        guard.skipped |= set(remedy.skip)
        found.append((remedy.back, sorted(guard.skipped)))
    assert found == [
        (True, []),
        (False, [100]),
        (True, list(range(99, 102))),
        (True, list(range(96, 103))),
        (True, list(range(89, 104))),
    ]
    assert guard.remedy(104) == Remedy()  # four returns to one checkpoint
    guard.saved(105)
    assert guard.remedy(103 + NEAR).skip
    assert guard.remedy(104 + NEAR) == Remedy(back=True)  # far enough to be other trouble


def test_trouble_behind_what_is_left_out_is_not_gone_back_for_once_more_in_vain():
    """Also where the step has been gone back for before."""
    guard = settled()
    assert guard.remedy(101) == Remedy(back=True)
    assert guard.remedy(100) == Remedy(back=True)
    assert guard.remedy(100) == Remedy(skip=range(100, 101))
    guard.skipped.add(100)
    assert guard.remedy(101) == Remedy(back=True, skip=range(99, 102))


def test_a_checkpoint_lets_the_count_begin_anew():
    guard = settled(rollbacks=2)
    assert guard.remedy(100).back
    assert guard.remedy(150).back
    assert guard.remedy(200) == Remedy()
    guard.saved(150)  # of steps before the last that made trouble
    assert guard.remedy(200) == Remedy()
    guard.saved(151)
    assert guard.remedy(200).back
    guard.saved(201)
    assert guard.remedy(200).back  # and what was tried before it is forgotten


def test_without_rollbacks_nothing_helps():
    assert settled(rollbacks=0).remedy(7) == Remedy()
